"""Comparing models: Keras models and files that TensorFlow's own converter wrote."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_bn
from keras_bn.compare.api import compare, compare_arrays, compare_with_outputs
from keras_bn.compare.run import open_model, predict
from keras_bn.errors import ComparisonError, UnsupportedModelError
from tests.deployable import image_model, images, token_model, two_by_two_model
from tests.random_weights import randomize


def stock_file(model, path, *, io=None, calibration=None, batch=None):
    """What Keras and TensorFlow themselves make of `model`, independent of this package."""
    specs = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype, tensor.name),
        model.input,
    )
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda inputs: model(inputs, training=False), [specs])
    folder = path.with_suffix(".saved_model")
    archive.write_out(str(folder), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([row[None]] for row in calibration)
        converter.inference_input_type = converter.inference_output_type = io
    path.write_bytes(converter.convert())
    return path


# Float32 in another order of summation: a few units in the last place of 2⁻²⁴, times depth.
FLOAT32 = 1e-5


@pytest.mark.parametrize("batch", [1, 4, None], ids=["batch 1", "batch 4", "free batch"])
@pytest.mark.parametrize("samples", [1, 7, 40])
def test_any_number_of_samples_in_files_of_any_batch(batch, samples, tmp_path):
    model = image_model()
    path = stock_file(model, tmp_path / "m.tflite", batch=batch)
    comparison = compare(model, path, images(samples))
    assert comparison.samples == samples
    assert len(comparison.outputs) == 1
    assert comparison.relative_error < FLOAT32
    assert comparison.top1_agreement == 1.0
    np.testing.assert_allclose(
        predict(path, images(samples))["output_0"], model(images(samples)), atol=1e-5
    )


def test_inputs_and_outputs_are_matched_by_name(tmp_path):
    model = two_by_two_model()
    path = stock_file(model, tmp_path / "m.tflite")
    comparison = keras_bn.compare(model, path)
    assert [output.name for output in comparison.outputs] == ["output_0", "output_1"]
    assert comparison.relative_error < FLOAT32


def test_other_names_are_matched_by_order():
    model = two_by_two_model()
    left, right = keras.Input((6,), name="x"), keras.Input((6,), name="y")
    renamed = keras.Model([left, right], dict(zip("ab", model([left, right]), strict=True)))
    assert compare(model, renamed).max_abs_error == 0.0
    assert compare(renamed, model).max_abs_error == 0.0


@pytest.mark.parametrize("io", [tf.int8, tf.uint8], ids=["int8", "uint8"])
def test_quantized_inputs_and_outputs_are_compared_in_real_units(io, tmp_path):
    model, data = image_model(), images(50)
    path = stock_file(model, tmp_path / "m.tflite", io=io, calibration=data)
    comparison = compare(model, path, data)
    # int8 has 48 dB over its full range; activations use some of it. A scale or zero point
    # that was left out gives less than 10 dB.
    assert comparison.snr_db > 25
    assert predict(path, data)["output_0"].dtype == "float32"


def test_a_difference_is_found(tmp_path):
    model = image_model()
    path = stock_file(model, tmp_path / "m.tflite")
    kernel, bias = model.layers[-1].get_weights()
    bias[2] += 0.25
    model.layers[-1].set_weights([kernel, bias])
    assert compare(model, path).max_abs_error == pytest.approx(0.25, rel=1e-3)


def test_nan_outputs_are_not_equal():
    x = keras.Input((3,))
    model = keras.Model(x, keras.ops.log(x))  # of negative numbers too
    comparison = compare(model, model, np.array([[-1.0, 1.0, 2.0]]))
    assert comparison.max_abs_error == math.inf
    assert comparison.cosine == 0.0


def test_random_integers_stay_within_the_vocabulary(tmp_path):
    model = token_model()
    path = stock_file(model, tmp_path / "m.tflite")
    assert compare(model, path).relative_error < FLOAT32
    assert compare(path, model).relative_error < FLOAT32  # the file knows no vocabulary
    assert compare(path, path).max_abs_error == 0.0


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_saved_models_are_loaded(name, tmp_path):
    model = image_model()
    model.save(tmp_path / name)
    assert compare(model, tmp_path / name).max_abs_error == 0.0


def test_data_from_a_file(tmp_path):
    model = image_model()
    np.savez(tmp_path / "x.npz", image=images(9))
    assert compare(model, model, tmp_path / "x.npz").samples == 9
    assert compare(model, model, tmp_path / "x.npz", samples=4).samples == 4


def test_outputs_of_a_reference_can_be_used_again(tmp_path):
    model, data = image_model(), {"image": images(5)}
    path = stock_file(model, tmp_path / "m.tflite")
    again = compare_with_outputs(predict(model, data), open_model(path), data)
    assert again == compare(model, path, data)


def test_a_file_that_keeps_state_between_calls_is_refused(tmp_path):
    class Counter(tf.Module):
        def __init__(self):
            self.calls = tf.Variable(0.0)

        @tf.function(autograph=False, input_signature=[tf.TensorSpec((1, 3), name="x")])
        def serve(self, x):
            return {"output_0": x + self.calls.assign_add(1.0)}

    counter = Counter()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [counter.serve.get_concrete_function()], counter
    )
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    x = keras.Input((3,), name="x")
    with pytest.raises(ComparisonError, match="'output_0' changed"):
        compare(keras.Model(x, layers.ReLU()(x)), tmp_path / "m.tflite")


def test_files_without_a_signature_go_by_their_tensors(tmp_path):
    double = tf.function(lambda left, right: [left * 2.0, right + 1.0], autograph=False)
    spec = tf.TensorSpec((1, 3))
    function = double.get_concrete_function(spec, tf.TensorSpec((1, 3), name="right"))
    tflite = tf.lite.TFLiteConverter.from_concrete_functions([function]).convert()
    (tmp_path / "m.tflite").write_bytes(tflite)
    data = np.arange(12.0).reshape(2, 2, 3)
    doubled, increased = predict(tmp_path / "m.tflite", list(data)).values()
    np.testing.assert_array_equal(doubled, data[0] * 2)
    np.testing.assert_array_equal(increased, data[1] + 1)


def one_output():
    x = keras.Input((6,), name="left")
    return randomize(keras.Model(x, layers.Dense(2)(x)))


def test_models_of_another_structure_are_refused():
    with pytest.raises(ComparisonError, match="same inputs; one has 'left', 'right', the other"):
        compare(two_by_two_model(), one_output())
    x = keras.Input((6,), name="left")
    with pytest.raises(ComparisonError, match="same outputs"):
        compare(one_output(), keras.Model(x, [layers.Dense(2)(x), layers.Dense(2)(x)]))
    with pytest.raises(ComparisonError, match=r"\(16, 2\).*\(16, 3\)"):
        compare(one_output(), keras.Model(x, layers.Dense(3)(x)))
    with pytest.raises(ComparisonError, match="one row a sample"):
        compare(keras.Model(x, keras.ops.mean(x)), one_output())


def test_files_that_cannot_be_run_are_refused(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"not a flatbuffer, but long enough to be one")
    with pytest.raises(UnsupportedModelError, match=r"m\.tflite"):
        compare(one_output(), tmp_path / "m.tflite")
    (tmp_path / "cut.tflite").write_bytes(b"\x1c\0\0\0TFL3 and nothing of what this says")
    with pytest.raises(ComparisonError, match=r"cut\.tflite"):
        compare(one_output(), tmp_path / "cut.tflite")
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        compare(one_output(), tmp_path / "none.tflite")


def test_unsuitable_data_are_refused():
    with pytest.raises(ComparisonError, match="'left'"):
        compare(one_output(), one_output(), np.zeros((4, 5)))
    x = keras.Input((2,), dtype="int32", name="ids")
    model = keras.Model(x, layers.Embedding(3, 2)(x))
    with pytest.raises(ComparisonError, match="made for"):
        compare(model, model, np.array([[5, 5]]))


def test_classes_of_outputs_that_are_not_numbers_do_not_agree():
    scores, broken = np.eye(4, 3), np.full((4, 3), np.nan)
    assert compare_arrays("scores", scores, broken).top1_agreement == 0.0
    assert compare_arrays("scores", broken, broken).top1_agreement == 0.0


class OneInput(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, features):
        return self.dense(features)


class Dictionary(OneInput):
    def call(self, inputs):
        return {"sum": self.dense(inputs["a"]) + inputs["b"], "a": self.dense(inputs["a"])}


class TwoArguments(OneInput):
    def build(self, query_shape, value_shape):
        self.dense.build(query_shape)

    def call(self, query, value):
        return [self.dense(query), self.dense(query) - value]


A, B = (np.random.default_rng(0).normal(size=(5, n)).astype("float32") for n in (4, 3))


@pytest.mark.parametrize(
    ("model", "arguments", "data", "names"),
    [
        (OneInput(), (A,), {"features": A}, ["output_0"]),
        (Dictionary(), ({"a": A, "b": B},), {"a": A, "b": B}, ["a", "sum"]),
        (TwoArguments(), (A, B), {"query": A, "value": B}, ["output_0", "output_1"]),
    ],
)
def test_subclassed_models(model, arguments, data, names):
    expected = keras.tree.flatten(model(*arguments))
    outputs = predict(model, data)
    assert sorted(outputs) == names
    for name, value in zip(sorted(outputs), expected, strict=True):  # as Keras orders them
        np.testing.assert_array_equal(outputs[name], value)
    comparison = compare(model, keras_bn.fold(model).model)  # on random samples
    assert [output.name for output in comparison.outputs] == list(outputs)
    assert comparison.max_abs_error < 1e-6  # the same operations, in another order perhaps
    other = keras_bn.fold(model).model
    for weight in other.weights:
        weight.assign(weight + 1.0)
    assert compare(model, other, data).max_abs_error > 0.1


def test_a_subclassed_model_that_was_never_called_is_refused():
    with pytest.raises(UnsupportedModelError, match="call it once on data"):
        compare(OneInput(), OneInput())
