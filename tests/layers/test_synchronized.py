"""Replicas of tf.distribute.MirroredStrategy, on two logical CPUs of processes of their own."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_bn.layers import BatchNormalization

pytestmark = pytest.mark.backend("tensorflow", because="tf.distribute is TensorFlow's")

# Run with the folder of the results as its argument.
TWO_REPLICAS = """
import sys
from pathlib import Path
import keras, numpy as np, tensorflow as tf
from tests.layers.test_synchronized import CASES, FITS, batches, built, inputs, step
from keras_bn.layers import BatchNormalization

processor = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(processor, two)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def steps(name):
    with strategy.scope():
        layer = built(name, synchronized=True)
    run = tf.function(lambda *parts: strategy.run(
        lambda *part: step(layer, *part), args=parts), autograph=False)
    joint = []
    for arrays in batches(name):
        parts = [
            strategy.experimental_distribute_values_from_function(
                lambda replica: tf.constant(np.split(array, [CASES[name]["sizes"][0]])[
                    replica.replica_id_in_sync_group]))
            for array in arrays
        ]
        y, d_x, d_weights, second = map(strategy.experimental_local_results, run(*parts))
        joint += [np.concatenate(y), np.concatenate(d_x), np.concatenate(second)]
        joint += [np.sum(each, 0) for each in zip(*d_weights)]
    return joint + [weight.numpy() for weight in layer.non_trainable_weights]

def fit(name):
    x = inputs(name)
    with strategy.scope():
        layer = BatchNormalization(**FITS[name])
        model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Masking(), layer])
        model.compile("sgd", "mse", jit_compile=False)
    model.fit(tf.data.Dataset.from_tensor_slices((x, x)).batch(32), shuffle=False, verbose=0)
    model.save(folder / f"{name}.keras")
    return [weight.numpy() for weight in layer.non_trainable_weights]

folder = Path(sys.argv[1])
results = {name: steps(name) for name in CASES} | {name: fit(name) for name in FITS}
np.savez(folder / "results.npz", **{
    f"{name} {number}": array
    for name, arrays in results.items() for number, array in enumerate(arrays)
})
"""

# The batches of 8 are shared out as `sizes`; masks cover the leading axes but the channels'.
CASES = {
    "halves": {"options": {}},
    "uneven": {"options": {"momentum": 0.3}, "sizes": (5, 3)},
    "nothing on one replica": {"options": {"debias": True}, "sizes": (8, 0)},
    "biased": {"options": {"unbiased": False}, "sizes": (6, 2)},
    "mask": {"options": {"momentum": None}, "mask": (8, 4), "sizes": (5, 3)},
    "one replica masked": {"options": {}, "mask": (8,), "masked": slice(0, 4)},
    "mask beside channels first": {"options": {"axis": 1}, "mask": (8, 3)},
    "several axes": {"options": {"axis": (1, 2), "momentum": None}, "sizes": (3, 5)},
    "several axes, mask": {"options": {"axis": (1, 2)}, "mask": (8,), "sizes": (3, 5)},
    "sequences of different lengths": {
        "options": {"axis": (1, 2), "debias": True},
        "mask": (8, 4),
        "sizes": (3, 5),
    },
    "without gamma and beta": {"options": {"center": False, "scale": False}},
    "float64": {"options": {"dtype": "float64"}, "sizes": (2, 6)},
    "renorm": {"options": {"renorm": True, "momentum": 0.7}, "sizes": (5, 3)},
}
for case in CASES.values():
    case.setdefault("sizes", (4, 4))
if "renorm" not in keras.layers.BatchNormalization().get_config():
    del CASES["renorm"]


def batches(name):
    """Two batches: inputs, weights of the loss and, where the case has one, the mask."""
    case = CASES[name]
    dtype = case["options"].get("dtype", "float32")
    rng = np.random.default_rng(0)
    for _ in range(2):
        # Replicas with means and spreads of their own: averages of their variances would be off.
        x = (
            rng.normal(size=(8, 4, 3)) * np.arange(1, 9)[:, None, None]
            + np.arange(8)[:, None, None]
        )
        arrays = [x.astype(dtype), rng.normal(size=x.shape).astype(dtype)]
        if "mask" in case:
            mask = rng.random(case["mask"]) < 0.7
            mask[case.get("masked", slice(0, 0))] = False
            arrays.append(mask)
        yield arrays


def built(name, **options):
    layer = BatchNormalization(**{**CASES[name]["options"], **options})
    layer.build((None, 4, 3))
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.name != "num_batches_tracked":
            weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    return layer


def step(layer, x, weights, mask=None):
    """Outputs, first derivatives by inputs and weights, a second derivative by the inputs."""
    import tensorflow as tf

    variables = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape(persistent=True) as inner:
            inner.watch(x)
            y = layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(y**2 * weights)
        d_x = inner.gradient(loss, x)
        curved = tf.reduce_sum(tf.sin(d_x))
    return y, d_x, inner.gradient(loss, variables), outer.gradient(curved, x)


FITS = {
    "shared": {"momentum": 0.5, "synchronized": True},
    "shared, masked": {"momentum": 0.5, "synchronized": True},
    "apart": {"momentum": None},
}


def inputs(name):
    """Samples for batches of 32; of a last batch of 3, two are the first replica's."""
    # The replicas' parts differ in mean and spread; E[x²] − E[x]² loses the variance of such.
    rng = np.random.default_rng(0)
    x = 1000 + np.arange(1, 68)[:, None, None] * rng.normal(size=(67, 4, 3))
    if name == "shared, masked":
        x[3:11, 2:] = 0  # as many elements are masked in one part as there are none in the other
    return x.astype("float32")


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory):
    """The folder where a process with two replicas left all results."""
    folder = tmp_path_factory.mktemp("replicas")
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS, folder],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def results(folder, name):
    with np.load(folder / "results.npz") as arrays:
        numbers = sum(key.rpartition(" ")[0] == name for key in arrays)
        return [arrays[f"{name} {number}"] for number in range(numbers)]


@pytest.mark.parametrize("name", CASES)
def test_two_replicas_equal_one_device_on_the_whole_batch(two_replicas, name):
    import tensorflow as tf

    # fused=False: the path whose gradients are tested against the definition, masks included.
    layer = built(name, fused=False, dtype="float64")
    expected = []
    for x, weights, *mask in batches(name):
        whole = step(layer, tf.constant(x, tf.float64), tf.constant(weights, tf.float64), *mask)
        y, d_x, d_weights, second = whole
        expected += [y, d_x, second, *d_weights]
    expected += [weight.numpy() for weight in layer.non_trainable_weights]

    got = results(two_replicas, name)
    # Sums of up to 32 float32 terms of order 100, which cancel to order 1 in the derivatives.
    near = 1e-10 if name == "float64" else 2e-4
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=near, atol=near * max(1, np.abs(other).max()))


@pytest.mark.parametrize("name", ["shared", "shared, masked"])
def test_fit_shares_the_statistics(two_replicas, name):
    expected_mean, expected_variance = np.zeros(3), np.ones(3)
    for batch in np.split(inputs(name).astype("float64"), [32, 64]):
        kept = batch[(batch != 0).any(-1)]
        expected_mean = (expected_mean + kept.mean(0)) / 2
        expected_variance = (expected_variance + kept.var(0, ddof=1)) / 2
    mean, variance = results(two_replicas, name)
    # Float32 holds 1000 to 6e-5.
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-6)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-5)


def test_replicas_that_share_nothing_save_the_mean_of_their_statistics(two_replicas):
    # Keras's layer saves those of the first replica: the second's samples never reach them.
    parts = np.split(inputs("apart").astype("float64"), [16, 32, 48, 64, 66])
    means = [part.mean((0, 1)) for part in parts]
    variances = [part.var((0, 1), ddof=1) for part in parts]
    mean, variance, batches_seen = results(two_replicas, "apart")
    np.testing.assert_allclose(mean, np.mean(means, 0), rtol=1e-6)
    np.testing.assert_allclose(variance, np.mean(variances, 0), rtol=1e-5)
    assert batches_seen == 3

    layer = keras.saving.load_model(two_replicas / "apart.keras").layers[-1]
    for weight, value in zip(
        layer.non_trainable_weights, (mean, variance, batches_seen), strict=True
    ):
        np.testing.assert_array_equal(weight.numpy(), value)
