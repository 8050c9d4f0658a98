"""A batch spread over four devices by keras.distribution: statistics are those of the whole."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.layers.numpy_reference import batch_norm

pytestmark = pytest.mark.backend("jax", because="keras.distribution trains on JAX")

# Run with the file for the results as its argument.
FOUR_DEVICES = """
import sys
import jax, keras, numpy as np
from tests.layers.test_jax import batches
from keras_bn.layers import BatchNormalization

assert len(jax.devices()) == 4
keras.distribution.set_distribution(keras.distribution.DataParallel())
results = {}
for name, layers in {
    "plain": [BatchNormalization(momentum=0.5)],
    "synchronized": [BatchNormalization(momentum=0.5, synchronized=True)],
    "mask": [keras.layers.Masking(), BatchNormalization(momentum=0.5)],
    "several axes": [keras.layers.Masking(), BatchNormalization(axis=(1, 2), momentum=0.5)],
}.items():
    x = batches()
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, x, batch_size=8, shuffle=False, verbose=0)
    results[name] = [model.layers[-1].moving_mean, model.layers[-1].moving_variance]
np.savez(sys.argv[1], **{name: np.stack(arrays) for name, arrays in results.items()})
"""


def batches():
    """Two batches of 8 sequences; those of each device differ in mean and length."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4, 3)) + np.arange(16)[:, None, None]
    x[0, 1:] = x[1:4, 3:] = x[9, 2:] = 0
    return x.astype("float32")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "results.npz"
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES, path],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "axes", "masked"),
    [
        ("plain", (2,), False),
        ("synchronized", (2,), False),
        ("mask", (2,), True),
        ("several axes", (1, 2), True),
    ],
)
def test_statistics_are_those_of_the_whole_batch(results, name, axes, masked):
    x = batches()
    channels = [x.shape[axis] for axis in axes]
    expected_mean, expected_variance = np.zeros(channels), np.ones(channels)
    for batch in np.split(x, 2):
        kept = np.broadcast_to((batch != 0).any(-1, keepdims=True), batch.shape)
        _, mean, variance, count = batch_norm(batch, axes, kept if masked else None)
        expected_mean = (expected_mean + mean) / 2
        expected_variance = (expected_variance + variance * count / (count - 1)) / 2
    mean, variance = results[name]
    # Sums of 32 float32 terms of order 10.
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-5, atol=1e-5)
