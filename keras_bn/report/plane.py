"""Charts with two axes as geometry, in units of their view box.

The template draws them, so that names are escaped there like any other text, and colours come
from the style sheet, which knows whether the page is dark or light.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from keras_bn.report import texts
from keras_bn.report.axes import Tick

# The view box. At this width the labels keep a readable size on a phone.
WIDTH, HEIGHT = 380, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 42
LABEL_HEIGHT = 15
LABEL_LETTERS = 22
# No less than the mean width of a letter at the labels' size: decides where a label goes.
LETTER_WIDTH = 8.0
# Half the side of the square that a marker takes.
MARKER = 7
# A shape for each colour, around the origin, so that neither is needed to tell models apart.
MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.4 -4.4h8.8v8.8h-8.8z",
    "M0 -5.6L5.6 4.4H-5.6z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0z",
    "M0 5.6L5.6 -4.4H-5.6z",
    "M-1.9 -5.6h3.8v3.7h3.7v3.8h-3.7v3.7h-3.8v-3.7h-3.7v-3.8h3.7z",
)


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    right: float
    top: float
    bottom: float

    def touches(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


@dataclass(frozen=True)
class Label:
    """A text at the height `y` that starts at `x`, ends there, or has it in its middle."""

    text: str
    x: float
    y: float
    anchor: str

    @property
    def box(self) -> Box:
        length = width(self.text)
        left = self.x - length * {"start": 0, "middle": 0.5, "end": 1}[self.anchor]
        return Box(left, left + length, self.y - LABEL_HEIGHT / 2, self.y + LABEL_HEIGHT / 2)


@dataclass(frozen=True)
class Point:
    """A model in a plane, with its interval along x; no label where there is no room for it."""

    name: str
    label: Label | None
    colour: int
    x: float
    y: float
    x_low: float
    x_high: float
    reads: str


@dataclass(frozen=True)
class Line:
    """A model over several thread counts: one (x, y, y of the interval's ends) each."""

    name: str
    label: str
    colour: int
    points: list[tuple[float, float, float, float]]
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Plane:
    """A chart with two axes in view-box units.

    Attributes:
        height: Of the view box: more labels take more.
        frontier: SVG path along the points that no other is better than in both respects.
        reference: A horizontal line with its name.
        omitted: Models that have both figures, of which one is infinite.
    """

    title: str
    x_title: str
    y_title: str
    height: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    lines: list[Line]
    frontier: str
    reference: Tick | None
    omitted: list[str]


def short(name: str) -> str:
    """`name` as a label that leaves room for the chart."""
    return texts.shortened(name, LABEL_LETTERS * len(name) // max(1, _columns(name)))


def width(label: str) -> float:
    """Roughly; letters are drawn in the reader's font."""
    return LETTER_WIDTH * _columns(label)


def _columns(text: str) -> int:
    """Its length in Latin letters: those of East Asia are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def across(fraction: float) -> float:
    """The x of a place from 0 to 1 along the horizontal axis."""
    return round(LEFT + fraction * (WIDTH - LEFT - RIGHT), 1)


def upward(fraction: float, height: float) -> float:
    """The y of a place from 0 to 1 along the vertical axis; y points down."""
    return round(height - BOTTOM - fraction * (height - TOP - BOTTOM), 1)
