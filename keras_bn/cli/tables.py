"""Tables for the terminal, made from result values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from keras_bn.fold.result import KeptLayer
from keras_bn.report.quantities import (
    MISSING,
    TimeUnit,
    decibel,
    factor,
    factor_interval,
    percent,
    scientific,
    size,
    thousands,
)

if TYPE_CHECKING:
    from keras_bn.bench.baseline import Changes
    from keras_bn.bench.devices import Device
    from keras_bn.bench.result import BenchmarkResult, MicrocontrollerResult, Speedup
    from keras_bn.compare.result import Comparison
    from keras_bn.convert.result import Conversion
    from keras_bn.fold.result import FoldResult


# A profile's rest is in results.json and in the report.
OPERATIONS_SHOWN = 10


def table(title: str, *columns: str, rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are figures."""
    result = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        result.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def folded_tables(result: FoldResult) -> list[Table]:
    """What was folded where; no table for nothing."""
    rows = [(each.layer, each.into, each.rule) for each in result.folded]
    return [_text_table("Folded", "normalization", "into", "rule", rows=rows)] if rows else []


def kept_tables(result: FoldResult) -> list[Table]:
    """What was kept, and why; no table for nothing."""
    rows = [(each.layer, each.reason) for each in result.kept]
    return [_text_table("Kept", "normalization", "reason", rows=rows)] if rows else []


def other_tables(result: FoldResult) -> list[Table]:
    """What became of the scales and shifts that are no batch normalizations."""
    rows = [
        (each.layer, "stays: " + each.reason)
        if isinstance(each, KeptLayer)
        else (each.layer, f"{each.rule}: {each.into}")
        for each in result.others
    ]
    title = "Other scales and shifts"
    return [_text_table(title, "layer", "where it went", rows=rows)] if rows else []


def plan_tables(result: FoldResult) -> list[Table]:
    """The whole plan of a fold: where each scale and shift went, or why it stayed."""
    return [*folded_tables(result), *kept_tables(result), *other_tables(result)]


def _text_table(title: str, *columns: str, rows: Iterable[Sequence[str]]) -> Table:
    result = table(title, *columns, rows=rows)
    for column in result.columns:
        column.justify = "left"
    return result


def fold_summary(result: FoldResult) -> str:
    folded, kept = len(result.folded), len(result.kept)
    if not folded + kept:
        return "no batch normalization in this model"
    return (
        f"{folded} of {folded + kept} batch normalizations folded; "
        f"largest difference {scientific(result.max_abs_error)} on random inputs"
    )


def comparison_table(comparison: Comparison) -> Table:
    rows = [
        (
            output.name,
            scientific(output.max_abs_error),
            scientific(output.relative_error),
            decibel(output.snr_db),
            f"{output.cosine:.6f}",
            MISSING if output.top1_agreement is None else percent(output.top1_agreement),
        )
        for output in comparison.outputs
    ]
    title = f"Outputs on {comparison.samples} samples"
    columns = ("output", "max error", "relative", "SNR dB", "cosine", "same top-1")
    return table(title, *columns, rows=rows)


def conversion_table(conversion: Conversion) -> Table:
    ops = [
        (name, str(count), str(conversion.float_ops.get(name, "") or ""))
        for name, count in conversion.ops.most_common()
    ]
    columns = ("operation", "count", "in float") if conversion.float_ops else ("operation", "count")
    return table("Operations", *columns, rows=[row[: len(columns)] for row in ops])


def benchmark_tables(
    results: Sequence[BenchmarkResult], speedups: Sequence[Speedup]
) -> list[Table]:
    """A table for each device; one line a measurement, narrow enough for 80 columns."""
    gained = {(each.device, each.model, each.threads): each for each in speedups}
    tables = []
    for device in dict.fromkeys(result.device for result in results):
        measured = [result for result in results if result.device == device]
        unit = TimeUnit(result.latency_ms.median for result in measured)
        rows = []
        for result in measured:
            speedup = gained.get((device, result.model, result.threads))
            latency, peak = result.latency_ms, result.peak_rss_bytes
            rows.append(
                (
                    Path(result.model).stem,
                    str(result.threads),
                    f"{unit(latency.median)} [{unit(latency.ci95[0])}, {unit(latency.ci95[1])}]",
                    _gain(speedup),
                    MISSING if peak is None else size(peak),
                )
            )
        columns = ("", "threads", f"median {unit.name}, 95 % interval", "faster by", "peak memory")
        tables.append(table(f"Latency on {device}", *columns, rows=rows))
    return tables


def profile_tables(results: Sequence[BenchmarkResult]) -> list[Table]:
    """The operations of each measurement that has a profile, those that take most first."""
    tables = []
    for result in results:
        if not result.profile:
            continue
        longest = sorted(result.profile, key=lambda each: -each.mean_ms)[:OPERATIONS_SHOWN]
        unit = TimeUnit(each.mean_ms for each in longest)
        rows = [(each.name, unit(each.mean_ms), percent(each.share)) for each in longest]
        shown = f"{len(longest)} of {len(result.profile)} operations of "
        where = f"{Path(result.model).stem} on {result.device}, threads: {result.threads}"
        tables.append(table(shown + where, "", f"mean {unit.name}", "share", rows=rows))
    return tables


def microcontroller_tables(results: Sequence[MicrocontrollerResult]) -> list[Table]:
    """What TensorFlow Lite Micro made of each file, and why it does not run some; no times."""
    if not results:
        return []
    rows = []
    for each in results:
        steps = [output.max_steps for output in each.outputs if output.max_steps is not None]
        rows.append(
            (
                Path(each.model).stem,
                "yes" if each.runs else f"no: {each.stopped_by or 'see below'}",
                size(each.size_bytes),
                MISSING if each.arena_bytes is None else thousands(each.arena_bytes),
                MISSING if each.max_abs_error is None else scientific(_named(each.max_abs_error)),
                str(max(steps)) if steps else MISSING,
                MISSING if each.snr_db is None else decibel(_named(each.snr_db)),
            )
        )
    columns = ("", "runs", "flash", "arena bytes", "max error", "in steps", "SNR dB")
    title = "TensorFlow Lite Micro on this machine, its outputs beside LiteRT's"
    reasons = [(Path(each.model).stem, each.reason) for each in results if each.reason]
    tables = [table(title, *columns, rows=rows)]
    return tables + ([_text_table("Why not", "", "reason", rows=reasons)] if reasons else [])


def _named(value: float) -> float | str:
    """Infinities by name, as documents write them."""
    return value if math.isfinite(value) else str(value)


def change_tables(changes: Changes) -> list[Table]:
    """Each measurement beside the baseline's, and what could not be compared."""
    tables = []
    limit = f", limit {percent(changes.limit)}" if changes.limit else ""
    for device in dict.fromkeys(each.device for each in changes.changes):
        here = [each for each in changes.changes if each.device == device]
        unit = TimeUnit(value for each in here for value in (each.before_ms, each.now_ms))
        rows = []
        for each in here:
            told = (MISSING, MISSING)
            if each.ratio is not None and each.ci95 is not None:
                told = (factor(each.ratio), factor_interval(*each.ci95))
            times = (unit(each.before_ms), unit(each.now_ms))
            rows.append((each.name, str(each.threads), *times, *told, each.verdict))
        columns = ("", "threads", f"before, {unit.name}", "now", "ratio", "95 %", "verdict")
        tables.append(table(f"{device} against the baseline{limit}", *columns, rows=rows))
    notes = [(each.name, note) for each in changes.changes for note in each.notes]
    notes += [(words, "in the baseline, not measured now") for words in changes.missing]
    notes += [(words, "not in the baseline") for words in changes.new]
    return tables + ([_text_table("Notes", "", "", rows=notes)] if notes else [])


def device_tables(devices: Sequence[Device]) -> list[Table]:
    """What each device is, one line a fact."""
    return [_facts_table(each.device, _facts(each)) for each in devices]


def _facts(device: Device) -> Iterator[tuple[str, str]]:
    cpus = None if device.cpus is None else f"{device.cpus} CPUs"
    facts = {
        "board": device.board,
        "cpu": ", ".join(filter(None, (device.cpu, cpus))),
        "memory": None if device.memory_bytes is None else size(device.memory_bytes),
        "system": " ".join(filter(None, (device.system, device.architecture))),
        "measures with": device.runtime,
        "problem": device.problem,
    }
    return ((name, value) for name, value in facts.items() if value)


def _facts_table(title: str, facts: Iterable[tuple[str, str]]) -> Table:
    result = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    result.show_header = False
    for name, value in facts:
        result.add_row(Text(f"  {name}"), Text(value))
    return result


def warnings(results: Sequence[BenchmarkResult]) -> Iterator[Text]:
    """What makes the figures doubtful; measurements that differ in a number only, once."""
    several = len({result.device for result in results}) > 1
    alike: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for words in result.warnings:
            alike.setdefault((result.device, re.sub(r"[\d.]+", "#", words)), []).append(words)
    for (device, _), (first, *others) in alike.items():
        where = f" on {device}" if several else ""
        yield Text(f"warning{where}: {first}" + (f" (and {len(others)} alike)" if others else ""))


def _gain(speedup: Speedup | None) -> str:
    if speedup is None:
        return MISSING
    return f"{factor(speedup.ratio)} {factor_interval(*speedup.ci95)}"


def summary_table(
    conversions: Sequence[Conversion],
    accuracies: Mapping[Path, float],
    reference: float | None,
    results: Sequence[BenchmarkResult],
    speedups: Sequence[Speedup],
) -> Table:
    """One line a conversion: what it weighs, how far it is from the model, how fast it is."""
    threads = results[0].threads
    latency = {Path(each.model): each for each in results if each.threads == threads}
    gained = {Path(each.model): each for each in speedups if each.threads == threads}
    unit = TimeUnit(result.latency_ms.median for result in latency.values())
    rows = []
    for each in conversions:
        speedup, comparison = gained.get(each.path), each.comparison
        rows.append(
            (
                "float32" if each.quantize == "none" else each.quantize,
                size(each.size_bytes),
                percent(accuracies[each.path]) if each.path in accuracies else MISSING,
                scientific(comparison.max_abs_error) if comparison else MISSING,
                decibel(comparison.snr_db) if comparison else MISSING,
                unit(latency[each.path].latency_ms.median),
                _gain(speedup),
            )
        )
    title = "Converted"
    if reference is not None:
        title += f" (accuracy of the Keras model: {percent(reference)})"
    columns = ("", "size", "accuracy", "max error", "SNR dB", f"latency {unit.name}", "faster by")
    return table(title, *columns, rows=rows)
