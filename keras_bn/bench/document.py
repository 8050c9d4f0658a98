"""The document that `runner.py` prints, read as data that may be anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from keras_bn.bench.child import printable, signal_name
from keras_bn.bench.request import Request
from keras_bn.checks import (
    Check,
    count,
    each,
    fail,
    flag,
    mapping,
    number,
    optional,
    record,
    share,
    text,
)
from keras_bn.errors import DeviceError

SCHEMA = 1
# A sample of more than eleven days is no sample.
LONGEST_NS = 10**15
MOST = 2**31 - 1


def read(
    answer: bytes | str,
    *,
    status: int,
    printed: str,
    request: Request,
    names: Sequence[str],
    where: str = "",
) -> dict[str, Any]:
    """The document in `answer`, with the models called as in `request`.

    Args:
        answer: What the runner wrote to standard output.
        status: Its exit status; below zero, the signal that killed it.
        printed: Its last words, to be appended to a message.
        request: What was asked for.
        names: What the runner was told the models are called.
        where: " on ssh://board" and the like, for messages.

    Raises:
        DeviceError: the runner was killed, failed, or its answer is not one to this request.
    """
    if status < 0:
        raise DeviceError(
            f"The benchmark process{where} was killed by {signal_name(-status)}: the "
            f"interpreter crashed, or the system ran out of memory.{printed}"
        )
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise DeviceError(
            f"The benchmark process{where} ended with status {status} and no result.{printed}"
        ) from None
    try:
        if isinstance(document, dict) and "error" in document:
            record(message=text)(document["error"], "error")
            message = printable(document["error"]["message"])
            raise DeviceError(f"The benchmark{where} failed: {message}.{printed}")
        return _checked(document, request, names)
    except ValueError as error:
        wrong = printable(str(error))
        raise DeviceError(
            f"The result of the benchmark{where} is not as expected: {wrong}.{printed}"
        ) from None


def _checked(document: Any, request: Request, names: Sequence[str]) -> dict[str, Any]:
    cells = [(index, threads) for index in range(len(names)) for threads in request.threads]
    measurement = measurement_of(request.runs, profile=request.profile)
    record(
        schema=equal_to(SCHEMA),
        environment=record(**ENVIRONMENT),
        models=each(record(**FILE), at_least=len(names), at_most=len(names)),
        measurements=each(record(**measurement), at_least=len(cells), at_most=len(cells)),
    )(document, "result")
    for index, file in enumerate(document["models"]):
        equal_to(names[index])(file["model"], f"result.models[{index}].model")
    for index, (model, threads) in enumerate(cells):
        where, measured = f"result.measurements[{index}]", document["measurements"][index]
        equal_to(names[model])(measured["model"], f"{where}.model")
        equal_to(threads)(measured["threads"], f"{where}.threads")
    return {
        "environment": _named(ENVIRONMENT, document["environment"]),
        "models": [
            {**_named(FILE, file), "model": path}
            for path, file in zip(request.models, document["models"], strict=True)
        ],
        "measurements": [
            {**_named(measurement, measured), "model": request.models[model]}
            for (model, _), measured in zip(cells, document["measurements"], strict=True)
        ],
    }


def _named(fields: Mapping[str, Check], value: Mapping[str, Any]) -> dict[str, Any]:
    """What was checked of `value`, its texts fit for a terminal."""
    return {name: _printable(value[name]) for name in fields}


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(name): _printable(item) for name, item in value.items()}
    return value


# --- Fields ------------------------------------------------------------------------------------


def equal_to(expected: object) -> Check:
    def check_equal(value: Any, where: str) -> None:
        if type(value) is not type(expected) or value != expected:
            fail(where, repr(expected), value)

    return check_equal


def whole(low: int, high: int) -> Check:
    def check_whole(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            fail(where, f"a whole number from {low} to {high}", value)

    return check_whole


def sha256(value: Any, where: str) -> None:
    text(value, where)
    if not re.fullmatch("[0-9a-f]{64}", value):
        fail(where, "64 hexadecimal digits", value)


def shallow(**fields: Check) -> Check:
    """An object with `fields` and no others."""

    def check_shallow(value: Any, where: str) -> None:
        record(**fields)(value, where)
        if others := value.keys() - fields.keys():
            fail(where, f"only {', '.join(fields)}", sorted(others))

    return check_shallow


CONDITIONS = shallow(
    load_average=number,
    governor=optional(text),
    frequency_mhz=optional(number),
    temperature_c=optional(number),
    temperature_by_zone_c=mapping(number),
    throttle_events=optional(count),
    firmware_throttling=optional(count),
)

ENVIRONMENT: dict[str, Check] = {
    "system": text,
    "architecture": text,
    "board": optional(text),
    "cpu": text,
    "cpus": whole(1, MOST),
    "memory_bytes": count,
    "python": text,
    "numpy": text,
    "interpreter": text,
    "xnnpack": flag,
    "affinity": optional(each(count)),
    "warmup": count,
    "seed": count,
    "timer_resolution_ns": whole(1, LONGEST_NS),
    "cooldown_limit_s": number,
    "cooldown_waited_s": number,
    "before": CONDITIONS,
    "after": CONDITIONS,
}

FILE: dict[str, Check] = {"model": text, "sha256": sha256, "size_bytes": whole(1, MOST)}

INPUT = shallow(
    name=text,
    dtype=text,
    shape=each(whole(0, MOST)),
    shape_signature=each(whole(-1, MOST)),
)


OPERATION = shallow(name=text, kind=text, mean_ms=number, share=share, calls=whole(0, MOST))


def measurement_of(runs: int, *, profile: bool) -> dict[str, Check]:
    profiled = {"profile": each(OPERATION), "profile_problem": optional(text)}
    return (profiled if profile else {}) | {
        "model": text,
        "threads": count,
        "samples_ns": each(whole(1, LONGEST_NS), at_least=runs, at_most=runs),
        "preempted": whole(0, runs),
        "init_ns": whole(0, LONGEST_NS),
        "first_invoke_ns": whole(0, LONGEST_NS),
        "peak_rss_bytes": count,
        "runtime_rss_bytes": count,
        "inputs": each(INPUT),
    }
