"""Tables about the converted files: size and closeness, quantization, outputs, operations."""

from __future__ import annotations

from typing import Any

from keras_bn.report import quantities, selection
from keras_bn.report.quantities import MISSING, TimeUnit
from keras_bn.report.table import Cell, Table, figure, words

# What convert's option `quantize` does; a document may name others, which explain nothing.
MEANINGS = {
    "none": "Weights and computations in 32-bit floats, as in Keras.",
    "float16": "Weights are stored as 16-bit floats, and computed with in 32-bit floats.",
    "dynamic": "Weights are stored as 8-bit integers. The large products compute with them, their "
    "inputs being quantized at every invoke; all else computes in floats.",
    "int8": "Weights and activations are 8-bit integers, scaled as on the calibration data.",
    "int16x8": "Weights are 8-bit integers, activations 16-bit ones, scaled as on the calibration "
    "data.",
}
INTEGER = ("int8", "int16x8")


def overview(document: dict[str, Any]) -> Table | None:
    """A line for each conversion: size, quality, latency on each device."""
    conversions = document["conversions"]
    if not conversions:
        return None
    first_size = conversions[0]["size_bytes"]
    with_accuracy = any(each["accuracy"] is not None for each in conversions)
    columns = ["Model", "Quantization", "Size", "Smaller by"]
    columns += ["Accuracy"] * with_accuracy + ["Same class", "SNR, dB", "Largest error"]
    devices = selection.by_device(document["benchmarks"])
    latencies = []
    for device, benchmarks in devices:
        measured = selection.fewest_threads(benchmarks)
        medians = {each["name"]: each["latency_ms"]["median"] for each in measured}
        unit = TimeUnit(medians.values())
        latencies.append((medians, unit))
        columns.append(f"{'Latency' if len(devices) == 1 else device}, {unit.name}")
    rows = []
    for each in conversions:
        comparison = each["comparison"] or dict.fromkeys(("top1_agreement", "snr_db"), None)
        row = [*words([each["name"], each["quantize"]])]
        row += [Cell(quantities.size(each["size_bytes"]), each["size_bytes"])]
        row += [figure(first_size / each["size_bytes"], quantities.factor)]
        row += [figure(each["accuracy"], quantities.percent)] * with_accuracy
        row += [figure(comparison["top1_agreement"], quantities.percent)]
        row += [figure(comparison["snr_db"], quantities.decibel)]
        row += [figure(comparison.get("max_abs_error"), quantities.scientific)]
        row += [figure(medians.get(each["name"]), unit) for medians, unit in latencies]
        rows.append(row)
    caption = "Size and closeness to the Keras model"
    if devices:
        where = [
            f"{device}, {selection.threads(selection.fewest_threads(benchmarks)[0])}"
            for device, benchmarks in devices
        ]
        caption += f"; median latency on {'; '.join(where)}"
    return Table(caption, columns, rows, texts=2, keyed=True)


def quantization(document: dict[str, Any]) -> Table | None:
    """What quantization made of each file, and which operations it left in float."""
    conversions = document["conversions"]
    if all(each["quantize"] == "none" for each in conversions):
        return None
    rows = [
        words(
            [each["name"], each["quantize"], MEANINGS.get(each["quantize"], MISSING), _left(each)]
        )
        for each in conversions
    ]
    columns = ["Model", "Quantization", "What it does", "Stayed in float"]
    return Table("What quantization did", columns, rows, texts=4, keyed=True)


def outputs(document: dict[str, Any]) -> Table | None:
    """A line for each output of each file that was compared with its Keras model."""
    rows = [
        [
            *words([each["name"], output["name"]]),
            figure(output["max_abs_error"], quantities.scientific),
            figure(output["snr_db"], quantities.decibel),
            figure(output["cosine"], quantities.cosine),
            figure(output["top1_agreement"], quantities.percent),
            figure(each["comparison"]["samples"], quantities.thousands),
        ]
        for each in document["conversions"]
        if each["comparison"] is not None
        for output in each["comparison"]["outputs"]
    ]
    if not rows:
        return None
    columns = ["Model", "Output", "Largest error", "SNR, dB", "Cosine", "Same class", "Samples"]
    return Table("Each output against the Keras model's", columns, rows, texts=2, keyed=True)


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
    total = [Cell("All"), *(Cell(quantities.thousands(count), count) for count in sums)]
    columns = ["Operation", *(each["name"] for each in conversions)]
    return Table("Operations in each file", columns, rows, total=total)


def _left(conversion: dict[str, Any]) -> str:
    """The operations of an integer file that compute in float, and of how many."""
    if conversion["quantize"] not in INTEGER:
        return MISSING
    ops, in_float = conversion["ops"], conversion["float_ops"]
    return (
        ", ".join(
            name if count == ops.get(name) == 1 else f"{name} ({count} of {ops.get(name, count)})"
            for name, count in in_float.items()
            if count
        )
        or "none"
    )


def _operation(conversion: dict[str, Any], name: str) -> Cell:
    count = conversion["ops"].get(name, 0)
    in_float = conversion["float_ops"].get(name, 0)
    return Cell(f"{count or MISSING}" + (f" ({in_float} in float)" if in_float else ""), count)
