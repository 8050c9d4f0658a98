"""Latency distributions as geometry: every sample a dot, the median and its interval over them.

The template draws them, so that names are escaped there like any other text, and colours come
from the style sheet, which knows whether the page is dark or light. Places are in per cent of
the width, so that text beside them keeps its size on any screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_bn.report import axes, quantities, selection
from keras_bn.report.axes import Axis, Tick

# Beyond so many dots a strip is one blot, and the page heavy.
DOTS = 1000
# Successive multiples of the golden ratio spread evenly without a pattern.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class StripRow:
    """One measurement: every sample as a dot, the median and its interval over them.

    Places are in per cent of the chart's width; `dots` is an SVG path in a 1000 × 100 box.
    `omitted` counts the samples between these dots, if there are more than can be told apart.
    """

    name: str
    threads: str
    colour: int
    dots: str
    omitted: int
    median: float
    low: float
    high: float
    p5: float
    p95: float
    median_text: str
    interval_text: str


@dataclass(frozen=True)
class Strips:
    """One device's measurements on one axis."""

    unit: str
    logarithmic: bool
    ticks: list[Tick]
    rows: list[StripRow]


def strips(benchmarks: Sequence[dict[str, Any]], colour: dict[str, int]) -> Strips:
    """The latency distributions of one device, the fewest threads first."""
    benchmarks = sorted(benchmarks, key=lambda each: each["threads"])
    latencies = [benchmark["latency_ms"] for benchmark in benchmarks]
    unit = quantities.TimeUnit(latency["median"] for latency in latencies)
    axis = axes.spanning(
        (sample for latency in latencies for sample in latency["samples"]),
        may_be_logarithmic=True,
    )

    def at(value_ms: float) -> float:
        # The ends of an interval and quantiles lie among the samples; a damaged file's may not.
        return round(100 * min(1.0, max(0.0, axis(max(value_ms, axis.low)))), 2)

    rows = [
        StripRow(
            name=benchmark["name"],
            threads=selection.threads(benchmark),
            colour=colour[benchmark["name"]],
            dots=_dots(latency["samples"], axis),
            omitted=max(0, len(latency["samples"]) - DOTS),
            median=at(latency["median"]),
            low=at(latency["ci95"][0]),
            high=at(latency["ci95"][1]),
            p5=at(latency["p5"]),
            p95=at(latency["p95"]),
            median_text=f"{unit(latency['median'])} {unit.name}",
            interval_text=f"[{unit(latency['ci95'][0])}, {unit(latency['ci95'][1])}]",
        )
        for benchmark, latency in zip(benchmarks, latencies, strict=True)
    ]
    in_unit = Axis(axis.low * unit.per_ms, axis.high * unit.per_ms, axis.logarithmic)
    ticks = in_unit.ticks(5)
    return Strips(
        unit=unit.name,
        logarithmic=axis.logarithmic,
        ticks=axes.written(ticks, [round(100 * in_unit(tick), 2) for tick in ticks]),
        rows=rows,
    )


def _dots(samples: Sequence[float], axis: Axis) -> str:
    """A path of dots, each a line of almost no length with round ends."""
    if len(samples) > DOTS:  # evenly among the sorted ones: both ends and every quantile stay
        ordered = sorted(samples)
        samples = [ordered[index * (len(ordered) - 1) // (DOTS - 1)] for index in range(DOTS)]
    return "".join(
        f"M{1000 * axis(sample):.1f} {12 + 76 * (index * GOLDEN % 1):.0f}h.01"
        for index, sample in enumerate(samples)
    )
