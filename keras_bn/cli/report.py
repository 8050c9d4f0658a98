"""`keras-bn report`: draw a results.json."""

from __future__ import annotations

import click

from keras_bn.cli.terminal import Terminal, output_options


@click.command(short_help="Draw results as HTML, Markdown or CSV.")
@click.argument("results", metavar="RESULTS.json")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT.html|OUT.md|OUT.csv",
    help="File to write; its ending says what.",
)
@output_options
def report(results: str, output: str, as_json: bool, verbose: bool) -> None:
    """Draw RESULTS.json, which run, demo, bench, convert and fold write, as a report.

    HTML is one page with charts that needs no network, Markdown is for a pull request, and CSV
    has one row a measurement.

    \b
    Example:
      keras-bn report results.json -o report.html
    """
    from keras_bn.files import replacing
    from keras_bn.report.csv import render_csv
    from keras_bn.report.html import render_html
    from keras_bn.report.markdown import render_markdown
    from keras_bn.report.results import load

    formats = {"html": render_html, "md": render_markdown, "csv": render_csv}
    draw = formats.get(output.rpartition(".")[2].lower())
    if draw is None:
        raise click.BadParameter(
            f"expected a name ending in .html, .md or .csv, received {output!r}"
        )
    with Terminal(json=as_json, verbose=verbose) as terminal:
        drawn = draw(load(results))
        with replacing(output) as temporary:
            # RFC 4180 ends rows with both marks, whatever the system does.
            temporary.write_text(drawn, encoding="utf-8", newline="")
        terminal.print(f"wrote {output}")
        terminal.emit({"report": output})
