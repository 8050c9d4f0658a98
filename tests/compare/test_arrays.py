"""The figures of one output, against NumPy written out and known values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_bn.compare.api import compare_arrays
from keras_bn.errors import ComparisonError

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(20, 6))


def test_figures_of_a_known_difference():
    noise = RNG.normal(size=REFERENCE.shape) / 100
    record = compare_arrays("y", REFERENCE, REFERENCE + noise)
    # The sums are those of the definition, in another order: float64 rounding.
    assert record.max_abs_error == pytest.approx(np.abs(noise).max(), rel=1e-9)
    assert record.snr_db == pytest.approx(20 * np.log10(np.std(REFERENCE) / np.std(noise)), abs=0.2)
    flat, other = REFERENCE.ravel(), (REFERENCE + noise).ravel()
    angle = flat @ other / np.sqrt((flat @ flat) * (other @ other))
    assert record.cosine == pytest.approx(angle, rel=1e-12)
    assert record.peak == np.abs(REFERENCE).max()
    assert record.relative_error == record.max_abs_error / record.peak


def test_equal_arrays_are_infinitely_close():
    record = compare_arrays("y", REFERENCE, REFERENCE.copy())
    assert (record.max_abs_error, record.snr_db, record.top1_agreement) == (0.0, math.inf, 1.0)
    assert record.cosine == pytest.approx(1.0)


def test_top1_counts_the_rows_whose_largest_class_moved():
    candidate = REFERENCE.copy()
    for row in range(5):
        candidate[row, candidate[row].argmin()] = 100
    assert compare_arrays("y", REFERENCE, candidate).top1_agreement == 0.75


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_top1_needs_two_classes(shape):
    assert compare_arrays("y", np.ones(shape), np.ones(shape)).top1_agreement is None


BROKEN = {
    "NaN in the candidate": (1.0, math.nan),
    "NaN in the reference": (math.nan, 1.0),
    "NaN in both": (math.nan, math.nan),
    "infinite candidate": (1.0, math.inf),
    "infinite reference": (math.inf, 1.0),
    "opposite infinities": (math.inf, -math.inf),
}


@pytest.mark.parametrize("case", BROKEN)
def test_values_that_are_not_numbers_never_pass_for_equal(case):
    reference, candidate = REFERENCE.copy(), REFERENCE.copy()
    reference[3, 2], candidate[3, 2] = BROKEN[case]
    record = compare_arrays("y", reference, candidate)
    assert record.max_abs_error == record.relative_error == math.inf
    assert record.snr_db == -math.inf
    assert record.cosine == 0.0


def test_equal_infinities_are_counted_and_left_out():
    reference, candidate = REFERENCE.copy(), REFERENCE + 0.5
    reference[0, :2] = candidate[0, :2] = -math.inf  # masked logits
    record = compare_arrays("y", reference, candidate)
    assert record.equal_infinities == 2
    assert record.max_abs_error == pytest.approx(0.5)


def test_zero_references():
    zeros = np.zeros((3, 2))
    assert compare_arrays("y", zeros, zeros).relative_error == 0.0
    assert compare_arrays("y", zeros, zeros).cosine == 1.0
    record = compare_arrays("y", zeros, zeros + 1)
    assert (record.relative_error, record.snr_db, record.cosine) == (math.inf, -math.inf, 0.0)


def test_shapes_have_to_agree():
    with pytest.raises(ComparisonError, match=r"\(20, 6\).*\(20, 3\)"):
        compare_arrays("y", REFERENCE, REFERENCE[:, :3])


@given(st.floats(1e-3, 1e3), st.floats(1e-6, 1e-1))
def test_snr_and_cosine_do_not_depend_on_the_scale(scale, noise):
    candidate = REFERENCE + noise * np.sin(np.arange(REFERENCE.size)).reshape(REFERENCE.shape)
    plain = compare_arrays("y", REFERENCE, candidate)
    scaled = compare_arrays("y", REFERENCE * scale, candidate * scale)
    # Scaling rounds in float64, which noise of 1e-6 magnifies to 1e-10 of itself.
    assert scaled.snr_db == pytest.approx(plain.snr_db, abs=1e-6)
    assert scaled.cosine == pytest.approx(plain.cosine, abs=1e-12)
    assert scaled.relative_error == pytest.approx(plain.relative_error, rel=1e-6)
