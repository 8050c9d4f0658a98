"""A Keras model with batch normalizations becomes checked, measured files, float32 and int8.

The normalizations fold into the convolutions before them. Each file that is converted is run beside
the Keras model, and how far apart the two are is printed as a signal-to-noise ratio. Then both
are timed on this machine, taking turns. The figure shows their sizes and their latencies.

    python examples/01_fold_convert_measure.py [--quick] [--output FOLDER]
"""

import tempfile
from pathlib import Path

import click
import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure

import keras_bn

# Blue and orange of Okabe and Ito's palette for colour-blind readers.
COLOURS = {"none": "#0072B2", "int8": "#E69F00"}


def network(channels):
    steps = []
    for _ in range(3):
        steps += [
            layers.Conv2D(channels, 3, use_bias=False),
            keras_bn.layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    steps += [layers.GlobalAveragePooling2D(), layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((32, 32, 3)), *steps])


def draw(sizes, latencies, path):
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = ["float32" if mode == "none" else mode for mode in sizes]
    kilobytes = [size / 1000 for size in sizes.values()]
    bars = left.barh(names, kilobytes, color=COLOURS.values())
    left.bar_label(bars, fmt="%.0f", padding=4)
    left.set(title="Size of the file", xlabel="kB")

    medians = [latency.median for latency in latencies.values()]
    # From the median to either end of its interval.
    ends = [np.abs(np.subtract(latency.ci95, latency.median)) for latency in latencies.values()]
    right.barh(names, medians, xerr=np.transpose(ends), capsize=4, color=COLOURS.values())
    right.set(title="Latency: median, and its 95 % interval", xlabel="ms")

    left.invert_yaxis()
    for axes in (left, right):
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer channels and runs.")
@click.option("--output", type=click.Path(path_type=Path), default=".", help="For the figure.")
def main(quick, output):
    channels, runs = (16, 20) if quick else (64, 200)
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(200, 32, 32, 3)).astype("float32")
    model = network(channels)
    keras_bn.update_bn(model, images)  # population statistics, as after training

    folded = keras_bn.fold(model)
    for each in folded.folded:
        print(f"{each.layer} folds into {each.into}")

    with tempfile.TemporaryDirectory() as folder:
        conversions = {
            mode: keras_bn.convert(
                model, Path(folder, f"{mode}.tflite"), quantize=mode, calibration=images
            )
            for mode in COLOURS
        }
        results = keras_bn.benchmark([each.path for each in conversions.values()], runs=runs)
    sizes = {mode: each.size_bytes for mode, each in conversions.items()}
    latencies = {mode: result.latency_ms for mode, result in zip(conversions, results, strict=True)}

    print(f"{'quantize':8}  {'size, kB':>8}  {'SNR, dB':>8}  {'latency, ms':>11}")
    for mode, conversion in conversions.items():
        size, snr = sizes[mode] / 1000, conversion.comparison.snr_db
        print(f"{mode:8}  {size:8.1f}  {snr:8.1f}  {latencies[mode].median:11.3f}")
    draw(sizes, latencies, output / "01_fold_convert_measure.png")


if __name__ == "__main__":
    main()
