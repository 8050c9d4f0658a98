"""report.csv: one row a measurement, for a spreadsheet or a data frame."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from typing import Any

from keras_bn.report import schema, selection, texts

# Every column and what is in it; a cell is empty where nothing is known. Times are in
# milliseconds, sizes in bytes, shares from 0 to 1.
COLUMNS = {
    "model": "Name of the file, as in the other reports.",
    "file": "Its path, as it was given.",
    "sha256": "Hash of the file that was measured.",
    "size_bytes": "Its size.",
    "quantize": "none, float16, dynamic, int8 or int16x8, if it was converted in the same run.",
    "accuracy": "On the evaluation data.",
    "snr_db": "Against the Keras model: the worst output's. inf where they are equal.",
    "max_abs_error": "Against the Keras model: the worst output's.",
    "top1_agreement": "Share of samples with the Keras model's class.",
    "device": "host, ssh://…, adb:…, or tflm: TensorFlow Lite Micro. Empty if not measured.",
    "threads": "Interpreter threads.",
    "median_ms": "Median of the timed invokes.",
    "median_low_ms": "Lower end of the median's 95 % interval.",
    "median_high_ms": "Upper end of the median's 95 % interval.",
    "mean_ms": "Mean of the timed invokes.",
    "std_ms": "Their standard deviation.",
    "minimum_ms": "The shortest of them.",
    "p5_ms": "5th percentile.",
    "p5_low_ms": "Lower end of its 95 % interval, with samples enough for one.",
    "p5_high_ms": "Upper end of its 95 % interval.",
    "p95_ms": "95th percentile.",
    "p95_low_ms": "Lower end of its 95 % interval, with samples enough for one.",
    "p95_high_ms": "Upper end of its 95 % interval.",
    "p99_ms": "99th percentile.",
    "p99_low_ms": "Lower end of its 95 % interval, with samples enough for one.",
    "p99_high_ms": "Upper end of its 95 % interval.",
    "maximum_ms": "The longest of them.",
    "invokes": "How many there were.",
    "repeats": "In how many separate runs.",
    "preempted": "In how many of them another program got the CPU.",
    "init_ms": "Building the interpreter and allocating its tensors.",
    "first_invoke_ms": "The first invoke.",
    "peak_rss_bytes": "Peak resident set of a process with this model alone.",
    "runtime_rss_bytes": "Resident set of that process before it loaded the model.",
    "baseline": "Model that the speedup is against, measured in the same run.",
    "speedup": "Its median over this one's: above 1, this one is faster.",
    "speedup_low": "Lower end of the speedup's 95 % interval.",
    "speedup_high": "Upper end of the speedup's 95 % interval.",
    "warnings": "How many doubts about the figures the other reports tell of.",
    "runs_on_tflm": "true or false: whether TensorFlow Lite Micro ran it.",
    "arena_bytes": "The smallest arena that it ran in there.",
    "tflm_snr_db": "There, against LiteRT's output: the worst output's.",
    "tflm_max_abs_error": "There, against LiteRT's output: the worst output's.",
    "tflm_stopped_by": "The operation that it does not run there for.",
}
# What a spreadsheet takes for the beginning of a formula, also in its full-width form and after
# spaces (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@")
# Fields of a measurement that are columns under their own names.
OF_BENCHMARK = (
    "sha256",
    "size_bytes",
    "device",
    "threads",
    "repeats",
    "preempted",
    "init_ms",
    "first_invoke_ms",
    "peak_rss_bytes",
    "runtime_rss_bytes",
)
WITH_INTERVAL = ("p5", "p95", "p99")
STATISTICS = ("mean", "std", "minimum", "p5", "p95", "p99", "maximum")


def render_csv(document: dict[str, Any]) -> str:
    """The measurements as comma-separated values (RFC 4180), one row each.

    A row for each model, device and thread count, for each file that TensorFlow Lite Micro was
    tried on, and for each converted file that was measured nowhere. `COLUMNS` says what is in
    them. Texts that a spreadsheet would take for a formula get an apostrophe in front.

    Args:
        document: As `results.document` or `results.load` gives it.

    Raises:
        ValueError: it is not a results document.

    Example:
        >>> from keras_bn.report.results import document
        >>> render_csv(document(title="Empty", environment={}))[:22]
        'model,file,sha256,size'
    """
    schema.check(document)
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS, restval="")
    writer.writeheader()
    for row in _rows(document):
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return written.getvalue()


def _rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    converted = {each["name"]: each for each in document["conversions"]}
    measured = {
        each["name"] for part in ("benchmarks", "microcontrollers") for each in document[part]
    }
    for name, conversion in converted.items():
        if name not in measured:
            yield _conversion(conversion)
    for _, benchmarks in selection.by_device(document["benchmarks"]):
        for each in benchmarks:
            yield _conversion(converted.get(each["name"])) | _benchmark(each, document["speedups"])
    for each in document["microcontrollers"]:
        yield _conversion(converted.get(each["name"])) | _microcontroller(each)


def _conversion(conversion: dict[str, Any] | None) -> dict[str, Any]:
    if conversion is None:
        return {}
    comparison = conversion["comparison"] or {}
    figures = ("snr_db", "max_abs_error", "top1_agreement")
    return {
        "model": conversion["name"],
        "file": conversion["file"],
        **{name: conversion[name] for name in ("size_bytes", "quantize", "accuracy")},
        **{name: comparison.get(name) for name in figures},
    }


def _benchmark(benchmark: dict[str, Any], speedups: list[dict[str, Any]]) -> dict[str, Any]:
    latency = benchmark["latency_ms"]
    of = ("name", "device", "threads")
    speedup = next((s for s in speedups if all(s[key] == benchmark[key] for key in of)), None)
    row = {
        "model": benchmark["name"],
        "file": benchmark["model"],
        **{name: benchmark[name] for name in OF_BENCHMARK},
        "median_ms": latency["median"],
        "median_low_ms": latency["ci95"][0],
        "median_high_ms": latency["ci95"][1],
        **{f"{name}_ms": latency[name] for name in STATISTICS},
        "invokes": len(latency["samples"]),
        "warnings": len(benchmark["warnings"]),
    }
    for name in WITH_INTERVAL:
        low, high = latency.get(f"{name}_ci95") or (None, None)
        row |= {f"{name}_low_ms": low, f"{name}_high_ms": high}
    if speedup is not None:
        row |= {"baseline": speedup["baseline_name"], "speedup": speedup["ratio"]}
        row |= {"speedup_low": speedup["ci95"][0], "speedup_high": speedup["ci95"][1]}
    return row


def _microcontroller(tried: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": tried["name"],
        "file": tried["model"],
        **{name: tried[name] for name in ("sha256", "size_bytes", "arena_bytes")},
        "device": "tflm",
        "runs_on_tflm": tried["runs"],
        "tflm_snr_db": tried["snr_db"],
        "tflm_max_abs_error": tried["max_abs_error"],
        "tflm_stopped_by": tried["stopped_by"],
    }


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str) or value in schema.EXTENDED:
        return value
    text = texts.plain(value)
    start = unicodedata.normalize("NFKC", text.lstrip()[:1])
    return f"'{text}" if start.startswith(FORMULA) else text
