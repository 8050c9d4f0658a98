"""Every operation in the file of a folded model: what algebra allows, and not one more.

TensorFlow's own converter leaves a multiplication and an addition in most of these. What has to
stay of a normalization has its reason beside it. The oracle is the original model in Keras.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import keras_bn
from keras_bn.convert.export import export
from keras_bn.convert.flatbuffer import read_contents
from keras_bn.samples import random_samples
from keras_bn.signature import call_named
from tests.random_weights import randomize

IMAGE = (8, 8, 4)
SEQUENCE = (6, 4)
VOLUME = (4, 5, 6, 3)


@dataclass(frozen=True)
class Case:
    """A model and the operations of its file.

    Gammas have both signs. With `positive` they do not: what bends at zero, and what takes maxima,
    lets no negative scale pass.
    """

    id: str
    build: Callable[[], keras.Model]
    ops: dict[str, int]
    positive: bool = False


def bn():
    return layers.BatchNormalization()


def stack(shape, *stacked, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stacked])


def convolved(*stacked):
    return stack(IMAGE, layers.Conv2D(5, 3), *stacked)


def two_convolutions(merge):
    x = keras.Input(IMAGE)
    branches = [layers.Conv2D(5, 3, padding="same")(x), layers.Conv2D(5, 1)(x)]
    return keras.Model(x, layers.ReLU()(bn()(merge(branches))))


def added_inputs_normalized_before_a_convolution():
    x, y = keras.Input(IMAGE), keras.Input(IMAGE)
    return keras.Model([x, y], layers.Conv2D(5, 3)(layers.ReLU()(bn()(layers.Add()([x, y])))))


def added_convolutions_normalized_before_a_convolution():
    x = keras.Input(IMAGE)
    y = layers.Add()([layers.Conv2D(5, 3)(x), layers.Conv2D(5, 3)(x)])
    return keras.Model(x, layers.Conv2D(5, 3)(layers.ReLU()(bn()(y))))


def convolution_read_twice():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(5, 3, padding="same")(x)
    z = layers.Conv2D(5, 1)(layers.ReLU()(bn()(y)))
    return keras.Model(x, layers.Conv2D(3, 1)(layers.Add()([y, z])))


def convolution_normalized_twice():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(5, 3)(x)
    return keras.Model(x, [layers.Conv2D(3, 1)(bn()(y)), layers.Conv2D(3, 1)(bn()(y))])


def pre_activation():
    """As ResNetV2: the stream is normalized for each block, and the block is added to it."""
    x = image = keras.Input(IMAGE)
    x = layers.Conv2D(5, 3, padding="same")(x)
    for _ in range(3):
        y = layers.ReLU()(bn()(x))
        y = layers.Conv2D(5, 3, padding="same", use_bias=False)(y)
        y = layers.ReLU()(bn()(y))
        x = layers.Add()([x, layers.Conv2D(5, 1)(y)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(bn()(x)))
    return keras.Model(image, layers.Dense(3)(x))


def dense_blocks():
    """As DenseNet: each layer normalizes all that came before, and is appended to it."""
    x = image = keras.Input(IMAGE)
    x = layers.Conv2D(5, 3, padding="same")(x)
    for _ in range(3):
        y = layers.Conv2D(6, 1, use_bias=False)(layers.ReLU()(bn()(x)))
        y = layers.Conv2D(3, 3, padding="same", use_bias=False)(layers.ReLU()(bn()(y)))
        x = layers.Concatenate()([x, y])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(bn()(x)))
    return keras.Model(image, layers.Dense(3)(x))


def efficient_stem():
    return stack(
        (9, 9, 3),
        layers.Rescaling(1 / 255),
        layers.Normalization(),
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        layers.Conv2D(5, 3, strides=2, use_bias=False),
        bn(),
        layers.ReLU(),
    )


IMAGES = [
    # Where the padding is, the shift is that of no convolution: it stays.
    Case(
        "Conv-ZeroPadding-BN",
        lambda: convolved(layers.ZeroPadding2D(), bn(), layers.ReLU()),
        {"CONV_2D": 1, "PAD": 1, "ADD": 1},
    ),
    Case(
        "Conv-MaxPooling-BN",
        lambda: convolved(layers.MaxPooling2D(), bn(), layers.ReLU()),
        {"CONV_2D": 1, "MAX_POOL_2D": 1},
        positive=True,
    ),
    # The maximum of what is negated is another one: a scale stays, with the ReLU in it.
    Case(
        "Conv-MaxPooling-BN of both signs",
        lambda: convolved(layers.MaxPooling2D(), bn(), layers.ReLU()),
        {"CONV_2D": 1, "MAX_POOL_2D": 1, "MUL": 1},
    ),
    Case(
        "Conv-AveragePooling-BN",
        lambda: convolved(layers.AveragePooling2D(2), bn(), layers.ReLU()),
        {"CONV_2D": 1, "AVERAGE_POOL_2D": 1},
    ),
    Case(
        "Conv-GlobalAveragePooling-BN",
        lambda: convolved(layers.GlobalAveragePooling2D(), bn()),
        {"CONV_2D": 1, "MEAN": 1},
    ),
    # Keras repeats elements by tiling.
    Case(
        "Conv-UpSampling-BN",
        lambda: convolved(layers.UpSampling2D(), bn()),
        {"CONV_2D": 1, "RESHAPE": 3, "TILE": 2},
    ),
    Case(
        "Conv-UpSampling-BN, bilinear",
        lambda: convolved(layers.UpSampling2D(interpolation="bilinear"), bn()),
        {"CONV_2D": 1, "RESIZE_BILINEAR": 1},
    ),
    Case(
        "Conv-Cropping-BN",
        lambda: convolved(layers.Cropping2D(), bn()),
        {"CONV_2D": 1, "STRIDED_SLICE": 1},
    ),
    # Each position has a scale and a shift of its own, which no convolution can have.
    Case(
        "Conv-Flatten-BN",
        lambda: convolved(layers.Flatten(), bn()),
        {"CONV_2D": 1, "RESHAPE": 1, "MUL": 1, "ADD": 1},
    ),
    Case(
        "Conv-Flatten-BN-Dense",
        lambda: convolved(layers.Flatten(), bn(), layers.Dense(3)),
        {"CONV_2D": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1},
    ),
    Case(
        "Conv, Conv-Concatenate-BN",
        lambda: two_convolutions(layers.Concatenate()),
        {"CONV_2D": 2, "CONCATENATION": 1, "RELU": 1},
    ),
    Case(
        "Conv, Conv-Add-BN",
        lambda: two_convolutions(layers.Add()),
        {"CONV_2D": 2, "ADD": 1},
    ),
    Case(
        "Conv, Conv-Add-BN-ReLU-Conv",
        added_convolutions_normalized_before_a_convolution,
        {"CONV_2D": 3, "ADD": 1},
    ),
    # Nothing before the first addition takes the shift, and the ReLU lets none pass.
    Case(
        "Add-BN-ReLU-Conv",
        added_inputs_normalized_before_a_convolution,
        {"ADD": 2, "CONV_2D": 1},
        positive=True,
    ),
    # Nor does it let a negative scale pass.
    Case(
        "Add-BN-ReLU-Conv of both signs",
        added_inputs_normalized_before_a_convolution,
        {"ADD": 1, "DEPTHWISE_CONV_2D": 1, "CONV_2D": 1},
    ),
    Case("BN-Conv", lambda: stack(IMAGE, bn(), layers.Conv2D(5, 3)), {"CONV_2D": 1}),
    # Zeros are padded, which the shift must not reach: it stays in front.
    Case(
        "BN-Conv, same",
        lambda: stack(IMAGE, bn(), layers.Conv2D(5, 3, padding="same")),
        {"ADD": 1, "CONV_2D": 1},
    ),
    Case(
        "BN-Conv, 1x1",
        lambda: stack(IMAGE, bn(), layers.Conv2D(5, 1, padding="same", use_bias=False)),
        {"CONV_2D": 1},
    ),
    Case(
        "BN-DepthwiseConv",
        lambda: stack(IMAGE, bn(), layers.DepthwiseConv2D(3)),
        {"DEPTHWISE_CONV_2D": 1},
    ),
    Case(
        "BN-DepthwiseConv, same",  # zeros are padded
        lambda: stack(IMAGE, bn(), layers.DepthwiseConv2D(3, padding="same")),
        {"ADD": 1, "DEPTHWISE_CONV_2D": 1},
    ),
    Case(
        "BN-SeparableConv",
        lambda: stack(IMAGE, bn(), layers.SeparableConv2D(5, 3)),
        {"DEPTHWISE_CONV_2D": 1, "CONV_2D": 1},
    ),
    Case(
        "BN-SeparableConv, same",  # zeros are padded
        lambda: stack(IMAGE, bn(), layers.SeparableConv2D(5, 3, padding="same")),
        {"ADD": 1, "DEPTHWISE_CONV_2D": 1, "CONV_2D": 1},
    ),
    # Positions at the border are sums of fewer taps, with less of the shift in them.
    Case(
        "BN-ConvTranspose",
        lambda: stack(IMAGE, bn(), layers.Conv2DTranspose(5, 3)),
        {"ADD": 1, "TRANSPOSE_CONV": 1},
    ),
    Case(
        "BN-ConvTranspose, 1x1",
        lambda: stack(IMAGE, bn(), layers.Conv2DTranspose(5, 1)),
        {"TRANSPOSE_CONV": 1},
    ),
    Case(
        "BN-GlobalAveragePooling-Dense",
        lambda: stack(IMAGE, bn(), layers.GlobalAveragePooling2D(), layers.Dense(5)),
        {"MEAN": 1, "FULLY_CONNECTED": 1},
    ),
    Case(
        "BN-Flatten-Dense",
        lambda: stack(IMAGE, bn(), layers.Flatten(), layers.Dense(5)),
        {"RESHAPE": 1, "FULLY_CONNECTED": 1},
    ),
    Case(
        "Conv(relu)-BN-Conv",
        lambda: stack(IMAGE, layers.Conv2D(5, 3, activation="relu"), bn(), layers.Conv2D(3, 3)),
        {"CONV_2D": 2},
    ),
    Case(
        "Conv(relu)-BN-Conv, same",  # zeros are padded, and ReLU lets no shift pass
        lambda: stack(
            IMAGE,
            layers.Conv2D(5, 3, activation="relu"),
            bn(),
            layers.Conv2D(3, 3, padding="same"),
        ),
        {"CONV_2D": 2, "ADD": 1},
    ),
    # The addition and one ReLU are the model's own.
    Case(
        "Conv-BN-ReLU-Conv, the first one read twice",
        convolution_read_twice,
        {"CONV_2D": 3, "RELU": 1, "ADD": 1},
    ),
    Case(
        "Conv-BN-Conv, the first one normalized twice", convolution_normalized_twice, {"CONV_2D": 3}
    ),
    Case(
        "Normalization-Conv",
        lambda: stack(IMAGE, layers.Normalization(), layers.Conv2D(5, 3)),
        {"CONV_2D": 1},
    ),
    # Zeros are padded: where the images are centred stays.
    Case("Rescaling-Normalization-Pad-Conv-BN", efficient_stem, {"ADD": 1, "PAD": 1, "CONV_2D": 1}),
]

STREAMS = [
    # The additions are the residual ones. A ReLU is apart where something else reads its input.
    Case(
        "ResNetV2",
        pre_activation,
        {"CONV_2D": 7, "ADD": 3, "RELU": 3, "MEAN": 1, "FULLY_CONNECTED": 1},
        positive=True,
    ),
    # The stream takes the first normalization in, and the shifts of the others. Each of the three
    # after it gives some channels another sign before a ReLU: one operation, with the ReLU in it.
    Case(
        "ResNetV2 of both signs",
        pre_activation,
        {
            "CONV_2D": 7,
            "ADD": 3,
            "RELU": 1,
            "MUL": 3,
            "MEAN": 1,
            "FULLY_CONNECTED": 1,
        },
    ),
    # Channels are shifted anew by each normalization that reads them, and made as one of them asks:
    # an addition for each of the others, in place of its ReLU, which is in it.
    Case(
        "DenseNet",
        dense_blocks,
        {
            "CONV_2D": 7,
            "CONCATENATION": 3,
            "RELU": 1,
            "ADD": 3,
            "MEAN": 1,
            "FULLY_CONNECTED": 1,
        },
        positive=True,
    ),
    Case(
        "DenseNet of both signs",  # and so the scale stays as well
        dense_blocks,
        {
            "CONV_2D": 7,
            "CONCATENATION": 3,
            "RELU": 1,
            "DEPTHWISE_CONV_2D": 3,
            "MEAN": 1,
            "FULLY_CONNECTED": 1,
        },
    ),
]


def written_out(activation):
    x = keras.Input(IMAGE)
    y = activation(bn()(layers.Conv2D(5, 3)(x)))
    return keras.Model(x, layers.Conv2D(3, 1)(bn()(y)))


# The converter knows them by the operations that they are written in, of which none may fold.
ACTIVATIONS = [
    Case(
        "hard swish",
        lambda: written_out(lambda x: x * keras.ops.relu6(x + 3) / 6),
        {"CONV_2D": 2, "HARD_SWISH": 1},
    ),
    Case(
        "hard swish of layers",
        lambda: written_out(
            lambda x: layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])
        ),
        {"CONV_2D": 2, "HARD_SWISH": 1},
    ),
    Case(
        "GELU",
        lambda: written_out(lambda x: 0.5 * x * (1 + keras.ops.erf(x / math.sqrt(2)))),
        {"CONV_2D": 2, "GELU": 1},
    ),
]

OTHERS = [
    Case(
        "BN-Dense without a bias",
        lambda: stack((7,), bn(), layers.Dense(5, use_bias=False)),
        {"FULLY_CONNECTED": 1},
    ),
    Case(
        "Normalization-Dense",
        lambda: stack((7,), layers.Normalization(), layers.Dense(5)),
        {"FULLY_CONNECTED": 1},
    ),
    # Reshaped to images and back.
    Case(
        "BN-Conv1D",
        lambda: stack(SEQUENCE, bn(), layers.Conv1D(5, 3)),
        {"RESHAPE": 2, "CONV_2D": 1},
    ),
    Case(
        "BN-Conv1D, causal",  # zeros are padded
        lambda: stack(SEQUENCE, bn(), layers.Conv1D(5, 3, padding="causal")),
        {"ADD": 1, "PAD": 1, "RESHAPE": 2, "CONV_2D": 1},
    ),
    Case(
        "Conv3D-BN",
        lambda: stack(VOLUME, layers.Conv3D(5, 3), bn(), layers.ReLU()),
        {"CONV_3D": 1},
    ),
    Case("BN-Conv3D", lambda: stack(VOLUME, bn(), layers.Conv3D(5, 3)), {"CONV_3D": 1}),
    Case(
        "Conv3DTranspose-BN",
        lambda: stack(VOLUME, layers.Conv3DTranspose(5, 3), bn(), layers.ReLU()),
        {"CONV_3D_TRANSPOSE": 1},
    ),
    # (x − mean)/√(variance + epsilon) is left, without gamma and beta.
    Case(
        "LayerNormalization-Dense",
        lambda: stack(SEQUENCE, layers.LayerNormalization(), layers.Dense(5)),
        {
            "MEAN": 2,
            "SQUARED_DIFFERENCE": 1,
            "NEG": 1,
            "ADD": 2,
            "RSQRT": 1,
            "MUL": 2,
            "FULLY_CONNECTED": 1,
        },
    ),
    # The ReLU lets the scale pass, so that of gamma and beta the addition alone is left.
    Case(
        "LayerNormalization-BN-ReLU-Dense",
        lambda: stack(SEQUENCE, layers.LayerNormalization(), bn(), layers.ReLU(), layers.Dense(5)),
        {
            "MEAN": 2,
            "SQUARED_DIFFERENCE": 1,
            "NEG": 1,
            "ADD": 3,
            "RSQRT": 1,
            "MUL": 2,
            "FULLY_CONNECTED": 1,
        },
        positive=True,
    ),
    # x/√(mean of x² + epsilon) is left: the first Dense gives values of mean zero.
    Case(
        "Dense-LayerNormalization-Dense",
        lambda: stack(SEQUENCE, layers.Dense(5), layers.LayerNormalization(), layers.Dense(5)),
        {"FULLY_CONNECTED": 2, "SQUARE": 1, "MEAN": 1, "ADD": 1, "RSQRT": 1, "MUL": 1},
    ),
    # Gamma and beta, which no tanh lets pass, are one multiplication and one addition.
    Case(
        "Dense-LayerNormalization-tanh",
        lambda: stack(
            SEQUENCE, layers.Dense(5), layers.LayerNormalization(), layers.Activation("tanh")
        ),
        {"FULLY_CONNECTED": 1, "SQUARE": 1, "MEAN": 1, "ADD": 2, "RSQRT": 1, "MUL": 2, "TANH": 1},
    ),
]


def attention(in_front, behind):
    x = keras.Input(SEQUENCE)
    y = x
    for layer in in_front:
        y = layer(y)
    y = layers.MultiHeadAttention(2, 3)(y, y)
    for layer in behind:
        y = layer(y)
    return keras.Model(x, y)


# Models around normalizations, whose own operations are many: no more are left of the model with
# one than there are in the same model without.
AS_WITHOUT = {
    "LSTM-BN-LSTM": lambda *between: stack(
        SEQUENCE, layers.LSTM(3, return_sequences=True), *between, layers.LSTM(2)
    ),
    "GRU-BN-GRU": lambda *between: stack(
        SEQUENCE, layers.GRU(3, return_sequences=True), *between, layers.GRU(2)
    ),
    "BN-SimpleRNN": lambda *in_front: stack(SEQUENCE, *in_front, layers.SimpleRNN(2)),
    "Embedding-BN": lambda *behind: stack((6,), layers.Embedding(9, 4), *behind, dtype="int32"),
    "TimeDistributed(Dense)-BN": lambda *behind: stack(
        SEQUENCE, layers.TimeDistributed(layers.Dense(5)), *behind
    ),
    "TimeDistributed(Conv)-BN": lambda *behind: stack(
        (3, *IMAGE), layers.TimeDistributed(layers.Conv2D(5, 3)), *behind
    ),
    "MultiHeadAttention-BN": lambda *behind: attention((), behind),
    "BN-MultiHeadAttention": lambda *in_front: attention(in_front, ()),
    "EinsumDense-BN": lambda *behind: stack(
        SEQUENCE, layers.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de"), *behind
    ),
    "BN-EinsumDense": lambda *in_front: stack(
        SEQUENCE, *in_front, layers.EinsumDense("abc,cd->abd", (None, 5))
    ),
}


def folded_file(model, process, folder):
    folder.mkdir()
    # What the file gives is compared below, and with the original.
    folded = keras_bn.fold(model, one_operation=True, verify=False).model
    process.submit(export(folded, folder), quantize="none")
    return process.result()


def assert_agrees(tflite, model):
    samples = random_samples(model, 1)
    outputs = Interpreter(model_content=tflite).get_signature_runner()(**samples)
    for name, expected in call_named(model, samples).items():
        error = np.max(np.abs(outputs[name] - np.asarray(expected)))
        # float32 carries 2⁻²⁴ ≈ 6e-8 an operation; sums over some hundred taps and a few layers
        # stay below a hundred times that.
        assert error / np.max(np.abs(expected)) < 1e-5


@pytest.mark.parametrize("case", IMAGES + STREAMS + ACTIVATIONS + OTHERS, ids=lambda case: case.id)
def test_no_operation_is_left_that_need_not_be(case, process, tmp_path):
    model = randomize(case.build())
    if case.positive:
        for variable in model.variables:
            if variable.path.endswith("gamma"):
                variable.assign(keras.ops.abs(variable))
    tflite = folded_file(model, process, tmp_path / "export")
    assert read_contents(tflite).ops == case.ops
    assert_agrees(tflite, model)


@pytest.mark.parametrize("name", AS_WITHOUT)
def test_the_file_is_as_if_the_normalization_were_not_there(name, process, tmp_path):
    model = randomize(AS_WITHOUT[name](bn()))
    tflite = folded_file(model, process, tmp_path / "with")
    without = folded_file(randomize(AS_WITHOUT[name]()), process, tmp_path / "without")
    assert read_contents(tflite).ops == read_contents(without).ops
    assert_agrees(tflite, model)
