"""What changed against a baseline, which `keras-bn bench --against` compares with."""

from __future__ import annotations

from typing import Any

from keras_bn.report import quantities
from keras_bn.report.table import Cell, Table, figure, words


def changes(document: dict[str, Any]) -> Table | None:
    """A line for each measurement that both runs have."""
    against = document["against"]
    if against is None or not against["changes"]:
        return None
    unit = quantities.TimeUnit(each["now_ms"] for each in against["changes"])
    rows = []
    for each in against["changes"]:
        interval = Cell(quantities.MISSING)
        if each["ci95"] is not None:
            low, high = each["ci95"]
            interval = Cell(quantities.factor_interval(low, high), high - low)
        rows.append(
            [
                *words([each["name"], each["device"], each["verdict"], " ".join(each["notes"])]),
                Cell(str(each["threads"]), each["threads"]),
                figure(each["before_ms"], unit),
                figure(each["now_ms"], unit),
                figure(each["ratio"], quantities.factor),
                interval,
            ]
        )
    columns = ["Model", "Device", "Reading", "Notes", "Threads", f"Before, {unit.name}"]
    columns += [f"Now, {unit.name}", "Now over before", "95 % interval"]
    limit = quantities.percent(against["limit"])
    caption = f"Median latency against the baseline; slower counts from {limit} on"
    return Table(caption, columns, rows, texts=4, keyed=True)


def unmatched(document: dict[str, Any]) -> list[str]:
    """What only one of the two runs has, in sentences."""
    against = document["against"]
    if against is None:
        return []
    told = (("Not measured again", against["missing"]), ("Not in the baseline", against["new"]))
    return [f"{what}: {', '.join(which)}." for what, which in told if which]
