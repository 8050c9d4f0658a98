import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_bn.layers import BatchNormalization
from tests.layers.numpy_reference import batch_norm

# Float32 keeps 7 digits; sums of a few hundred terms and a division by a standard deviation
# as small as √ε ≈ 0.03 leave 5 of them for values of order 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# The worked example that torch.nn.BatchNorm1d(3) gives the same result for.
EXAMPLE = np.array(
    [[-0.6577, -0.5797, 0.6360], [0.7392, 0.2145, 1.523], [0.2432, 0.5662, 0.322]], "float32"
)
EXAMPLE_NORMALIZED = np.array(
    [[-1.3246, -1.3492, -0.3756], [1.0912, 0.3077, 1.3685], [0.2334, 1.0415, -0.9930]]
)
COLUMN = np.array([[1.0], [2.0], [3.0], [4.0]], "float32")

# Every way through a training step. The kernel is taken from 2**17 elements up.
PATHS = {
    "closed form": {"fused": None},
    "kernel": {"fused": None},
    "plain": {"fused": False},
}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Options that select one of the implementations, whatever the size of the batch."""
    least = 0 if request.param == "kernel" else 2**60
    monkeypatch.setattr("keras_bn.layers.fused.KERNEL_PAYS_FROM", least)
    return PATHS[request.param]


def weights_of(layer):
    return [weight.numpy() for weight in layer.weights]


def far_from_identity(layer, shape, seed=0):
    """Build `layer` and give it weights that no shortcut could get right by accident."""
    layer.build(shape)
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.dtype.startswith("float"):
            weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    return layer


# --- reference values ---------------------------------------------------------------------------


def test_agrees_with_pytorch_on_the_worked_example(path):
    layer = BatchNormalization(momentum=0.9, epsilon=1e-5, **path)
    np.testing.assert_allclose(  # four decimals were published
        layer(EXAMPLE, training=True), EXAMPLE_NORMALIZED, atol=5e-5
    )
    # PyTorch's momentum 0.1 is 0.9 here; its running variance is the unbiased one.
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * EXAMPLE.mean(0), **CLOSE)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), 0.9 + 0.1 * EXAMPLE.var(0, ddof=1), **CLOSE
    )


@pytest.mark.parametrize(("unbiased", "variance"), [(True, 5 / 3), (False, 1.25)])
def test_moving_variance_is_unbiased_unless_asked_otherwise(path, unbiased, variance):
    layer = BatchNormalization(momentum=0.0, unbiased=unbiased, **path)
    outputs = layer(COLUMN, training=True)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [variance], rtol=1e-6)
    # The batch itself is normalized by the biased variance either way.
    expected, *_ = batch_norm(COLUMN, (1,))
    np.testing.assert_allclose(outputs, expected, **CLOSE)


def test_output_does_not_depend_on_the_scale_of_a_feature(path):
    layer = BatchNormalization(epsilon=1e-12, **path)
    column = np.array([[100.0, 1.0], [1.0, 0.01], [1.0, 0.01]], "float32")
    np.testing.assert_allclose(
        layer(column, training=True),
        np.array([[1.4142, 1.4142], [-0.7071, -0.7071], [-0.7071, -0.7071]]),
        atol=5e-5,  # four decimals
    )


def test_momentum_none_is_the_average_of_algorithm_2(path):
    batches = np.random.default_rng(0).normal(2, 3, (5, 8, 3)).astype("float32")
    layer = BatchNormalization(momentum=None, **path)
    for batch in batches:
        layer(batch, training=True)
    np.testing.assert_allclose(layer.moving_mean.numpy(), batches.mean(1).mean(0), **CLOSE)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), batches.var(1).mean(0) * 8 / 7, **CLOSE
    )
    assert layer.num_batches_tracked.numpy() == 5


def test_debias_forgets_the_initial_statistics_and_then_moves_like_momentum(path):
    batches = np.random.default_rng(0).normal(5, 2, (6, 16, 2)).astype("float32")
    layer = BatchNormalization(momentum=0.75, debias=True, **path)
    mean = None
    for number, batch in enumerate(batches):
        layer(batch, training=True)
        kept = min(0.75, number / (number + 1))
        mean = batch.mean(0) if mean is None else kept * mean + (1 - kept) * batch.mean(0)
        np.testing.assert_allclose(layer.moving_mean.numpy(), mean, **CLOSE)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_at_its_ends(path, momentum):
    layer = BatchNormalization(momentum=momentum, **path)
    x = np.random.default_rng(0).normal(1e-4, 1e-4, (64, 2)).astype("float32")
    layer(x, training=True)
    # Relative: with momentum 0 nothing of the initial 1 may stay as rounding.
    expected = (x.mean(0), x.var(0, ddof=1)) if momentum == 0 else ([0, 0], [1, 1])
    np.testing.assert_allclose(layer.moving_mean.numpy(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), expected[1], rtol=1e-5)


# --- against float64 NumPy ----------------------------------------------------------------------


@st.composite
def cases(draw):
    """(shape, axis, mask or None, mask broadcast to the shape)"""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=5)))
    axes = draw(st.sets(st.integers(1, len(shape) - 1), min_size=1, max_size=2))
    axis = draw(st.permutations(sorted(axes)))
    axis = [one - draw(st.sampled_from([0, len(shape)])) for one in axis]
    reduced = [one for one in range(len(shape)) if one not in axes]
    covered = reduced[: draw(st.integers(0, len(reduced)))]
    if not covered:
        return shape, axis, None, None
    seed = draw(st.integers(0, 99))
    sizes = [shape[one] for one in covered]
    mask = np.random.default_rng(seed).random(sizes) < draw(st.sampled_from([0.0, 0.5, 0.9]))
    wide = mask.reshape([shape[one] if one in covered else 1 for one in range(len(shape))])
    return shape, axis, mask, np.broadcast_to(wide, shape)


@settings(max_examples=60, deadline=None)
@given(case=cases(), fused=st.sampled_from([None, False]), seed=st.integers(0, 2**16))
def test_any_shape_axes_and_mask_agree_with_numpy(case, fused, seed):
    shape, axis, mask, wide_mask = case
    x = np.random.default_rng(seed).normal(3, 2, shape).astype("float32")
    layer = far_from_identity(BatchNormalization(axis=axis, momentum=0.5, fused=fused), shape)
    gamma, beta, old_mean, old_variance = weights_of(layer)
    axes = sorted(one % len(shape) for one in axis)

    outputs = layer(x, training=True, mask=mask)

    y, mean, variance, count = batch_norm(x, axes, wide_mask, gamma, beta)
    # Two equal float32 inputs have a variance of 1e-13 rather than 0, which √ε dwarfs.
    np.testing.assert_allclose(outputs, y, rtol=1e-4, atol=1e-4)
    with np.errstate(divide="ignore", invalid="ignore"):
        unbiased = variance * count / (count - 1)
    new_mean = np.where(count > 0, 0.5 * old_mean + 0.5 * mean, old_mean)
    new_variance = np.where(count > 1, 0.5 * old_variance + 0.5 * unbiased, old_variance)
    np.testing.assert_allclose(layer.moving_mean.numpy(), new_mean, **CLOSE)
    np.testing.assert_allclose(layer.moving_variance.numpy(), new_variance, **CLOSE)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((6, 3), -1),
        ((4, 5, 3), -1),
        ((4, 5, 3), 1),
        ((2, 4, 5, 3), -1),
        ((2, 3, 4, 5), 1),
        ((2, 4, 3, 5), 2),
        ((2, 2, 3, 4, 5), -1),
        ((2, 5, 2, 3, 4), 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_each_implementation_agrees_with_numpy(path, shape, axis, jit_compile):
    x = np.random.default_rng(1).normal(-4, 3, shape).astype("float32")
    layer = far_from_identity(BatchNormalization(axis=axis, momentum=0.0, **path), shape)
    gamma, beta, *_ = weights_of(layer)
    dynamic = tf.TensorSpec([None] * len(shape))
    signature = [tf.TensorSpec(shape if jit_compile else dynamic.shape)]
    channels = shape[axis]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def step(x):
        known = [None] * len(shape)
        known[axis] = channels
        return layer(x if jit_compile else tf.ensure_shape(x, known), training=True)

    y, mean, variance, count = batch_norm(x, (axis % len(shape),), None, gamma, beta)
    np.testing.assert_allclose(step(x), y, **CLOSE)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, **CLOSE)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), variance * count / (count - 1), **CLOSE
    )


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_variance_survives_a_large_mean(path, jit_compile):
    # XLA lowers FusedBatchNormV3 to E[x²] − E[x]², which is off by 100 % here.
    x = (1000 + np.random.default_rng(0).normal(size=(4096, 2))).astype("float32")
    layer = BatchNormalization(momentum=0.0, **path)
    step = tf.function(lambda x: layer(x, training=True), jit_compile=jit_compile)
    step(x)
    # Float32 holds 1000 ± 1 to 6e-5, the rounding error of each sample.
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), x.astype("float64").var(0, ddof=1), rtol=1e-4
    )


def operations(layer, shape, jit_compile=False):
    layer.build(shape)
    step = tf.function(lambda x: layer(x, training=True), jit_compile=jit_compile)
    graph = step.get_concrete_function(tf.TensorSpec(shape)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize(
    ("shape", "options", "jit_compile", "expected"),
    [
        ((32, 32, 32, 8), {}, False, True),
        ((None, 64, 64, 8), {}, False, True),  # unknown batch sizes count as 32
        ((256, 512), {}, False, True),
        ((32, 128), {}, False, False),
        ((32, 32, 32, 8), {}, True, False),
        ((32, 32, 32, 8), {"fused": False}, False, False),
        ((32, 32, 32, 8), {"axis": (1, 3)}, False, False),
        ((32, 32, 32, 8), {"dtype": "float64"}, False, False),
        ((32, 32, 32, 8), {"dtype": "mixed_bfloat16"}, False, True),
    ],
    ids=str,
)
def test_kernel_is_taken_where_it_pays(shape, options, jit_compile, expected):
    taken = operations(BatchNormalization(**options), shape, jit_compile)
    assert ("FusedBatchNormV3" in taken) is expected


# --- gradients ----------------------------------------------------------------------------------


def plain_float64(axis=-1, **options):
    return BatchNormalization(axis=axis, fused=False, dtype="float64", **options)


def derivatives(layer, x, weights, jit_compile=False):
    """First and second derivatives of a curved loss of the layer's training output."""

    def loss_and_gradients(x):
        variables = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(layer(x, training=True) ** 2 * weights)
            first = inner.gradient(loss, [x, *variables])
            curved = tf.add_n([tf.reduce_sum(tf.sin(gradient)) for gradient in first])
        return [*first, *outer.gradient(curved, [x, *variables])]

    return tf.function(loss_and_gradients, jit_compile=jit_compile)(tf.constant(x))


def test_plain_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 5, 3))
    x = np.stack([x, x[::-1] ** 2])  # (2, 5, 3)
    weights = rng.normal(size=x.shape)
    layer = far_from_identity(plain_float64(), x.shape)

    def loss(x):
        return float(ops.sum(layer(x, training=True) ** 2 * weights))

    def first(x):
        return derivatives(layer, x, weights)[0].numpy()

    def curved(x):
        return sum(np.sin(g.numpy()).sum() for g in derivatives(layer, x, weights)[:3])

    analytic = derivatives(layer, x, weights)
    step = 1e-5
    for index in itertools.islice(np.ndindex(*x.shape), 0, None, 4):
        nudge = np.zeros_like(x)
        nudge[index] = step
        slope = (loss(x + nudge) - loss(x - nudge)) / (2 * step)
        bend = (curved(x + nudge) - curved(x - nudge)) / (2 * step)
        # A central difference is off by step² and by 1e-16/step: 1e-9 of either kind.
        assert slope == pytest.approx(first(x)[index], rel=1e-6, abs=1e-7)
        assert bend == pytest.approx(float(analytic[3][index]), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("shape", "axis"), [((12, 3), -1), ((3, 4, 2, 3), -1), ((3, 3, 8), 1)], ids=str
)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_first_and_second_derivatives_agree_with_float64(path, shape, axis, jit_compile):
    # Keras's own second derivatives are wrong on TensorFlow: tf.nn.moments holds the mean
    # constant inside the variance.
    rng = np.random.default_rng(2)
    x, weights = rng.normal(size=(2, *shape))
    ours = far_from_identity(BatchNormalization(axis=axis, **path), shape)
    oracle = far_from_identity(plain_float64(axis=axis), shape)
    expected = derivatives(oracle, x, weights)
    got = derivatives(ours, x.astype("float32"), weights.astype("float32"), jit_compile)
    assert len(got) == 6
    for one, other in zip(got, expected, strict=True):
        # Sums of a few dozen float32 terms of order 10, cancelling to order 1.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-3)


def test_masked_gradient_is_that_of_the_unmasked_elements_alone():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 4, 6, 3)).astype("float32")
    mask = np.ones((4, 6), bool)
    mask[:, 4:] = False
    weights = weights * mask[..., None]
    masked = far_from_identity(BatchNormalization(), x.shape)
    short = far_from_identity(BatchNormalization(), x.shape)
    x[:, 4:] = 1e4

    def gradient(layer, x, weights, mask=None):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True, mask=mask) * weights)
        return tape.gradient(loss, x).numpy()

    got = gradient(masked, x, weights, mask)
    expected = gradient(short, x[:, :4], weights[:, :4])
    np.testing.assert_allclose(got[:, :4], expected, **CLOSE)
    np.testing.assert_array_equal(got[:, 4:], 0)
    for one, other in zip(weights_of(masked), weights_of(short), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


# --- empty and single-element batches -----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"unbiased": False}], ids=str)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_an_empty_batch_moves_nothing_and_gives_no_nan(path, options, jit_compile):
    layer = far_from_identity(BatchNormalization(**options, **path), (None, 2, 3))
    before = weights_of(layer)

    @tf.function(jit_compile=jit_compile)
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True))
        return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

    for gradient in gradients(tf.zeros((0, 2, 3))):
        np.testing.assert_array_equal(gradient, 0)
    for one, other in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fully_masked_batch_moves_nothing():
    # Keras's layer decays its statistics towards 0 here.
    layer = far_from_identity(BatchNormalization(momentum=0.5), (4, 5, 3))
    before = weights_of(layer)
    outputs = layer(np.ones((4, 5, 3)), training=True, mask=np.zeros((4, 5), bool))
    assert np.isfinite(outputs).all()
    for one, other in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("unbiased", [True, False])
def test_one_element_moves_the_mean_and_a_variance_that_is_defined(path, unbiased):
    layer = BatchNormalization(momentum=0.5, unbiased=unbiased, **path)
    outputs = layer(np.array([[6.0, -2.0]], "float32"), training=True)
    np.testing.assert_array_equal(outputs, [[0, 0]])
    np.testing.assert_allclose(layer.moving_mean.numpy(), [3, -1])
    np.testing.assert_allclose(layer.moving_variance.numpy(), [1, 1] if unbiased else [0.5, 0.5])


def test_a_first_batch_without_variance_leaves_no_initial_value_in_the_average():
    layer = BatchNormalization(momentum=None)
    layer(COLUMN[:1], training=True)
    layer(COLUMN, training=True)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [5 / 3], rtol=1e-6)
    assert layer.num_batches_tracked.numpy() == 1


# --- masks and axes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "mask_shape", "covered"),
    [
        ((4, 5, 3), -1, (4, 5), (0, 1)),
        ((4, 5, 3), -1, (4,), (0,)),
        ((4, 5, 2, 2, 3), -1, (4, 5), (0, 1)),
        ((4, 3, 5), 1, (4, 5), (0, 2)),
        ((4, 3, 5), 1, (4, 3), (0, 1)),  # Keras's reading: it fits no other
        ((4, 5, 2, 3), -1, (4, 5, 1), (0, 1, 2)),
    ],
    ids=str,
)
def test_mask_readings(shape, axis, mask_shape, covered):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    mask = rng.random(mask_shape) < 0.6
    wide = np.ones(len(shape), int)
    for one, size in zip(covered, mask_shape, strict=True):
        wide[one] = size
    layer = BatchNormalization(axis=axis, momentum=0.0)
    outputs = layer(x, training=True, mask=mask)
    y, mean, variance, count = batch_norm(
        x, (axis % len(shape),), np.broadcast_to(mask.reshape(wide), shape)
    )
    np.testing.assert_allclose(outputs, y, **CLOSE)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, **CLOSE)
    unbiased = np.where(count > 1, variance * count / np.maximum(count - 1, 1), 1)
    np.testing.assert_allclose(layer.moving_variance.numpy(), unbiased, **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_a_mask_that_fits_no_reading_is_refused(training):
    with pytest.raises(ValueError, match=r"\(4, 5\).*mask.shape=\(5,\)"):
        BatchNormalization()(np.ones((4, 5, 3)), training=training, mask=np.ones(5, bool))


def test_masks_arrive_from_other_layers():
    x = np.array([[[1, 5], [2, 5], [0, 0]]], "float32")
    model = keras.Sequential(
        [keras.Input((None, 2)), keras.layers.Masking(), BatchNormalization(momentum=0.0)]
    )
    model(x, training=True)
    np.testing.assert_allclose(model.layers[-1].moving_mean.numpy(), [1.5, 5.0])
    np.testing.assert_allclose(model.layers[-1].moving_variance.numpy(), [0.5, 0.0])


def test_each_time_step_keeps_its_own_statistics():
    x = np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32")
    x += 10 * np.arange(5)[:, None]
    layer = BatchNormalization(axis=(1, 2), momentum=0.0)
    layer(x, training=True)
    assert layer.gamma.shape == (5, 3)
    np.testing.assert_allclose(layer.moving_mean.numpy(), x.mean(0), **CLOSE)
    inference = layer(x)
    np.testing.assert_allclose(np.mean(inference, 0), np.zeros((5, 3)), atol=1e-4)


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -0.1}, "`momentum` must be in"),
        ({"momentum": 1.5}, "`momentum` must be in"),
        ({"momentum": float("nan")}, "`momentum` must be in"),
        ({"epsilon": 0}, "`epsilon` must be positive"),
        ({"axis": 0}, "batch axis"),
        ({"axis": (1, 0)}, "batch axis"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchNormalization(**options)


@pytest.mark.parametrize(
    ("axis", "shape", "message"),
    [
        (-3, (4, 5, 3), "batch axis"),
        (3, (4, 5, 3), "out of bounds"),
        ((1, -2), (4, 5, 3), "twice"),
        (1, (4, None, 3), "must be known"),
    ],
    ids=str,
)
def test_axes_that_do_not_fit_the_inputs_are_refused(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        BatchNormalization(axis=axis).build(shape)


def test_axis_must_be_integers():
    with pytest.raises(TypeError, match=r"axis=1\.5"):
        BatchNormalization(axis=1.5)


@pytest.mark.parametrize(
    ("options", "call", "obstacle"),
    [
        ({"axis": (1, 2)}, {}, "several channel axes"),
        ({"dtype": "float64"}, {}, "float64 inputs"),
        ({"synchronized": True}, {}, "synchronized=True"),
        ({}, {"mask": np.ones((4, 5), bool)}, "a mask"),
    ],
    ids=["axes", "float64", "synchronized", "mask"],
)
def test_fused_true_says_what_keeps_it_from_applying(options, call, obstacle):
    layer = BatchNormalization(fused=True, **options)
    with pytest.raises(ValueError, match=obstacle):
        layer(np.ones((4, 5, 3), "float32"), training=True, **call)


# --- beside Keras's layer -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}, {"axis": 1}], ids=str)
def test_drop_in_for_kerass_layer(path, options):
    shape = (8, 6, 6, 3)
    stock = far_from_identity(keras.layers.BatchNormalization(momentum=0.7, **options), shape)
    ours = BatchNormalization(momentum=0.7, unbiased=False, **options, **path)
    far_from_identity(ours, shape)
    assert [w.name for w in ours.weights] == [w.name for w in stock.weights]
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.normal(2, 3, shape).astype("float32")
        np.testing.assert_allclose(ours(x, training=True), stock(x, training=True), **CLOSE)
    for one, other in zip(weights_of(ours), weights_of(stock), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)
    ours.set_weights(stock.get_weights())
    np.testing.assert_array_equal(ours(x), stock(x))  # the same operations, to the last bit


needs_renorm = pytest.mark.skipif(
    "renorm" not in keras.layers.BatchNormalization().get_config(),
    reason="this Keras has no batch renormalization",
)


@needs_renorm
@pytest.mark.parametrize("clipping", [None, {"rmax": 1.5, "rmin": 0.7, "dmax": 0.4}])
def test_renorm_is_kerass_without_besselss_factor(clipping):
    options = {"renorm": True, "renorm_clipping": clipping, "momentum": 0.8}
    stock = far_from_identity(keras.layers.BatchNormalization(**options), (6, 3))
    ours = far_from_identity(BatchNormalization(unbiased=False, **options), (6, 3))
    assert [w.name for w in ours.weights] == [w.name for w in stock.weights]
    x = np.random.default_rng(0).normal(size=(3, 6, 3)).astype("float32")
    for batch in x:
        np.testing.assert_allclose(ours(batch, training=True), stock(batch, training=True), **CLOSE)
    for one, other in zip(weights_of(ours), weights_of(stock), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


@needs_renorm
def test_renorm_with_besselss_factor_and_an_empty_batch():
    layer = BatchNormalization(renorm=True, renorm_momentum=0.0, momentum=0.0)
    layer(COLUMN, training=True)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [5 / 3], rtol=1e-5)
    np.testing.assert_allclose(layer.renorm_stddev.numpy(), [np.sqrt(1.25 + 1e-3)], rtol=1e-6)
    before = weights_of(layer)
    layer(COLUMN[:0], training=True)
    for one, other in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_frozen_means_inference():
    layer = far_from_identity(BatchNormalization(), (4, 3))
    layer.trainable = False
    before = weights_of(layer)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for one, other in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)


# --- dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_float32_statistics(path, dtype):
    rng = np.random.default_rng(0)
    x = keras.ops.cast(rng.normal(300, 20, (64, 4, 3)), dtype.removeprefix("mixed_"))
    layer = BatchNormalization(momentum=0.0, dtype=dtype, **path)
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")
    assert {layer.moving_mean.dtype, layer.moving_variance.dtype} == {"float32"}
    # The squares of 300 exceed float16, and Σ x exceeds it a hundredfold.
    exact = np.asarray(keras.ops.cast(x, "float32"), "float64")
    expected, mean, variance, count = batch_norm(exact, (2,))
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), variance * count / (count - 1), rtol=1e-4
    )
    # 8 bits of bfloat16: values up to 4 are off by up to 2⁻⁸·4; float16 has 11.
    digits = 2**-6 if "bfloat16" in dtype else 2**-9
    np.testing.assert_allclose(keras.ops.cast(y, "float32"), expected, atol=digits)


def test_float64_stays_float64():
    layer = BatchNormalization(momentum=0.0, dtype="float64")
    x = 1e6 + np.random.default_rng(0).normal(size=(32, 2))
    y = layer(x, training=True)
    assert layer.moving_mean.dtype == "float64"
    np.testing.assert_allclose(y, batch_norm(x, (1,))[0], rtol=1e-9, atol=1e-9)


# --- in models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}], ids=str
)
def test_fit_follows_the_statistics(options):
    x = np.random.default_rng(0).normal(4, 2, (48, 6, 3)).astype("float32")
    inputs = keras.Input((None, 3))
    outputs = keras.layers.GlobalAveragePooling1D()(BatchNormalization(momentum=0.5)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    model.compile("sgd", "mse", **options)
    model.fit(x, x[:, 0, :1], batch_size=16, epochs=1, shuffle=False, verbose=0)
    mean, variance = np.zeros(3), np.ones(3)
    for batch in x.reshape(3, -1, 3):
        mean = (mean + batch.mean(0)) / 2
        variance = (variance + batch.var(0, ddof=1)) / 2
    np.testing.assert_allclose(model.layers[1].moving_mean.numpy(), mean, rtol=1e-4)
    np.testing.assert_allclose(model.layers[1].moving_variance.numpy(), variance, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (None, 3), (None, None, 3), (4, None, 2, 3)], ids=str)
def test_symbolic_calls_keep_the_shape(shape):
    inputs = keras.Input(shape)
    layer = BatchNormalization()
    assert layer(inputs).shape == inputs.shape
    assert layer(inputs, training=True).shape == inputs.shape
    assert layer.compute_output_shape(inputs.shape) == inputs.shape


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"axis": [1, 2], "momentum": None},
        {"axis": 1, "debias": True, "unbiased": False, "fused": False},
        {"gamma_initializer": keras.initializers.Constant(2.0), "beta_regularizer": "l2"},
    ],
    ids=["defaults", "axes", "options", "objects"],
)
def test_configuration_and_files_round_trip(options, tmp_path):
    layer = BatchNormalization(**options)
    config = layer.get_config()
    assert BatchNormalization.from_config(config).get_config() == config

    model = keras.Sequential([keras.Input((5, 3)), layer])
    for seed in range(3):
        model(np.random.default_rng(seed).normal(size=(8, 5, 3)), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is BatchNormalization
    assert loaded.layers[0].get_config() == config
    for one, other in zip(weights_of(loaded.layers[0]), weights_of(layer), strict=True):
        np.testing.assert_array_equal(one, other)
