"""Two devices, each with its half of every batch: whose mean and variance is it?

The first half of each batch holds zeros to fours, the second half fives to nines, as when a
pipeline reads two files in turn. `tf.distribute.MirroredStrategy` gives each replica one half.

- By default each replica normalizes by the statistics of its own half. Training then never sees
  what inference will compute: the moving variance is the mean of the variances within the halves,
  and what lies between the halves is in none of them.
- With `synchronized=True` the replicas add up their sums, and the statistics are those of the whole
  batch: the same training as on one device, within rounding.

    python examples/06_many_devices.py [--quick] [--output FOLDER]

The two devices here are halves of this CPU.
"""

import os
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure

os.environ["KERAS_BACKEND"] = "tensorflow"  # tf.distribute is TensorFlow's

import keras
import tensorflow as tf
from keras import layers

import keras_bn
from keras_bn.demo import load_digits

BATCH_SIZE = 64
APART = "two devices, each by itself"
SYNCHRONIZED = "two devices, synchronized"
ONE_DEVICE = "one device"
# Black, orange and blue of Okabe and Ito's palette for colour-blind readers.
STYLES = {
    ONE_DEVICE: {"color": "0.3", "marker": "o", "fillstyle": "none"},
    APART: {"color": "#E69F00", "marker": "."},
    SYNCHRONIZED: {"color": "#0072B2", "marker": "+"},
}


def two_devices():
    """A strategy over two devices made of this CPU; before TensorFlow uses it."""
    processor = tf.config.list_physical_devices("CPU")[0]
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(processor, halves)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def batches_of_two_kinds(digits):
    """Batches whose first half holds other digits than the second."""
    low = digits.train_labels < 5
    size = BATCH_SIZE // 2
    enough = min(low.sum(), (~low).sum()) // size * size

    def interleaved(array):
        halves = (array[kind][:enough].reshape(-1, size, *array.shape[1:]) for kind in (low, ~low))
        return np.concatenate(list(halves), axis=1).reshape(-1, *array.shape[1:])

    arrays = interleaved(digits.train_images), interleaved(digits.train_labels)
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH_SIZE)


def network(synchronized):
    def normalization():
        return keras_bn.layers.BatchNormalization(momentum=0.9, synchronized=synchronized)

    return keras.Sequential([
        keras.Input((8, 8, 1)),
        layers.Conv2D(16, 3, use_bias=False),
        normalization(),
        layers.ReLU(),
        layers.Conv2D(32, 3, use_bias=False),
        normalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10),
    ])  # fmt: skip


def train(strategy, synchronized, digits, epochs):
    """After each epoch the test accuracy, per cent, and the moving statistics."""
    keras.utils.set_random_seed(0)
    with nullcontext() if strategy is None else strategy.scope():
        model = network(synchronized)
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,  # XLA cannot add up over replicas
        )
    test_set = tf.data.Dataset.from_tensor_slices((digits.test_images, digits.test_labels))
    by_epoch = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: by_epoch.append(statistics(model))
    )
    history = model.fit(
        batches_of_two_kinds(digits),
        epochs=epochs,
        validation_data=test_set.batch(BATCH_SIZE),
        shuffle=False,
        callbacks=[keep],
        verbose=0,
    ).history
    return [100 * value for value in history["val_accuracy"]], by_epoch


def statistics(model):
    """Moving means and variances of all normalizations, one array each."""
    normalizations = [
        layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)
    ]
    return [
        np.concatenate([getattr(layer, name).numpy() for layer in normalizations])
        for name in ("moving_mean", "moving_variance")
    ]


def distances(found, expected):
    """The largest distance of a mean, and of a variance."""
    return [abs(one - other).max() for one, other in zip(found, expected, strict=True)]


def draw(accuracies, measured, path):
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, style in STYLES.items():
        _, variance = measured[name][-1]
        left.plot(variance, label=name, linestyle="", **style)
        epochs = range(1, 1 + len(accuracies[name]))
        middle.plot(epochs, accuracies[name], label=name, **style)
        if name != ONE_DEVICE:
            pairs = zip(measured[name], measured[ONE_DEVICE], strict=True)
            right.plot(epochs, [max(distances(*pair)) for pair in pairs], label=name, **style)
    left.set(title="Moving variance of each channel", xlabel="channel", yscale="log")
    middle.set(title="Test accuracy in inference, %", xlabel="epoch")
    right.set(title="Largest distance from one device", xlabel="epoch", yscale="log")
    left.legend()
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--quick", is_flag=True, help="Two epochs.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
def main(quick, output):
    epochs = 2 if quick else 10
    digits = load_digits()
    strategy = two_devices()
    accuracies, measured = {}, {}
    for name, devices, synchronized in (
        (ONE_DEVICE, None, False),
        (APART, strategy, False),
        (SYNCHRONIZED, strategy, True),
    ):
        accuracies[name], measured[name] = train(devices, synchronized, digits, epochs)

    print(f"{'':28}  largest distance from one device")
    print(f"{'':28}  {'first epoch':>11}  {'last epoch':>10}  {'test accuracy, %':>16}")
    for name, by_epoch in measured.items():
        first, last = (max(distances(by_epoch[n], measured[ONE_DEVICE][n])) for n in (0, -1))
        print(f"{name:28}  {first:11.1e}  {last:10.1e}  {accuracies[name][-1]:16.1f}")
    draw(accuracies, measured, output / "06_many_devices.png")


if __name__ == "__main__":
    main()
