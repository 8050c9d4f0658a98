"""Tables as rows of text, shared by the HTML and the Markdown report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from keras_bn.report import charts, quantities
from keras_bn.report.quantities import MISSING, TimeUnit


@dataclass(frozen=True)
class Cell:
    """A figure as it is read, and as it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """`texts` is how many columns, from the left, hold words; the rest are figures."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    texts: int = 1


@dataclass(frozen=True)
class Machine:
    """A device and the conditions that some measurements were taken under."""

    device: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Warnings:
    """One advice, and the measurements that it is about."""

    measurements: list[str]
    text: str


def overview(document: dict[str, Any]) -> Table | None:
    """A line for each conversion: size, quality, latency."""
    conversions = document["conversions"]
    if not conversions:
        return None
    first_size = conversions[0]["size_bytes"]
    with_accuracy = any(each["accuracy"] is not None for each in conversions)
    medians = {
        each["name"]: each["latency_ms"]["median"] for each in charts.fewest_threads(document)
    }
    unit = TimeUnit(medians.values())
    columns = ["Model", "Quantization", "Size", "Smaller by"]
    columns += ["Accuracy"] * with_accuracy + ["Same class", "SNR, dB", "Largest error"]
    columns += [f"Latency, {unit.name}"] * bool(medians)
    rows = []
    for each in conversions:
        comparison = each["comparison"] or dict.fromkeys(("top1_agreement", "snr_db"), None)
        row = [Cell(each["name"]), Cell(each["quantize"])]
        row += [Cell(quantities.size(each["size_bytes"]), each["size_bytes"])]
        row += [_figure(first_size / each["size_bytes"], quantities.factor)]
        row += [_figure(each["accuracy"], quantities.percent)] * with_accuracy
        row += [_figure(comparison["top1_agreement"], quantities.percent)]
        row += [_figure(comparison["snr_db"], quantities.decibel)]
        row += [_figure(comparison.get("max_abs_error"), quantities.scientific)]
        row += [_figure(medians.get(each["name"]), unit)] * bool(medians)
        rows.append(row)
    return Table("Size, closeness to the Keras model, and speed", columns, rows, texts=2)


def latency(document: dict[str, Any]) -> Table | None:
    """A line for each measurement."""
    benchmarks = document["benchmarks"]
    if not benchmarks:
        return None
    unit = TimeUnit(each["latency_ms"]["median"] for each in benchmarks)
    several = len({each["device"] for each in benchmarks}) > 1
    columns = ["Model"] + ["Device"] * several + ["Threads", "Median", "95 % interval"]
    columns += ["Mean", "Std", "p5", "p95", "p99", "Load", "First invoke"]
    columns += ["Peak memory", "Without model", "Runs"]
    rows = []
    for each in benchmarks:
        figures = each["latency_ms"]
        low, high = figures["ci95"]
        row = [Cell(each["name"])] + [Cell(each["device"])] * several
        row += [Cell(str(each["threads"]), each["threads"])]
        row += [_figure(figures["median"], unit), Cell(f"[{unit(low)}, {unit(high)}]", high - low)]
        row += [_figure(figures[name], unit) for name in ("mean", "std", "p5", "p95", "p99")]
        row += [_figure(each[name], unit) for name in ("init_ms", "first_invoke_ms")]
        row += [_figure(each["peak_rss_bytes"], quantities.size)]
        row += [_figure(each["runtime_rss_bytes"], quantities.size)]
        row += [Cell(str(len(figures["samples"])), len(figures["samples"]))]
        rows.append(row)
    return Table(f"Times in {unit.name}", columns, rows, texts=1 + several)


def speedups(document: dict[str, Any]) -> Table | None:
    """A line for each pair of models that was compared."""
    if not document["speedups"]:
        return None
    rows = []
    for each in document["speedups"]:
        low, high = each["ci95"]
        verdict = "faster" if low > 1 else "slower" if high < 1 else "undecided"
        rows.append(
            [
                Cell(each["name"]),
                Cell(each["baseline_name"]),
                Cell(each["device"]),
                Cell(verdict),
                Cell(str(each["threads"]), each["threads"]),
                _figure(each["ratio"], quantities.factor),
                Cell(quantities.factor_interval(low, high), high - low),
            ]
        )
    columns = ["Model", "Against", "Device", "Reading", "Threads", "Speedup", "95 % interval"]
    return Table("Median latency of the other model over that of this one", columns, rows, texts=4)


def operations(document: dict[str, Any]) -> Table | None:
    """How often each operation occurs in each file, the most frequent first."""
    conversions = [each for each in document["conversions"] if each["ops"]]
    if not conversions:
        return None
    totals: dict[str, int] = {}
    for each in conversions:
        for name, count in each["ops"].items():
            totals[name] = totals.get(name, 0) + count
    rows = [
        [Cell(name), *(_operation(each, name) for each in conversions)]
        for name in sorted(totals, key=lambda name: (-totals[name], name))
    ]
    sums = [sum(each["ops"].values()) for each in conversions]
    rows.append([Cell("All"), *(Cell(quantities.thousands(total), total) for total in sums)])
    return Table("Operations in each file", ["Operation", *_names(conversions)], rows)


def outputs(document: dict[str, Any]) -> Table | None:
    """A line for each output of each file that was compared with its Keras model."""
    rows = [
        [
            Cell(each["name"]),
            Cell(output["name"]),
            _figure(output["max_abs_error"], quantities.scientific),
            _figure(output["snr_db"], quantities.decibel),
            _figure(output["cosine"], _cosine),
            _figure(output["top1_agreement"], quantities.percent),
            _figure(each["comparison"]["samples"], str),
        ]
        for each in document["conversions"]
        if each["comparison"] is not None
        for output in each["comparison"]["outputs"]
    ]
    if not rows:
        return None
    columns = ["Model", "Output", "Largest error", "SNR, dB", "Cosine", "Same class", "Samples"]
    return Table("Each output against the Keras model's", columns, rows, texts=2)


def machines(document: dict[str, Any]) -> list[Machine]:
    """Every device and its conditions once, in the order they first occur."""
    found: list[Machine] = []
    for each in document["benchmarks"]:
        machine = Machine(each["device"], list(_facts(each["environment"])))
        if machine not in found:
            found.append(machine)
    return found


def warnings(document: dict[str, Any]) -> list[Warnings]:
    """What the measurements were warned of, each text once."""
    by_text: dict[str, list[str]] = {}
    for each in document["benchmarks"]:
        for text in each["warnings"]:
            plural = "thread" if each["threads"] == 1 else "threads"
            by_text.setdefault(text, []).append(f"{each['name']}, {each['threads']} {plural}")
    return [Warnings(measurements, text) for text, measurements in by_text.items()]


def moment(created: str) -> str:
    """An ISO 8601 time as a reader wants it; any other text as it is."""
    try:
        return datetime.fromisoformat(created).strftime("%d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return created


def _facts(environment: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in environment.items():
        label = prefix + key.replace("_", " ")
        if isinstance(value, dict):
            yield from _facts(value, f"{label}: ")
        elif value is not None and value != []:
            yield label, _fact(key, value)


def _fact(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if key.endswith("_bytes") and isinstance(value, int | float):
        return quantities.size(value)
    return str(value)


def _operation(conversion: dict[str, Any], name: str) -> Cell:
    count = conversion["ops"].get(name, 0)
    in_float = conversion["float_ops"].get(name, 0)
    return Cell(f"{count or MISSING}" + (f" ({in_float} in float)" if in_float else ""), count)


def _figure(value: float | str | None, write: Any) -> Cell:
    if value is None:
        return Cell(MISSING)
    return Cell(write(value), float(value))


def _cosine(value: float | str) -> str:
    return MISSING if isinstance(value, str) else f"{value:.6f}"


def _names(records: list[dict[str, Any]]) -> list[str]:
    return [record["name"] for record in records]
