"""Dense layers and convolutions take affines in on both sides, padding permitting."""

import keras
import pytest
from keras import layers

from keras_bn.fold.affine import Affine
from tests.fold.absorb.absorption import (
    assert_backward,
    assert_forward,
    assert_refused,
    model_around,
    positive,
    random_affine,
)

SEQUENCE, IMAGE, VOLUME = (9, 4), (7, 8, 4), (4, 5, 4, 4)
WITHOUT = {"use_bias": False}

# layer, shape, and whether a shift in front of it has a place
CASES = {
    "dense": (lambda **o: layers.Dense(5, **o), (4,), True),
    "dense-no-bias": (lambda **o: layers.Dense(5, **WITHOUT, **o), SEQUENCE, True),
    "dense-image": (lambda **o: layers.Dense(5, **o), IMAGE, True),
    "1d": (lambda **o: layers.Conv1D(5, 3, **o), SEQUENCE, True),
    "1d-causal": (lambda **o: layers.Conv1D(5, 3, padding="causal", **o), SEQUENCE, False),
    "1d-causal-one-tap": (lambda **o: layers.Conv1D(5, 1, padding="causal", **o), SEQUENCE, True),
    "1d-dilated": (lambda **o: layers.Conv1D(5, 2, dilation_rate=3, **o), SEQUENCE, True),
    "2d-no-bias": (lambda **o: layers.Conv2D(5, 3, **WITHOUT, **o), IMAGE, True),
    "2d-same": (lambda **o: layers.Conv2D(5, 3, padding="same", **o), IMAGE, False),
    "2d-same-that-fits": (
        lambda **o: layers.Conv2D(5, (1, 2), strides=(1, 2), padding="same", **o),
        IMAGE,
        True,
    ),
    "2d-strided": (lambda **o: layers.Conv2D(5, 3, strides=2, **o), IMAGE, True),
    "2d-groups": (lambda **o: layers.Conv2D(6, (2, 3), groups=2, **o), IMAGE, True),
    "3d": (lambda **o: layers.Conv3D(5, 2, **o), VOLUME, True),
    "depthwise-1d": (lambda **o: layers.DepthwiseConv1D(3, **o), SEQUENCE, True),
    "depthwise-multiplier": (
        lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=3, **WITHOUT, **o),
        IMAGE,
        True,
    ),
    "depthwise-same": (lambda **o: layers.DepthwiseConv2D(3, padding="same", **o), IMAGE, False),
    "separable-1d": (lambda **o: layers.SeparableConv1D(5, 3, **o), SEQUENCE, True),
    "separable-multiplier": (
        lambda **o: layers.SeparableConv2D(5, 3, depth_multiplier=2, **WITHOUT, **o),
        IMAGE,
        True,
    ),
    "separable-same": (
        lambda **o: layers.SeparableConv2D(5, 3, padding="same", **o),
        IMAGE,
        False,
    ),
    "transposed-1d": (lambda **o: layers.Conv1DTranspose(5, 3, **o), SEQUENCE, False),
    "transposed-one-tap": (lambda **o: layers.Conv2DTranspose(5, 1, **o), IMAGE, True),
    "transposed-separate": (
        lambda **o: layers.Conv2DTranspose(5, 2, strides=2, **WITHOUT, **o),
        IMAGE,
        False,
    ),
    "transposed-output-padding": (
        lambda **o: layers.Conv2DTranspose(5, 3, strides=3, output_padding=2, **o),
        IMAGE,
        False,
    ),
    "transposed-3d": (lambda **o: layers.Conv3DTranspose(5, 2, **o), VOLUME, False),
}
EACH = pytest.mark.parametrize("make, shape, shifts", CASES.values(), ids=CASES)


def along_channels(shape, **options):
    return random_affine((1,) * (len(shape) - 1) + shape[-1:], **options)


@EACH
def test_backward(make, shape, shifts):
    layer = make(dtype="float64")
    model = model_around(layer, [shape])
    assert_backward(model, layer, along_channels(model.outputs[0].shape[1:]))


@EACH
def test_forward(make, shape, shifts):
    layer = make(dtype="float64")
    model = model_around(layer, [shape])
    assert_forward(model, layer, along_channels(shape, shifts=shifts), ["inputs"])
    if not shifts:
        reason = "pads its input with zeros|different at each"
        assert_refused(layer, along_channels(shape), reason, ["inputs"], shape=shape)


@pytest.mark.parametrize("name", ["dense-no-bias", "2d-groups", "depthwise-multiplier"])
def test_in_float32(name):
    make, shape, _ = CASES[name]
    layer = make()
    model = model_around(layer, [shape])
    assert_backward(model, layer, along_channels(model.outputs[0].shape[1:]))
    assert_forward(model, layer, along_channels(shape), ["inputs"])


@pytest.mark.parametrize("name", ["dense", "2d-groups", "separable-1d", "transposed-1d"])
def test_activations_let_positive_scales_pass(name):
    make, shape, _ = CASES[name]
    layer = make(dtype="float64", activation="relu")
    model = model_around(layer, [shape])
    behind = along_channels(model.outputs[0].shape[1:])
    assert_backward(model, layer, positive(behind))
    assert_refused(layer, Affine(-positive(behind).scale - 1, behind.shift * 0), "negative scale")
    assert_refused(layer, Affine(positive(behind).scale, behind.shift), "no shift")


def test_refusals():
    layer = layers.Conv2D(5, 3)
    model_around(layer, [IMAGE])
    assert_refused(layer, random_affine((5, 1, 5)), "vary along axis 1")
    assert_refused(layer, random_affine((1, 8, 4)), "vary along axis 2", ["inputs"])
    layer = layers.Conv2D(5, 3, padding="same")
    model_around(layer, [(None, None, 4)])
    affine = random_affine((1, 1, 4))
    assert_refused(layer, affine, "pads", ["inputs"], shape=(None, None, 4))
    layer = layers.Dense(4, activation="softmax")
    layer(keras.ops.ones((2, 4)))
    assert_refused(layer, random_affine((4,)), "softmax")


@pytest.mark.backend("tensorflow", because="Keras adds biases otherwise there")
def test_a_bias_that_keras_adds_along_the_columns_is_refused():
    """As many channels in front as columns: its `add` takes the bias for one of the columns."""
    channels_first = {"data_format": "channels_first", "dtype": "float64", "use_bias": False}
    for width, right in ((5, True), (4, False)):
        layer = layers.SeparableConv2D(4, 1, **channels_first)
        model = model_around(layer, [(3, 6, width)])
        behind, in_front = random_affine((4, 1, 1)), random_affine((3, 1, 1))
        if right:
            assert_backward(model, layer, behind)
            assert_forward(model, layer, in_front, ["inputs"])
        else:
            assert_refused(layer, behind, "along another axis")
            assert_refused(layer, in_front, "along another axis", ["inputs"], shape=(3, 6, width))
