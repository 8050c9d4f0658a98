"""The frozen SavedModel, run by TensorFlow itself: it holds everything, under the right names."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_bn
import keras_bn.convert.export as export_module
from keras_bn.convert.export import export
from keras_bn.errors import ConversionError
from keras_bn.samples import random_samples
from keras_bn.signature import call_named, input_specs
from tests.deployable import MODELS, image_model, images
from tests.random_weights import randomize


def run_by_tensorflow(exported, samples):
    served = tf.saved_model.load(str(exported.folder)).signatures["serving_default"]
    return served(**{name: tf.constant(array) for name, array in samples.items()})


@pytest.mark.parametrize("batch_size", [1, None], ids=["batch 1", "free batch"])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_stands_alone(name, batch_size, tmp_path):
    model = MODELS[name]()
    exported = export(model, tmp_path, batch_size=batch_size)
    samples = random_samples(model, 1 if batch_size else 3)
    expected = call_named(model, samples)
    assert {path.name for path in tmp_path.iterdir()} == {"saved_model.pb"}
    assert [spec.name for spec in exported.inputs] == [spec.name for spec in input_specs(model)]
    assert {spec.shape[0] for spec in exported.inputs} == {batch_size}
    assert exported.outputs == tuple(expected)
    outputs = run_by_tensorflow(exported, samples)
    assert set(outputs) == set(expected)
    for output, tensor in outputs.items():
        # The same kernels on the same numbers; graph optimization may fuse some of them.
        np.testing.assert_allclose(tensor, expected[output], rtol=1e-5, atol=1e-5)


def test_a_fixed_batch_size_is_kept(tmp_path):
    x = keras.Input(batch_shape=(4, 3), name="x")
    exported = export(keras.Model(x, layers.Dense(2)(x)), tmp_path)
    assert exported.inputs[0].shape == (4, 3)


def test_a_folded_models_unnamed_inputs_are_exported_under_the_originals_names(tmp_path):
    x = keras.Input((32, 32, 3))
    model = keras.Model(x, layers.BatchNormalization()(layers.Conv2D(5, 3)(x)))
    exported = export(keras_bn.fold(model).model, tmp_path)
    assert exported.inputs[0].name == model.inputs[0].name
    sample = np.ones((1, 32, 32, 3), "float32")
    outputs = run_by_tensorflow(exported, {model.inputs[0].name: sample})
    assert outputs["output_0"].shape == (1, 30, 30, 5)


@keras.saving.register_keras_serializable("tests")
class OwnTensors(keras.layers.Layer):
    """Holds a constant and a variable that Keras does not know of."""

    def build(self, input_shape):
        self.constant = tf.constant([1.0, 2.0, 3.0])
        self.own = tf.Variable([0.5, 0.25, 0.125], trainable=False)

    def call(self, inputs):
        return inputs * self.constant + self.own


def test_tensors_outside_keras_variables_are_frozen_too(tmp_path):
    x = keras.Input((3,), name="x")
    model = randomize(keras.Model(x, layers.Dense(2)(OwnTensors()(layers.Dense(3)(x)))))
    exported = export(model, tmp_path)
    sample = {"x": np.array([[1.0, -2.0, 0.5]], "float32")}
    np.testing.assert_allclose(
        run_by_tensorflow(exported, sample)["output_0"], model(sample["x"]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_reduced_precision_computes_in_float32(policy, tmp_path):
    reference = image_model()
    model = image_model(policy)
    for own, other in zip(model.variables, reference.variables, strict=True):
        other.assign(keras.ops.cast(own.value, "float32"))
    exported = export(model, tmp_path)
    # The model is not changed, and still answers in its own precision.
    assert {layer.dtype_policy.name for layer in model.layers[1:]} == {policy}
    assert model(images(1)).dtype != "float32"
    output = run_by_tensorflow(exported, {"image": images(1)})["output_0"]
    assert output.dtype == "float32"
    # Float32 throughout, from the same weights: rounding only.
    np.testing.assert_allclose(output, reference(images(1)), rtol=1e-4, atol=1e-4)


def stateful_model():
    x = keras.Input(batch_shape=(1, 5, 3))
    return keras.Model(x, layers.LSTM(2, stateful=True, name="memory")(x))


class Noise(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.generator)


def sampling_model():
    x = keras.Input((3,))
    return keras.Model(x, Noise()(x))


@pytest.mark.parametrize(
    ("model", "at_fault"), [(stateful_model, "memory"), (sampling_model, "seed_generator")]
)
def test_state_between_calls_is_refused(model, at_fault, tmp_path):
    with pytest.raises(ConversionError, match=f"updates .*{at_fault}"):
        export(model(), tmp_path)


@keras.saving.register_keras_serializable("tests")
class NeedsFour(keras.layers.Layer):
    """Reshapes across the batch, which works for multiples of four only."""

    def call(self, inputs):
        return keras.ops.reshape(inputs, (-1, 4, inputs.shape[-1]))[:, 0]

    def compute_output_shape(self, input_shape):
        return input_shape


def test_models_that_cannot_be_traced_say_why(tmp_path):
    x = keras.Input((3,))
    with pytest.raises(ConversionError, match=r"shape \(1, 3\); it raised"):
        export(keras.Model(x, NeedsFour()(x)), tmp_path)


def test_models_that_keras_quantized_are_refused(tmp_path):
    model = image_model()
    model.layers[-1].quantize("int8")
    with pytest.raises(ConversionError, match="by Keras in dense"):
        export(model, tmp_path)


def test_weights_beyond_the_format_are_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(ConversionError, match="less than 2 GiB"):
        export(image_model(), tmp_path)


def test_other_backends_are_told_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConversionError, match=r"'jax'.*KERAS_BACKEND=tensorflow"):
        export(image_model(), tmp_path)
