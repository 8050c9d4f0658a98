"""Tables about folding: which layers are gone, which stayed and why."""

from __future__ import annotations

from typing import Any

from keras_bn.report.table import Table, words


def gone(fold: dict[str, Any]) -> Table | None:
    """The normalizations that are no more, and what they became part of."""
    rows = [words([each["layer"], each["into"], each["rule"]]) for each in fold["folded"]]
    if not rows:
        return None
    return Table("Normalizations that are gone", ["Layer", "Folded into", "Rule"], rows, texts=3)


def stayed(fold: dict[str, Any]) -> Table | None:
    """The normalizations that are still there."""
    rows = [words([each["layer"], each["reason"]]) for each in fold["kept"]]
    return Table("Normalizations that stayed", ["Layer", "Reason"], rows, texts=2) if rows else None


def others(fold: dict[str, Any]) -> Table | None:
    """Scales and shifts that are no batch normalization."""
    rows = [
        words([each["layer"], each.get("into", "stays"), each.get("rule", each.get("reason", ""))])
        for each in fold["others"]
    ]
    if not rows:
        return None
    caption = "Other scales and shifts: rescalings, gamma and beta of other layers, constants"
    return Table(caption, ["Layer", "Folded into", "Rule, or reason to stay"], rows, texts=3)
