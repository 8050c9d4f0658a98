"""Models trained on JAX and PyTorch: read, folded and converted, here and on TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bn
from keras_bn.errors import ConversionError

ROOT = Path(keras_bn.__file__).parents[1]

pytestmark = pytest.mark.backend(
    "jax", "torch", because="on TensorFlow every test of folding and conversion does this"
)


def trained():
    """A network of every layer of this package that stands outside recurrent ones, and inputs."""
    ours = keras_bn.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, use_bias=False),
            ours.BatchNormalization(momentum=0.7, debias=True),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            ours.BatchNormalization(momentum=None),
            ours.InstanceNormalization(),
            layers.Flatten(),
            ours.LayerNormalization(),
            layers.Dense(3),
            ours.BatchNormalization(momentum=0.5, unbiased=False, scale=False),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (48, 8, 8, 2)).astype("float32")
    model.fit(x, rng.normal(size=(48, 3)), batch_size=16, epochs=2, verbose=0)
    return model, x[:4]


def run(model, x):
    return ops.convert_to_numpy(model(x))


@pytest.fixture(scope="module")
def model_and_inputs():
    return trained()


# Other kernels for the same float32 sums, through 6 layers that normalize.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def test_folding(model_and_inputs):
    model, x = model_and_inputs
    result = keras_bn.fold(model)
    assert not result.kept and len(result.folded) == 3
    np.testing.assert_allclose(run(result.model, x), run(model, x), **CLOSE)


@pytest.mark.parametrize(
    "kind", [layers.BatchNormalization, keras_bn.layers.BatchNormalization], ids=["Keras", "ours"]
)
def test_a_fold_that_rounds_less_than_the_original_is_kept(kind):
    """Only the exact result, in float64, tells that it is the original which is off."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3)).astype("float32")
    bn = kind()
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), bn])
    model.layers[0].set_weights([kernel, np.full(3, 1000.0)])
    bn.moving_mean.assign(np.full(3, 1000.0))
    result = keras_bn.fold(model)
    assert not result.kept and len(result.folded) == 1

    x = rng.normal(0, 0.01, (8, 4)).astype("float32")
    exact = x.astype("float64") @ kernel / np.sqrt(1 + bn.epsilon)
    # Float32 has steps of 2⁻¹⁴ at 1000. Below 2⁻⁴ they are 2⁻²⁸, and four weights, products and
    # sums round by up to half of one.
    assert np.abs(run(model, x) - exact).max() > 2.0**-16
    np.testing.assert_allclose(run(result.model, x), exact, rtol=0, atol=6 * 2.0**-28)


def test_the_command_line_converts_the_file(model_and_inputs, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model, x = model_and_inputs
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-m", "keras_bn", "convert", "model.keras", "-o", "model.tflite"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in x:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(returned["index"])[0])
    np.testing.assert_allclose(outputs, run(model, x), **CLOSE)


def test_conversion_says_that_it_needs_tensorflow(model_and_inputs, tmp_path):
    with pytest.raises(ConversionError, match="KERAS_BACKEND=tensorflow"):
        keras_bn.convert(model_and_inputs[0], tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


TRAIN_ON_TENSORFLOW = """
import numpy as np
from tests.test_other_backends import run, trained
model, x = trained()
model.save("model.keras")
np.savez("outputs.npz", x=x, y=run(model, x))
"""


def test_a_file_of_tensorflows_is_read(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_ON_TENSORFLOW],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    model = keras.saving.load_model(tmp_path / "model.keras")
    with np.load(tmp_path / "outputs.npz") as arrays:
        np.testing.assert_allclose(run(model, arrays["x"]), arrays["y"], **CLOSE)
    assert int(ops.convert_to_numpy(model.layers[4].num_batches_tracked.value)) == 6


# As a folded model says when it is trained, which tests/fold/test_graphs.py holds.
@pytest.mark.filterwarnings("ignore:.* is for inference:UserWarning")
@pytest.mark.parametrize(
    "change", [lambda model: keras_bn.fold(model).model, keras_bn.replace_batch_norm]
)
def test_training_a_changed_copy_leaves_the_original_usable(change):
    # JAX's training step takes the arrays that it updates away from all who hold them.
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3),
            layers.BatchNormalization(),
            layers.ReLU(),
            keras_bn.layers.BatchNormalization(),
            layers.ReLU(),
        ]
    )
    x = np.random.default_rng(0).normal(size=(8, 4))
    before = run(model, x)
    copy = change(model)
    copy.compile("sgd", "mse")
    copy.fit(x, np.zeros((8, 3)), verbose=0)
    np.testing.assert_array_equal(run(model, x), before)
