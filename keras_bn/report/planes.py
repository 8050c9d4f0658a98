"""Charts with two axes as geometry: quality against size and latency, latency over threads.

The template draws them, so that names are escaped there like any other text, and colours come
from the style sheet, which knows whether the page is dark or light. Places are in units of the
view box.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from keras_bn.report import axes, frontier, quantities, selection, texts
from keras_bn.report.axes import Tick

# The view box. At this width the labels keep a readable size on a phone.
WIDTH, HEIGHT = 380, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 42
LABEL_HEIGHT = 15
LABEL_LETTERS = 22
# Roughly the width of a letter at the labels' size: decides only on which side a label goes.
LETTER_WIDTH = 7.6
DODGE = 6
# A shape for each colour, around the origin, so that neither is needed to tell models apart.
MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.4 -4.4h8.8v8.8h-8.8z",
    "M0 -5.6L5.6 4.4H-5.6z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0z",
    "M0 5.6L5.6 -4.4H-5.6z",
    "M-1.9 -5.6h3.8v3.7h3.7v3.8h-3.7v3.7h-3.8v-3.7h-3.7v-3.8h3.7z",
)
# More thread counts than this are not all written along their axis.
WRITTEN_COUNTS = 10


@dataclass(frozen=True)
class Point:
    """A model in a plane, with its interval along x and where its label stands."""

    label: str
    colour: int
    x: float
    y: float
    x_low: float
    x_high: float
    label_x: float
    label_y: float
    anchor: str
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


@dataclass(frozen=True)
class Quantity:
    """What is along one axis: (value, low, high) by the model's name."""

    name: str
    title: str
    values: dict[str, tuple[float, float, float]]
    higher_is_better: bool = False
    ceiling: float = math.inf
    reference: float | None = None


def frontier_planes(document: dict[str, Any]) -> list[Plane]:
    """Quality against size, and against latency on each device; size against latency without it.

    None for a single model, whose figures need no chart.
    """
    conversions = document["conversions"]
    colour = selection.colours(document)
    if not conversions:
        return [
            _plane(
                f"Size against latency{where}",
                latency,
                _sizes({each["name"]: each["size_bytes"] for each in measured}),
                colour,
            )
            for where, latency, measured in _latencies(document)
            if len(latency.values) > 1
        ]
    if len(conversions) < 2:
        return []
    known = frontier.quality(document)
    quality = Quantity(
        known.name,
        known.axis,
        {name: (value, value, value) for name, value in known.values.items()},
        higher_is_better=True,
        ceiling=known.ceiling,
        reference=known.reference,
    )
    subject = known.name[0].upper() + known.name[1:]
    sizes = _sizes({each["name"]: each["size_bytes"] for each in conversions})
    drawn = [_plane(f"{subject} against size", sizes, quality, colour)]
    for where, latency, _ in _latencies(document):
        if latency.values.keys() & quality.values.keys():
            drawn.append(_plane(f"{subject} against latency{where}", latency, quality, colour))
    return drawn


def thread_plane(benchmarks: Sequence[dict[str, Any]], colour: dict[str, int]) -> Plane | None:
    """Median latency over thread counts, on a device that was measured at several."""
    counts = sorted({each["threads"] for each in benchmarks})
    if len(counts) < 2:
        return None
    latencies = [each["latency_ms"] for each in benchmarks]
    unit = quantities.TimeUnit(latency["median"] for latency in latencies)
    y_axis = axes.spanning(
        (value * unit.per_ms for each in latencies for value in (each["median"], *each["ci95"])),
        from_zero=True,
    )
    y_ticks = y_axis.ticks(5)
    names = dict.fromkeys(each["name"] for each in benchmarks)
    height = _height(len(names))
    # Side by side, so that intervals at the same thread count stay apart.
    aside = {name: DODGE * (index - (len(names) - 1) / 2) for index, name in enumerate(names)}
    room = max(_width(_short(name)) for name in names) + DODGE * len(names)
    x_of = {
        threads: round(LEFT + (index + 0.5) / len(counts) * (WIDTH - LEFT - room), 1)
        for index, threads in enumerate(counts)
    }
    label_x = x_of[counts[-1]] + max(aside.values()) + 9
    lines: list[Line] = []
    ordered = sorted(benchmarks, key=lambda each: (each["name"], each["threads"]))
    for name, group in groupby(ordered, key=lambda each: each["name"]):
        points = []
        for each in group:
            latency = each["latency_ms"]
            values = (latency["median"], *latency["ci95"])
            ys = [_y(y_axis(value * unit.per_ms), height) for value in values]
            points.append((x_of[each["threads"]] + aside[name], ys[0], ys[1], ys[2]))
        lines.append(Line(name, _short(name), colour[name], points, label_x, points[-1][1]))
    label_ys = _apart([line.label_y for line in lines], height - BOTTOM)
    step = -(-len(counts) // WRITTEN_COUNTS)
    return Plane(
        title="Median latency over threads",
        x_title="threads",
        y_title=f"median latency, {unit.name}",
        height=height,
        x_ticks=[Tick(x_of[threads], str(threads)) for threads in counts[::step]],
        y_ticks=axes.written(y_ticks, [_y(y_axis(tick), height) for tick in y_ticks]),
        points=[],
        lines=[
            replace(line, label_y=label_y) for line, label_y in zip(lines, label_ys, strict=True)
        ],
        frontier="",
        reference=None,
        omitted=[],
    )


def _latencies(document: dict[str, Any]) -> Iterable[tuple[str, Quantity, list[dict[str, Any]]]]:
    """Where, the median latencies with the fewest threads, and the measurements they are of."""
    for device, benchmarks in selection.by_device(document["benchmarks"]):
        measured = selection.fewest_threads(benchmarks)
        unit = quantities.TimeUnit(each["latency_ms"]["median"] for each in measured)
        values = {}
        for each in measured:
            latency = each["latency_ms"]
            value, low, high = (ms * unit.per_ms for ms in (latency["median"], *latency["ci95"]))
            values[each["name"]] = (value, low, high)
        where = f", {device}, {selection.threads(measured[0])}"
        yield where, Quantity("latency", f"median latency, {unit.name}", values), measured


def _sizes(sizes_bytes: dict[str, float]) -> Quantity:
    unit, per_byte = _size_unit(sizes_bytes.values())
    values = {name: (size * per_byte,) * 3 for name, size in sizes_bytes.items()}
    return Quantity("size", f"size, {unit}", values)


def _plane(title: str, x: Quantity, y: Quantity, colour: dict[str, int]) -> Plane:
    """A point for each model that both values of are known and finite."""
    both = [name for name in y.values if name in x.values]
    drawn = [name for name in both if math.isfinite(y.values[name][0])]
    omitted = [name for name in both if name not in drawn]
    height = _height(len(drawn))
    if not drawn:
        return Plane(title, x.title, y.title, height, [], [], [], [], "", None, omitted)
    x_axis = axes.spanning(
        (value for name in drawn for value in x.values[name]), may_be_logarithmic=True
    )
    heights = [y.values[name][0] for name in drawn]
    y_axis = axes.spanning(
        heights if y.reference is None else [*heights, y.reference],
        ceiling=y.ceiling,
        may_be_logarithmic=not y.higher_is_better,
    )
    places = {
        name: (
            [_x(x_axis(value)) for value in x.values[name]],
            _y(y_axis(y.values[name][0]), height),
        )
        for name in drawn
    }
    x_ticks, y_ticks = x_axis.ticks(5), y_axis.ticks(5)
    reads = {
        name: f"{name}: {x.title} {x.values[name][0]:.4g}, {y.title} {y.values[name][0]:.4g}"
        for name in drawn
    }
    reference = y.reference
    return Plane(
        title=title,
        x_title=x.title,
        y_title=y.title,
        height=height,
        x_ticks=axes.written(x_ticks, [_x(x_axis(tick)) for tick in x_ticks]),
        y_ticks=axes.written(y_ticks, [_y(y_axis(tick), height) for tick in y_ticks]),
        points=_points(places, reads, colour, height),
        lines=[],
        frontier=_frontier(places, y.higher_is_better, height),
        reference=None if reference is None else Tick(_y(y_axis(reference), height), "Keras model"),
        omitted=omitted,
    )


def _points(
    places: dict[str, tuple[list[float], float]],
    reads: dict[str, str],
    colour: dict[str, int],
    height: float,
) -> list[Point]:
    """A point at each place, its label on the side that has room for it."""
    label_ys = _apart([y for _, y in places.values()], height - BOTTOM)
    points = []
    for (name, ((x, x_low, x_high), y)), label_y in zip(places.items(), label_ys, strict=True):
        label = _short(name)
        if x_high + 10 + _width(label) < WIDTH:
            label_x, anchor = x_high + 9, "start"
        elif x_low - 10 - _width(label) > 0:
            label_x, anchor = x_low - 9, "end"
        else:  # an interval across the chart: above it
            label_x, label_y, anchor = WIDTH - RIGHT, label_y - LABEL_HEIGHT, "end"
        points.append(
            Point(
                label=label,
                colour=colour[name],
                x=x,
                y=y,
                x_low=x_low,
                x_high=x_high,
                label_x=label_x,
                label_y=label_y,
                anchor=anchor,
                reads=reads[name],
            )
        )
    return points


def _frontier(
    places: dict[str, tuple[list[float], float]], higher_is_better: bool, height: float
) -> str:
    """Steps along the points that no other is better than in both respects."""
    worst, up = (height - BOTTOM, 1) if higher_is_better else (TOP, -1)
    costs = {name: (xs[0], up * y) for name, (xs, y) in places.items()}
    on = sorted(costs[name] for name in frontier.undominated(costs))
    if len(places) < 2:
        return ""
    return f"M{on[0][0]} {worst}" + "".join(f"H{x}V{up * y}" for x, y in on) + f"H{WIDTH - RIGHT}"


def _short(name: str) -> str:
    return texts.shortened(name, LABEL_LETTERS)


def _width(label: str) -> float:
    """Roughly; the letters of East Asia are twice as wide as Latin ones."""
    return LETTER_WIDTH * sum(
        2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in label
    )


def _height(labels: int) -> float:
    return max(HEIGHT, TOP + BOTTOM + (labels + 1) * LABEL_HEIGHT)


def _x(fraction: float) -> float:
    return round(LEFT + fraction * (WIDTH - LEFT - RIGHT), 1)


def _y(fraction: float, height: float) -> float:
    return round(height - BOTTOM - fraction * (height - TOP - BOTTOM), 1)


def _apart(ys: Sequence[float], lowest: float) -> list[float]:
    """The heights `ys` of labels, moved where they would overlap, in their own order.

    Down first, and up again from `lowest`, which is a greater y: y points down.
    """
    moved = list(ys)
    order = sorted(range(len(ys)), key=lambda index: ys[index])
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + LABEL_HEIGHT)
    for index in reversed(order):
        moved[index] = min(moved[index], lowest)
        lowest = moved[index] - LABEL_HEIGHT
    return moved


def _size_unit(sizes_bytes: Iterable[float]) -> tuple[str, float]:
    largest = max(sizes_bytes, default=1.0)
    return ("MB", 1e-6) if largest >= 1e6 else ("kB", 1e-3) if largest >= 1e3 else ("B", 1.0)
