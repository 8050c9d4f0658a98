"""Attention takes affines into the projections of its arguments and of its output."""

import keras
import pytest
from keras import layers

from tests.fold.absorb.absorption import (
    DTYPES,
    assert_backward,
    assert_forward,
    assert_refused,
    model_around,
    random_affine,
)


def multi_head(**options):
    return layers.MultiHeadAttention(3, 4, **options)


def grouped(**options):
    return layers.GroupQueryAttention(4, 6, 3, **options)


KINDS = pytest.mark.parametrize(
    "make",
    [
        multi_head,
        grouped,
        lambda **options: multi_head(value_dim=5, use_bias=False, **options),
        lambda **options: grouped(use_bias=False, **options),
        lambda **options: multi_head(use_gate=True, **options),
        lambda **options: grouped(use_gate=True, use_bias=False, **options),
    ],
    ids=["multi-head", "grouped", "mha-no-bias", "gqa-no-bias", "mha-gate", "gqa-no-bias-gate"],
)

# The arguments that tensors 0, 1, … arrive at, and those that tensor 0 alone arrives at.
ROLES = {
    "self": (["query", "value"], [(5, 8)], lambda layer: lambda x: layer(x, x)),
    "query": (["query"], [(5, 8), (7, 8)], lambda layer: lambda x, y: layer(x, y)),
    "value-and-key": (["value"], [(7, 8), (5, 8)], lambda layer: lambda x, y: layer(y, x)),
    "value": (
        ["value"],
        [(7, 8), (5, 8), (7, 8)],
        lambda layer: lambda x, y, z: layer(y, x, key=z),
    ),
    "key": (["key"], [(7, 8), (5, 8), (7, 8)], lambda layer: lambda x, y, z: layer(y, z, x)),
    "all": (["query", "value", "key"], [(5, 8)], lambda layer: lambda x: layer(x, x, x)),
    "query-and-key": (
        ["query", "key"],
        [(5, 8), (5, 8)],
        lambda layer: lambda x, y: layer(x, y, x),
    ),
}
GIVEN = {
    "self": [],
    "query": ["value"],
    "value-and-key": ["query"],
    "value": ["query", "key"],
    "key": ["query", "value"],
    "all": [],
    "query-and-key": ["value"],
}


@DTYPES
@KINDS
def test_backward(make, dtype):
    layer = make(dtype=dtype)
    model = model_around(layer, [(5, 8), (7, 8)], lambda x, y: layer(x, y))
    assert_backward(model, layer, random_affine((1, 8)))


@KINDS
@pytest.mark.parametrize("role", ROLES)
def test_forward(make, role):
    layer = make(dtype="float64")
    arguments, shapes, call = ROLES[role]
    model = model_around(layer, shapes, call(layer))
    affine = random_affine((1, shapes[0][-1]))
    assert_forward(model, layer, affine, arguments, GIVEN[role])


@pytest.mark.parametrize("make", [multi_head, grouped], ids=["multi-head", "grouped"])
def test_forward_in_float32(make):
    layer = make(use_bias=False)
    model = model_around(layer, [(5, 8)], lambda x: layer(x, x, use_causal_mask=True))
    assert_forward(model, layer, random_affine((1, 8)), ["query", "value"])


def test_scores_stay_what_they_are():
    layer = multi_head(dtype="float64")
    model = model_around(
        layer, [(5, 8), (5, 6)], lambda x, y: layer(x, y, return_attention_scores=True)
    )
    assert_backward(model, layer, random_affine((1, 8)))
    assert_forward(model, layer, random_affine((1, 8)), ["query"], ["value"])


def test_several_attention_and_output_axes():
    layer = layers.MultiHeadAttention(
        2, 3, attention_axes=(1, 2), output_shape=(4, 5), use_bias=False, dtype="float64"
    )
    model = model_around(layer, [(3, 4, 6)], lambda x: layer(x, x))
    assert_backward(model, layer, random_affine((1, 1, 4, 5)))
    assert_forward(model, layer, random_affine((1, 1, 6)), ["query", "value"])


def test_masks_are_no_obstacle():
    layer = multi_head(dtype="float64")
    masking = layers.Masking(dtype="float64")

    def call(x, y):
        # A mask on the keys, and one that arrives as an argument.
        weights = keras.ops.sum(x, -1) > 0
        return layer(x, masking(y), attention_mask=keras.ops.expand_dims(weights, -1))

    model = model_around(layer, [(5, 8), (7, 8)], call)
    assert_backward(model, layer, random_affine((1, 8)))


def test_layers_without_biases_gain_zeros_where_nothing_is_shifted():
    layer = multi_head(use_bias=False)
    model = model_around(layer, [(5, 8), (7, 8)], lambda x, y: layer(x, y))
    changed = assert_forward(model, layer, random_affine((1, 8)), ["query"], ["value"])
    twin = changed.get_layer(layer.name)
    assert keras.ops.any(twin.query_dense.bias != 0)
    for dense in (twin.key_dense, twin.value_dense, twin.output_dense):
        assert not keras.ops.any(dense.bias != 0)


def test_refusals():
    layer = multi_head()
    model_around(layer, [(5, 8), (7, 8)], lambda x, y: layer(x, y))
    assert_refused(layer, random_affine((5, 8)), "scale varies along axis 1")
    assert_refused(
        layer, random_affine((5, 8), scales=False), "shift varies along axis 1", ["query"]
    )
    assert_refused(layer, random_affine((5, 8)), "`attention_mask`", ["attention_mask"])


def test_adapters_inside_are_refused():
    layer = multi_head()
    model_around(layer, [(5, 8)], lambda x: layer(x, x))
    layer.value_dense.enable_lora(2)
    assert_refused(layer, random_affine((1, 8)), "LoRA")
    assert_refused(layer, random_affine((1, 8)), "LoRA", ["query"], ["value"])
