import itertools
import math
import weakref

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_bn.layers
from keras_bn.errors import CalibrationError, UnsupportedModelError
from keras_bn.training.population import update_bn
from tests.layers.backends import on_gpu
from tests.random_weights import randomize

STOCK = keras.layers.BatchNormalization
OURS = keras_bn.layers.BatchNormalization
# The moments of a batch are float32: 6 digits of the mean, relative to the deviation.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def array(tensor):
    return ops.convert_to_numpy(tensor)


def data(samples=50, features=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(5, 2, (samples, features)) ** 2 / 5).astype("float32")


def model_of(layer, features=3):
    return randomize(keras.Sequential([keras.Input((features,)), layer]))


def statistics(layer):
    return array(layer.moving_mean), array(layer.moving_variance)


def check(layer, mean, variance):
    np.testing.assert_allclose(array(layer.moving_mean), mean, **CLOSE)
    np.testing.assert_allclose(array(layer.moving_variance), variance, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}], ids=str)
@pytest.mark.parametrize(("kind", "ddof"), [(STOCK, 0), (OURS, 1)], ids=["Keras", "keras_bn"])
def test_pooled_is_the_variance_of_everything_whatever_the_batches(kind, ddof, options):
    x = data().astype("float64")
    model = model_of(kind(**options))
    assert update_bn(model, data(), batch_size=7) is model  # the last batch has 1 sample
    check(model.layers[0], x.mean(0), x.var(0, ddof=ddof))


@pytest.mark.parametrize(("kind", "ddof"), [(STOCK, 0), (OURS, 1)], ids=["Keras", "keras_bn"])
def test_average_is_algorithm_2(kind, ddof):
    x = data(48)
    model = update_bn(model_of(kind()), x, batch_size=16, method="average")
    batches = x.astype("float64").reshape(3, 16, -1)
    check(model.layers[0], batches.mean(1).mean(0), batches.var(1, ddof=ddof).mean(0))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    offset=st.sampled_from([0.0, -3.0, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_pooled_over_any_batch_sizes(sizes, offset, seed):
    x = (offset + np.random.default_rng(seed).normal(size=(sum(sizes), 2))).astype("float32")
    batches = np.split(x, np.cumsum(sizes)[:-1])
    model = update_bn(model_of(OURS(), 2), list(batches))
    exact = x.astype("float64")
    layer = model.layers[0]
    np.testing.assert_allclose(array(layer.moving_mean), exact.mean(0), rtol=1e-5, atol=1e-5)
    # A batch's float32 mean near 1000 is off by 6e-5, which its square's share hides.
    np.testing.assert_allclose(
        array(layer.moving_variance), exact.var(0, ddof=1), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("kind", [dict, list])
def test_several_inputs(kind):
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    layer = OURS()
    inputs = {"left": left, "right": right} if kind is dict else [left, right]
    model = keras.Model(inputs, layer(left + right))
    x, y = data(seed=1), data(seed=2)
    update_bn(model, {"left": x, "right": y} if kind is dict else [x, y])
    check(layer, (x + y).mean(0), (x + y).var(0, ddof=1))


def test_only_the_batch_normalizations_are_in_training():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dropout(0.9), OURS(), keras.layers.Dense(3), OURS()]
    )
    randomize(model)
    kernel = model.layers[2].get_weights()
    x = data()
    update_bn(model, x, batch_size=50)
    _, first, dense, second = model.layers
    check(first, x.mean(0), x.var(0, ddof=1))
    # The second layer sees what the first makes of the batch, not of its old statistics.
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * array(first.gamma)
    seen = array(dense(normalized + array(first.beta)))
    check(second, seen.mean(0), seen.var(0, ddof=1))
    for one, other in zip(dense.get_weights(), kernel, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", [STOCK, OURS], ids=["Keras", "keras_bn"])
def test_shared_layers_pool_all_their_calls(kind):
    left, right = keras.Input((3,)), keras.Input((3,))
    layer = kind()
    model = keras.Model([left, right], layer(left) + layer(right))
    x, y = data(seed=1), 10 + data(seed=2)
    update_bn(model, [x, y], batch_size=16)
    both = np.concatenate([x, y])
    check(layer, both.mean(0), both.var(0, ddof=getattr(layer, "unbiased", 0)))


def test_masked_elements_do_not_count():
    inputs = keras.Input((None, 2))
    layer = OURS()
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    x = 1 + np.random.default_rng(0).random((20, 6, 2)).astype("float32")
    kept = np.arange(6) < np.random.default_rng(1).integers(0, 7, (20, 1))
    x[~kept] = 0
    update_bn(model, x, batch_size=8)
    check(layer, x[kept].mean(0), x[kept].var(0, ddof=1))


def test_nested_and_wrapped_layers():
    steps = keras.layers.TimeDistributed(STOCK())
    inner = keras.Sequential([keras.Input((4, 3)), steps])
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, inner(inputs))
    x = data(4 * 20).reshape(20, 4, 3)
    update_bn(model, x)
    check(steps.layer, x.mean((0, 1)), x.var((0, 1)))


class Written(keras.Model):
    """Subclassed, not built, with a default of its own for `training`."""

    def __init__(self, kind):
        super().__init__()
        self.drop = keras.layers.Dropout(0.9)
        self.normalize = kind()

    def call(self, x, training=False):
        return self.normalize(self.drop(x, training=training), training=training)


@pytest.mark.parametrize("kind", [STOCK, OURS], ids=["Keras", "keras_bn"])
def test_subclassed_models(kind):
    x = data()
    model = update_bn(Written(kind), x)
    check(model.normalize, x.mean(0), x.var(0, ddof=getattr(model.normalize, "unbiased", 0)))


class PartlyFixed(keras.Model):
    def __init__(self):
        super().__init__()
        self.frozen, self.fixed, self.free = OURS(trainable=False), OURS(name="fixed"), OURS()

    def call(self, x, training=None):
        fixed = self.fixed(self.frozen(x, training=training), training=False)
        return self.free(fixed, training=training)


def test_what_is_in_inference_while_training_stays_as_it_is():
    x = data()
    model = PartlyFixed()
    model(x)
    randomize(model)
    before = statistics(model.frozen), statistics(model.fixed)
    update_bn(model, x)
    np.testing.assert_array_equal((statistics(model.frozen), statistics(model.fixed)), before)
    seen = array(model.fixed(model.frozen(x)))
    check(model.free, seen.mean(0), seen.var(0, ddof=1))


def test_steps_limit_and_an_early_end():
    x = data()
    model = update_bn(model_of(OURS()), x, batch_size=10, steps=2)
    check(model.layers[0], x[:20].mean(0), x[:20].var(0, ddof=1))
    update_bn(model, x, batch_size=10, steps=100)
    check(model.layers[0], x.mean(0), x.var(0, ddof=1))
    endless = itertools.cycle(np.split(x, 5))
    update_bn(model, endless, steps=5)
    check(model.layers[0], x.mean(0), x.var(0, ddof=1))


def test_training_goes_on_afterwards_as_before():
    model = model_of(OURS(momentum=None))
    x = data(48)
    update_bn(model, x, batch_size=16)
    layer = model.layers[0]
    assert array(layer.num_batches_tracked) == 3
    more = data(16, seed=9)
    model(more, training=True)
    np.testing.assert_allclose(
        array(layer.moving_mean), (3 * x.mean(0) + more.mean(0)) / 4, **CLOSE
    )


@pytest.mark.skipif(
    "renorm" not in STOCK().get_config(), reason="this Keras has no batch renormalization"
)
@pytest.mark.parametrize(("kind", "ddof"), [(STOCK, 0), (OURS, 1)], ids=["Keras", "keras_bn"])
def test_renorm_layers(kind, ddof):
    x = data()
    model = update_bn(model_of(kind(renorm=True)), x)
    check(model.layers[0], x.mean(0), x.var(0, ddof=ddof))
    np.testing.assert_allclose(
        array(model.layers[0].moving_stddev), np.sqrt(x.var(0, ddof=ddof) + 1e-3), **CLOSE
    )


class Broken(keras.layers.Layer):
    """Computes until it is told to fail, and from then on raises."""

    error = None

    def call(self, x):
        if self.error is not None:
            raise self.error
        return x


def failing(error):
    yield data()
    raise error


@pytest.mark.parametrize("kind", [STOCK, OURS], ids=["Keras", "keras_bn"])
@pytest.mark.parametrize("where", ["data", "model"])
@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()], ids=repr)
def test_layers_are_restored_whatever_is_raised(kind, where, error):
    broken = Broken()
    model = keras.Sequential([keras.Input((3,)), kind(), broken, keras.layers.Dense(2), kind()])
    randomize(model)
    before, outputs = model.get_weights(), array(model(data()))
    attributes = [set(vars(layer)) for layer in model.layers]
    if where == "model":
        broken.error = error
    with pytest.raises(type(error)):
        update_bn(model, failing(error) if where == "data" else data())
    broken.error = None
    assert [set(vars(layer)) - {"error"} for layer in model.layers] == attributes
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(array(model(data())), outputs)
    model(data(), training=True)
    assert not np.array_equal(array(model.layers[0].moving_mean), before[2])


@pytest.mark.parametrize("empty", [np.zeros((0, 3)), [], iter(())], ids=["array", "list", "iter"])
def test_no_data_is_an_error(empty):
    with pytest.raises(CalibrationError, match="received none"):
        update_bn(model_of(OURS()), empty)


def test_data_that_are_not_finite_change_nothing():
    model = model_of(OURS())
    before = model.get_weights()
    x = data()
    x[3, 1] = np.nan
    with pytest.raises(CalibrationError, match=model.layers[0].name):
        update_bn(model, x)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_that_always_infers_is_refused():
    model = PartlyFixed()
    model.free.trainable = False
    with pytest.raises(UnsupportedModelError, match=r"\(fixed\)"):
        update_bn(model, data())


def test_a_model_without_batch_normalization_is_returned():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert update_bn(model, data()) is model


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "median"}, ValueError, "pooled, average"),
        ({"steps": 0}, ValueError, "`steps` must be positive"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        update_bn(model_of(OURS()), data(), **options)


def test_wrong_data_are_refused():
    with pytest.raises(TypeError, match="int"):
        update_bn(model_of(OURS()), 3)


def test_progress_goes_to_stderr_when_asked_for(capsys):
    update_bn(model_of(OURS()), data(), verbose=True)
    out, err = capsys.readouterr()
    assert out == "" and "Measuring statistics" in err
    update_bn(model_of(OURS()), data())
    assert capsys.readouterr() == ("", "")


def normalized(x, gamma, beta, axes=(0,)):
    """Batch normalization in float64, with Keras's default epsilon."""
    x = np.asarray(x, "float64")
    mean, variance = x.mean(axes), x.var(axes)
    return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


@pytest.mark.parametrize("shape", [(40, 3), (20, 5, 3), (9, 4, 6, 3), (5, 2, 3, 4, 3)], ids=str)
@pytest.mark.parametrize("kind", [STOCK, OURS], ids=["Keras", "keras_bn"])
@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}], ids=str)
def test_what_follows_sees_the_batch_normalized(shape, kind, options):
    """By the batch's own moments, whose mean is a thousand deviations from zero."""
    x = (1000 + np.random.default_rng(0).normal(size=shape)).astype("float32")
    first, second = kind(**options), kind()
    model = randomize(keras.Sequential([keras.Input(shape[1:]), first, second]))
    gamma = 1.0 if first.gamma is None else array(first.gamma)
    beta = 0.0 if first.beta is None else array(first.beta)
    axes = tuple(range(len(shape) - 1))
    expected = normalized(x, gamma, beta, axes)
    update_bn(model, x, batch_size=len(x))
    # A float32 sum of m numbers near 1000, added one by one, rounds by 1000·k·2⁻²⁴ at the k-th: the
    # mean is off by 6e-5·√m/3 in root mean square. Over 30 draws of these shapes the largest error
    # was 6e-5·0.72·√m on TensorFlow and JAX, and 6e-5·0.3·√m on PyTorch, which adds in pairs.
    off = 6e-5 * math.sqrt(x.size / x.shape[-1])
    # The variance about that mean is off by its square, below 8e-7, besides the rounding of a
    # sum of squares: at most 5e-7 in all was measured. The kernels of GPUs keep a running mean,
    # off by 6e-5 at every step: up to 1.5e-5 was measured.
    near = {"rtol": 5e-5 if on_gpu() else 3e-6}
    ddof = int(kind is OURS)
    np.testing.assert_allclose(
        array(first.moving_mean), np.mean(x, axes, "float64"), rtol=0, atol=off
    )
    np.testing.assert_allclose(
        array(first.moving_variance), np.var(x, axes, "float64", ddof=ddof), **near
    )
    # The first mean's error times γ, which is 1.5 at most.
    np.testing.assert_allclose(
        array(second.moving_mean), expected.mean(axes), rtol=0, atol=1.5 * off
    )
    np.testing.assert_allclose(array(second.moving_variance), expected.var(axes, ddof=ddof), **near)


IN_FLOAT64 = pytest.mark.backend(
    "tensorflow", "torch", because="JAX computes in float32 unless told"
)


@pytest.mark.parametrize(
    "dtype", ["mixed_float16", "mixed_bfloat16", pytest.param("float64", marks=IN_FLOAT64)]
)
@pytest.mark.parametrize("axis", [-1, 1])
def test_other_dtypes_and_axes(dtype, axis):
    x = np.random.default_rng(0).normal(3, 2, (30, 4, 4)).astype("float32")
    first = OURS(axis=axis, dtype=dtype)
    model = randomize(keras.Sequential([keras.Input((4, 4)), first]))
    update_bn(model, x, batch_size=8)
    axes = (0, 2) if axis == 1 else (0, 1)
    # The inputs arrive in the compute dtype: 8 bits of bfloat16 average out over 120 elements.
    near = 2e-2 if "16" in dtype else 1e-5
    np.testing.assert_allclose(array(first.moving_mean), x.mean(axes), rtol=near)
    np.testing.assert_allclose(array(first.moving_variance), x.var(axes, ddof=1), rtol=near)


def masked_model(axis, features=2, steps=4):
    inputs, mask = keras.Input((steps, features)), keras.Input((steps,), dtype="bool")
    layer = OURS(axis=axis)
    return keras.Model([inputs, mask], layer(inputs, mask=mask)), layer


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    axis=st.sampled_from([-1, 2, (1, 2)]),
    kept=st.sampled_from([0.1, 0.5, 1.0]),
    method=st.sampled_from(["pooled", "average"]),
    seed=st.integers(0, 2**16),
)
def test_masks_and_axes_of_any_kind(sizes, axis, kept, method, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (sum(sizes), 4, 2)).astype("float32")
    mask = rng.random((sum(sizes), 4)) < kept
    model, layer = masked_model(axis)
    randomize(model)
    before = statistics(layer)
    parts = zip(
        np.split(x, np.cumsum(sizes)[:-1]), np.split(mask, np.cumsum(sizes)[:-1]), strict=True
    )
    batches = [[one, other] for one, other in parts]
    if not mask.any():
        with pytest.raises(UnsupportedModelError, match="is masked"):
            update_bn(model, iter(batches), method=method)
        return
    update_bn(model, iter(batches), method=method)
    mean, variance = (np.array(statistic, "float64") for statistic in before)
    for index in np.ndindex(mean.shape):
        where = (slice(None), *index) if len(index) == 2 else (slice(None), slice(None), *index)
        time = (slice(None), index[0]) if len(index) == 2 else (slice(None), slice(None))
        seen = [one[where][other[time]].astype("float64") for one, other in batches]
        if method == "pooled":
            seen = [np.concatenate(seen)]
        means = [part.mean() for part in seen if part.size]
        variances = [part.var(ddof=1) for part in seen if part.size > 1]
        # Nothing to estimate from leaves what was there.
        mean[index] = np.mean(means) if means else mean[index]
        variance[index] = np.mean(variances) if variances else variance[index]
    check(layer, mean, variance)


class Moving(keras.Model):
    """With a state that inference moves, a seed, and a counter of calls."""

    def __init__(self):
        super().__init__()
        self.recurrent = keras.layers.SimpleRNN(3, stateful=True, return_sequences=True)
        self.drop = keras.layers.Dropout(0.5, seed=1)
        self.normalize = OURS()
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        self.calls.assign(self.calls + 1)
        return self.normalize(self.drop(self.recurrent(x), training=training), training=training)


def test_states_and_seeds_do_not_move():
    x = np.random.default_rng(0).normal(size=(12, 4, 3)).astype("float32")
    model = Moving()
    model(x[:4])
    before = {variable.path: array(variable) for variable in model.variables}
    update_bn(model, x, batch_size=4)
    moved = [v.path for v in model.variables if not np.array_equal(array(v), before[v.path])]
    assert sorted(path.rsplit("/")[-1] for path in moved) == ["moving_mean", "moving_variance"]


def test_batches_are_let_go_of():
    alive = []

    def batches():
        for seed in range(12):
            x = data(8, seed=seed)
            alive.append(weakref.ref(x))
            yield x
            del x

    most = 0

    def watched():
        nonlocal most
        for x in batches():
            most = max(most, sum(reference() is not None for reference in alive))
            yield x

    update_bn(model_of(OURS()), watched())
    # The one at hand, the one before it, and the first, which created the model's weights.
    assert most <= 3


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_compiled_model_trains_and_infers_as_before(jit_compile):
    model = model_of(OURS())
    model.compile("sgd", "mse", jit_compile=jit_compile and keras.backend.backend() != "torch")
    x = data()
    model.fit(x, x, verbose=0)
    update_bn(model, x)
    check(model.layers[0], x.mean(0), x.var(0, ddof=1))
    expected = normalized(x, 1.0, 0.0) * np.sqrt(x.var(0) + 1e-3)
    expected = expected / np.sqrt(x.var(0, ddof=1) + 1e-3)
    gamma, beta = array(model.layers[0].gamma), array(model.layers[0].beta)
    np.testing.assert_allclose(model.predict(x, verbose=0), gamma * expected + beta, **CLOSE)
    before = array(model.layers[0].moving_mean)
    model.fit(x + 1, x, verbose=0)
    assert not np.array_equal(array(model.layers[0].moving_mean), before)


@pytest.mark.backend("tensorflow", because="tf.function is TensorFlow's")
def test_layers_inside_the_models_own_tf_functions_and_loops():
    import tensorflow as tf

    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalize = OURS()

        @tf.function
        def call(self, x, training=None):
            for _ in tf.range(2):
                x = self.normalize(x, training=training)
            return x

    x = data()
    model = Compiled()
    model(x)
    before = array(model(x))
    np.testing.assert_array_equal(array(model(x)), before)
    update_bn(model, x, batch_size=50)
    both = np.concatenate([x, normalized(x, 1.0, 0.0)])
    check(model.normalize, both.mean(0), both.var(0, ddof=1))
    # Its own training is traced as it always is.
    before = statistics(model.normalize)
    model(x + 1, training=True)
    for one, other in zip(statistics(model.normalize), before, strict=True):
        assert not np.array_equal(one, other)


@pytest.mark.backend("tensorflow", because="tf.function is TensorFlow's")
def test_layers_in_loops_stand_beside_others():
    import tensorflow as tf

    class Mixed(keras.Model):
        """Calls `looped` in a loop, `once` outside of it, and `twice` on both sides of it."""

        def __init__(self):
            super().__init__()
            self.once, self.looped, self.twice = OURS(), STOCK(), OURS(dtype="float64")
            self.widen = keras.layers.Dense(2)

        def call(self, x, training=None):
            x = self.twice(self.once(x, training=training), training=training)
            _, x = tf.while_loop(
                lambda step, x: step < 3,
                lambda step, x: (step + 1, 2 * self.looped(x, training=training)),
                [0, tf.cast(x, tf.float32)],
            )
            return self.widen(self.twice(x, training=training))

    x = data(64)
    model = Mixed()
    model(x)
    randomize(model)
    layers = model.once, model.looped, model.twice
    update_bn(model, x, batch_size=16)
    seen = {layer: [] for layer in layers}

    def passed(layer, x):
        seen[layer].append(x)
        return normalized(x, array(layer.gamma), array(layer.beta))

    for batch in np.split(x, 4):
        batch = passed(model.twice, passed(model.once, batch))
        for _ in range(3):
            batch = 2 * passed(model.looped, batch)
        passed(model.twice, batch)
    assert [len(seen[layer]) for layer in layers] == [4, 12, 8]
    for layer in layers:
        whole = np.concatenate(seen[layer])
        check(layer, whole.mean(0), whole.var(0, ddof=int(layer is not model.looped)))


class Own(STOCK):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training, mask)


def test_a_normalization_that_computes_in_its_own_way_is_refused():
    with pytest.raises(UnsupportedModelError, match="class Own computes in its own way"):
        update_bn(model_of(Own()), data())


class Halved(OURS):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs / 2, training, mask)


def test_subclasses_of_ours_see_what_they_make_of_their_inputs():
    x = data()
    model = update_bn(model_of(Halved()), x)
    check(model.layers[0], (x / 2).mean(0), (x / 2).var(0, ddof=1))
