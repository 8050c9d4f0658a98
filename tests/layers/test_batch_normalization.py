import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_bn.layers import BatchNormalization
from tests.layers import numpy_reference
from tests.layers.backends import BACKEND, MODES, arrays, derivatives, training_call
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

# Every implementation of a training step.
PATHS = {
    "tensorflow": {
        "closed form": {"fused": True},
        "kernel": {"fused": True},  # taken from 2**17 elements up
        "plain": {"fused": False},
    },
    "torch": {"kernel": {"fused": True}, "plain": {"fused": False}},
    "jax": {"plain": {"fused": None}},
}[BACKEND]

# XLA never gets the kernel.
COMPILED_PATHS = [
    (path, mode) for path in PATHS for mode in MODES if (path, mode) != ("kernel", "XLA")
]

needs_fused = pytest.mark.backend("tensorflow", "torch", because="on JAX, XLA fuses")


def options_for(path, monkeypatch):
    """Options that select `path`, whatever the size of the batch."""
    least = 0 if path == "kernel" else 2**60
    monkeypatch.setattr("keras_bn.layers.fused_tensorflow.KERNEL_PAYS_FROM", least)
    return PATHS[path]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    return options_for(request.param, monkeypatch)


@pytest.fixture(params=COMPILED_PATHS, ids="-".join)
def path_and_mode(request, monkeypatch):
    path, mode = request.param
    return options_for(path, monkeypatch), mode


def train(layer, x, **call):
    return arrays(layer(x, training=True, **call))


def weights_of(layer):
    return arrays([ops.convert_to_tensor(weight) for weight in layer.weights])


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
        train(layer, EXAMPLE), EXAMPLE_NORMALIZED, atol=5e-5
    )
    # PyTorch's momentum 0.1 is 0.9 here; its running variance is the unbiased one.
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * EXAMPLE.mean(0), **CLOSE)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), 0.9 + 0.1 * EXAMPLE.var(0, ddof=1), **CLOSE
    )


@pytest.mark.parametrize(("unbiased", "variance"), [(True, 5 / 3), (False, 1.25)])
def test_moving_variance_is_unbiased_unless_asked_otherwise(path, unbiased, variance):
    layer = BatchNormalization(momentum=0.0, unbiased=unbiased, **path)
    outputs = train(layer, COLUMN)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [variance], rtol=1e-6)
    # The batch itself is normalized by the biased variance either way.
    expected, *_ = batch_norm(COLUMN, (1,))
    np.testing.assert_allclose(outputs, expected, **CLOSE)


def test_output_does_not_depend_on_the_scale_of_a_feature(path):
    layer = BatchNormalization(epsilon=1e-12, **path)
    column = np.array([[100.0, 1.0], [1.0, 0.01], [1.0, 0.01]], "float32")
    np.testing.assert_allclose(
        train(layer, column),
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

    outputs = training_call(layer, x, MODES[0], mask=mask)

    y, mean, variance, count = batch_norm(x, axes, wide_mask, gamma, beta)
    # Two equal float32 inputs have a variance of 1e-13 rather than 0, which √ε dwarfs.
    np.testing.assert_allclose(outputs, y, rtol=1e-4, atol=1e-4)
    with np.errstate(divide="ignore", invalid="ignore"):
        unbiased = variance * count / (count - 1)
    new_mean = np.where(count > 0, 0.5 * old_mean + 0.5 * mean, old_mean)
    new_variance = np.where(count > 1, 0.5 * old_variance + 0.5 * unbiased, old_variance)
    np.testing.assert_allclose(layer.moving_mean.numpy(), new_mean, **CLOSE)
    np.testing.assert_allclose(layer.moving_variance.numpy(), new_variance, **CLOSE)


SHAPES = [
    ((6, 3), -1),
    ((4, 5, 3), -1),
    ((4, 5, 3), 1),
    ((2, 4, 5, 3), -1),
    ((2, 3, 4, 5), 1),
    ((2, 4, 3, 5), 2),
    ((2, 2, 3, 4, 5), -1),
    ((2, 5, 2, 3, 4), 1),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_each_implementation_agrees_with_numpy(path_and_mode, shape, axis):
    path, mode = path_and_mode
    x = np.random.default_rng(1).normal(-4, 3, shape).astype("float32")
    layer = far_from_identity(BatchNormalization(axis=axis, momentum=0.0, **path), shape)
    gamma, beta, *_ = weights_of(layer)
    y, mean, variance, count = batch_norm(x, (axis % len(shape),), None, gamma, beta)
    np.testing.assert_allclose(training_call(layer, x, mode), y, **CLOSE)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, **CLOSE)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), variance * count / (count - 1), **CLOSE
    )


@pytest.mark.backend("tensorflow", because="other backends know every size")
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_sizes_unknown_while_tracing(path, shape, axis):
    import tensorflow as tf

    x = np.random.default_rng(1).normal(-4, 3, shape).astype("float32")
    layer = far_from_identity(BatchNormalization(axis=axis, momentum=0.0, **path), shape)
    gamma, beta, *_ = weights_of(layer)
    known = [None] * len(shape)
    known[axis] = shape[axis]
    step = tf.function(
        lambda x: layer(tf.ensure_shape(x, known), training=True),
        input_signature=[tf.TensorSpec([None] * len(shape))],
    )
    y, _, variance, count = batch_norm(x, (axis % len(shape),), None, gamma, beta)
    np.testing.assert_allclose(step(x), y, **CLOSE)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), variance * count / (count - 1), **CLOSE
    )


def test_variance_survives_a_large_mean(path_and_mode):
    # XLA lowers FusedBatchNormV3 to E[x²] − E[x]², which is off by 100 % here.
    path, mode = path_and_mode
    x = (1000 + np.random.default_rng(0).normal(size=(4096, 2))).astype("float32")
    layer = BatchNormalization(momentum=0.0, **path)
    layer.build(x.shape)
    training_call(layer, x, mode)
    # Float32 holds 1000 ± 1 to 6e-5, the rounding error of each sample.
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), x.astype("float64").var(0, ddof=1), rtol=1e-4
    )


def operations(layer, shape, jit_compile):
    import tensorflow as tf

    layer.build(shape)
    step = tf.function(lambda x: layer(x, training=True), jit_compile=jit_compile)
    graph = step.get_concrete_function(tf.TensorSpec(shape)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.backend("tensorflow", because="where PyTorch's pays is in test_torch.py")
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


@pytest.mark.backend("tensorflow", because="its kernel is given rows of pixels as images")
@pytest.mark.parametrize("size", [(4, 6), (3, 6), (3, 5)], ids=str)  # 4, 2 and 1 pixels a row
@pytest.mark.parametrize("known", [(True, True), (True, False), (False, False)], ids=str)
def test_kernel_takes_images_of_any_size_known_or_not(monkeypatch, size, known):
    import tensorflow as tf

    options_for("kernel", monkeypatch)
    layer = far_from_identity(BatchNormalization(), (None, None, None, 3))
    gamma, beta = arrays([layer.gamma, layer.beta])
    sizes = [side if is_known else None for side, is_known in zip(size, known, strict=True)]
    step = tf.function(lambda x: layer(x, training=True)).get_concrete_function(
        tf.TensorSpec((None, *sizes, 3))
    )
    assert "FusedBatchNormV3" in {operation.type for operation in step.graph.get_operations()}
    x = np.random.default_rng(0).normal(3.0, 2.0, (5, *size, 3)).astype("float32")
    outputs = step(tf.constant(x))
    expected, *_ = batch_norm(x, (3,), gamma=gamma, beta=beta)
    assert outputs.shape == x.shape
    np.testing.assert_allclose(outputs, expected, **CLOSE)


# --- gradients ----------------------------------------------------------------------------------


ONE_AXIS = {
    "matrix": {"shape": (8, 3)},
    "channels last": {"shape": (2, 3, 2, 3)},
    "channels first": {"shape": (3, 2, 4), "axis": 1},
    "between": {"shape": (2, 3, 2, 2), "axis": 2},
    "one element": {"shape": (1, 3)},
}
NOT_FUSED = {
    "mask": {"shape": (3, 4, 2), "mask": (3, 4)},
    "mask, channels first": {"shape": (3, 2, 4), "axis": 1, "mask": (3, 4)},
    "several axes": {"shape": (5, 2, 2), "axis": (1, 2)},
    "several axes, mask": {"shape": (6, 2, 2), "axis": (2, 1), "mask": (6,)},
}


def check_derivatives(case, options, mode):
    """Compare with finite differences; `case` has a shape, and may have an axis and a mask."""
    shape, axis = case["shape"], case.get("axis", -1)
    axes = sorted(one % len(shape) for one in (axis if isinstance(axis, tuple) else (axis,)))
    rng = np.random.default_rng(2)
    x, weights = rng.normal(size=(2, *shape)).astype("float32")
    mask = wide_mask = None
    if "mask" in case:
        mask = rng.random(case["mask"]) < 0.6
        covered = [one for one in range(len(shape)) if one not in axes][: mask.ndim]
        wide = mask.reshape([shape[one] if one in covered else 1 for one in range(len(shape))])
        wide_mask = np.broadcast_to(wide, shape)
    layer = far_from_identity(BatchNormalization(axis=axis, **options), shape)
    gamma, beta, *_ = weights_of(layer)
    expected = numpy_reference.derivatives(x, axes, weights, gamma, beta, wide_mask)
    got = derivatives(layer, x, weights, mode, mask)
    assert len(got) == len(expected) == 6
    for one, other in zip(got, expected, strict=True):
        # Sums of a few dozen float32 terms of order 10, cancelling to order 1.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-3)


# Keras's own second derivatives are wrong on TensorFlow: tf.nn.moments holds the mean constant
# inside the variance.
@pytest.mark.parametrize("name", ONE_AXIS)
def test_first_and_second_derivatives_agree_with_finite_differences(path_and_mode, name):
    check_derivatives(ONE_AXIS[name], *path_and_mode)


@pytest.mark.parametrize("name", NOT_FUSED)
def test_derivatives_with_masks_and_several_axes(name):
    check_derivatives(NOT_FUSED[name], {}, MODES[0])


@pytest.mark.backend("tensorflow", "torch", because="JAX computes in float32 unless told")
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("name", ["channels last", "channels first"])
def test_derivatives_in_float64(name, fused):
    shape, axis = ONE_AXIS[name]["shape"], ONE_AXIS[name].get("axis", -1)
    x, weights = np.random.default_rng(2).normal(size=(2, *shape))
    layer = far_from_identity(BatchNormalization(axis=axis, fused=fused, dtype="float64"), shape)
    gamma, beta, *_ = weights_of(layer)
    expected = numpy_reference.derivatives(x, (axis % len(shape),), weights, gamma, beta)
    # The second are central differences with a step of 1e-6: off by 1e-10 of values of order 100.
    for one, other in zip(derivatives(layer, x, weights), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)


def test_masked_gradient_is_that_of_the_unmasked_elements_alone():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 4, 6, 3)).astype("float32")
    mask = np.ones((4, 6), bool)
    mask[:, 4:] = False
    weights = weights * mask[..., None]
    masked = far_from_identity(BatchNormalization(), x.shape)
    short = far_from_identity(BatchNormalization(), x.shape)
    x[:, 4:] = 1e4

    got, *_ = derivatives(masked, x, weights, mask=mask)
    expected, *_ = derivatives(short, x[:, :4], weights[:, :4])
    train(masked, x, mask=mask)
    train(short, x[:, :4])
    np.testing.assert_allclose(got[:, :4], expected, **CLOSE)
    np.testing.assert_array_equal(got[:, 4:], 0)
    for one, other in zip(weights_of(masked), weights_of(short), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


# --- empty and single-element batches -----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"unbiased": False}], ids=str)
def test_an_empty_batch_moves_nothing_and_gives_no_nan(path_and_mode, options):
    path, mode = path_and_mode
    layer = far_from_identity(BatchNormalization(**options, **path), (None, 2, 3))
    before = weights_of(layer)
    empty = np.zeros((0, 2, 3), "float32")
    assert training_call(layer, empty, mode).shape == (0, 2, 3)
    for one, other in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)
    by_x, *others = derivatives(layer, empty, empty, mode)
    assert by_x.shape == (0, 2, 3)
    for derivative in others:
        np.testing.assert_array_equal(derivative, np.zeros(derivative.shape))


def test_a_fully_masked_batch_moves_nothing():
    # Keras's layer decays its statistics towards 0 here.
    layer = far_from_identity(BatchNormalization(momentum=0.5), (4, 5, 3))
    before = weights_of(layer)
    outputs = train(layer, np.ones((4, 5, 3)), mask=np.zeros((4, 5), bool))
    assert np.isfinite(outputs).all()
    for one, other in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("unbiased", [True, False])
def test_one_element_moves_the_mean_and_a_variance_that_is_defined(path, unbiased):
    layer = BatchNormalization(momentum=0.5, unbiased=unbiased, **path)
    outputs = train(layer, np.array([[6.0, -2.0]], "float32"))
    np.testing.assert_array_equal(outputs, [[0, 0]])
    np.testing.assert_allclose(layer.moving_mean.numpy(), [3, -1])
    np.testing.assert_allclose(layer.moving_variance.numpy(), [1, 1] if unbiased else [0.5, 0.5])


def test_a_first_batch_without_variance_leaves_no_initial_value_in_the_average():
    layer = BatchNormalization(momentum=None)
    layer(COLUMN[:1], training=True)
    layer(COLUMN, training=True)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [5 / 3], rtol=1e-6)
    assert layer.num_batches_tracked.numpy() == 1


def test_synchronized_on_one_device_changes_nothing():
    x = np.random.default_rng(0).normal(2, 3, (8, 3)).astype("float32")
    alone, together = (
        far_from_identity(BatchNormalization(**options), x.shape)
        for options in ({}, {"synchronized": True})
    )
    # Two implementations of the same float32 arithmetic.
    np.testing.assert_allclose(train(together, x), train(alone, x), **CLOSE)
    for one, other in zip(weights_of(together), weights_of(alone), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


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
    outputs = train(layer, x, mask=mask)
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
    inference = arrays(layer(x))
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


@needs_fused
@pytest.mark.parametrize(
    ("options", "call", "obstacle"),
    [
        ({"axis": (1, 2)}, {}, "several channel axes"),
        ({"synchronized": True}, {}, "synchronized=True"),
        ({}, {"mask": np.ones((4, 5), bool)}, "a mask"),
    ],
    ids=["axes", "synchronized", "mask"],
)
def test_fused_true_says_what_keeps_it_from_applying(options, call, obstacle):
    layer = BatchNormalization(fused=True, **options)
    with pytest.raises(ValueError, match=obstacle):
        layer(np.ones((4, 5, 3), "float32"), training=True, **call)


def test_fused_true_names_the_backend_that_has_no_such_path():
    # TensorFlow's kernel computes in float32; no kernel anywhere computes integers.
    dtype = {"tensorflow": "float64", "torch": "int32", "jax": "float32"}[BACKEND]
    layer = BatchNormalization(fused=True)
    layer.build((4, 3))
    with pytest.raises(ValueError, match=f"{dtype} inputs on the {BACKEND} backend"):
        layer.call(ops.ones((4, 3), dtype), training=True)


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
        np.testing.assert_allclose(train(ours, x), train(stock, x), **CLOSE)
    for one, other in zip(weights_of(ours), weights_of(stock), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)
    ours.set_weights(stock.get_weights())
    np.testing.assert_array_equal(
        arrays(ours(x)), arrays(stock(x))
    )  # the same operations, to the last bit


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
        np.testing.assert_allclose(train(ours, batch), train(stock, batch), **CLOSE)
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


@needs_renorm
def test_renorms_gradient_holds_its_correction_constant():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 8, 3)).astype("float32")
    layer = far_from_identity(BatchNormalization(renorm=True), x.shape)
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
    stddev = layer.renorm_stddev.numpy()
    r = np.sqrt(x.var(0) + 1e-3) / stddev
    d = (x.mean(0) - layer.renorm_mean.numpy()) / stddev
    # y = γ·(r·x̂ + d) + β is batch normalization with γ·r for γ and γ·d + β for β.
    by_x, by_scale, by_offset = numpy_reference.first_derivatives(
        x, (1,), weights, gamma * r, gamma * d + beta
    )
    expected = by_x, by_scale * r + by_offset * d, by_offset
    for one, other in zip(derivatives(layer, x, weights)[:3], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # sums of float32, as above


@needs_renorm
@pytest.mark.parametrize("axis", [-1, (1, 2)], ids=str)
def test_renorm_of_unmasked_elements(axis):
    x = np.random.default_rng(0).normal(2, 3, (6, 4, 3)).astype("float32")
    mask = np.arange(6) < 4
    masked, short = (
        far_from_identity(BatchNormalization(axis=axis, renorm=True), x.shape) for _ in range(2)
    )
    outputs = train(masked, x, mask=mask)
    np.testing.assert_allclose(outputs[:4], train(short, x[:4]), **CLOSE)
    for one, other in zip(weights_of(masked), weights_of(short), strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_frozen_means_inference():
    layer = far_from_identity(BatchNormalization(), (4, 3))
    layer.trainable = False
    before = weights_of(layer)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    np.testing.assert_array_equal(train(layer, x), arrays(layer(x, training=False)))
    for one, other in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)


# --- dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_float32_statistics(path, dtype):
    rng = np.random.default_rng(0)
    x = ops.cast(rng.normal(300, 20, (64, 4, 3)), dtype.removeprefix("mixed_"))
    layer = BatchNormalization(momentum=0.0, dtype=dtype, **path)
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")
    assert {layer.moving_mean.dtype, layer.moving_variance.dtype} == {"float32"}
    # The squares of 300 exceed float16, and Σ x exceeds it a hundredfold.
    exact = arrays(ops.cast(x, "float32")).astype("float64")
    expected, mean, variance, count = batch_norm(exact, (2,))
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), variance * count / (count - 1), rtol=1e-4
    )
    # 8 bits of bfloat16: values up to 4 are off by up to 2⁻⁸·4; float16 has 11.
    digits = 2**-6 if "bfloat16" in dtype else 2**-9
    np.testing.assert_allclose(arrays(ops.cast(y, "float32")), expected, atol=digits)


@pytest.mark.backend("tensorflow", "torch", because="JAX computes in float32 unless told")
def test_float64_stays_float64():
    layer = BatchNormalization(momentum=0.0, dtype="float64")
    x = 1e6 + np.random.default_rng(0).normal(size=(32, 2))
    y = train(layer, x)
    assert layer.moving_mean.dtype == y.dtype == "float64"
    np.testing.assert_allclose(y, batch_norm(x, (1,))[0], rtol=1e-9, atol=1e-9)


# --- in models ----------------------------------------------------------------------------------


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
