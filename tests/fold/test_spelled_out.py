"""Activations written out in arithmetic, which a converter knows by how they are written."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bn
from tests.fold.agreement import assert_agree
from tests.random_weights import randomize


def relu6(x):
    return layers.ReLU(max_value=6.0)(x)


HARD_SWISH = {
    "x·relu6(x+3)/6": lambda x: x * ops.relu6(x + 3) / 6,
    "x·relu6(x+3)·⅙": lambda x: x * ops.relu6(x + 3.0) * (1 / 6),
    "x·(relu6(x+3)/6)": lambda x: x * (ops.relu6(x + 3.0) / 6.0),
    "layers": lambda x: layers.Multiply()([x, relu6(x + 3.0) * (1 / 6)]),
    "only layers": lambda x: layers.Multiply()(
        [layers.Rescaling(1 / 6)(relu6(layers.Rescaling(1.0, 3.0)(x))), x]
    ),
    "clip": lambda x: x * ops.clip(3 + x, 0, 6) / 6,
    "minimum": lambda x: x * ops.minimum(ops.relu(x + 3), 6) / 6,
    "activation": lambda x: x / 6 * layers.Activation("relu6")(x + 3),
}
GELU = {
    "x/2·(1+erf(x/√2))": lambda x: 0.5 * x * (1 + ops.erf(x / math.sqrt(2))),
    "x·(1+erf(0.7071·x))/2": lambda x: x * (1.0 + ops.erf(0.70710678 * x)) / 2,
    "tanh": lambda x: 0.5 * x * (1 + ops.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    "tanh, products": lambda x: x * (0.5 + 0.5 * ops.tanh(0.7979 * (x + 0.044715 * x * x * x))),
}
CHANNELS = np.array([3.0, 3.0, 3.0, 3.0, 2.0], "float32")
OTHERS = {
    "hard sigmoid": lambda x: relu6(x + 3.0) / 6,
    "x·relu6(x+2)/6": lambda x: x * ops.relu6(x + 2) / 6,
    "x·relu6(x+3)/5": lambda x: x * ops.relu6(x + 3) / 5,
    "x·relu6(y+3)/6": lambda x: x * ops.relu6(layers.Dense(5)(x) + 3) / 6,
    "channels apart": lambda x: x * ops.relu6(ops.add(x, CHANNELS)) / 6,
}


def folded(activation):
    x = keras.Input((6,))
    y = activation(layers.BatchNormalization()(layers.Dense(5)(x)))
    model = randomize(keras.Model(x, layers.Dense(3)(layers.BatchNormalization()(y))))
    result = keras_bn.fold(model, verify=False)
    assert result.kept == []  # the batch normalizations around it fold whatever it is
    assert_agree(model, result.model)
    return result.others


@pytest.mark.parametrize("form", [*HARD_SWISH.values(), *GELU.values()], ids=[*HARD_SWISH, *GELU])
def test_no_constant_in_it_folds(form):
    others = folded(form)
    assert len(others) >= 2
    for record in others:
        assert "which LiteRT runs as one operation" in record.reason


@pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
def test_what_is_like_it_and_computes_something_else_folds(form):
    assert any(hasattr(record, "into") for record in folded(form))


def test_the_reason_names_the_activation():
    (reason,) = {record.reason for record in folded(HARD_SWISH["layers"])}
    assert reason == "it is part of a hard swish, which LiteRT runs as one operation"
    (reason,) = {record.reason for record in folded(GELU["tanh"])}
    assert reason == "it is part of an approximate GELU, which LiteRT runs as one operation"
