"""Parts of the document that several sections look at, and how they are named there."""

from __future__ import annotations

from typing import Any

# Colours in report.css; more models than that share them, and each is labelled anyway.
COLOURS = 6


def colours(document: dict[str, Any]) -> dict[str, int]:
    """Every model's colour, the same in all charts and tables."""
    names = [record["name"] for record in (*document["conversions"], *document["benchmarks"])]
    return {name: index % COLOURS for index, name in enumerate(dict.fromkeys(names))}


def by_device(records: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Measurements or speedups grouped by device, in the order the devices first occur."""
    devices = dict.fromkeys(each["device"] for each in records)
    return [(device, [r for r in records if r["device"] == device]) for device in devices]


def fewest_threads(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measurements or speedups on the first device at its smallest thread count."""
    if not records:
        return []
    _, first = by_device(records)[0]
    fewest = min(each["threads"] for each in first)
    return [each for each in first if each["threads"] == fewest]


def threads(record: dict[str, Any]) -> str:
    """
    Example:
        >>> threads({"threads": 1}), threads({"threads": 4})
        ('1 thread', '4 threads')
    """
    return f"{record['threads']} {'thread' if record['threads'] == 1 else 'threads'}"
