import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bn.layers import LayerNormalization

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
    np.testing.assert_allclose(layer(x), layer_norm(x, tuple(axes), gamma, beta), **CLOSE)


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}, {"axis": 1}], ids=str)
def test_drop_in_for_kerass_layer(options):
    shape = (4, 6, 3)
    stock = built(keras.layers.LayerNormalization(**options), shape)
    ours = built(LayerNormalization(**options), shape)
    assert [w.name for w in ours.weights] == [w.name for w in stock.weights]
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    np.testing.assert_allclose(ours(x), stock(x), **CLOSE)


def test_a_step_depends_on_itself_alone():
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    layer = built(LayerNormalization(), x.shape)
    whole = layer(x).numpy()
    # Vector instructions take another order of summation for another length: the last bit.
    np.testing.assert_allclose(layer(x[1:2, 3:4]), whole[1:2, 3:4], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(layer(x[:, :2]), whole[:, :2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_masked_steps_give_zeros_and_pass_back_zeros(padding, jit_compile):
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    mask = np.arange(5) < np.array([[3], [5]])
    x[~mask] = padding
    layer = built(LayerNormalization(), x.shape)

    @tf.function(jit_compile=jit_compile)
    def step(x):
        variables = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, mask=tf.constant(mask))
            loss = tf.reduce_sum(y**3)
        return y, tape.gradient(loss, [x, *variables])

    y, gradients = step(tf.constant(x))
    np.testing.assert_array_equal(y.numpy()[~mask], 0)
    np.testing.assert_array_equal(gradients[0].numpy()[~mask], 0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    gamma, beta = (weight.numpy() for weight in layer.weights)
    np.testing.assert_allclose(y.numpy()[mask], layer_norm(x[mask], 1, gamma, beta), **CLOSE)


def test_the_mask_is_passed_on():
    inputs = keras.Input((None, 2))
    masked = keras.layers.Masking()(inputs)
    last = keras.layers.LSTM(3)(LayerNormalization()(masked))
    model = keras.Model(inputs, last)
    x = np.random.default_rng(0).normal(size=(1, 4, 2)).astype("float32")
    padded = np.concatenate([x, np.zeros((1, 3, 2), "float32")], 1)
    np.testing.assert_allclose(model(padded), model(x), **CLOSE)


@pytest.mark.parametrize("value", [0.1, -1234.567, 1e20], ids=str)
def test_constant_features_give_beta_and_a_finite_gradient(value):
    layer = built(LayerNormalization(), (2, 100))
    x = tf.fill((2, 100), tf.constant(value, tf.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y**2)
    # 1e20 cannot be told from its neighbours 1e13 away, nor its mean from it.
    if value < 1e20:
        np.testing.assert_allclose(y, [layer.beta.numpy()] * 2, rtol=1e-6)
    assert np.isfinite(tape.gradient(loss, x)).all()


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_computes_in_float32(dtype):
    half = dtype.removeprefix("mixed_")
    x = keras.ops.cast(np.random.default_rng(0).normal(0, 1000, (4, 64)), half)
    y = LayerNormalization(dtype=dtype)(x)
    assert keras.backend.standardize_dtype(y.dtype) == half
    exact = np.asarray(keras.ops.cast(x, "float32"))
    # Squares of 1000 exceed float16. Outputs up to 4 have 8 bits in bfloat16, 11 in float16.
    np.testing.assert_allclose(
        keras.ops.cast(y, "float32"), layer_norm(exact, 1, 1, 0), atol=2.0**-6
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
    np.testing.assert_array_equal(loaded(x), model(x))
