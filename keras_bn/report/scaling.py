"""Charts of latency over thread counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

from keras_bn.report import axes, quantities
from keras_bn.report.axes import Tick
from keras_bn.report.plane import (
    BOTTOM,
    HEIGHT,
    LABEL_HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Line,
    Plane,
    short,
    upward,
    width,
)

# Between models at the same thread count.
DODGE = 6
# Between the last mark of a line and its label.
GAP = 10
# More thread counts than this are not all written along their axis.
WRITTEN_COUNTS = 10


def plane(benchmarks: Sequence[dict[str, Any]], colour: dict[str, int]) -> Plane | None:
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
    half = DODGE * (len(names) + 1) / 2
    label_x = WIDTH - max(width(short(name)) for name in names)
    start, end = LEFT + half, max(label_x - half - GAP, LEFT + half)
    x_of = {
        threads: round(start + index / (len(counts) - 1) * (end - start), 1)
        for index, threads in enumerate(counts)
    }
    lines: list[Line] = []
    ordered = sorted(benchmarks, key=lambda each: (each["name"], each["threads"]))
    for name, group in groupby(ordered, key=lambda each: each["name"]):
        points = []
        for each in group:
            latency = each["latency_ms"]
            values = (latency["median"], *latency["ci95"])
            ys = [upward(y_axis(value * unit.per_ms), height) for value in values]
            x = round(x_of[each["threads"]] + aside[name], 1)
            points.append((x, ys[0], ys[1], ys[2]))
        lines.append(Line(name, short(name), colour[name], points, label_x, points[-1][1]))
    label_ys = _apart([line.label_y for line in lines], height - BOTTOM)
    step = -(-len(counts) // WRITTEN_COUNTS)
    return Plane(
        title="Median latency over threads",
        x_title="threads",
        y_title=f"median latency, {unit.name}",
        height=height,
        x_ticks=[Tick(x_of[threads], str(threads)) for threads in counts[::step]],
        y_ticks=axes.written(y_ticks, [upward(y_axis(tick), height) for tick in y_ticks]),
        points=[],
        lines=[
            replace(line, label_y=label_y) for line, label_y in zip(lines, label_ys, strict=True)
        ],
        frontier="",
        reference=None,
        omitted=[],
    )


def _height(labels: int) -> float:
    return max(HEIGHT, TOP + BOTTOM + (labels + 1) * LABEL_HEIGHT)


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
