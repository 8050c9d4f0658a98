"""Biases in 3-D convolutions: where the file has them, and what it computes, beside Keras."""

import contextlib
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

from keras_bn.convert.biases import merge_biases
from keras_bn.convert.export import export
from keras_bn.convert.flatbuffer import pack, read_contents, unpack
from tests.deployable import image_model
from tests.random_weights import randomize

VOLUME = (5, 6, 7, 4)
KERNELS = {
    "optimized": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def stack(*stacked):
    return keras.Sequential([keras.Input(VOLUME), *stacked])


def between(layer, behind):
    """A 3-D convolution, and what is made of its result."""
    x = keras.Input(VOLUME)
    return keras.Model(x, behind(layer(x)))


def bare():
    return layers.Conv3D(7, 3, use_bias=False)


def added_to_maxima():
    x = keras.Input(VOLUME)
    maxima = layers.GlobalMaxPooling3D(keepdims=True)(layers.Conv3D(7, 1)(x))
    return keras.Model(x, layers.Add()([bare()(x), maxima]))


def values(*shape):
    return np.random.default_rng(3).normal(size=shape).astype("float32")


MERGED = {
    "bias": (lambda: stack(layers.Conv3D(7, 3)), {"CONV_3D": 1}),
    "bias and ReLU": (lambda: stack(layers.Conv3D(7, 3, activation="relu")), {"CONV_3D": 1}),
    "bias and ReLU6": (lambda: stack(layers.Conv3D(7, 3), layers.ReLU(6)), {"CONV_3D": 1}),
    "ReLU without a bias": (lambda: stack(bare(), layers.ReLU()), {"CONV_3D": 1}),
    "same padding and strides": (
        lambda: stack(layers.Conv3D(7, 3, strides=2, padding="same", activation="relu")),
        {"CONV_3D": 1},
    ),
    "one channel": (lambda: stack(layers.Conv3D(1, 3), layers.ReLU()), {"CONV_3D": 1}),
    "another activation": (
        lambda: stack(layers.Conv3D(7, 3, activation="tanh")),
        {"CONV_3D": 1, "TANH": 1},
    ),
    "transposed": (
        lambda: stack(layers.Conv3DTranspose(7, 3, strides=2, padding="same")),
        {"CONV_3D_TRANSPOSE": 1},
    ),
    "transposed with ReLU": (
        lambda: stack(layers.Conv3DTranspose(7, 3, activation="relu")),
        {"CONV_3D_TRANSPOSE": 1},
    ),
    "one after the other": (
        lambda: stack(
            layers.Conv3D(7, 3, activation="relu"),
            layers.Conv3D(5, 2, activation="relu"),
            layers.Conv3DTranspose(3, 2),
        ),
        {"CONV_3D": 2, "CONV_3D_TRANSPOSE": 1},
    ),
    "a constant of the model's own": (
        lambda: between(bare(), lambda y: y + values(1, 1, 1, 7)),
        {"CONV_3D": 1},
    ),
    "two constants": (
        lambda: between(layers.Conv3D(7, 3), lambda y: layers.Rescaling(1.0, values(7))(y)),
        {"CONV_3D": 1, "ADD": 1},
    ),
    "a constant behind ReLU": (
        lambda: between(bare(), lambda y: layers.ReLU()(y) + values(7)),
        {"CONV_3D": 1, "ADD": 1},
    ),
    "two readers behind the bias": (
        lambda: between(layers.Conv3D(7, 3), lambda y: [layers.ReLU()(y), layers.Softmax()(y)]),
        {"CONV_3D": 1, "RELU": 1, "SOFTMAX": 1},
    ),
}

LEFT = {
    "two readers": (
        lambda: between(bare(), lambda y: [layers.ReLU()(y), y + values(7)]),
        {"CONV_3D": 1, "RELU": 1, "ADD": 1},
    ),
    "an output of the model": (
        lambda: between(bare(), lambda y: [y, layers.ReLU()(y)]),
        {"CONV_3D": 1, "RELU": 1},
    ),
    "added to itself": (
        lambda: between(bare(), lambda y: layers.Add()([y, y])),
        {"CONV_3D": 1, "ADD": 1},
    ),
    "added to one value a channel that is no constant": (
        added_to_maxima,
        {"CONV_3D": 2, "REDUCE_MAX": 1, "RESHAPE": 1, "ADD": 1},
    ),
    "a constant along another axis": (
        lambda: between(bare(), lambda y: y + values(5, 1)),
        {"CONV_3D": 1, "ADD": 1},
    ),
    "a constant along two axes": (
        lambda: between(layers.Conv3D(5, 3, use_bias=False), lambda y: y + values(5, 5)),
        {"CONV_3D": 1, "ADD": 1},
    ),
    "one number": (lambda: between(bare(), lambda y: y + 0.75), {"CONV_3D": 1, "ADD": 1}),
    "constants spread over more axes": (
        lambda: between(layers.Conv3D(1, 3), lambda y: y + values(5)),
        {"CONV_3D": 1, "ADD": 1},
    ),
}
CASES = MERGED | LEFT


def converted(model, process, folder, **request):
    process.submit(export(model, folder), **request)
    return process.result()


def volumes(count=1):
    return np.random.default_rng(0).normal(size=(count, *VOLUME)).astype("float32")


def run(tflite, volume, kernels="optimized"):
    interpreter = Interpreter(model_content=tflite, experimental_op_resolver_type=KERNELS[kernels])
    runner = interpreter.get_signature_runner()
    (name,) = runner.get_input_details()
    outputs = runner(**{name: volume})
    return [outputs[f"output_{i}"] for i in range(len(outputs))]


def relative_error(actual, expected):
    expected = [np.asarray(y) for y in keras.tree.flatten(expected)]
    return max(
        np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_only_a_bias_and_an_activation_of_one_convolution_are_merged(name, process, tmp_path):
    build, ops = CASES[name]
    model = randomize(build())
    tflite = converted(model, process, tmp_path, quantize="none")
    assert read_contents(tflite).ops == ops
    assert read_contents(merge_biases(tflite)).ops == ops  # also the second time
    for kernels in KERNELS:
        # Sums over some hundred taps in float32, in another order.
        assert relative_error(run(tflite, volumes(), kernels), model(volumes())) < 1e-5


@pytest.mark.parametrize("layer", [layers.Conv3D, layers.Conv3DTranspose])
def test_weights_stored_in_float16_are_merged_too(layer, process, tmp_path):
    model = randomize(stack(layer(7, 3, activation="relu")))
    tflite = converted(model, process, tmp_path, quantize="float16")
    contents = read_contents(tflite)
    assert contents.ops.total() == 3 and contents.ops["DEQUANTIZE"] == 2
    # Each weight is rounded to 11 bits.
    assert relative_error(run(tflite, volumes()), model(volumes())) < 2e-3


@pytest.mark.parametrize("mode", ["int8", "int16x8"])
@pytest.mark.parametrize("layer", [layers.Conv3D, layers.Conv3DTranspose])
def test_integer_modes_are_left_as_they_are(layer, mode, process, tmp_path):
    """The convolution stays a float, and what is behind it is not."""
    model = randomize(stack(layer(7, 3, activation="relu")))
    calibration = {model.inputs[0].name: volumes(8)}
    tflite = converted(model, process, tmp_path, quantize=mode, calibration=calibration)
    assert read_contents(tflite).ops["ADD"] == 1
    # Of int8's 255 steps, several of them here and there.
    assert relative_error(run(tflite, volumes()), model(volumes())) < 0.05


def test_a_free_batch_stays_free(process, tmp_path):
    model = randomize(stack(layers.Conv3D(7, 3, activation="relu"), layers.Conv3DTranspose(3, 2)))
    process.submit(export(model, tmp_path, batch_size=None), quantize="none")
    tflite = process.result()
    assert "ADD" not in read_contents(tflite).ops
    assert relative_error(run(tflite, volumes(3)), model(volumes(3))) < 1e-5


def test_files_without_3d_convolutions_are_not_touched(process, tmp_path):
    tflite = converted(image_model(), process, tmp_path, quantize="none")
    assert merge_biases(tflite) is tflite


def test_results_that_are_no_floats_are_left_as_they_are():
    model = randomize(stack(layers.Conv3D(7, 3, activation="relu")))
    with contextlib.redirect_stdout(io.StringIO()):  # where it writes what it reads
        stock = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    assert read_contents(stock).ops["ADD"] == 1
    assert "ADD" not in read_contents(merge_biases(stock)).ops
    tree = unpack(stock)
    (graph,) = tree.subgraphs
    for operator in graph.operators:
        graph.tensors[operator.outputs[0]].type = schema.TensorType.INT8
    integer = pack(tree)
    assert read_contents(merge_biases(integer)) == read_contents(integer)
