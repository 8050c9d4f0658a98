import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_bn.layers import InstanceNormalization
from tests.layers.backends import arrays, gradient


def reference(x, gamma, beta, axis, epsilon):
    """The formula in float64, one sample and one channel at a time."""
    x = np.moveaxis(x.astype("float64"), axis, -1)
    y = np.empty_like(x)
    for sample in range(x.shape[0]):
        for channel in range(x.shape[-1]):
            values = x[sample, ..., channel]
            scaled = (values - values.mean()) / np.sqrt(values.var() + epsilon)
            y[sample, ..., channel] = gamma[channel] * scaled + beta[channel]
    return np.moveaxis(y, -1, axis)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=5).map(tuple),
    axis=st.integers(1, 4),
    negative=st.booleans(),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_formula(shape, axis, negative, seed):
    axis = 1 + (axis - 1) % (len(shape) - 1)
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, 2.0, shape).astype("float32")
    layer = InstanceNormalization(axis=axis - len(shape) if negative else axis)
    layer.build(shape)
    gamma, beta = rng.normal(size=(2, shape[axis])).astype("float32")
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    # Differences from the mean of values around 3 are off by 3·2⁻²⁴, and ε = 1e-3 divides them
    # by 0.03 at the least.
    np.testing.assert_allclose(arrays(layer(x)), reference(x, gamma, beta, axis, 1e-3), atol=3e-5)


def test_a_sample_does_not_depend_on_the_batch():
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    layer = InstanceNormalization()
    np.testing.assert_allclose(arrays(layer(x))[1:2], arrays(layer(x[1:2])), atol=1e-6)  # rounding


def test_half_precision_does_not_overflow():
    x = np.random.default_rng(0).normal(0.0, 1000.0, (2, 8, 8, 3)).astype("float16")
    y = arrays(InstanceNormalization(dtype="float16")(x)).astype("float64")
    expected = reference(x, np.ones(3), np.zeros(3), -1, 1e-3)
    np.testing.assert_allclose(y, expected, atol=4e-3)  # float16 carries 2⁻¹¹ of values up to 4


def test_variance_survives_a_large_mean():
    # Keras's layer takes it for E[x²] − E[x]² on PyTorch, and outputs are off by 0.26 here.
    x = (1000 + np.random.default_rng(0).normal(size=(2, 32, 32, 2))).astype("float32")
    expected = reference(x, np.ones(2), np.zeros(2), -1, 1e-3)
    # Float32 holds 1000 ± 1 to 6e-5, the rounding error of each value.
    np.testing.assert_allclose(arrays(InstanceNormalization()(x)), expected, atol=2e-4)


def test_a_constant_channel_gives_beta_and_a_finite_gradient():
    layer = InstanceNormalization(beta_initializer="ones")
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    x[..., 1] = 123.456
    np.testing.assert_allclose(arrays(layer(x))[..., 1], np.ones((2, 4, 4)), rtol=1e-6)
    (slope,) = gradient(lambda x: ops.sum(layer(x) ** 2))(ops.convert_to_tensor(x))
    assert np.isfinite(arrays(slope)).all()


def test_saves_and_loads(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 3)), InstanceNormalization(center=False)])
    model.layers[0].gamma.assign([1.0, -2.0, 3.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is InstanceNormalization
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    np.testing.assert_array_equal(arrays(loaded(x)), arrays(model(x)))


@pytest.mark.parametrize(
    ("options", "shape", "error", "words"),
    [
        ({}, (2, 3), ValueError, "rank 3 or more"),
        ({"axis": 0}, (2, 3, 4), ValueError, "other than the batch axis"),
        ({"axis": -3}, (2, 3, 4), ValueError, "other than the batch axis"),
        ({"axis": 5}, (2, 3, 4), ValueError, "axis=5"),
        ({"axis": (1, 2)}, (2, 3, 4), TypeError, "an integer"),
        ({"epsilon": 0.0}, (2, 3, 4), ValueError, "epsilon=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, shape, error, words):
    with pytest.raises(error, match=words):
        InstanceNormalization(**options).build(shape)
