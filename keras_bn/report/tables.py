"""Tables as rows of text, shared by the HTML and the Markdown report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from keras_bn.report import quantities, selection
from keras_bn.report.quantities import MISSING, TimeUnit

# Suffixes of the runner's field names.
UNITS = {"_bytes": "bytes", "_ns": "ns", "_s": "s", "_mhz": "MHz", "_c": "°C"}
SPREAD = ("mean", "std", "minimum", "p5", "p95", "p99", "maximum")


@dataclass(frozen=True)
class Cell:
    """A figure as it is read, and as it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """`texts` is how many columns, from the left, hold words; the rest are figures.

    `keyed` tables have the names of files in their first column, which carry their colour.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    texts: int = 1
    keyed: bool = False


@dataclass(frozen=True)
class Machine:
    """A device and the conditions that some measurements were taken under."""

    device: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Warnings:
    """What one measurement, or all of them, were warned of."""

    about: str
    texts: list[str]


def overview(document: dict[str, Any]) -> Table | None:
    """A line for each conversion: size, quality, latency."""
    conversions = document["conversions"]
    if not conversions:
        return None
    first_size = conversions[0]["size_bytes"]
    with_accuracy = any(each["accuracy"] is not None for each in conversions)
    measured = selection.fewest_threads(document["benchmarks"])
    medians = {each["name"]: each["latency_ms"]["median"] for each in measured}
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
    caption = "Size and closeness to the Keras model"
    if measured:
        where = f"{measured[0]['device']}, {selection.threads(measured[0])}"
        caption += f"; median latency on {where}"
    return Table(caption, columns, rows, texts=2, keyed=True)


def latency(document: dict[str, Any]) -> Table | None:
    """A line for each measurement."""
    benchmarks = document["benchmarks"]
    if not benchmarks:
        return None
    unit = TimeUnit(each["latency_ms"]["median"] for each in benchmarks)
    several = len({each["device"] for each in benchmarks}) > 1
    columns = ["Model"] + ["Device"] * several + ["Threads", "Median", "95 % interval"]
    columns += ["Mean", "Std", "Min", "p5", "p95", "p99", "Max", "Runs"]
    rows = []
    for each in benchmarks:
        figures = each["latency_ms"]
        low, high = figures["ci95"]
        row = [Cell(each["name"])] + [Cell(each["device"])] * several
        row += [Cell(str(each["threads"]), each["threads"])]
        row += [_figure(figures["median"], unit), Cell(f"[{unit(low)}, {unit(high)}]", high - low)]
        row += [_figure(figures[name], unit) for name in SPREAD]
        row += [Cell(str(len(figures["samples"])), len(figures["samples"]))]
        rows.append(row)
    return Table(
        f"Steady-state latency in {unit.name}", columns, rows, texts=1 + several, keyed=True
    )


def loading(document: dict[str, Any]) -> Table | None:
    """What each measured file costs to load: time and memory of a fresh process."""
    benchmarks = document["benchmarks"]
    if not benchmarks:
        return None
    unit = TimeUnit(each["init_ms"] for each in benchmarks if each["init_ms"] is not None)
    several = len({each["device"] for each in benchmarks}) > 1
    columns = ["Model"] + ["Device"] * several + ["Threads", f"Load, {unit.name}"]
    columns += [f"First invoke, {unit.name}", "Peak memory", "Without the model"]
    rows = [
        [Cell(each["name"])]
        + [Cell(each["device"])] * several
        + [Cell(str(each["threads"]), each["threads"])]
        + [_figure(each[name], unit) for name in ("init_ms", "first_invoke_ms")]
        + [_figure(each[name], quantities.size) for name in ("peak_rss_bytes", "runtime_rss_bytes")]
        for each in benchmarks
    ]
    return Table(
        "Loading, in a fresh process for each", columns, rows, texts=1 + several, keyed=True
    )


def speedups(document: dict[str, Any]) -> Table | None:
    """A line for each pair of models that was compared."""
    if not document["speedups"]:
        return None
    rows = []
    several = len({each["device"] for each in document["speedups"]}) > 1
    for each in sorted(document["speedups"], key=lambda each: each["threads"]):
        low, high = each["ci95"]
        verdict = "faster" if low > 1 else "slower" if high < 1 else "undecided"
        rows.append(
            [
                Cell(each["name"]),
                Cell(each["baseline_name"]),
                *[Cell(each["device"])] * several,
                Cell(verdict),
                Cell(str(each["threads"]), each["threads"]),
                _figure(each["ratio"], quantities.factor),
                Cell(quantities.factor_interval(low, high), high - low),
            ]
        )
    columns = ["Model", "Against"] + ["Device"] * several
    columns += ["Reading", "Threads", "Speedup", "95 % interval"]
    caption = "Speedup: the other model's median latency over this one's"
    return Table(caption, columns, rows, texts=3 + several, keyed=True)


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
    return Table("Each output against the Keras model's", columns, rows, texts=2, keyed=True)


def folding(document: dict[str, Any]) -> tuple[Table | None, Table | None]:
    """The normalizations that are gone, and those that stayed."""
    fold = document["fold"]
    if fold is None:
        return None, None
    gone = [[Cell(e["layer"]), Cell(e["into"]), Cell(e["rule"])] for e in fold["folded"]]
    stayed = [[Cell(e["layer"]), Cell(e["reason"])] for e in fold["kept"]]
    return (
        Table("Normalizations that are gone", ["Layer", "Folded into", "Rule"], gone, texts=3)
        if gone
        else None,
        Table("Normalizations that stayed", ["Layer", "Reason"], stayed, texts=2)
        if stayed
        else None,
    )


def machines(document: dict[str, Any]) -> list[Machine]:
    """Every device and its conditions once, in the order they first occur."""
    found: list[Machine] = []
    for each in document["benchmarks"]:
        machine = Machine(each["device"], list(_facts(each["environment"])))
        if machine not in found:
            found.append(machine)
    return found


def warnings(document: dict[str, Any]) -> list[Warnings]:
    """What was warned of: first what all measurements share, then each one's own."""
    benchmarks = document["benchmarks"]
    if len(benchmarks) == 1:
        shared: list[str] = []
    else:
        told = [dict.fromkeys(each["warnings"]) for each in benchmarks]
        shared = [text for text in (told or [{}])[0] if all(text in texts for texts in told)]
    found = [Warnings("All measurements", shared)]
    for each in benchmarks:
        own = [text for text in each["warnings"] if text not in shared]
        found.append(Warnings(f"{each['name']}, {selection.threads(each)}", own))
    return [each for each in found if each.texts]


def moment(created: str) -> str:
    """An ISO 8601 time as a reader wants it; any other text as it is."""
    try:
        return datetime.fromisoformat(created).strftime("%d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return created


def _facts(environment: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Everything that is known, nested objects flattened, units moved from name to value."""
    for key, value in environment.items():
        name, unit = _name_and_unit(key)
        if isinstance(value, dict):
            yield from _facts(value, f"{prefix}{name}, ")
        elif isinstance(value, bool):
            yield prefix + name, "yes" if value else "no"
        elif isinstance(value, list) and value:
            yield prefix + name, ", ".join(map(str, value))
        elif unit == "bytes" and isinstance(value, int) and value >= 0:
            yield prefix + name, quantities.size(value)
        elif value is not None and value != []:
            yield prefix + name, f"{value} {unit}".strip()


def _name_and_unit(key: str) -> tuple[str, str]:
    for suffix, unit in UNITS.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix).replace("_", " "), unit
    return key.replace("_", " "), ""


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
