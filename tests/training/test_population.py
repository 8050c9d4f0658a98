import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_bn.layers
from keras_bn.errors import CalibrationError, UnsupportedModelError
from keras_bn.training.population import update_bn
from tests.random_weights import randomize

STOCK = keras.layers.BatchNormalization
OURS = keras_bn.layers.BatchNormalization
# The moments of a batch are float32: 6 digits of the mean, relative to the deviation.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def data(samples=50, features=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(5, 2, (samples, features)) ** 2 / 5).astype("float32")


def model_of(layer, features=3):
    return randomize(keras.Sequential([keras.Input((features,)), layer]))


def statistics(layer):
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def check(layer, mean, variance):
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, **CLOSE)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, **CLOSE)


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
    np.testing.assert_allclose(layer.moving_mean.numpy(), exact.mean(0), rtol=1e-5, atol=1e-5)
    # A batch's float32 mean near 1000 is off by 6e-5, which its square's share hides.
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), exact.var(0, ddof=1), rtol=1e-3, atol=1e-6
    )


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return self.x[10 * index : 10 * index + 10], np.zeros(10)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, np.zeros(len(x))),
        lambda x: tf.data.Dataset.from_tensor_slices(x).batch(10),
        lambda x: tf.data.Dataset.from_tensor_slices((x, x)).batch(10),
        Batches,
        lambda x: np.split(x, 5),
        lambda x: ((part, part) for part in np.split(x, 5)),
        lambda x: tf.constant(x),
    ],
    ids=["array", "x, y", "Dataset", "Dataset x, y", "PyDataset", "list", "generator", "tensor"],
)
def test_every_kind_of_data(wrap):
    x = data()
    model = update_bn(model_of(OURS()), wrap(x))
    check(model.layers[0], x.mean(0), x.var(0, ddof=1))


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
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * first.gamma.numpy()
    seen = dense(normalized + first.beta.numpy()).numpy()
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
    seen = model.fixed(model.frozen(x)).numpy()
    check(model.free, seen.mean(0), seen.var(0, ddof=1))


def test_steps_limit_and_an_early_end():
    x = data()
    model = update_bn(model_of(OURS()), x, batch_size=10, steps=2)
    check(model.layers[0], x[:20].mean(0), x[:20].var(0, ddof=1))
    update_bn(model, x, batch_size=10, steps=100)
    check(model.layers[0], x.mean(0), x.var(0, ddof=1))
    endless = tf.data.Dataset.from_tensor_slices(x).batch(10).repeat()
    update_bn(model, endless, steps=5)
    check(model.layers[0], x.mean(0), x.var(0, ddof=1))
    with pytest.raises(ValueError, match="give `steps`"):
        update_bn(model, endless)


def test_training_goes_on_afterwards_as_before():
    model = model_of(OURS(momentum=None))
    x = data(48)
    update_bn(model, x, batch_size=16)
    layer = model.layers[0]
    assert layer.num_batches_tracked.numpy() == 3
    more = data(16, seed=9)
    model(more, training=True)
    np.testing.assert_allclose(
        layer.moving_mean.numpy(), (3 * x.mean(0) + more.mean(0)) / 4, **CLOSE
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
        model.layers[0].moving_stddev.numpy(), np.sqrt(x.var(0, ddof=ddof) + 1e-3), **CLOSE
    )


@pytest.mark.parametrize("kind", [STOCK, OURS], ids=["Keras", "keras_bn"])
def test_layers_are_restored_when_the_data_raise(kind):
    def failing():
        yield data()
        raise OSError("the disk is gone")

    model = model_of(kind())
    before, outputs = model.get_weights(), model(data()).numpy()
    with pytest.raises(OSError, match="the disk is gone"):
        update_bn(model, failing())
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(model(data()), outputs)
    model(data(), training=True)
    assert not np.array_equal(model.layers[0].moving_mean.numpy(), before[2])


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
