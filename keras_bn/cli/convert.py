"""`keras-bn convert`: a Keras model becomes one `.tflite` file, checked against it."""

from __future__ import annotations

from typing import Any

import click

from keras_bn.cli.models import MODES, load, model_options
from keras_bn.cli.terminal import Terminal, output_options


def batch_size(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """A number, or None for "any"."""
    if value == "any":
        return None
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"expected a positive number or 'any', received {value!r}")
    return int(value)


@click.command(short_help="Convert a Keras model to a checked .tflite file.")
@model_options
@click.option("-o", "--output", required=True, metavar="OUT.tflite", help="File to write.")
@click.option(
    "--quantize",
    type=click.Choice(MODES),
    default="none",
    show_default=True,
    help="float16, dynamic: weights only. int8, int16x8: activations too, by --calibration.",
)
@click.option(
    "--calibration",
    metavar="DATA.npz",
    help="Samples like those the model will meet (.npz by input name, or .npy).",
)
@click.option(
    "--random-calibration",
    is_flag=True,
    help="Calibrate on random numbers: size and speed will be right, accuracy will not.",
)
@click.option("--data", metavar="DATA.npz", help="Samples to compare on. [default: calibration]")
@click.option(
    "--io-dtype",
    type=click.Choice(["float32", "int8", "uint8", "int16"]),
    default="float32",
    show_default=True,
    help="Dtype of the file's inputs and outputs.",
)
@click.option(
    "--batch-size",
    default="1",
    show_default=True,
    callback=batch_size,
    metavar="N|any",
    help="A free batch size costs speed.",
)
@click.option("--fold/--no-fold", default=True, show_default=True, help="Fold normalizations.")
@click.option("--explain", is_flag=True, help="Print where each normalization went, or why not.")
@click.option(
    "--recurrent",
    type=click.Choice(["auto", "loop"]),
    default="auto",
    show_default=True,
    help="Form of recurrent layers.",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="SHARE",
    help="Largest error allowed, as a share of the output's largest value. "
    "[default: 0.001 for none, 0.05 for float16, any finite for the rest]",
)
@click.option("--allow-float", is_flag=True, help="Accept float operations in an integer file.")
@click.option(
    "--allow-flex", is_flag=True, help="Accept operations that need TensorFlow's kernels."
)
@output_options
def convert(
    model: str,
    imports: tuple[str, ...],
    output: str,
    calibration: str | None,
    random_calibration: bool,
    explain: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Convert MODEL (.keras or .h5) to a .tflite file and check the file against the model.

    \b
    Examples:
      keras-bn convert model.keras -o model.tflite
      keras-bn convert model.keras -o model.tflite --quantize int8 --calibration data.npz
    """
    if calibration and random_calibration:
        raise click.UsageError("--calibration and --random-calibration exclude one another")
    with Terminal(json=as_json, verbose=verbose) as terminal:
        with terminal.steps() as step:
            from keras_bn.convert.process import ConverterProcess
            from keras_bn.files import require_writable

            require_writable(output)
            # Its import of TensorFlow overlaps with ours.
            with ConverterProcess(verbose=verbose) as process:
                step(f"load {model}")
                loaded = load(model, imports)

                from keras_bn.cli.environment import versions
                from keras_bn.pipeline import convert as convert_model
                from keras_bn.quantize.calibration import random_calibration as make_up
                from keras_bn.report.results import ModelSummary, document

                conversion = convert_model(
                    loaded,
                    output,
                    calibration=make_up(loaded) if random_calibration else calibration,
                    process=process,
                    progress=step,
                    verbose=verbose,
                    **options,
                )

        from keras_bn.cli.tables import (
            comparison_table,
            conversion_table,
            fold_summary,
            plan_tables,
        )
        from keras_bn.report.quantities import size

        terminal.print(conversion_table(conversion))
        if conversion.comparison:
            terminal.print(comparison_table(conversion.comparison))
        if conversion.fold:
            terminal.print(*(plan_tables(conversion.fold) if explain else []))
            terminal.print(fold_summary(conversion.fold))
        if random_calibration:
            terminal.print("warning: calibrated on random numbers; the errors above mean nothing")
        terminal.print(f"wrote {output} ({size(conversion.size_bytes)})")
        summary = ModelSummary(loaded.name, loaded.count_params(), len(loaded.layers))
        terminal.emit(
            document(
                title=loaded.name,
                environment=versions(),
                model=summary,
                conversions=[conversion],
            )
        )
