"""`keras-bn demo`: the whole road once, on real data, with a network trained here."""

from __future__ import annotations

import click

from keras_bn.cli.run import Evaluation, Settings, make_folder, travel
from keras_bn.cli.terminal import Terminal, output_options


@click.command(short_help="Train on digits and go the whole road.")
@click.option(
    "-o",
    "--output",
    default="keras-bn-demo",
    show_default=True,
    metavar="FOLDER",
    help="Folder for all results.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data. [default: 30]")
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True)
@output_options
def demo(output: str, epochs: int | None, runs: int, as_json: bool, verbose: bool) -> None:
    """Train a small network on handwritten digits and take it down the whole road.

    Trains, folds, converts to float32, float16, dynamic and int8, compares each file with the
    Keras model on held-out digits, measures them, and writes a report.
    """
    with Terminal(json=as_json, verbose=verbose) as terminal:
        from keras_bn.convert.process import ConverterProcess
        from keras_bn.files import replacing

        folder = make_folder(output)
        with ConverterProcess(verbose=verbose) as process:
            with terminal.bar("start TensorFlow") as advance:
                from keras_bn.demo import EPOCHS, load_digits, train

                digits = load_digits()
                model = train(digits, epochs=epochs or EPOCHS, progress=advance)
            source = folder / "digits.keras"
            with replacing(source) as temporary:
                model.save(temporary)
            travel(
                model,
                source,
                folder,
                Settings(modes=("none", "float16", "dynamic", "int8"), runs=runs, warmup=20),
                calibration=digits.train_images,
                evaluation=Evaluation(digits.test_images, digits.test_labels),
                terminal=terminal,
                process=process,
            )
