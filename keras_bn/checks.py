"""Checks of what comes from files and devices: one for each kind of value.

A check takes a value and where it stands in its document, and raises `ValueError` that names the
place, what was expected there and what was found. Fields that are not named are allowed: they
come from a newer version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

LARGEST = 1e100
SMALLEST = 1e-100

Check = Callable[[Any, str], None]


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
