"""`update_bn` on several devices of one process, in a process of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.training.replicas import LAYERS, METHODS, SIZES, batches, samples

BACKEND = os.environ["KERAS_BACKEND"]

pytestmark = pytest.mark.backend(
    "tensorflow", "jax", because="PyTorch has no devices that Keras shares batches out to"
)


@pytest.fixture(scope="module")
def measured():
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.replicas"],
        env={
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_PLATFORMS": "cpu",  # of which there are as many as one likes
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def shares(batch):
    """What each replica normalizes by itself: the halves that fit deals out on TensorFlow."""
    half = -(-len(batch) // 2)
    return [batch[:half], batch[half:]]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_statistics_are_those_of_all_replicas(measured, layer, method):
    ddof = int(layer != "Keras's")
    if method == "pooled":
        seen = [samples()]
    elif BACKEND == "tensorflow" and layer != "synchronized":
        seen = [share for batch in batches() for share in shares(batch) if len(share)]
    else:  # the replicas' joint batches
        seen = batches()
    assert len(seen) in (1, len(SIZES), 2 * len(SIZES) - 1)
    means = [part.mean((0, 1), "float64") for part in seen]
    variances = [part.var((0, 1), "float64", ddof=ddof) for part in seen]
    mean, variance = measured[f"{layer} {method}"]
    # The moments of a batch are float32.
    np.testing.assert_allclose(mean, np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(variance, np.mean(variances, 0), rtol=1e-5)


def test_nothing_has_moved_after_a_failure(measured):
    assert measured["failed"] == [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
