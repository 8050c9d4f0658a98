"""Charts of what size and latency buy: quality against each, or the one against the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from keras_bn.report import axes, frontier, quantities, selection
from keras_bn.report.axes import Tick
from keras_bn.report.plane import (
    BOTTOM,
    HEIGHT,
    LABEL_HEIGHT,
    LEFT,
    MARKER,
    RIGHT,
    TOP,
    WIDTH,
    Box,
    Label,
    Plane,
    Point,
    across,
    short,
    upward,
    width,
)


@dataclass(frozen=True)
class Quantity:
    """What is along one axis: (value, low, high) by the model's name."""

    name: str
    title: str
    values: dict[str, tuple[float, float, float]]
    higher_is_better: bool = False
    ceiling: float = math.inf
    reference: float | None = None


def planes(document: dict[str, Any]) -> list[Plane]:
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
    if not drawn:
        return Plane(title, x.title, y.title, HEIGHT, [], [], [], [], "", None, omitted)
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
            [across(x_axis(value)) for value in x.values[name]],
            upward(y_axis(y.values[name][0]), HEIGHT),
        )
        for name in drawn
    }
    x_ticks, y_ticks = x_axis.ticks(5), y_axis.ticks(5)
    reads = {
        name: f"{name}: {x.title} {x.values[name][0]:.4g}, {y.title} {y.values[name][0]:.4g}"
        for name in drawn
    }
    reference, named = None, []
    if y.reference is not None:
        reference = Tick(upward(y_axis(y.reference), HEIGHT), "Keras model")
        named = [Label(reference.label, LEFT + 4, reference.at - 9, "start").box]
    return Plane(
        title=title,
        x_title=x.title,
        y_title=y.title,
        height=HEIGHT,
        x_ticks=axes.written(x_ticks, [across(x_axis(tick)) for tick in x_ticks]),
        y_ticks=axes.written(y_ticks, [upward(y_axis(tick), HEIGHT) for tick in y_ticks]),
        points=_points(places, reads, colour, named),
        lines=[],
        frontier=_frontier(places, y.higher_is_better),
        reference=reference,
        omitted=omitted,
    )


def _points(
    places: dict[str, tuple[list[float], float]],
    reads: dict[str, str],
    colour: dict[str, int],
    taken: list[Box],
) -> list[Point]:
    """A point at each place, labelled where a label covers nothing else.

    Args:
        taken: What stands in the chart already; grows by what is added to it.
    """
    for (x, x_low, x_high), y in places.values():
        taken.append(Box(x - MARKER, x + MARKER, y - MARKER, y + MARKER))
        taken.append(Box(x_low, x_high, y - 1, y + 1))
    points = []
    for name, ((x, x_low, x_high), y) in places.items():
        candidates = _around(short(name), x, x_low, x_high, y)
        label = next((each for each in candidates if _fits(each.box, taken)), None)
        if label is not None:
            taken.append(label.box)
        points.append(Point(name, label, colour[name], x, y, x_low, x_high, reads[name]))
    return points


def _fits(box: Box, taken: Iterable[Box]) -> bool:
    inside = (
        box.left > LEFT
        and box.right < WIDTH
        and box.top > TOP - LABEL_HEIGHT
        and box.bottom < HEIGHT - BOTTOM
    )
    return inside and not any(box.touches(other) for other in taken)


def _around(text: str, x: float, x_low: float, x_high: float, y: float) -> Iterator[Label]:
    """Where the label of a mark may stand, the best first."""
    right, left = max(x + MARKER, x_high) + 3, min(x - MARKER, x_low) - 3
    yield Label(text, right, y, "start")
    yield Label(text, left, y, "end")
    half = width(text) / 2 + 1
    middle = min(max(x, LEFT + half), WIDTH - half)
    for side in (-1, 1):
        beside = y + side * (MARKER + LABEL_HEIGHT / 2 + 1)
        yield Label(text, x, beside, "start")
        yield Label(text, x, beside, "end")
        yield Label(text, middle, beside, "middle")


def _frontier(places: dict[str, tuple[list[float], float]], higher_is_better: bool) -> str:
    """Steps along the points that no other is better than in both respects."""
    worst, up = (HEIGHT - BOTTOM, 1) if higher_is_better else (TOP, -1)
    costs = {name: (xs[0], up * y) for name, (xs, y) in places.items()}
    on = sorted(costs[name] for name in frontier.undominated(costs))
    if len(places) < 2:
        return ""
    return f"M{on[0][0]} {worst}" + "".join(f"H{x}V{up * y}" for x, y in on) + f"H{WIDTH - RIGHT}"


def _size_unit(sizes_bytes: Iterable[float]) -> tuple[str, float]:
    largest = max(sizes_bytes, default=1.0)
    return ("MB", 1e-6) if largest >= 1e6 else ("kB", 1e-3) if largest >= 1e3 else ("B", 1.0)
