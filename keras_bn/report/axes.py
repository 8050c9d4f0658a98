"""Axes: where a value stands between the ends of a chart, and which round values to write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A span this many times its smallest value squeezes small values flat on a linear axis.
LOGARITHMIC_FROM = 5.0
STEPS = (1, 2, 2.5, 5)
LOGARITHMIC_STEPS = ((1, 2, 5), (1, 3), (1,))


@dataclass(frozen=True)
class Tick:
    """A value written along an axis, and where."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A stretch of values, linear or logarithmic; calling it gives the place from 0 to 1.

    Example:
        >>> axis = Axis(0.0, 10.0, False)
        >>> axis(2.5), axis.ticks(5)
        (0.25, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    """

    low: float
    high: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int) -> list[float]:
        """Round values within the axis, some `about` of them."""
        if self.logarithmic:
            return _logarithmic_ticks(self.low, self.high, about)
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def spanning(
    values: Iterable[float],
    *,
    from_zero: bool = False,
    ceiling: float = math.inf,
    may_be_logarithmic: bool = False,
) -> Axis:
    """An axis with a little room around `values`.

    Args:
        values: At least one.
        from_zero: Begin a linear axis at 0.
        ceiling: No value is above this, and a linear axis ends there at the latest.
        may_be_logarithmic: Whether it is where the values span a wide range.
    """
    known = list(values)
    low, high = min(known), max(known)
    if may_be_logarithmic and low > 0 and high / low >= LOGARITHMIC_FROM:
        room = (high / low) ** 0.04
        return Axis(low / room, high * room, True)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    if from_zero:
        return Axis(0.0, min(high + room, ceiling), False)
    # Room does not make a quantity negative that never is.
    floor = max(0.0, low - room) if low >= 0 else low - room
    return Axis(floor, min(high + room, ceiling), False)


def written(values: Sequence[float], places: Sequence[float]) -> list[Tick]:
    """The ticks `values`, labelled, at `places`."""
    return [Tick(at, label) for at, label in zip(places, labels(values), strict=True)]


def labels(ticks: Sequence[float]) -> list[str]:
    """The ticks with the decimals that tell them apart.

    Example:
        >>> labels([0.0, 0.5, 1.0])
        ['0.0', '0.5', '1.0']
    """
    written = [f"{tick:.6g}" for tick in ticks]
    decimals = max((len(text.partition(".")[2]) for text in written), default=0)
    steps = {b - a for a, b in itertools.pairwise(ticks)}
    if len(steps) > 1 and max(steps) > 2 * min(steps):  # logarithmic: each with its own
        return written
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next((step for step in STEPS if step * magnitude >= rough), 10) * magnitude


def _logarithmic_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in LOGARITHMIC_STEPS:
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= about + 1:
            return ticks
    return ticks[:: -(-len(ticks) // about)]
