"""Axes: places, and round ticks that can be told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_bn.report import axes
from keras_bn.report.axes import Axis


@pytest.mark.parametrize(
    "axis, ticks",
    [
        (Axis(0, 10, False), [0, 2, 4, 6, 8, 10]),
        (Axis(0.31, 0.97, False), [0.4, 0.6, 0.8]),
        (Axis(97.3, 97.9, False), [97.4, 97.6, 97.8]),
        (Axis(-6, 6, False), [-5, -2.5, 0, 2.5, 5]),
        (Axis(1, 100, True), [1, 3, 10, 30, 100]),
        (Axis(18, 60, True), [20, 50]),
        (Axis(0.5, 20_000, True), [1, 10, 100, 1000, 10_000]),
    ],
    ids=str,
)
def test_ticks_are_round(axis, ticks):
    assert axis.ticks(5) == pytest.approx(ticks)


def test_logarithms_place_factors_evenly():
    axis = Axis(1, 100, True)
    assert [axis(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize(
    "ticks, labels",
    [
        ([0.0, 2.0, 4.0], ["0", "2", "4"]),
        ([0.4, 0.6, 0.8], ["0.4", "0.6", "0.8"]),
        ([0.0, 2.5, 5.0], ["0.0", "2.5", "5.0"]),
        ([0.5, 1.0, 10.0, 100.0], ["0.5", "1", "10", "100"]),
        ([], []),
        ([3.0], ["3"]),
    ],
    ids=str,
)
def test_labels_have_the_decimals_they_need(ticks, labels):
    assert axes.labels(ticks) == labels


times = st.floats(1e-6, 1e6)


@given(st.lists(times, min_size=1, max_size=20), st.booleans())
def test_every_value_is_on_its_axis_and_ticks_are_few(values, logarithmic):
    axis = axes.spanning(values, may_be_logarithmic=logarithmic)

    assert all(0 < axis(value) < 1 for value in values)
    ticks = axis.ticks(5)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 7
    assert all(-1e-9 <= axis(tick) <= 1 + 1e-9 for tick in ticks)
    assert axis.low >= 0


def test_an_axis_can_begin_at_zero():
    assert axes.spanning([3.0, 4.0], from_zero=True).low == 0
