"""report.html: one file that needs no network, drawn from the results document alone."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup, escape

from keras_bn.report import (
    baseline,
    converted,
    environment,
    folding,
    frontier,
    measured,
    microcontrollers,
    plane,
    quantities,
    scaling,
    schema,
    selection,
    strips,
    summary,
    texts,
    trade_offs,
)

# The style and the script of this page and nothing else: whatever a name might smuggle in does
# not run, and nothing is ever fetched.
POLICY = (
    "default-src 'none'; style-src {style}; script-src {script}; base-uri 'none'; "
    "form-action 'none'"
)
# After a mark that joins words, before the next word; an escaped character is not taken apart.
BREAKS = re.compile(r"(?<=[/@:._-])(?=[^\W_]|//)")


@dataclass(frozen=True)
class Charts:
    """What is drawn of one device."""

    strips: strips.Strips
    threads: plane.Plane | None


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
    document = texts.shown(document)
    templates = _templates()
    style, script = (_source(templates, name) for name in ("report.css", "report.js"))
    colours = selection.colours(document)
    fold = document["fold"]
    return templates.get_template("report.html").render(
        document=document,
        policy=POLICY.format(style=_hash(style), script=_hash(script)),
        style=style,
        script=script,
        sentences=summary.sentences(document),
        created=environment.moment(document["created"]),
        colours=colours,
        markers=plane.MARKERS,
        frame={
            "left": plane.LEFT,
            "right": plane.WIDTH - plane.RIGHT,
            "top": plane.TOP,
            "bottom": plane.BOTTOM,
            "width": plane.WIDTH,
        },
        overview=converted.overview(document),
        quantization=converted.quantization(document),
        outputs=converted.outputs(document),
        operations=converted.operations(document),
        planes=trade_offs.planes(document),
        frontiers=frontier.frontiers(document),
        changes=baseline.changes(document),
        unmatched=baseline.unmatched(document),
        devices=[
            (device, Charts(strips.strips(rows, colours), scaling.plane(rows, colours)))
            for device, (_, rows) in zip(
                measured.devices(document), selection.by_device(document["benchmarks"]), strict=True
            )
        ],
        micro=[
            table
            for part in (microcontrollers.fits, microcontrollers.reasons, microcontrollers.outputs)
            if (table := part(document)) is not None
        ],
        micro_versions=microcontrollers.versions(document),
        folded=fold and folding.gone(fold),
        kept=fold and folding.stayed(fold),
        others=fold and folding.others(fold),
        absent=absent(document),
    )


def breakable(text: str) -> Markup:
    """Names of files and devices, with places where a narrow screen may end a line.

    Example:
        >>> breakable("ssh://pi@board")
        Markup('ssh:<wbr>//<wbr>pi@<wbr>board')
    """
    return Markup(BREAKS.sub("<wbr>", str(escape(text))))


def absent(document: Mapping[str, Any]) -> list[str]:
    """The parts that this document has no results of."""
    parts = {
        "model": "the Keras model",
        "fold": "folding",
        "conversions": "conversions",
        "benchmarks": "latency",
        "microcontrollers": "microcontrollers",
    }
    return [words for key, words in parts.items() if not document[key]]


@functools.cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_bn.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("size", "thousands", "percent", "scientific"):
        templates.filters[name] = getattr(quantities, name)
    templates.filters["breakable"] = breakable
    return templates


def _source(templates: jinja2.Environment, name: str) -> str:
    """A file of the page as a browser reads it, which hashes what lies between the tags."""
    assert templates.loader is not None
    source, _, _ = templates.loader.get_source(templates, name)
    return source.replace("\r\n", "\n")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
