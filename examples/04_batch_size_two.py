"""Batches of two: what the variance of two samples says about a population's.

Each normalization here follows a Dense layer, so that m, the number of elements in a channel's
statistics, is the batch size: 2. (After a convolution m counts the pixels as well; 2 images of 8×8
give m = 128, and none of this matters much.) Two networks on the digits, with one normalization and
with three, are trained with the same weights and four kinds of statistics for inference:

- biased: the moving average of σ²_B, as Keras's layer keeps it;
- unbiased: of σ²_B·m/(m − 1), which is twice as much;
- cumulative: the unbiased one, with equal weights for all batches (`momentum=None`);
- population: `keras_bn.update_bn`, the variance of everything the layer sees in training.

The variance of two independent samples about their own mean is on average half of the population's,
and the factor 2 of the unbiased estimate repairs that: in the first normalization it comes out
right. But two samples leave a normalization as each other's opposites (before its γ and β), so that
in the normalizations that follow they are not independent any more. There the biased estimate is
about right, and the unbiased one twice the truth. The cumulative average also remembers the
variances that the first, small weights gave. Only the population's variance, which is measured
afterwards and not extrapolated, is right in each place.

For the accuracy the factor matters less than its place in the figure suggests: biased, unbiased and
population's differ by no more than the seeds do. The cumulative average falls behind with three.

    python examples/04_batch_size_two.py [--quick] [--output FOLDER]
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

BATCH_SIZE = 2
# One layer for all three, so that the same operations are run and the same weights are learnt.
STATISTICS = {
    "biased": partial(keras_bn.layers.BatchNormalization, unbiased=False),
    "unbiased": keras_bn.layers.BatchNormalization,
    "cumulative": partial(keras_bn.layers.BatchNormalization, momentum=None),
}
# Okabe and Ito's palette for colour-blind readers.
STYLES = {
    "biased": {"color": "#D55E00", "marker": "o"},
    "unbiased": {"color": "#0072B2", "marker": "s"},
    "cumulative": {"color": "#E69F00", "marker": "^"},
    "population": {"color": "#009E73", "marker": "D"},
}


def network(batch_normalization, depth):
    steps = []
    for _ in range(depth):
        steps += [layers.Dense(128, use_bias=False), batch_normalization(), layers.ReLU()]
    model = keras.Sequential([keras.Input((64,)), *steps, layers.Dense(10, "softmax")])
    model.compile(
        optimizer=keras.optimizers.SGD(1e-3, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
        steps_per_execution=50,  # such small steps take less time than Python between them
    )
    return model


def moving_variances(model):
    """The moving variance of each normalization, averaged over its channels."""
    return [
        float(convert_to_numpy(layer.moving_variance).mean())
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization)
    ]


def measure(depth, seed, epochs, digits):
    """By statistics: the test accuracy, per cent, and each normalization's moving variance."""
    pairs = len(digits.train_images) // BATCH_SIZE * BATCH_SIZE  # no last batch of one sample
    images = digits.train_images.reshape(-1, 64)[:pairs]
    labels = digits.train_labels[:pairs]
    test_set = digits.test_images.reshape(-1, 64), digits.test_labels

    measured = {}
    for name, batch_normalization in STATISTICS.items():
        keras.utils.set_random_seed(seed)
        model = network(batch_normalization, depth)
        model.fit(images, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
        accuracy = 100 * model.evaluate(*test_set, batch_size=64, verbose=0)[1]
        measured[name] = accuracy, moving_variances(model)

    keras_bn.update_bn(model, images, batch_size=BATCH_SIZE)
    accuracy = 100 * model.evaluate(*test_set, batch_size=64, verbose=0)[1]
    return {**measured, "population": (accuracy, moving_variances(model))}


def draw(accuracies, ratios, path):
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])

    # Every seed is a dot and their mean a line: with so few of them a bar would hide the spread.
    for column, depth in enumerate(accuracies):
        for place, (name, values) in enumerate(accuracies[depth].items()):
            at = 5 * column + place
            spread = at + 0.08 * (np.arange(len(values)) - (len(values) - 1) / 2)
            left.plot(spread, values, linestyle="none", alpha=0.7, label=name, **STYLES[name])
            left.hlines(np.mean(values), at - 0.3, at + 0.3, color=STYLES[name]["color"])
    left.set(
        title="The same weights, four statistics: accuracy in inference",
        ylabel="test accuracy, % (a dot for each seed)",
    )
    left.set_xticks(
        [5 * column + 1.5 for column in range(len(accuracies))],
        [normalizations(depth) for depth in accuracies],
    )
    handles, names = left.get_legend_handles_labels()
    left.legend(handles[: len(STYLES)], names[: len(STYLES)])

    for name, values in ratios.items():
        right.plot(range(1, 1 + len(values)), values, label=name, **STYLES[name])
    right.set(
        title="Where the variances come out",
        xlabel="normalization, from input to output",
        ylabel="moving variance ÷ population's",
        yscale="log",
        ylim=(0.4, 2.5),
    )
    right.set_yticks([0.5, 1, 2], ["½", "1", "2"])
    right.minorticks_off()
    right.set_xticks(range(1, 1 + len(values)))
    right.legend(loc="lower right")

    for axes in (left, right):
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def normalizations(depth):
    return f"{depth} normalization{'s' * (depth > 1)}"


@click.command()
@click.option("--quick", is_flag=True, help="One depth, one seed and two epochs.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
def main(quick, output):
    depths, seeds, epochs = ((3,), 1, 2) if quick else ((1, 3), 5, 4)
    digits = load_digits()

    accuracies, variances = {}, {}
    for depth in depths:
        runs = [measure(depth, seed, epochs, digits) for seed in range(seeds)]
        accuracies[depth] = {name: [run[name][0] for run in runs] for name in STYLES}
        variances[depth] = {
            name: np.mean([run[name][1] for run in runs], axis=0) for name in STYLES
        }
    ratios = {name: variances[3][name] / variances[3]["population"] for name in STYLES}

    print(f"Test accuracy in per cent (mean ± standard deviation over {seeds} seeds) by the number")
    print("of normalizations, and with three how far their moving variances are off:")
    columns = *map(normalizations, depths), "first ÷ true", "third ÷ true"
    print(f"{'statistics':10}", *columns, sep="  ")
    for name in STYLES:
        cells = [
            f"{np.mean(accuracies[depth][name]):.1f} ± {np.std(accuracies[depth][name]):.1f}"
            for depth in accuracies
        ]
        cells += [f"{ratios[name][0]:.2f}", f"{ratios[name][2]:.2f}"]
        aligned = [f"{cell:>{len(column)}}" for cell, column in zip(cells, columns, strict=True)]
        print(f"{name:10}", *aligned, sep="  ")
    draw(accuracies, ratios, output / "04_batch_size_two.png")


if __name__ == "__main__":
    main()
