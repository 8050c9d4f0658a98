"""`keras-bn fold`: write a Keras model without its batch normalizations."""

from __future__ import annotations

import click

from keras_bn.cli.models import load, model_options
from keras_bn.cli.terminal import Terminal, output_options


@click.command(short_help="Remove batch normalizations from a Keras model.")
@model_options
@click.option("-o", "--output", metavar="OUT.keras", help="File to write.")
@click.option("--keep", multiple=True, metavar="LAYER", help="Leave this one alone; repeatable.")
@click.option(
    "--explain", is_flag=True, help="Print the whole plan; without -o nothing is written."
)
@output_options
def fold(
    model: str,
    imports: tuple[str, ...],
    output: str | None,
    keep: tuple[str, ...],
    explain: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Fold the batch normalizations of MODEL (.keras or .h5) into its other layers.

    \b
    Example:
      keras-bn fold model.keras -o folded.keras
      keras-bn fold model.keras --explain
    """
    if output is None and not explain:
        raise click.UsageError(
            "expected -o OUT.keras to write a file, or --explain to see the plan"
        )
    if output is not None and not output.endswith(".keras"):
        raise click.BadParameter(f"expected a name ending in .keras, received {output!r}")
    with Terminal(json=as_json, verbose=verbose) as terminal:
        with terminal.steps() as step:
            from keras_bn.files import replacing, require_writable

            if output is not None:
                require_writable(output)
            step(f"load {model}")
            loaded = load(model, imports)

            from keras_bn.cli.environment import versions
            from keras_bn.fold.api import fold as fold_batch_norm
            from keras_bn.report.results import ModelSummary, document

            step("fold")
            result = fold_batch_norm(loaded, keep=keep)
            if output is not None:
                step(f"write {output}")
                with replacing(output) as temporary:
                    result.model.save(temporary)

        from keras_bn.cli.tables import fold_summary, kept_tables, plan_tables

        terminal.print(*(plan_tables if explain else kept_tables)(result))
        terminal.print(fold_summary(result), *([f"wrote {output}"] if output is not None else []))
        summary = ModelSummary(loaded.name, loaded.count_params(), len(loaded.layers))
        terminal.emit(
            document(title=loaded.name, environment=versions(), model=summary, fold=result)
        )
