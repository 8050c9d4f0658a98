"""Machines and the conditions that they measured under, as names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from keras_bn.report import quantities, texts

Facts = list[tuple[str, str]]

# Suffixes of the runner's field names.
UNITS = {"_bytes": "bytes", "_ns": "ns", "_s": "s", "_mhz": "MHz", "_c": "°C"}
# What the runner tells of the time before its rounds, and after them.
MOMENTS = ("before", "after")


def machine(environment: Mapping[str, Any]) -> str:
    """What the device is, in a few words."""
    known = {name: value for name, value in environment.items() if isinstance(value, str | int)}
    cpus = known.get("cpus")
    return ", ".join(
        str(words)
        for words in (
            known.get("board"),
            known.get("cpu"),
            cpus and f"{cpus} {'CPU' if cpus == 1 else 'CPUs'}",
            known.get("architecture"),
            known.get("system"),
            known.get("interpreter"),
        )
        if words
    )


def conditions(benchmarks: list[dict[str, Any]]) -> list[Facts]:
    """Every environment of these measurements once, in the order they first occur."""
    found: list[Facts] = []
    for each in benchmarks:
        facts = list(_facts(each["environment"]))
        if facts not in found:
            found.append(facts)
    return found


def moment(created: str) -> str:
    """An ISO 8601 time as a reader wants it; any other text as it is."""
    try:
        return datetime.fromisoformat(created).strftime("%d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return created


def _facts(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything that is known; what was read before and after the run, side by side."""
    readings = {
        moment: dict(_flat(environment[moment]))
        for moment in MOMENTS
        if isinstance(environment.get(moment), dict)
    }
    yield from _flat({name: value for name, value in environment.items() if name not in readings})
    for name in dict.fromkeys(name for values in readings.values() for name in values):
        told = {moment: values[name] for moment, values in readings.items() if name in values}
        if len(told) == len(MOMENTS) and len(set(told.values())) == 1:
            yield name, told[MOMENTS[0]]
        else:
            yield name, ", ".join(f"{value} {moment}" for moment, value in told.items())


def _flat(environment: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested objects flattened, units moved from name to value."""
    for key, value in environment.items():
        name, unit = _name_and_unit(key)
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}, ")
        elif isinstance(value, bool):
            yield prefix + name, "yes" if value else "no"
        elif isinstance(value, list) and value:
            yield prefix + name, texts.shortened(", ".join(map(str, value)), texts.LONGEST)
        elif unit == "bytes" and isinstance(value, int) and value >= 0:
            yield prefix + name, quantities.size(value)
        elif value is not None and value != []:
            yield prefix + name, f"{value} {unit}".strip()


def _name_and_unit(key: str) -> tuple[str, str]:
    for suffix, unit in UNITS.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix).replace("_", " "), unit
    return key.replace("_", " "), ""
