"""Quantities as a reader wants them: unit, digits, thousands. Numbers in, text out."""

from __future__ import annotations

from collections.abc import Iterable

NARROW_SPACE = "\u202f"
MINUS = "\u2212"
MISSING = "\u2013"
TIMES = "\u00d7"
INFINITIES = {"inf": "∞", "-inf": MINUS + "∞"}


def size(size_bytes: float) -> str:
    """Three significant digits in bytes, kB, MB or GB (powers of 1000).

    Example:
        >>> size(105_660)
        '106\u202fkB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        # 999.5 would be written as 1000
        if size_bytes < 999.5 or unit == "GB":
            return f"{significant(size_bytes, 3)}{NARROW_SPACE}{unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable: the loop ends at GB")


def significant(value: float, digits: int) -> str:
    """`value` rounded to `digits` significant digits, never with an exponent.

    Example:
        >>> significant(3.14159, 3), significant(12345.6, 3)
        ('3.14', '12346')
    """
    if value == 0:
        return "0"
    return f"{value:.{_decimals(value, digits)}f}".replace("-", MINUS)


def _decimals(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits of the rounded value, at most 12."""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return min(12, max(0, digits - 1 - exponent))


def thousands(value: int) -> str:
    """
    Example:
        >>> thousands(1234567)
        '1\u202f234\u202f567'
    """
    return f"{value:,}".replace(",", NARROW_SPACE)


def percent(share: float) -> str:
    """
    Example:
        >>> percent(0.9876)
        '98.8\u202f%'
    """
    return f"{share * 100:.1f}{NARROW_SPACE}%"


def factor(ratio: float) -> str:
    """
    Example:
        >>> factor(3.6042), factor(12.3)
        ('3.60×', '12.3×')
    """
    return f"{significant(ratio, 3)}{TIMES}"


def factor_interval(low: float, high: float) -> str:
    """Both ends with the decimals that the lower one needs.

    Example:
        >>> factor_interval(1.3, 1.46), factor_interval(0.995, 1.0)
        ('[1.30, 1.46]', '[0.995, 1.000]')
    """
    decimals = _decimals(low, 3)
    return f"[{low:.{decimals}f}, {high:.{decimals}f}]"


def decibel(snr_db: float | str) -> str:
    """Signal-to-noise ratio; a document writes an infinite one as "inf"."""
    if isinstance(snr_db, str):
        return INFINITIES.get(snr_db, MISSING)
    return f"{snr_db:.1f}".replace("-", MINUS)


def cosine(similarity: float | str) -> str:
    """Six decimals; MISSING where it has no finite value."""
    return MISSING if isinstance(similarity, str) else f"{similarity:.6f}".replace("-", MINUS)


def scientific(value: float | str) -> str:
    """An error's size: two digits and a power of ten where it is small.

    Example:
        >>> scientific(0), scientific(0.25), scientific(3.1e-7)
        ('0', '0.25', '3.1·10⁻⁷')
    """
    if isinstance(value, str):
        return INFINITIES.get(value, MISSING)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return significant(value, 2)
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}·10{power}".replace("-", MINUS)


class TimeUnit:
    """One unit and number of decimals for a whole column, so that its figures line up.

    Example:
        >>> unit = TimeUnit([0.0203, 0.0377])
        >>> unit.name, unit(0.0203)
        ('µs', '20.3')
    """

    def __init__(self, values_ms: Iterable[float]) -> None:
        smallest = min((value for value in values_ms if value > 0), default=1.0)
        self.name, self.per_ms = next(
            (name, per_ms)
            for name, per_ms, from_ms in (("s", 1e-3, 1000.0), ("ms", 1.0, 0.1), ("µs", 1e3, 0.0))
            if smallest >= from_ms
        )
        self.decimals = _decimals(smallest * self.per_ms, 3)

    def __call__(self, value_ms: float) -> str:
        return f"{value_ms * self.per_ms:.{self.decimals}f}"
