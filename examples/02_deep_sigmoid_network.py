"""A deep sigmoid network on digits, with and without batch normalization.

The slope of a sigmoid is at most a quarter, so that each layer leaves less of the gradient to those
before it. Six hidden layers with Keras's default initializer learn nothing at any learning rate
from 0.01 to 10. The same network with a batch normalization before each sigmoid learns at all of
them. From a poor start, weights 40 times as large, it learns as well, if more slowly at the small
rates; the plain network hardly gets anywhere from there.

`keras_bn.callbacks.NormalizationMonitor` sends a few samples through the network and back after
each epoch. From what it measured the figure shows where the activations of the first and the last
hidden layer lie, and how long the gradient is at each layer. What it has to say is printed.

    python examples/02_deep_sigmoid_network.py [--quick] [--output FOLDER]
"""

from itertools import product
from pathlib import Path

import click
import keras
from keras import layers
from matplotlib.figure import Figure

import keras_bn
from keras_bn.demo import load_digits

DEPTH = 6
WIDTH = 64
# Glorot's uniform weights have a standard deviation of √(2/(64 + 64)) = 0.125 here.
INITIALIZERS = {
    "Glorot": lambda: "glorot_uniform",
    "poor start": lambda: keras.initializers.RandomNormal(stddev=5.0),
}
MONITORED_RATE = 1.0
# Vermillion and blue of Okabe and Ito's palette for colour-blind readers.
COLOURS = {"without": "#D55E00", "with": "#0072B2"}
LINES = {"Glorot": "o-", "poor start": "s--"}


def network(normalized, initializer, rate):
    steps = []
    for _ in range(DEPTH):
        steps.append(layers.Dense(WIDTH, kernel_initializer=initializer()))
        if normalized:
            # 0.9, since the shortest training has 80 batches.
            steps.append(keras_bn.layers.BatchNormalization(momentum=0.9))
        steps.append(layers.Activation("sigmoid"))
    model = keras.Sequential([keras.Input((WIDTH,)), *steps, layers.Dense(10, "softmax")])
    model.compile(
        optimizer=keras.optimizers.SGD(rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def train(normalized, initializer, rate, epochs, digits):
    """The test accuracy at the end, per cent, and the monitor that watched."""
    keras.utils.set_random_seed(0)
    model = network(normalized, initializer, rate)
    images = digits.train_images.reshape(-1, WIDTH)
    monitor = keras_bn.callbacks.NormalizationMonitor((images, digits.train_labels), warn=False)
    watched = rate == MONITORED_RATE and initializer is INITIALIZERS["Glorot"]
    model.fit(
        images,
        digits.train_labels,
        batch_size=64,
        epochs=epochs,
        callbacks=[monitor] if watched else [],
        verbose=0,
    )
    test_set = digits.test_images.reshape(-1, WIDTH), digits.test_labels
    return 100 * model.evaluate(*test_set, verbose=0)[1], monitor


def draw_activations(axes, monitors, layer):
    """Median, and from the 5th to the 95th percentile, of a layer's sigmoids by epoch."""
    for name, monitor in monitors.items():
        measurements = monitor.measurements
        epochs = [each.epoch for each in measurements]
        activations = [list(each.layers.values())[layer].activation for each in measurements]
        low, middle, high = (
            [each.quantile(share) for each in activations] for share in (0.05, 0.5, 0.95)
        )
        axes.fill_between(epochs, low, high, color=COLOURS[name], alpha=0.25, linewidth=0)
        axes.plot(epochs, middle, color=COLOURS[name], label=f"{name} normalization")
    axes.set(xlabel="epoch", ylabel="sigmoid (median, 5 to 95 %)", ylim=(0, 1))
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw(accuracies, monitors, path):
    figure = Figure(figsize=(11, 8), layout="constrained")
    (first, last), (gradients, rates) = figure.subplots(2, 2)

    draw_activations(first, monitors, 0)
    first.set_title("Activations of the first hidden layer")
    first.legend(loc="upper center", ncols=2)
    draw_activations(last, monitors, -1)
    last.set_title("Activations of the last hidden layer")

    for name, monitor in monitors.items():
        for measurement, line in ((monitor.measurements[0], ":"), (monitor.measurements[-1], "-")):
            norms = [each.gradient_norm for each in measurement.layers.values()]
            when = f"after epoch {measurement.epoch}" if measurement.epoch else "before training"
            gradients.semilogy(
                range(1, 1 + DEPTH), norms, f"o{line}", color=COLOURS[name], label=f"{name}, {when}"
            )
    gradients.set(
        title="Gradients",
        xlabel="hidden layer, from input to output",
        ylabel="norm of the loss's gradient by the layer's output",
    )
    gradients.legend()

    for (normalized, start), by_rate in accuracies.items():
        rates.plot(
            list(by_rate),
            list(by_rate.values()),
            LINES[start],
            color=COLOURS[normalized],
            label=f"{normalized} normalization, {start}",
        )
    rates.set(
        title="Test accuracy by learning rate, %",
        xlabel="learning rate",
        xscale="log",
        ylim=(0, 104),
    )
    rates.set_xticks(list(by_rate), [f"{rate:g}" for rate in by_rate])
    rates.minorticks_off()
    rates.legend()

    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--quick", is_flag=True, help="One learning rate and four epochs.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
def main(quick, output):
    rates, epochs = ((1.0,), 4) if quick else ((0.01, 0.1, 1.0, 10.0), 15)
    digits = load_digits()

    accuracies, monitors = {}, {}
    for normalized, start in product(COLOURS, INITIALIZERS):
        accuracies[normalized, start] = {}
        for rate in rates:
            accuracy, monitor = train(
                normalized == "with", INITIALIZERS[start], rate, epochs, digits
            )
            accuracies[normalized, start][rate] = accuracy
            if monitor.measurements:
                monitors[normalized] = monitor

    for name, monitor in monitors.items():
        words = {finding.message for _, finding in monitor.findings[:1]} or {"nothing to report"}
        print(f"The monitor, {name} normalization: {' '.join(words)}")
    print(f"Test accuracy after {epochs} epochs, per cent, by learning rate:")
    print(f"{'normalization, start':20}", *(f"{rate:5g}" for rate in rates), sep="  ")
    for names, by_rate in accuracies.items():
        values = (f"{accuracy:5.1f}" for accuracy in by_rate.values())
        print(f"{', '.join(names):20}", *values, sep="  ")
    draw(accuracies, monitors, output / "02_deep_sigmoid_network.png")


if __name__ == "__main__":
    main()
