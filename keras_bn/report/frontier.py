"""The frontier of size, quality and latency: the files that no other file makes pointless."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_bn.report import selection


@dataclass(frozen=True)
class Quality:
    """How good each converted file is, by name; higher is better.

    Attributes:
        name, axis: "accuracy" or "SNR"; the same with its unit.
        values: Accuracy in per cent or SNR in dB, which may be infinite, or NaN where an output
            has no finite figures.
        ceiling: No value is above this.
        reference: The Keras model's own, where it is known.
    """

    name: str
    axis: str
    values: dict[str, float]
    ceiling: float = math.inf
    reference: float | None = None


@dataclass(frozen=True)
class Frontier:
    """On one device: `names` are matched in every respect by no other file, the `beaten` are."""

    where: str
    respects: str
    names: list[str]
    beaten: list[str]


def quality(document: dict[str, Any]) -> Quality:
    """Accuracy where it is known of every file, else the SNR against the Keras model."""
    conversions = document["conversions"]
    if conversions and all(each["accuracy"] is not None for each in conversions):
        model = document["model"]
        known = model is not None and model["accuracy"] is not None
        return Quality(
            "accuracy",
            "accuracy, %",
            {each["name"]: 100 * each["accuracy"] for each in conversions},
            ceiling=100.0,
            reference=100 * model["accuracy"] if known else None,
        )
    snr_db = {
        each["name"]: float(each["comparison"]["snr_db"])
        for each in conversions
        if each["comparison"] is not None
    }
    return Quality("SNR", "SNR, dB", snr_db)


def frontiers(document: dict[str, Any]) -> list[Frontier]:
    """The frontier on each device, of three files or more: two are compared at a glance."""
    found = []
    good = quality(document)
    for device, benchmarks in selection.by_device(document["benchmarks"]):
        measured = selection.fewest_threads(benchmarks)
        costs: dict[str, tuple[float, ...]] = {
            each["name"]: (each["size_bytes"], each["latency_ms"]["median"]) for each in measured
        }
        respects = "size and latency"
        if document["conversions"]:
            respects = f"size, {good.name} and latency"
            costs = {
                name: (*cost, -good.values[name])
                for name, cost in costs.items()
                if not math.isnan(good.values.get(name, math.nan))
            }
        if len(costs) > 2:
            where = f"{device}, {selection.threads(measured[0])}"
            names = undominated(costs)
            beaten = [name for name in costs if name not in names]
            found.append(Frontier(where, respects, names, beaten))
    return found


def undominated(costs: Mapping[str, tuple[float, ...]]) -> list[str]:
    """The names that no other is at least as cheap as in every respect, and cheaper in one.

    Example:
        >>> undominated({"a": (1, 9), "b": (2, 5), "c": (2, 6)})
        ['a', 'b']
    """

    def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return [
        name
        for name, cost in costs.items()
        if not any(dominates(other, cost) for other in costs.values())
    ]
