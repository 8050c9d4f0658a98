"""`keras-bn compare`: how far one model is from another on the same data."""

from __future__ import annotations

import math

import click

from keras_bn.cli.models import import_modules
from keras_bn.cli.terminal import Terminal, output_options


@click.command(short_help="Compare two models on the same data.")
@click.argument("reference")
@click.argument("candidate")
@click.option("--data", metavar="DATA.npz", help="Samples to compare on. [default: random ones]")
@click.option("--samples", type=click.IntRange(min=1), help="At most this many.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="SHARE",
    help="Exit 1 if an error is larger, as a share of the output's largest value.",
)
@click.option("--min-snr", type=float, metavar="DB", help="Exit 1 if the SNR is lower.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Exit 1 if fewer samples have the same top-1 class.",
)
@click.option(
    "--import", "imports", multiple=True, metavar="MODULE", help="Module of custom layers."
)
@output_options
def compare(
    reference: str,
    candidate: str,
    data: str | None,
    samples: int | None,
    tolerance: float | None,
    min_snr: float | None,
    min_agreement: float | None,
    imports: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Compare CANDIDATE with REFERENCE: each a .keras, .h5 or .tflite file.

    \b
    Example:
      keras-bn compare model.keras model.tflite --data test.npz --min-snr 30
    """
    with Terminal(json=as_json, verbose=verbose) as terminal:
        with terminal.steps() as step:
            step("compare")
            import_modules(imports)
            from keras_bn.cli.tables import comparison_table
            from keras_bn.compare.api import compare as compare_models
            from keras_bn.report.results import comparison_to_json

            comparison = compare_models(reference, candidate, data, samples=samples)

        relative, snr = comparison.relative_error, comparison.snr_db
        agreement = comparison.top1_agreement
        shortfalls = []
        if math.isinf(comparison.max_abs_error):
            shortfalls.append("one of the two has NaN or infinite outputs where the other has not")
        if tolerance is not None and relative > tolerance:
            shortfalls.append(f"the relative error {relative:.3g} is above {tolerance:g}")
        if min_snr is not None and snr < min_snr:
            shortfalls.append(f"the SNR {snr:.1f} dB is below {min_snr:g} dB")
        if min_agreement is not None and (agreement is None or agreement < min_agreement):
            found = "not defined" if agreement is None else f"{agreement:.4f}"
            shortfalls.append(f"the top-1 agreement is {found}, asked for {min_agreement:g}")
        terminal.print(comparison_table(comparison), *(f"falls short: {s}" for s in shortfalls))
        terminal.emit(
            {
                "reference": reference,
                "candidate": candidate,
                "comparison": comparison_to_json(comparison),
                "falls_short": shortfalls,
            }
        )
    raise SystemExit(1 if shortfalls else 0)
