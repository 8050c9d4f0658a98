"""Normalizing sequences: statistics for each time step, or for each sample.

The digits are read row by row, eight steps of eight pixels. The fourth pixel has 0.74 of ink on
average in the first row, 0.44 in the third, and so on: one mean and variance for all steps would
fit few of them. Two layers take the steps apart:

- `BatchNormalization(axis=(1, 2))`, before an LSTM here, has a mean and a variance for each step
  and feature, taken over the samples;
- `LayerNormLSTM` has none to keep: it normalizes within each sample and step.

When not to use them, as the table and the messages show:

- Not statistics per step with batches of one. A sample is its own mean, so that the normalization
  leaves zeros, and nothing is learnt. LayerNormLSTM does not see what else is in the batch.
- Not statistics per step where sequences may be longer than those trained on: there are no
  statistics for the later steps, and the layer refuses them. LayerNormLSTM takes any length.
- Neither where the learning rate suits the plain LSTM, which then needs no help.

    python examples/08_sequence_statistics.py [--quick] [--output FOLDER]
"""

from pathlib import Path

import click
import keras
import numpy as np
from keras import layers
from keras.ops import convert_to_numpy
from matplotlib.figure import Figure

import keras_bn
from keras_bn.demo import load_digits

# Vermillion, bluish green and blue of Okabe and Ito's palette for colour-blind readers.
COLOURS = {"LSTM": "#D55E00", "statistics per step": "#009E73", "LayerNormLSTM": "#0072B2"}


def network(name):
    steps = {
        "LSTM": [keras.Input((None, 8)), layers.LSTM(64)],
        "statistics per step": [
            keras.Input((8, 8)),  # as many steps as there are statistics
            keras_bn.layers.BatchNormalization(axis=(1, 2), momentum=0.9),
            layers.LSTM(64),
        ],
        "LayerNormLSTM": [keras.Input((None, 8)), keras_bn.layers.LayerNormLSTM(64)],
    }
    return keras.Sequential([*steps[name], layers.Dense(10, "softmax")])


def train(name, digits, rate, batch_size, epochs, samples):
    """The trained network and its test accuracy, per cent."""
    keras.utils.set_random_seed(0)
    model = network(name)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    # (samples, 8, 8, 1) as sequences of eight steps and eight features
    images, labels = digits.train_images[:samples, ..., 0], digits.train_labels[:samples]
    model.fit(images, labels, batch_size=batch_size, epochs=epochs, verbose=0)
    test_set = digits.test_images[..., 0], digits.test_labels
    return model, 100 * model.evaluate(*test_set, verbose=0)[1]


def draw(statistics, accuracies, path):
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 2.2])

    mean = convert_to_numpy(statistics.moving_mean)
    deviation = np.sqrt(convert_to_numpy(statistics.moving_variance))
    for axes, values, title in (
        (left, mean, "Moving mean"),
        (middle, deviation, "Moving deviation"),
    ):
        # "cividis" looks the same to colour-blind readers.
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, extent=(0.5, 8.5, 8.5, 0.5))
        axes.set(title=title, xlabel="feature (pixel)", ylabel="time step (row)")
    figure.colorbar(image, ax=[left, middle], shrink=0.7, label="ink, from 0 to 1")

    width = 0.27
    for place, (name, by_setting) in enumerate(accuracies.items()):
        at = np.arange(len(by_setting)) + (place - 1) * width
        bars = right.bar(at, by_setting.values(), width, color=COLOURS[name], label=name)
        right.bar_label(bars, fmt="%.0f")
    right.axhline(10, color="0.3", linestyle=":")
    right.set_xticks(range(len(by_setting)), list(by_setting))
    right.set(title="Test accuracy, % (dotted: chance)", ylim=(0, 125))
    right.set_yticks(range(0, 101, 20))
    right.legend(loc="upper center", ncols=3, frameon=False)

    right.grid(axis="y", alpha=0.25)
    right.set_axisbelow(True)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--quick", is_flag=True, help="One learning rate, and less training.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
def main(quick, output):
    epochs, samples = (4, 600) if quick else (12, None)
    settings = {
        "rate 0.03": {"rate": 0.03, "batch_size": 64, "epochs": epochs, "samples": None},
        "rate 1": {"rate": 1.0, "batch_size": 64, "epochs": epochs, "samples": None},
        "batches of one": {"rate": 0.003, "batch_size": 1, "epochs": 1, "samples": samples},
    }
    if quick:
        del settings["rate 1"]
    digits = load_digits()
    models, accuracies = {}, {name: {} for name in COLOURS}
    for name in COLOURS:
        for setting, arguments in settings.items():
            model, accuracies[name][setting] = train(name, digits, **arguments)
            models.setdefault(name, model)

    print("Test accuracy, per cent:")
    print(f"{'':20}", *settings, sep="  ")
    for name, by_setting in accuracies.items():
        values = (f"{value:{len(setting)}.1f}" for setting, value in by_setting.items())
        print(f"{name:20}", *values, sep="  ")

    longer = np.zeros((1, 12, 8), "float32")
    for name, model in models.items():
        try:
            print(f"12 steps, {name}: outputs of shape {model(longer).shape}")
        except ValueError:
            print(f"12 steps, {name}: refused, its statistics are those of 8 steps")
    statistics = models["statistics per step"].layers[0]
    draw(statistics, accuracies, output / "08_sequence_statistics.png")


if __name__ == "__main__":
    main()
