"""What was measured, device by device: figures of different machines never share a table."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from keras_bn.report import environment, quantities, selection
from keras_bn.report.environment import Facts
from keras_bn.report.quantities import TimeUnit
from keras_bn.report.table import Cell, Table, figure, words

# What differs between warnings of the same kind.
FIGURES = re.compile(r"\d+(?:\.\d+)?")
QUANTILES = ("p5", "p95", "p99")
SPREAD = ("mean", "std", "minimum", "p5", "p95", "p99", "maximum")


@dataclass(frozen=True)
class Doubt:
    """A doubt about figures, and what to do.

    Attributes:
        text: In the words about the first measurement that it was told of.
        about: All of them.
        figures_of: The first, where the others were told other figures; else empty.
    """

    text: str
    about: str
    figures_of: str


@dataclass(frozen=True)
class Device:
    """Everything about one device.

    Attributes:
        name: "host", "ssh://…" or "adb:…".
        machine: What it is, in a few words; empty if it did not tell.
        speedups, latency, loading: Their tables; no speedups for a single model.
        quantiles: Those with intervals; None where the samples are too few for one.
        kinds: Time by kind of operation; None where no profile was taken.
        profiles: Every operation of each profiled measurement.
        warnings: What makes the figures doubtful.
        conditions: What the device told of itself; several where that changed between calls.
    """

    name: str
    machine: str
    speedups: Table | None
    latency: Table
    quantiles: Table | None
    loading: Table
    kinds: Table | None
    profiles: list[Table]
    warnings: list[Doubt]
    conditions: list[Facts]


def devices(document: dict[str, Any]) -> list[Device]:
    """Every device that something was measured on, in the order they first occur."""
    return [
        Device(
            name,
            environment.machine(benchmarks[0]["environment"]),
            _speedups([each for each in document["speedups"] if each["device"] == name]),
            _latency(benchmarks),
            _quantiles(benchmarks),
            _loading(benchmarks),
            _kinds([each for each in benchmarks if each["profile"]]),
            [_profile(each) for each in benchmarks if each["profile"]],
            _warnings(benchmarks),
            environment.conditions(benchmarks),
        )
        for name, benchmarks in selection.by_device(document["benchmarks"])
    ]


def _latency(benchmarks: list[dict[str, Any]]) -> Table:
    """A line for each measurement."""
    unit = TimeUnit(each["latency_ms"]["median"] for each in benchmarks)
    columns = ["Model", "Threads", "Median", "95 % interval"]
    columns += ["Mean", "Std", "Min", "p5", "p95", "p99", "Max", "Invokes"]
    rows = []
    for each in benchmarks:
        figures = each["latency_ms"]
        row = [Cell(each["name"]), Cell(str(each["threads"]), each["threads"])]
        row += [figure(figures["median"], unit), _interval(figures["ci95"], unit)]
        row += [figure(figures[name], unit) for name in SPREAD]
        row += [_invokes(len(figures["samples"]), each["repeats"])]
        rows.append(row)
    return Table(f"Steady-state latency in {unit.name}", columns, rows, keyed=True)


def _quantiles(benchmarks: list[dict[str, Any]]) -> Table | None:
    """The quantiles of each measurement that has samples enough for an interval of one."""
    known = [
        each
        for each in benchmarks
        if any(each["latency_ms"].get(f"{name}_ci95") is not None for name in QUANTILES)
    ]
    if not known:
        return None
    unit = TimeUnit(each["latency_ms"]["median"] for each in known)
    columns = ["Model", "Threads"]
    for name in QUANTILES:
        columns += [name, f"95 % interval of {name}"]
    rows = []
    for each in known:
        row = [Cell(each["name"]), Cell(str(each["threads"]), each["threads"])]
        for name in QUANTILES:
            row.append(figure(each["latency_ms"][name], unit))
            row.append(_interval(each["latency_ms"].get(f"{name}_ci95"), unit))
        rows.append(row)
    return Table(f"Quantiles of latency in {unit.name}", columns, rows, keyed=True)


def _interval(ends_ms: list[float] | None, unit: TimeUnit) -> Cell:
    """Sorted by its width."""
    if ends_ms is None:
        return Cell(quantities.MISSING)
    low, high = ends_ms
    return Cell(f"[{unit(low)}, {unit(high)}]", high - low)


def _invokes(count: int, repeats: int) -> Cell:
    """How many were timed, and in how many separate runs if in several."""
    told = quantities.thousands(count)
    return Cell(told if repeats == 1 else f"{told} in {repeats} runs", count)


def _loading(benchmarks: list[dict[str, Any]]) -> Table:
    """What each measured file costs to load: time and memory of a fresh process."""
    times, sizes = ("init_ms", "first_invoke_ms"), ("peak_rss_bytes", "runtime_rss_bytes")
    unit = TimeUnit(each["init_ms"] for each in benchmarks if each["init_ms"] is not None)
    columns = ["Model", "Threads", f"Load, {unit.name}", f"First invoke, {unit.name}"]
    columns += ["Peak memory", "Without the model"]
    rows = [
        [Cell(each["name"]), Cell(str(each["threads"]), each["threads"])]
        + [figure(each[name], unit) for name in times]
        + [figure(each[name], quantities.size) for name in sizes]
        for each in benchmarks
    ]
    return Table("Loading, in a fresh process for each", columns, rows, keyed=True)


def _speedups(speedups: list[dict[str, Any]]) -> Table | None:
    """A line for each pair of models that was compared."""
    if not speedups:
        return None
    rows = []
    for each in sorted(speedups, key=lambda each: each["threads"]):
        low, high = each["ci95"]
        reading = "faster" if low > 1 else "slower" if high < 1 else "undecided"
        row = words([each["name"], each["baseline_name"], reading])
        row += [Cell(str(each["threads"]), each["threads"])]
        row += [figure(each["ratio"], quantities.factor)]
        row += [Cell(quantities.factor_interval(low, high), high - low)]
        rows.append(row)
    columns = ["Model", "Against", "Reading", "Threads", "Speedup", "95 % interval"]
    caption = "Speedup: the other model's median latency over this one's"
    return Table(caption, columns, rows, texts=3, keyed=True)


def _kinds(profiled: list[dict[str, Any]]) -> Table | None:
    """Where the time of each model goes with the fewest threads, the kind with the most first."""
    if not profiled:
        return None
    profiled = selection.fewest_threads(profiled)
    times: dict[str, dict[int, float]] = {}
    for column, each in enumerate(profiled):
        for operation in each["profile"]:
            row = times.setdefault(operation["kind"], {})
            row[column] = row.get(column, 0.0) + operation["mean_ms"]
    sums = [sum(row.get(column, 0.0) for row in times.values()) for column in range(len(profiled))]
    longest = max(value for row in times.values() for value in row.values())
    unit = _unit(longest)
    rows = [
        [Cell(kind), *(_time(times[kind].get(i), unit, longest) for i in range(len(profiled)))]
        for kind in sorted(times, key=lambda kind: (-sum(times[kind].values()), kind))
    ]
    columns = ["Kind of operation", *(each["name"] for each in profiled)]
    threads = selection.threads(profiled[0])
    caption = f"Time of one invoke by kind of operation, {threads}, in {unit.name}"
    total = [Cell("All"), *(Cell(unit(value), value) for value in sums)]
    return Table(caption, columns, rows, total=total)


def _profile(benchmark: dict[str, Any]) -> Table:
    """Every operation of one measurement, in the order they run."""
    operations = benchmark["profile"]
    longest = max(each["mean_ms"] for each in operations)
    unit = _unit(longest)
    rows = [
        [
            *words([each["name"], each["kind"]]),
            Cell(str(position), position),
            figure(each["calls"], quantities.thousands),
            _time(each["mean_ms"], unit, longest),
            figure(each["share"], quantities.percent),
        ]
        for position, each in enumerate(operations, start=1)
    ]
    columns = ["Operation", "Kind", "Position", "Calls", f"Time, {unit.name}", "Share"]
    about = f"{benchmark['name']}, {selection.threads(benchmark)}"
    return Table(f"Operations of {about}", columns, rows, texts=2)


def _unit(longest_ms: float) -> TimeUnit:
    """Three digits for what takes a tenth of the longest; less is of little interest."""
    return TimeUnit([longest_ms / 10])


def _time(value_ms: float | None, unit: TimeUnit, longest_ms: float) -> Cell:
    cell = figure(value_ms, unit)
    share = value_ms / longest_ms if value_ms is not None and value_ms > 0 else None
    return replace(cell, share=share)


def _warnings(benchmarks: list[dict[str, Any]]) -> list[Doubt]:
    """Every doubt once, however many measurements it was told of."""
    alike: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for each in benchmarks:
        for text in dict.fromkeys(each["warnings"]):
            alike.setdefault(FIGURES.sub("#", text), []).append((each, text))
    found = []
    for told in alike.values():
        first, text = told[0]
        about = _named([each for each, _ in told])
        if len(told) == len(benchmarks) > 1:
            about = "All measurements"
        differ = len({text for _, text in told}) > 1
        found.append(Doubt(text, about, _named([first]) if differ else ""))
    return found


def _named(benchmarks: list[dict[str, Any]]) -> str:
    """ "float32, 1 and 2 threads; int8, 2 threads"."""
    counts: dict[str, list[str]] = {}
    for each in benchmarks:
        counts.setdefault(each["name"], []).append(str(each["threads"]))
    return "; ".join(
        f"{name}, {' and '.join(threads)} {'thread' if threads == ['1'] else 'threads'}"
        for name, threads in counts.items()
    )
