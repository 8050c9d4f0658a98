"""Wrappers take affines into the layer inside them."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.fold import absorb
from tests.fold.absorb.absorption import (
    assert_backward,
    assert_forward,
    assert_refused,
    model_around,
    positive,
    random_affine,
)
from tests.random_weights import randomize

SEVEN = (7, 6)
IMAGES = (3, 5, 6, 4)

# inside, shape of the input, shapes of the affines behind and in front
CASES = {
    "dense": (lambda **o: layers.Dense(5, **o), SEVEN, (1, 5), (1, 6)),
    "dense-no-bias": (lambda **o: layers.Dense(5, use_bias=False, **o), SEVEN, (1, 5), (1, 6)),
    "dense-unknown-length": (lambda **o: layers.Dense(5, **o), (None, 6), (1, 5), (1, 6)),
    "convolution": (
        lambda **o: layers.Conv2D(5, 2, strides=2, use_bias=False, **o),
        IMAGES,
        (1, 1, 1, 5),
        (1, 1, 1, 4),
    ),
    "depthwise": (
        lambda **o: layers.DepthwiseConv2D(2, depth_multiplier=2, **o),
        IMAGES,
        (1, 1, 1, 8),
        (1, 1, 1, 4),
    ),
    "separable": (lambda **o: layers.SeparableConv1D(5, 2, **o), (3, 5, 6), (1, 1, 5), (1, 1, 6)),
    "transposed": (
        lambda **o: layers.Conv1DTranspose(5, 2, strides=2, **o),
        (3, 5, 6),
        (1, 1, 5),
        None,
    ),
    "einsum": (
        lambda **o: layers.EinsumDense("ab,bcd->acd", (2, 3), **o),
        SEVEN,
        (1, 2, 3),
        (1, 6),
    ),
    "layer-normalization": (lambda **o: layers.LayerNormalization(**o), SEVEN, (1, 6), None),
    "recurrent": (lambda **o: layers.GRU(4, use_bias=False, **o), (3, 5, 6), None, (1, 1, 6)),
    "bidirectional": (
        lambda **o: layers.Bidirectional(layers.LSTM(4, use_bias=False, **o), **o),
        (3, 5, 6),
        None,
        (1, 1, 6),
    ),
    "itself": (
        lambda **o: layers.TimeDistributed(layers.Dense(5, use_bias=False, **o), **o),
        (3, 5, 6),
        (1, 1, 5),
        (1, 1, 6),
    ),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@EACH
def test_backward(case):
    make, shape, behind, _ = case
    layer = layers.TimeDistributed(make(dtype="float64"), dtype="float64")
    model = model_around(layer, [shape])
    if behind is None:
        assert_refused(layer, random_affine((1,) * len(shape)), "behind it")
    else:
        assert_backward(model, layer, random_affine(behind))


@EACH
def test_forward(case):
    make, shape, _, in_front = case
    layer = layers.TimeDistributed(make(dtype="float64"), dtype="float64")
    model = model_around(layer, [shape])
    if in_front is None:
        affine = random_affine((1,) * (len(shape) - 1) + shape[-1:])
        assert_refused(layer, affine, "before it|different at each", ["inputs"], shape=shape)
    else:
        assert_forward(model, layer, random_affine(in_front), ["inputs"])


def test_in_float32():
    layer = layers.TimeDistributed(layers.Conv1D(5, 2, use_bias=False))
    model = model_around(layer, [(3, 5, 6)])
    assert_backward(model, layer, random_affine((1, 1, 5)))
    assert_forward(model, layer, random_affine((1, 1, 6)), ["inputs"])


def test_embedding():
    layer = layers.TimeDistributed(layers.Embedding(7, 4, dtype="float64"), dtype="float64")
    model = model_around(layer, [(3, 5)], input_dtype="int32")
    indices = np.random.default_rng(0).integers(0, 7, (3, 3, 5)).astype("int32")
    assert_backward(model, layer, random_affine((1, 1, 4)), [indices])


def test_what_is_inside_still_decides():
    layer = layers.TimeDistributed(layers.Dense(5, activation="relu", dtype="float64"))
    model = model_around(layer, [SEVEN], input_dtype="float64")
    assert_refused(layer, random_affine((1, 5)), "relu")
    layer = layers.TimeDistributed(
        layers.Dense(5, activation="relu", dtype="float64"), dtype="float64"
    )
    model = model_around(layer, [SEVEN])
    assert_backward(model, layer, positive(random_affine((1, 5))))
    layer = layers.TimeDistributed(layers.Conv1D(5, 3, padding="same"))
    model_around(layer, [(3, 5, 6)])
    assert_refused(layer, random_affine((1, 1, 6)), "pads", ["inputs"], shape=(3, 5, 6))


def test_refusals():
    layer = layers.TimeDistributed(layers.Dense(5))
    model_around(layer, [SEVEN])
    assert_refused(layer, random_affine((7, 5)), "from step to step")
    assert_refused(layer, random_affine((7, 6)), "from step to step", ["inputs"])
    assert_refused(layer, random_affine((1, 6)), "`mask`", ["inputs", "mask"])
    layer.layer.enable_lora(2)
    assert_refused(layer, random_affine((1, 5)), "LoRA")
    assert_refused(layer, random_affine((1, 6)), "LoRA", ["inputs"])
    layer = layers.TimeDistributed(layers.Dense(5))
    model_around(layer, [SEVEN])
    layer.layer.quantize("int8")
    assert_refused(layer, random_affine((1, 5)), "quantized \\(int8\\)")
    assert absorb.rule_for(layers.TimeDistributed(layers.Softmax())) is None
    assert absorb.rule_for(layers.TimeDistributed(layers.TimeDistributed(layers.ReLU()))) is None


@pytest.mark.parametrize("kind", [layers.LayerNormalization, keras_bn.layers.LayerNormalization])
@pytest.mark.parametrize("masked", [False, True])
def test_only_where_there_is_a_mask_a_layer_inside_gives_zeros(kind, masked):
    inputs = keras.Input((5, 4, 3))
    x = layers.Masking()(inputs) if masked else inputs
    x = layers.TimeDistributed(kind(), name="each")(x)
    x = layers.BatchNormalization(name="bn")(x)
    model = randomize(keras.Model(inputs, x))
    result = keras_bn.fold(model, verify=False)
    refused = masked and kind is keras_bn.layers.LayerNormalization
    assert len(result.folded) == (not refused)
    if refused:
        assert "'each' gives zeros at masked steps" in result.kept[0].reason
    data = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    data[0, 1] = 0.0
    # float32 carries 6e-8 an operation, of which there are a few.
    np.testing.assert_allclose(result.model(data), model(data), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inside", "shape", "behind", "in_front"),
    [
        (lambda: layers.Dense(5, use_bias=False), (6,), (5,), (6,)),
        (lambda: layers.Conv2D(4, 2, activation="relu"), (5, 5, 3), None, (1, 1, 3)),
        (lambda: layers.Conv2D(4, 2), (5, 5, 3), (1, 1, 4), (1, 1, 3)),
    ],
)
def test_spectral_normalization_calls_nothing_else_in_inference(inside, shape, behind, in_front):
    layer = layers.SpectralNormalization(inside())
    model = model_around(layer, [shape])
    if behind is None:
        assert_refused(layer, random_affine((1, 1, 4)), "the activation relu")
    else:
        assert_backward(model, layer, random_affine(behind))
    assert_forward(model, layer, random_affine(in_front), ["inputs"])
