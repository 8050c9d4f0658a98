"""report.md: the sentences and tables of the report, for a pull request or a README."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from keras_bn.report import (
    baseline,
    converted,
    environment,
    folding,
    measured,
    microcontrollers,
    quantities,
    schema,
    summary,
    texts,
)
from keras_bn.report.measured import Device
from keras_bn.report.table import Table, words

# Everything that CommonMark or GitHub's tables give a meaning inside a line.
SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")


def render_markdown(document: dict[str, Any]) -> str:
    """The report as GitHub-flavoured Markdown.

    Args:
        document: As `results.document` or `results.load` gives it. Markup in names is escaped.

    Raises:
        ValueError: it is not a results document.

    Example:
        >>> from keras_bn.report.results import document
        >>> print(render_markdown(document(title="Nothing", environment={}))[:9])
        # Nothing
    """
    schema.check(document)
    return "\n\n".join(_blocks(texts.shown(document))) + "\n"


def _blocks(document: dict[str, Any]) -> Iterator[str]:
    yield f"# {_escape(document['title'])}"
    yield _escape(", ".join([*_model(document["model"]), environment.moment(document["created"])]))
    sentences = summary.sentences(document)
    if sentences:
        yield "\n".join(f"- {_escape(sentence)}" for sentence in sentences)
    yield from _section("Converted models", [converted.overview(document)])
    yield from _section("Against the baseline", [baseline.changes(document)])
    for sentence in baseline.unmatched(document):
        yield _escape(sentence)
    devices = measured.devices(document)
    if devices:
        yield "## Latency"
    for device in devices:
        yield from _device(device)
    yield from _section(
        "Microcontrollers",
        [
            microcontrollers.fits(document),
            microcontrollers.reasons(document),
            microcontrollers.outputs(document),
        ],
    )
    fold = document["fold"]
    if fold is not None:
        yield from _section(
            "Folding", [folding.gone(fold), folding.stayed(fold), folding.others(fold)]
        )
    yield from _section(
        "Quantization", [converted.quantization(document), converted.outputs(document)]
    )
    yield from _section("Operations", [converted.operations(document)])
    rows = [words([name, value]) for name, value in document["environment"].items()]
    rows += [words([name, value]) for name, value in microcontrollers.versions(document)]
    for device in devices:
        for facts in device.conditions:
            rows += [words([f"{device.name}: {name}", value]) for name, value in facts]
    if rows:
        table = Table("Versions, machines, conditions", ["What", "Value"], rows, texts=2)
        yield from _section("Environment", [table])


def _device(device: Device) -> Iterator[str]:
    yield f"### {_escape(device.name)}"
    if device.machine:
        yield _escape(device.machine)
    if device.warnings:
        yield "Warnings:"
        yield "\n".join(
            f"- {_escape(doubt.text)} ({_escape(doubt.about)}"
            + (
                f"; the figures are those of {_escape(doubt.figures_of)})"
                if doubt.figures_of
                else ")"
            )
            for doubt in device.warnings
        )
    yield from _tables(
        [device.speedups, device.latency, device.quantiles, device.loading, device.kinds]
    )


def _model(model: dict[str, Any] | None) -> Iterator[str]:
    if model is None:
        return
    yield model["name"]
    if model["parameters"] is not None:
        yield f"{quantities.thousands(model['parameters'])} parameters"
    if model["layers"] is not None:
        yield f"{model['layers']} layers"
    if model["size_bytes"] is not None:
        yield f"{quantities.size(model['size_bytes'])} as .keras"
    if model["accuracy"] is not None:
        yield f"accuracy {quantities.percent(model['accuracy'])}"


def _section(heading: str, tables: Iterable[Table | None]) -> Iterator[str]:
    blocks = list(_tables(tables))
    if blocks:
        yield f"## {heading}"
    yield from blocks


def _tables(tables: Iterable[Table | None]) -> Iterator[str]:
    for table in tables:
        if table is not None:
            yield f"{_escape(table.caption)}:"
            yield _table(table)


def _table(table: Table) -> str:
    sides = ["---" if index < table.texts else "--:" for index in range(len(table.columns))]
    lines = [[_escape(column) for column in table.columns], sides]
    lines += [
        [_escape(cell.text) if index < table.texts else cell.text for index, cell in enumerate(row)]
        for row in (*table.rows, *([table.total] if table.total else []))
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
