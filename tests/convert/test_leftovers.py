"""What is left of a normalization in the file, beside TensorFlow's own converter."""

import contextlib
import io

import keras
import pytest
import tensorflow as tf
from keras import layers

import keras_bn
from keras_bn.convert.flatbuffer import read_contents
from tests.random_weights import randomize

IMAGE = (16, 16, 8)


def sequential(shape, *stack):
    return keras.Sequential([keras.Input(shape), *stack])


def concatenated():
    image = keras.Input(IMAGE)
    branches = [layers.Conv2D(8, 3, padding="same")(image), layers.Conv2D(8, 1)(image)]
    return keras.Model(
        image, layers.ReLU()(layers.BatchNormalization()(layers.Concatenate()(branches)))
    )


CASES = {
    "Conv-AveragePooling-BN": (
        lambda: sequential(
            IMAGE,
            layers.Conv2D(8, 3),
            layers.AveragePooling2D(2),
            layers.BatchNormalization(),
            layers.ReLU(),
        ),
        {"CONV_2D": 1, "AVERAGE_POOL_2D": 1},
    ),
    "Conv-Conv-Concatenate-BN": (
        concatenated,
        {"CONV_2D": 2, "CONCATENATION": 1, "RELU": 1},
    ),
    "BN-Conv": (
        lambda: sequential(IMAGE, layers.ReLU(), layers.BatchNormalization(), layers.Conv2D(8, 3)),
        {"RELU": 1, "CONV_2D": 1},
    ),
    "BN-DepthwiseConv": (
        lambda: sequential(
            IMAGE, layers.ReLU(), layers.BatchNormalization(), layers.DepthwiseConv2D(3)
        ),
        {"RELU": 1, "DEPTHWISE_CONV_2D": 1},
    ),
    "BN-GlobalAveragePooling-Dense": (
        lambda: sequential(
            IMAGE,
            layers.ReLU(),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8),
        ),
        {"RELU": 1, "MEAN": 1, "FULLY_CONNECTED": 1},
    ),
    "Conv3D-BN": (
        lambda: sequential(
            (8, 8, 8, 4), layers.Conv3D(8, 3), layers.BatchNormalization(), layers.ReLU()
        ),
        {"CONV_3D": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_where_the_stock_converter_leaves_a_multiplication(case, process, tmp_path):
    build, expected = CASES[case]
    model = randomize(build())
    with contextlib.redirect_stdout(io.StringIO()):  # hundreds of lines of captures
        stock = read_contents(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    assert stock.ops["MUL"] == 1
    conversion = keras_bn.convert(model, tmp_path / "model.tflite", process=process)
    assert conversion.ops == expected
