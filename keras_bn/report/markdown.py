"""report.md: the sentences and tables of the report, for a pull request or a README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from keras_bn.report import quantities, schema, summary, tables
from keras_bn.report.tables import Cell, Table

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
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: dict[str, Any]) -> Iterator[str]:
    yield f"# {_escape(document['title'])}"
    yield _escape(", ".join([*_model(document["model"]), tables.moment(document["created"])]))
    sentences = summary.sentences(document)
    if sentences:
        yield "\n".join(f"- {_escape(sentence)}" for sentence in sentences)
    yield from _section(
        "Converted models",
        tables.overview(document),
        tables.outputs(document),
        tables.operations(document),
    )
    yield from _section(
        "Latency", tables.speedups(document), tables.latency(document), tables.loading(document)
    )
    warnings = tables.warnings(document)
    if warnings:
        yield "### Warnings"
        yield "\n".join(
            f"- **{_escape(warning.about)}**: {_escape(' '.join(warning.texts))}"
            for warning in warnings
        )
    yield from _section("Folding", *tables.folding(document))
    rows = [[Cell(key), Cell(value)] for key, value in document["environment"].items()]
    for machine in tables.machines(document):
        rows += [[Cell(f"{machine.device}: {key}"), Cell(value)] for key, value in machine.facts]
    if rows:
        table = Table("Versions, machines, conditions", ["What", "Value"], rows, texts=2)
        yield from _section("Environment", table)


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


def _section(heading: str, *parts: Table | None) -> Iterator[str]:
    known = [table for table in parts if table is not None]
    if known:
        yield f"## {heading}"
    for table in known:
        yield f"{_escape(table.caption)}:"
        yield _table(table)


def _table(table: Table) -> str:
    sides = ["---" if index < table.texts else "--:" for index in range(len(table.columns))]
    lines = [[_escape(column) for column in table.columns], sides]
    lines += [
        [_escape(cell.text) if index < table.texts else cell.text for index, cell in enumerate(row)]
        for row in table.rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
