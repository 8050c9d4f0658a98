"""`keras-bn report`: draw a results.json."""

from __future__ import annotations

import click

from keras_bn.cli.terminal import Terminal, output_options


@click.command(short_help="Draw results as HTML or Markdown.")
@click.argument("results", metavar="RESULTS.json")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT.html|OUT.md",
    help="File to write; HTML or Markdown.",
)
@output_options
def report(results: str, output: str, as_json: bool, verbose: bool) -> None:
    """Draw RESULTS.json, which run, demo, bench, convert and fold write, as a report.

    \b
    Example:
      keras-bn report results.json -o report.html
    """
    from keras_bn.files import replacing
    from keras_bn.report.html import render_html
    from keras_bn.report.markdown import render_markdown
    from keras_bn.report.results import load

    draw = {"html": render_html, "md": render_markdown}.get(output.rpartition(".")[2])
    if draw is None:
        raise click.BadParameter(f"expected a name ending in .html or .md, received {output!r}")
    with Terminal(json=as_json, verbose=verbose) as terminal:
        with replacing(output) as temporary:
            temporary.write_text(draw(load(results)), encoding="utf-8")
        terminal.print(f"wrote {output}")
        terminal.emit({"report": output})
