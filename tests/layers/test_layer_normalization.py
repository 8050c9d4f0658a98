import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_bn.layers import LayerNormalization
from tests.layers.backends import MODES, arrays, compiled, gradient

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums of a few dozen terms


def layer_norm(x, axes, gamma, beta, epsilon=1e-3):
    x = np.asarray(x, "float64")
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon) * gamma + beta


def built(layer, shape, seed=0):
    if not layer.built:
        layer.build(shape)
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    return layer


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    axes=st.sets(st.integers(1, 3), min_size=1),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_axes_agree_with_numpy(shape, axes, seed):
    axes = sorted(axis for axis in axes if axis < len(shape)) or [len(shape) - 1]
    x = np.random.default_rng(seed).normal(3, 2, shape).astype("float32")
    layer = built(LayerNormalization(axis=axes), shape)
    wide = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    gamma, beta = (weight.numpy().reshape(wide) for weight in layer.weights)
    np.testing.assert_allclose(arrays(layer(x)), layer_norm(x, tuple(axes), gamma, beta), **CLOSE)


fails_on_torch = pytest.mark.backend(
    "tensorflow", "jax", because="Keras's layer fails with axis=1 on PyTorch"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"center": False},
        {"scale": False},
        pytest.param({"axis": 1}, marks=fails_on_torch),
        {"axis": (1, 2)},
    ],
    ids=str,
)
def test_drop_in_for_kerass_layer(options):
    shape = (4, 6, 3)
    stock = built(keras.layers.LayerNormalization(**options), shape)
    ours = built(LayerNormalization(**options), shape)
    assert [w.name for w in ours.weights] == [w.name for w in stock.weights]
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    np.testing.assert_allclose(arrays(ours(x)), arrays(stock(x)), **CLOSE)


def test_a_step_depends_on_itself_alone():
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    layer = built(LayerNormalization(), x.shape)
    whole = arrays(layer(x))
    # Vector instructions take another order of summation for another length: the last bit.
    np.testing.assert_allclose(arrays(layer(x[1:2, 3:4])), whole[1:2, 3:4], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(arrays(layer(x[:, :2])), whole[:, :2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("mode", MODES)
def test_masked_steps_give_zeros_and_pass_back_zeros(padding, mode):
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    mask = np.arange(5) < np.array([[3], [5]])
    x[~mask] = padding
    layer = built(LayerNormalization(), x.shape)

    def outputs(x, *weights):
        return layer.stateless_call(weights, [], x, mask=ops.convert_to_tensor(mask))[0]

    def loss(*tensors):
        return ops.sum(outputs(*tensors) ** 3)

    tensors = [ops.convert_to_tensor(each) for each in (x, *layer.weights)]
    y = arrays(compiled(outputs, mode)(*tensors))
    gradients = arrays(list(compiled(gradient(loss), mode)(*tensors)))
    np.testing.assert_array_equal(y[~mask], 0)
    np.testing.assert_array_equal(gradients[0][~mask], 0)
    assert all(np.isfinite(each).all() for each in gradients)
    gamma, beta = (weight.numpy() for weight in layer.weights)
    np.testing.assert_allclose(y[mask], layer_norm(x[mask], 1, gamma, beta), **CLOSE)


def test_the_mask_is_passed_on():
    inputs = keras.Input((None, 2))
    masked = keras.layers.Masking()(inputs)
    last = keras.layers.LSTM(3)(LayerNormalization()(masked))
    model = keras.Model(inputs, last)
    x = np.random.default_rng(0).normal(size=(1, 4, 2)).astype("float32")
    padded = np.concatenate([x, np.zeros((1, 3, 2), "float32")], 1)
    np.testing.assert_allclose(arrays(model(padded)), arrays(model(x)), **CLOSE)


@pytest.mark.parametrize("value", [0.1, -1234.567, 1e20], ids=str)
def test_constant_features_give_beta_and_a_finite_gradient(value):
    layer = built(LayerNormalization(), (2, 100))
    x = ops.full((2, 100), value, "float32")
    # 1e20 cannot be told from its neighbours 1e13 away, nor its mean from it.
    if value < 1e20:
        np.testing.assert_allclose(arrays(layer(x)), [layer.beta.numpy()] * 2, rtol=1e-6)
    (slope,) = gradient(lambda x: ops.sum(layer(x) ** 2))(x)
    assert np.isfinite(arrays(slope)).all()


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_computes_in_float32(dtype):
    half = dtype.removeprefix("mixed_")
    x = ops.cast(np.random.default_rng(0).normal(0, 1000, (4, 64)), half)
    y = LayerNormalization(dtype=dtype)(x)
    assert keras.backend.standardize_dtype(y.dtype) == half
    exact = arrays(ops.cast(x, "float32"))
    # Squares of 1000 exceed float16. Outputs up to 4 have 8 bits in bfloat16, 11 in float16.
    np.testing.assert_allclose(
        arrays(ops.cast(y, "float32")), layer_norm(exact, 1, 1, 0), atol=2.0**-6
    )


@pytest.mark.parametrize("axis", [0, -3, (0, 2)], ids=str)
def test_the_batch_axis_is_refused(axis):
    with pytest.raises(ValueError, match="batch axis"):
        LayerNormalization(axis=axis).build((4, 5, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epsilon": 0}, "`epsilon` must be positive"), ({"rms_scaling": True}, "RMSNormalization")],
    ids=str,
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LayerNormalization(**options)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"mask.shape=\(5,\)"):
        LayerNormalization()(np.ones((4, 5, 3)), mask=np.ones(5, bool))


def test_files_round_trip(tmp_path):
    model = keras.Sequential([keras.Input((5, 3)), LayerNormalization(axis=(1, 2), epsilon=1e-5)])
    built(model.layers[0], (None, 5, 3))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is LayerNormalization
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    np.testing.assert_array_equal(arrays(loaded(x)), arrays(model(x)))
