"""Parts of the document that several sections look at, and how they are named there."""

from __future__ import annotations

from typing import Any

# Colours in report.css, each with a shape of its own in charts.
COLOURS = 6
# Solid shapes, then hollow ones; more models than that share them, and each is named anyway.
STYLES = 2 * COLOURS


def colours(document: dict[str, Any]) -> dict[str, int]:
    """Every model's style, the same in all charts and tables: its colour, and from 6 on hollow."""
    parts = ("conversions", "benchmarks", "microcontrollers")
    names = [record["name"] for part in parts for record in document[part]]
    return {name: index % STYLES for index, name in enumerate(dict.fromkeys(names))}


def by_device(records: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Measurements or speedups grouped by device, in the order the devices first occur."""
    devices = dict.fromkeys(each["device"] for each in records)
    return [(device, [r for r in records if r["device"] == device]) for device in devices]


def fewest_threads(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of one device's measurements, or speedups, that took the fewest threads."""
    fewest = min((each["threads"] for each in records), default=0)
    return [each for each in records if each["threads"] == fewest]


def threads(record: dict[str, Any]) -> str:
    """
    Example:
        >>> threads({"threads": 1}), threads({"threads": 4})
        ('1 thread', '4 threads')
    """
    return f"{record['threads']} {'thread' if record['threads'] == 1 else 'threads'}"
