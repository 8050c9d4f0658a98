"""The shape of results.json: a check for each kind of value, and one for the whole.

A check takes a value and where it stands in the document, and raises `ValueError` that names
the place, what was expected there and what was found. Fields that are not named are allowed:
they come from a newer keras-bn and are not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

FORMAT = "keras-bn results"
VERSION = 1

DEEPEST = 8
LARGEST = 1e100
SMALLEST = 1e-100

Check = Callable[[Any, str], None]

# JSON has no infinity: an output that equals its reference has an infinite SNR.
EXTENDED = ("inf", "-inf", "nan")


def fail(where: str, expected: str, value: Any) -> None:
    received = repr(value)
    raise ValueError(
        f"{where}: expected {expected}, received "
        f"{received if len(received) <= 60 else received[:57] + '...'}"
    )


def text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        fail(where, "a text", value)


def flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        fail(where, "true or false", value)


def number(value: Any, where: str) -> None:
    # The limit is met by every figure of a benchmark, and keeps arithmetic on them finite.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        fail(where, f"a number below {LARGEST:.0e}", value)


def positive(value: Any, where: str) -> None:
    number(value, where)
    if value < SMALLEST:
        fail(where, "a number above 0", value)


def count(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        fail(where, "a whole number, 0 or more", value)


def share(value: Any, where: str) -> None:
    number(value, where)
    if not 0 <= value <= 1:
        fail(where, "a number from 0 to 1", value)


def extended(value: Any, where: str) -> None:
    if value not in EXTENDED:
        number(value, where)


def anything(value: Any, where: str) -> None:
    """Any JSON value, drawn as text; objects within objects only as deep as reports show them."""
    if isinstance(value, dict):
        if where.count(".") > DEEPEST:
            fail(where, "objects nested less deeply", value)
        for key, item in value.items():
            anything(item, f"{where}.{key.replace('.', '_')}")


def optional(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def each(check: Check, *, at_least: int = 0, at_most: float = math.inf) -> Check:
    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list) or not at_least <= len(value) <= at_most:
            fail(where, "a list" + (f" of at least {at_least}" if at_least else ""), value)
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return check_list


def mapping(check: Check) -> Check:
    def check_mapping(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            fail(where, "an object", value)
        for key, item in value.items():
            check(item, f"{where}.{key}")

    return check_mapping


def record(added: Mapping[str, Check] = MappingProxyType({}), /, **fields: Check) -> Check:
    """An object with `fields`, and with those of `added` that a file of an older version lacks."""

    def check_record(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            fail(where, "an object", value)
        for name, check in fields.items():
            if name not in value:
                raise ValueError(f"{where}: the field {name!r} is missing; it has {list(value)}")
            check(value[name], f"{where}.{name}")
        for name in added.keys() & value.keys():
            added[name](value[name], f"{where}.{name}")

    return check_record


figures = {
    "max_abs_error": extended,
    "snr_db": extended,
    "cosine": extended,
    "top1_agreement": optional(share),
}

latency = record(
    samples=each(positive, at_least=1),
    median=positive,
    mean=positive,
    std=number,
    p5=positive,
    p95=positive,
    p99=positive,
    minimum=positive,
    maximum=positive,
    ci95=each(positive, at_least=2, at_most=2),
)

operation = record(name=text, kind=text, mean_ms=number, share=share, calls=count)

microcontroller = record(
    name=text,
    model=text,
    sha256=text,
    size_bytes=positive,
    ops=mapping(count),
    runs=flag,
    reason=optional(text),
    arena_bytes=optional(count),
    outputs=each(
        record(
            name=text, dtype=text, max_abs_error=number, max_steps=optional(count), snr_db=extended
        )
    ),
    max_abs_error=optional(number),
    snr_db=optional(extended),
    samples=count,
    environment=mapping(text),
)

results = record(
    {"microcontrollers": each(microcontroller)},
    title=text,
    created=text,
    environment=mapping(text),
    model=optional(
        record(
            name=text,
            parameters=optional(count),
            layers=optional(count),
            size_bytes=optional(count),
            accuracy=optional(share),
        )
    ),
    fold=optional(
        record(
            folded=each(record(layer=text, into=text, rule=text)),
            kept=each(record(layer=text, reason=text)),
            max_abs_error=extended,
        )
    ),
    conversions=each(
        record(
            name=text,
            file=text,
            quantize=text,
            size_bytes=positive,
            ops=mapping(count),
            float_ops=mapping(count),
            accuracy=optional(share),
            comparison=optional(
                record(
                    samples=count, outputs=each(record(name=text, **figures), at_least=1), **figures
                )
            ),
        )
    ),
    benchmarks=each(
        record(
            {"profile": each(operation)},
            name=text,
            model=text,
            sha256=text,
            size_bytes=positive,
            device=text,
            threads=count,
            latency_ms=latency,
            init_ms=optional(number),
            first_invoke_ms=optional(number),
            peak_rss_bytes=optional(count),
            runtime_rss_bytes=optional(count),
            inputs=each(text),
            preempted=optional(count),
            environment=mapping(anything),
            warnings=each(text),
        )
    ),
    speedups=each(
        record(
            name=text,
            baseline_name=text,
            device=text,
            threads=count,
            ratio=positive,
            ci95=each(positive, at_least=2, at_most=2),
        )
    ),
)


def check(value: Any) -> None:
    """Check a whole document.

    Raises:
        ValueError: it is not a results document, or not one that this version can read.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(
            f'it is not a results document: "format" must be {FORMAT!r}. `keras-bn run` and '
            "`keras-bn bench` write such files"
        )
    version = value.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(
            f"its version is {version!r} and this keras-bn reads version {VERSION}; "
            "use the keras-bn that wrote it, or measure again"
        )
    results(value, "results")
