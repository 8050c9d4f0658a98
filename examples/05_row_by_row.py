"""Digits read row by row: a layer-normalised LSTM beside a plain one with clipped gradients.

Each image is a sequence of eight rows with eight pixels. The same network is trained at learning
rates from too small to too large, with four recurrent layers:

- Keras's LSTM;
- the same with `clipnorm=1`: no weight's gradient is longer than 1;
- the same with `clipvalue=0.1`: no element of a gradient is larger than 0.1;
- `keras_bn.layers.LayerNormLSTM`, which normalizes what enters its gates at each step, for each
  sample by itself, so that nothing has to be clipped.

Clipping and normalization help at opposite ends. At small rates gradients are short, clipping has
nothing to do, and the normalised network is far ahead of the others. At the largest rate the plain
LSTM fails, clipping saves much of it, and normalization does not. In between, at the rate that
suits the plain LSTM best, there is little to choose between the four.

    python examples/05_row_by_row.py [--quick] [--output FOLDER]
"""

from pathlib import Path

import click
import keras
from keras import layers
from matplotlib.figure import Figure

import keras_bn
from keras_bn.demo import load_digits

NETWORKS = {
    "LSTM": (layers.LSTM, {}),
    "LSTM, clipnorm": (layers.LSTM, {"clipnorm": 1.0}),
    "LSTM, clipvalue": (layers.LSTM, {"clipvalue": 0.1}),
    "LayerNormLSTM": (keras_bn.layers.LayerNormLSTM, {}),
}
# Okabe and Ito's palette for colour-blind readers.
STYLES = {
    "LSTM": {"color": "#D55E00", "marker": "o"},
    "LSTM, clipnorm": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "LSTM, clipvalue": {"color": "#56B4E9", "marker": "^", "linestyle": ":"},
    "LayerNormLSTM": {"color": "#0072B2", "marker": "D"},
}
SHOWN_RATE = 0.01  # whose accuracy by epoch is drawn


def train(recurrent_layer, clipping, rate, epochs, digits):
    """The test accuracy after each epoch, per cent."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8, 8)),
        recurrent_layer(64),
        layers.Dense(10, "softmax"),
    ])  # fmt: skip
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=0.9, **clipping),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    # (samples, 8, 8, 1) as sequences of eight steps and eight features
    history = model.fit(
        digits.train_images[..., 0],
        digits.train_labels,
        batch_size=64,
        epochs=epochs,
        validation_data=(digits.test_images[..., 0], digits.test_labels),
        verbose=0,
    ).history
    return [100 * value for value in history["val_accuracy"]]


def draw(accuracies, path):
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, by_rate in accuracies.items():
        final = [by_epoch[-1] for by_epoch in by_rate.values()]
        left.plot(list(by_rate), final, label=name, **STYLES[name])
        by_epoch = by_rate[SHOWN_RATE]
        right.plot(range(1, 1 + len(by_epoch)), by_epoch, label=name, **STYLES[name])
    left.set(
        title=f"After {len(by_epoch)} epochs",
        xlabel="learning rate",
        ylabel="test accuracy, %",
        xscale="log",
        ylim=(0, 104),
    )
    left.set_xticks(list(by_rate), [f"{rate:g}" for rate in by_rate])
    left.minorticks_off()
    right.set(title=f"Through the epochs, learning rate {SHOWN_RATE}", xlabel="epoch")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.axhline(10, color="0.6", linestyle=":")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.annotate("chance", (max(by_rate), 10), (0, -12), textcoords="offset points", ha="right")
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--quick", is_flag=True, help="Two learning rates and four epochs.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
def main(quick, output):
    rates, epochs = ((0.01, 3.0), 4) if quick else ((0.001, 0.01, 0.1, 1.0, 3.0), 10)
    digits = load_digits()
    accuracies = {
        name: {rate: train(*network, rate, epochs, digits) for rate in rates}
        for name, network in NETWORKS.items()
    }

    print(f"Test accuracy after {epochs} epochs, per cent, by learning rate:")
    print(f"{'':15}", *(f"{rate:5g}" for rate in rates), sep="  ")
    for name, by_rate in accuracies.items():
        final = [by_epoch[-1] for by_epoch in by_rate.values()]
        print(f"{name:15}", *(f"{value:5.1f}" for value in final), sep="  ")
    draw(accuracies, output / "05_row_by_row.png")


if __name__ == "__main__":
    main()
