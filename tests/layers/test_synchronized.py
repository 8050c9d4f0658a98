"""Replicas that normalize their joint batch, on two logical CPUs of a process of their own."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_bn.layers import BatchNormalization

FIT = """
import json, sys
import keras, numpy as np, tensorflow as tf
from keras_bn.layers import BatchNormalization

processor = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(processor, two)
x = np.load(sys.argv[1])
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    layer = BatchNormalization(momentum=0.0, synchronized=True)
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Masking(), layer])
    model.compile("sgd", "mse", jit_compile=False)
model.fit(tf.data.Dataset.from_tensors((x, x)), shuffle=False, verbose=0)
print(json.dumps([w.numpy().tolist() for w in layer.non_trainable_weights]))
"""


@pytest.mark.parametrize("masked", [False, True])
def test_replicas_share_their_statistics(masked, tmp_path):
    # The replicas' halves differ in mean and spread; E[x²] − E[x]² loses the variance of such.
    spread = np.arange(1, 33)[:, None, None]
    x = (1000 + spread * np.random.default_rng(0).normal(size=(32, 4, 3))).astype("float32")
    if masked:
        x[3:11, 2:] = 0  # as many elements are masked in one half as there are none in the other
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", FIT, tmp_path / "x.npy"],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    mean, variance = json.loads(done.stdout.splitlines()[-1])
    kept = x[(x != 0).any(-1)].astype("float64")
    # Float32 holds 1000 to 6e-5.
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, kept.var(0, ddof=1), rtol=1e-5)


def test_on_one_device_it_changes_nothing():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    alone, together = BatchNormalization(), BatchNormalization(synchronized=True)
    # Two implementations of the same float32 arithmetic.
    np.testing.assert_allclose(
        together(x, training=True), alone(x, training=True), rtol=1e-5, atol=1e-6
    )
    for one, other in zip(together.weights, alone.weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), rtol=1e-5
        )
