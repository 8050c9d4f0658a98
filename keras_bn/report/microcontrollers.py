"""Tables about TensorFlow Lite Micro: which files it runs, in how much memory, how exactly."""

from __future__ import annotations

from typing import Any

from keras_bn.report import quantities
from keras_bn.report.table import Cell, Table, figure, words


def fits(document: dict[str, Any]) -> Table | None:
    """A line for each file: whether it runs, and in how much flash and RAM."""
    tried = document["microcontrollers"]
    if not tried:
        return None
    largest = max((each["arena_bytes"] or 0 for each in tried), default=0)
    rows = []
    for each in tried:
        arena = each["arena_bytes"]
        rows.append(
            [
                *words([each["name"], "yes" if each["runs"] else "no"]),
                figure(each["size_bytes"], quantities.size),
                Cell(quantities.MISSING)
                if arena is None
                else Cell(quantities.size(arena), arena, arena / max(largest, 1)),
                figure(each["snr_db"], quantities.decibel),
                figure(each["max_abs_error"], quantities.scientific),
                figure(sum(each["ops"].values()), quantities.thousands),
            ]
        )
    columns = ["Model", "Runs", "Flash", "Smallest arena (RAM)", "SNR, dB", "Largest error"]
    columns += ["Operations"]
    return Table("TensorFlow Lite Micro, against LiteRT", columns, rows, texts=2, keyed=True)


def reasons(document: dict[str, Any]) -> Table | None:
    """Why files do not run, in the interpreter's words."""
    rows = [
        words(
            [each["name"], each["stopped_by"] or quantities.MISSING, each["reason"] or "not told"]
        )
        for each in document["microcontrollers"]
        if not each["runs"]
    ]
    if not rows:
        return None
    columns = ["Model", "Operation", "The interpreter's words"]
    return Table("Why files do not run", columns, rows, texts=3, keyed=True)


def outputs(document: dict[str, Any]) -> Table | None:
    """A line for each output beside LiteRT's."""
    rows = [
        [
            *words([each["name"], output["name"], output["dtype"]]),
            figure(output["max_abs_error"], quantities.scientific),
            figure(output["max_steps"], quantities.thousands),
            figure(output["snr_db"], quantities.decibel),
            figure(each["samples"], quantities.thousands),
        ]
        for each in document["microcontrollers"]
        for output in each["outputs"]
    ]
    if not rows:
        return None
    columns = ["Model", "Output", "Type", "Largest error", "Quantization steps", "SNR, dB"]
    columns += ["Samples"]
    caption = "Each output against LiteRT's on the same inputs"
    return Table(caption, columns, rows, texts=3, keyed=True)


def versions(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The interpreters' versions, each once."""
    told = [item for each in document["microcontrollers"] for item in each["environment"].items()]
    return list(dict.fromkeys(told))
