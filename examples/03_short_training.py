"""A short training at Keras's default momentum of 0.99: learnt, and useless in inference.

The moving statistics begin at 0 and 1, and each batch moves them by one hundredth towards its own.
After 12 epochs of 20 batches 0.99²⁴⁰ = 9 % of what they hold is still the initial value. Beside a
variance of 1 that would be little. In the depthwise-separable network below it makes the variances
after the first convolution and after the depthwise ones several times too large.

The network is trained three times from the same seed. Training looks at batch statistics alone, so
all three learn the same weights up to rounding, and differ in the statistics kept for inference:

- Keras's layer, momentum 0.99;
- `debias=True`: no batch weighs less than an equal share, so that nothing initial is left;
- `momentum=None`: all batches weigh the same, to the end.

`keras_bn.update_bn` repairs the first of them afterwards: it measures the population's statistics
in one pass over the training set. Here it does so after each epoch, on a copy.

    python examples/03_short_training.py [--quick] [--output FOLDER]
"""

from functools import partial
from pathlib import Path

import click
import keras
import numpy as np
from keras import layers
from keras.ops import convert_to_numpy
from matplotlib.figure import Figure

import keras_bn
from keras_bn.demo import load_digits

BATCH_SIZE = 64
STATISTICS = {
    "Keras's layer": layers.BatchNormalization,
    "debias=True": partial(keras_bn.layers.BatchNormalization, debias=True),
    "momentum=None": partial(keras_bn.layers.BatchNormalization, momentum=None),
}
POPULATION = "Keras's layer, then update_bn"
# Vermillion, blue, orange and bluish green of Okabe and Ito's palette for colour-blind readers.
STYLES = {
    "Keras's layer": {"color": "#D55E00", "marker": "o"},
    "debias=True": {"color": "#0072B2", "marker": "s"},
    "momentum=None": {"color": "#E69F00", "marker": "^", "linestyle": "--"},
    POPULATION: {"color": "#009E73", "marker": "D"},
}


def network(batch_normalization, blocks):
    """A depthwise-separable network with a normalization after each convolution."""
    steps = [layers.Conv2D(32, 3, padding="same", use_bias=False), batch_normalization()]
    for block in range(blocks):
        steps += [
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", use_bias=False),
            batch_normalization(),
            layers.ReLU(),
            layers.Conv2D(64, 1, use_bias=False),
            batch_normalization(),
        ]
        if block == 0:
            steps.append(layers.MaxPooling2D())
    steps += [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((8, 8, 1)), *steps])


def compiled(model):
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # XLA runs depthwise convolutions several times slower on a CPU
    )
    return model


class Population(keras.callbacks.Callback):
    """Keeps a copy of the model whose statistics are the population's, anew after each epoch."""

    def __init__(self, model, digits):
        super().__init__()
        self.copy = compiled(keras.models.clone_model(model))
        self.digits = digits
        self.accuracies = []

    def on_epoch_end(self, epoch, logs=None):
        self.copy.set_weights(self.model.get_weights())
        keras_bn.update_bn(self.copy, self.digits.train_images, batch_size=BATCH_SIZE)
        self.accuracies.append(
            accuracy(self.copy, self.digits.test_images, self.digits.test_labels)
        )


def accuracy(model, images, labels):
    """In inference, per cent."""
    return 100 * model.evaluate(images, labels, verbose=0)[1]


def train(model, digits, epochs, callbacks):
    """The test accuracy after each epoch, per cent."""
    history = model.fit(
        digits.train_images,
        digits.train_labels,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(digits.test_images, digits.test_labels),
        callbacks=callbacks,
        verbose=0,
    ).history
    return [100 * value for value in history["val_accuracy"]]


def moving_variances(model):
    """For each normalization in turn, the moving variance of its channels."""
    return [
        convert_to_numpy(layer.moving_variance)
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization)
    ]


def draw(by_epoch, ratios, path):
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)

    for name, values in by_epoch.items():
        left.plot(range(1, 1 + len(values)), values, label=name, **STYLES[name])
    left.axhline(10, color="0.6", linestyle=":")
    left.annotate("chance", (len(values), 10), (0, 4), textcoords="offset points", ha="right")
    left.set(
        title="The same weights, four statistics: accuracy in inference",
        xlabel="epoch",
        ylabel="test accuracy, %",
        ylim=(0, 104),
    )
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="center right")

    # The peaks are where the variances are smallest, so that what is left of the 1 weighs most.
    for name, values in ratios.items():
        right.plot(range(1, 1 + len(values)), values, label=name, **STYLES[name])
    right.axhline(1, color="0.6", linestyle=":")
    right.set(
        title="What of the initial 1 is left in the variances",
        xlabel="normalization after each convolution, from input to output",
        ylabel="moving variance ÷ population's (median channel)",
        yscale="log",
    )
    ticks = [1, 2, 5, 10, 20, 50]
    shown = [tick for tick in ticks if tick < 1.3 * max(map(max, ratios.values()))]
    right.set_yticks(shown, shown)
    right.minorticks_off()
    kinds = ["first", *["depth-\nwise", "point-\nwise"] * (len(values) // 2)]
    right.set_xticks(range(1, 1 + len(values)), kinds)

    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--quick", is_flag=True, help="A smaller network and 4 epochs.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
def main(quick, output):
    blocks, epochs = (2, 4) if quick else (4, 12)
    digits = load_digits()
    train_set = digits.train_images, digits.train_labels
    test_set = digits.test_images, digits.test_labels

    by_epoch, models = {}, {}
    for name, batch_normalization in STATISTICS.items():
        keras.utils.set_random_seed(0)
        models[name] = compiled(network(batch_normalization, blocks))
        population = Population(models[name], digits)
        callbacks = [population] if name == "Keras's layer" else []
        by_epoch[name] = train(models[name], digits, epochs, callbacks)
        if callbacks:
            by_epoch[POPULATION] = population.accuracies
            models[POPULATION] = population.copy

    print(f"Accuracy in inference after {epochs} epochs, per cent:")
    print(f"{'statistics':30}  {'training set':>12}  {'test set':>8}")
    for name, model in models.items():
        print(f"{name:30}  {accuracy(model, *train_set):12.1f}  {accuracy(model, *test_set):8.1f}")

    truth = moving_variances(models[POPULATION])
    ratios = {
        name: [
            np.median(kept / true)
            for kept, true in zip(moving_variances(models[name]), truth, strict=True)
        ]
        for name in STATISTICS
    }
    draw(by_epoch, ratios, output / "03_short_training.png")


if __name__ == "__main__":
    main()
