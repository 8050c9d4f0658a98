"""Quantities as text; and every example in the docstrings of bench and report."""

import doctest
import importlib

import pytest

from keras_bn.report import quantities as q

SPACE = "\u202f"


@pytest.mark.parametrize(
    "size_bytes, text",
    [(1, "1.00 B"), (999, "999 B"), (999.6, "1.00 kB"), (105_660, "106 kB"), (27_849, "27.8 kB"),
     (999_499, "999 kB"), (999_500, "1.00 MB"), (5e9, "5.00 GB"), (5e13, "50000 GB")],
)  # fmt: skip
def test_sizes_have_three_digits(size_bytes, text):
    assert q.size(size_bytes) == text.replace(" ", SPACE)


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (0.25, "0.25"), (3.1e-7, "3.1·10⁻⁷"), (1e-3, "0.0010"), (9.99e-4, "1.0·10⁻³"),
     (2.5e12, "2.5·10¹²"), ("inf", "∞"), ("nan", q.MISSING), ("-inf", q.MINUS + "∞")],
)  # fmt: skip
def test_errors_read_as_powers_of_ten_where_small(value, text):
    assert q.scientific(value) == text


def test_signal_to_noise_ratios_may_be_infinite():
    assert [q.decibel(snr) for snr in (30.25, -3.0, "inf", "-inf", "nan")] == [
        "30.2",
        f"{q.MINUS}3.0",
        "∞",
        f"{q.MINUS}∞",
        q.MISSING,
    ]


def test_times_of_a_column_share_unit_and_decimals():
    micro = q.TimeUnit([0.0203, 0.0377])
    assert (micro.name, micro(0.0203), micro(0.0377)) == ("µs", "20.3", "37.7")
    assert q.TimeUnit([0.25, 30.0]).name == "ms"
    milli = q.TimeUnit([12.0, 3.5])
    assert (milli.name, milli(12.0), milli(3.5)) == ("ms", "12.00", "3.50")
    second = q.TimeUnit([1500.0])
    assert (second.name, second(1500.0)) == ("s", "1.50")
    assert q.TimeUnit([]).name == "ms"


@pytest.mark.parametrize(
    "module",
    [
        "bench.devices",
        "bench.result",
        "bench.stats",
        "report.axes",
        "report.csv",
        "report.frontier",
        "report.html",
        "report.markdown",
        "report.quantities",
        "report.results",
        "report.selection",
        "report.texts",
    ],
)
def test_examples_in_docstrings_hold(module):
    outcome = doctest.testmod(importlib.import_module(f"keras_bn.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
