"""A table of words and figures, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keras_bn.report.quantities import MISSING


@dataclass(frozen=True)
class Cell:
    """A figure as it is read, and as it is sorted by.

    Attributes:
        text: What stands there.
        value: What it is sorted by; None for words, and for a figure that is missing.
        share: How much of a bar beneath it is full, in [0, 1]; None for no bar.
    """

    text: str
    value: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        caption: What the table shows.
        columns: Headings.
        rows: One cell for each column.
        texts: How many columns, from the left, hold words; the rest are figures.
        keyed: Whether the first column has the names of files, which carry their colour.
        total: A last row that stays last however the others are sorted; empty for none.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    texts: int = 1
    keyed: bool = False
    total: list[Cell] = field(default_factory=list)


def figure(value: float | str | None, write: Callable[[Any], str]) -> Cell:
    """The cell of `value`, which `write` makes text of; infinities are told by name."""
    if value is None:
        return Cell(MISSING)
    return Cell(write(value), float(value))


def words(values: list[str]) -> list[Cell]:
    """A cell of words for each."""
    return [Cell(value) for value in values]
