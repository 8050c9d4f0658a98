"""Charts with two axes as geometry: quality against size and latency, latency over threads.

The template draws them, so that names are escaped there like any other text, and colours come
from the style sheet, which knows whether the page is dark or light. Places are in units of the
view box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from keras_bn.report import axes, quantities, selection
from keras_bn.report.axes import Tick

# The view box. At this width the labels keep a readable size on a phone.
WIDTH, HEIGHT = 420, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 42
LABEL_HEIGHT = 15
LABEL_LETTERS = 24
# Roughly the width of a letter at the labels' size: decides only on which side a label goes.
LETTER_WIDTH = 6.5
DODGE = 6


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
    """A chart with two axes in view-box units; `reference` is a horizontal line with its name."""

    title: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    lines: list[Line]
    reference: Tick | None
    omitted: list[str]


def quality_planes(document: dict[str, Any]) -> list[Plane]:
    """Accuracy, or SNR where accuracies are not known, against size and against latency.

    None for a single model, whose two figures need no chart.
    """
    conversions = document["conversions"]
    if len(conversions) < 2:
        return []
    if all(each["accuracy"] is not None for each in conversions):
        quality = {each["name"]: 100 * each["accuracy"] for each in conversions}
        subject, y_title, ceiling = "Accuracy", "accuracy, %", 100.0
        model = document["model"]
        known = model is not None and model["accuracy"] is not None
        reference = 100 * model["accuracy"] if known else None
    else:
        subject, y_title, ceiling, reference = "SNR", "SNR, dB", math.inf, None
        quality = {
            each["name"]: each["comparison"]["snr_db"]
            for each in conversions
            if each["comparison"] is not None
        }
    sizes: dict[str, tuple[float, ...]] = {
        each["name"]: (each["size_bytes"],) * 3 for each in conversions
    }
    measured = selection.fewest_threads(document["benchmarks"])
    latencies = {
        each["name"]: (each["latency_ms"]["median"], *each["latency_ms"]["ci95"])
        for each in measured
    }
    size_unit, per_byte = _size_unit(value for value, _, _ in sizes.values())
    time_unit = quantities.TimeUnit(value for value, _, _ in latencies.values())
    colour = selection.colours(document)
    where = f", {measured[0]['device']}, {selection.threads(measured[0])}" if measured else ""
    return [
        _plane(f"{subject} against size", f"size, {size_unit}", y_title,
               _scaled(sizes, per_byte), quality, ceiling, reference, colour),
        _plane(f"{subject} against latency{where}", f"median latency, {time_unit.name}", y_title,
               _scaled(latencies, time_unit.per_ms), quality, ceiling, reference, colour),
    ]  # fmt: skip


def thread_planes(document: dict[str, Any]) -> list[Plane]:
    """Median latency over thread counts, for each device that was measured at several."""
    planes = []
    for device, benchmarks in selection.by_device(document["benchmarks"]):
        counts = sorted({each["threads"] for each in benchmarks})
        if len(counts) > 1:
            planes.append(_thread_plane(device, counts, benchmarks, selection.colours(document)))
    return planes


def _thread_plane(
    device: str, counts: list[int], benchmarks: list[dict[str, Any]], colour: dict[str, int]
) -> Plane:
    latencies = [each["latency_ms"] for each in benchmarks]
    unit = quantities.TimeUnit(latency["median"] for latency in latencies)
    y_axis = axes.spanning(
        (value * unit.per_ms for each in latencies for value in (each["median"], *each["ci95"])),
        from_zero=True,
    )
    y_ticks = y_axis.ticks(5)
    names = dict.fromkeys(each["name"] for each in benchmarks)
    # Side by side, so that intervals at the same thread count stay apart.
    aside = {name: DODGE * (index - (len(names) - 1) / 2) for index, name in enumerate(names)}
    room = max(len(_short(name)) for name in names) * LETTER_WIDTH + DODGE * len(names)
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
            ys = [_y(y_axis(value * unit.per_ms)) for value in values]
            points.append((x_of[each["threads"]] + aside[name], ys[0], ys[1], ys[2]))
        lines.append(Line(name, _short(name), colour[name], points, label_x, points[-1][1]))
    label_ys = _apart([line.label_y for line in lines])
    return Plane(
        title=f"Latency over threads, {device}",
        x_title="threads",
        y_title=f"median latency, {unit.name}",
        x_ticks=[Tick(x, str(threads)) for threads, x in x_of.items()],
        y_ticks=axes.written(y_ticks, [_y(y_axis(tick)) for tick in y_ticks]),
        points=[],
        lines=[
            replace(line, label_y=label_y) for line, label_y in zip(lines, label_ys, strict=True)
        ],
        reference=None,
        omitted=[],
    )


def _plane(
    title: str,
    x_title: str,
    y_title: str,
    x_values: dict[str, tuple[float, ...]],
    y_values: dict[str, float | str],
    ceiling: float,
    reference: float | None,
    colour: dict[str, int],
) -> Plane:
    """A point for each model that both values of are known and finite."""
    both = [name for name in y_values if name in x_values]
    drawn = {name: float(y_values[name]) for name in both if not isinstance(y_values[name], str)}
    omitted = [name for name in both if name not in drawn]
    if not drawn:
        return Plane(title, x_title, y_title, [], [], [], [], None, omitted)
    x_axis = axes.spanning(
        (value for name in drawn for value in x_values[name]), may_be_logarithmic=True
    )
    heights = [*drawn.values(), *([] if reference is None else [reference])]
    y_axis = axes.spanning(heights, ceiling=ceiling)
    places = {
        name: ([_x(x_axis(value)) for value in x_values[name]], _y(y_axis(y)))
        for name, y in drawn.items()
    }
    label_ys = _apart([y for _, y in places.values()])
    points = []
    for (name, ((x, x_low, x_high), y)), label_y in zip(places.items(), label_ys, strict=True):
        fits = max(x, x_high) + 10 + LETTER_WIDTH * len(_short(name)) < WIDTH
        points.append(
            Point(
                label=_short(name),
                colour=colour[name],
                x=x,
                y=y,
                x_low=x_low,
                x_high=x_high,
                label_x=x_high + 9 if fits else x_low - 9,
                label_y=label_y,
                anchor="start" if fits else "end",
                reads=f"{name}: {x_title} {x_values[name][0]:.4g}, {y_title} {drawn[name]:.4g}",
            )
        )
    x_ticks, y_ticks = x_axis.ticks(5), y_axis.ticks(5)
    return Plane(
        title=title,
        x_title=x_title,
        y_title=y_title,
        x_ticks=axes.written(x_ticks, [_x(x_axis(tick)) for tick in x_ticks]),
        y_ticks=axes.written(y_ticks, [_y(y_axis(tick)) for tick in y_ticks]),
        points=points,
        lines=[],
        reference=None if reference is None else Tick(_y(y_axis(reference)), "Keras model"),
        omitted=omitted,
    )


def _short(name: str) -> str:
    """Long names lose their middle: what tells files apart is mostly at the end."""
    if len(name) <= LABEL_LETTERS:
        return name
    start = LABEL_LETTERS // 3
    return f"{name[:start]}…{name[start + 1 - LABEL_LETTERS :]}"


def _x(fraction: float) -> float:
    return round(LEFT + fraction * (WIDTH - LEFT - RIGHT), 1)


def _y(fraction: float) -> float:
    return round(HEIGHT - BOTTOM - fraction * (HEIGHT - TOP - BOTTOM), 1)


def _apart(ys: Sequence[float]) -> list[float]:
    """The heights `ys` of labels, moved down where they would overlap, in their own order."""
    moved = list(ys)
    order = sorted(range(len(ys)), key=lambda index: ys[index])
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + LABEL_HEIGHT)
    return moved


def _scaled(values: dict[str, tuple[float, ...]], factor: float) -> dict[str, tuple[float, ...]]:
    return {name: tuple(value * factor for value in several) for name, several in values.items()}


def _size_unit(sizes_bytes: Iterable[float]) -> tuple[str, float]:
    largest = max(sizes_bytes, default=1.0)
    return ("MB", 1e-6) if largest >= 1e6 else ("kB", 1e-3) if largest >= 1e3 else ("B", 1.0)
