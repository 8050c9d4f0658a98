"""report.html: one file that needs no network, drawn from the results document alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from keras_bn.report import planes, quantities, schema, selection, strips, summary, tables


def render_html(document: dict[str, Any]) -> str:
    """The whole page as text, with its style, script and charts inside.

    Args:
        document: As `results.document` or `results.load` gives it. Names in it are data: markup
            in them is shown, not obeyed.

    Raises:
        ValueError: it is not a results document.

    Example:
        >>> from keras_bn.report.results import document
        >>> page = render_html(document(title="Empty", environment={}))
        >>> page.startswith("<!doctype html>")
        True
    """
    schema.check(document)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_bn.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("size", "thousands", "percent", "factor", "decibel", "scientific"):
        environment.filters[name] = getattr(quantities, name)
    folded, kept = tables.folding(document)
    return environment.get_template("report.html").render(
        document=document,
        sentences=summary.sentences(document),
        created=tables.moment(document["created"]),
        colours=selection.colours(document),
        strips=strips.strips(document),
        quality_planes=planes.quality_planes(document),
        thread_planes=planes.thread_planes(document),
        view_box=f"0 0 {planes.WIDTH} {planes.HEIGHT}",
        frame={
            "left": planes.LEFT,
            "right": planes.WIDTH - planes.RIGHT,
            "top": planes.TOP,
            "bottom": planes.HEIGHT - planes.BOTTOM,
            "width": planes.WIDTH,
            "height": planes.HEIGHT,
        },
        overview=tables.overview(document),
        latency=tables.latency(document),
        loading=tables.loading(document),
        speedups=tables.speedups(document),
        folded=folded,
        kept=kept,
        operations=tables.operations(document),
        outputs=tables.outputs(document),
        machines=tables.machines(document),
        warnings=tables.warnings(document),
        absent=absent(document),
    )


def absent(document: Mapping[str, Any]) -> list[str]:
    """The parts that this document has no results of."""
    parts = {"model": "the Keras model", "fold": "folding"}
    lists = {"conversions": "conversions", "benchmarks": "latency"}
    return [words for key, words in (parts | lists).items() if not document[key]]
