"""Normalizations take what follows them into γ and β, and give these away."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.fold import absorb
from keras_bn.fold.absorb.normalization import affine_end
from keras_bn.fold.affine import Affine
from keras_bn.graph.rebuild import Changes, rebuild
from tests.fold.absorb.absorption import (
    DTYPES,
    assert_backward,
    assert_close,
    assert_refused,
    data,
    model_around,
    outputs,
    random_affine,
)

IMAGE = (4, 3, 6)
AXES = {
    "features": (-1, IMAGE, (1, 1, 6)),
    "features-counted": (3, IMAGE, (1, 1, 6)),
    "channels-first": (1, IMAGE, (4, 1, 1)),
    "two": ([1, 3], IMAGE, (4, 1, 6)),
    "two-counted-both-ways": ([-1, 1], IMAGE, (4, 1, 6)),  # Keras sorts them to γ of (6, 4)
    "all": ([1, 2, 3], IMAGE, IMAGE),
    "vectors": (-1, (6,), (6,)),
}
EACH_AXIS = pytest.mark.parametrize("axis, shape, varies", AXES.values(), ids=AXES)
PARTS = pytest.mark.parametrize(
    "parts",
    [{}, {"center": False}, {"scale": False}, {"center": False, "scale": False}],
    ids=["both", "gamma", "beta", "none"],
)
LAYER_NORMS = pytest.mark.parametrize(
    "kind", [layers.LayerNormalization, keras_bn.layers.LayerNormalization], ids=["keras", "ours"]
)

CHANNELS = {
    "groups": lambda **o: layers.GroupNormalization(3, **o),
    "one-group": lambda **o: layers.GroupNormalization(1, **o),
    "instance": lambda **o: keras_bn.layers.InstanceNormalization(**o),
}
EACH_GROUPING = pytest.mark.parametrize("make", CHANNELS.values(), ids=CHANNELS)


@LAYER_NORMS
@EACH_AXIS
def test_layer_normalization(kind, axis, shape, varies):
    layer = kind(axis=axis, dtype="float64")
    model = model_around(layer, [shape])
    assert_backward(model, layer, random_affine(varies))


@DTYPES
@LAYER_NORMS
@PARTS
def test_layer_normalization_gains_what_it_lacks(kind, dtype, parts):
    layer = kind(axis=[1, 3], dtype=dtype, **parts)
    model = model_around(layer, [IMAGE])
    assert_backward(model, layer, random_affine((4, 1, 6)))


@EACH_GROUPING
@PARTS
@pytest.mark.parametrize("axis, varies", [(-1, (1, 1, 6)), (1, (6, 1, 1))])
def test_group_normalization(make, parts, axis, varies):
    layer = make(axis=axis, dtype="float64", **parts)
    model = model_around(layer, [(6, 3, 6)])
    assert_backward(model, layer, random_affine(varies))


@DTYPES
@pytest.mark.parametrize("axis, varies", [(-1, (1, 1, 6)), ([2, 3], (1, 3, 6))])
def test_rms_normalization(dtype, axis, varies):
    layer = layers.RMSNormalization(axis=axis, dtype=dtype)
    model = model_around(layer, [IMAGE])
    assert_backward(model, layer, random_affine(varies, shifts=False))
    assert_refused(layer, random_affine(varies), "no weight for the shift")


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_the_scaling_that_keras_deprecates_has_a_gamma_alone():
    layer = layers.LayerNormalization(rms_scaling=True, scale=False, dtype="float64")
    model = model_around(layer, [IMAGE])
    assert_backward(model, layer, random_affine((1, 1, 6), shifts=False))
    assert_refused(layer, random_affine((1, 1, 6)), "no beta for the shift")
    assert_ends_in_affine(layer, model)


def test_an_affine_that_is_spelled_out_is_seen_through():
    layer = layers.LayerNormalization(dtype="float64")
    model = model_around(layer, [IMAGE])
    assert_backward(model, layer, random_affine((1, 1, 6)).full(IMAGE))


def test_refusals():
    layer = layers.LayerNormalization()
    model_around(layer, [IMAGE])
    assert_refused(layer, random_affine((4, 1, 6)), "varies along axis 1")
    layer = layers.GroupNormalization(2)
    model_around(layer, [IMAGE])
    assert_refused(layer, random_affine((1, 3, 1)), "varies along axis 2")
    layer = layers.RMSNormalization()
    model_around(layer, [IMAGE])
    assert_refused(layer, random_affine((4, 1, 1), shifts=False), "varies along axis 1")
    layer = layers.LayerNormalization(axis=(0, 1))
    layer(keras.ops.ones((3, 6)))
    assert_refused(layer, random_affine((6,)), "batch axis")
    for kind in (layers.LayerNormalization, layers.GroupNormalization, layers.RMSNormalization):
        assert absorb.rule_for(kind()).forward is None
    assert absorb.rule_for(layers.UnitNormalization()) is None


def test_our_layer_gives_zeros_where_it_is_masked():
    """Which is why no shift behind it may go into β there."""
    ours, keras_own = keras_bn.layers.LayerNormalization(), layers.LayerNormalization()
    for layer, zeros in ((ours, True), (keras_own, False)):
        masking = layers.Masking()
        model = model_around(layer, [(5, 6)], lambda x, m=masking, n=layer: n(m(x)))
        inputs = data(model)
        inputs[0][:, 2] = 0
        assert np.all(outputs(model, inputs)[0][:, 2] == 0) is np.bool_(zeros)
        assert absorb.rule_for(layer).zeroed_by_mask(layer) is zeros
        assert affine_end(layer, 2).zeroed_by_mask is zeros


# --- the affine at the end -----------------------------------------------------------------------


def assert_ends_in_affine(layer, model):
    end = affine_end(layer, len(model.inputs[0].shape) - 1)
    without = rebuild(
        model,
        Changes(weights={id(layer): lambda: end.weights}, config={id(layer): end.config}),
    )
    inputs = data(model)
    (bare,) = outputs(without, inputs)
    assert_close(outputs(model, inputs), [end.affine.scale * bare + end.affine.shift], layer)
    left = without.get_layer(layer.name).weights
    assert all(np.all(keras.ops.convert_to_numpy(variable) == 1) for variable in left)
    assert len(left) == len(end.weights)


@LAYER_NORMS
@EACH_AXIS
def test_layer_normalization_ends_in_an_affine(kind, axis, shape, varies):
    layer = kind(axis=axis, dtype="float64")
    assert_ends_in_affine(layer, model_around(layer, [shape]))


@LAYER_NORMS
@PARTS
def test_a_missing_gamma_or_beta_is_no_affine(kind, parts):
    layer = kind(dtype="float64", **parts)
    assert_ends_in_affine(layer, model_around(layer, [IMAGE]))


@EACH_GROUPING
@pytest.mark.parametrize("axis", [-1, 1])
def test_group_normalization_ends_in_an_affine(make, axis):
    layer = make(axis=axis, dtype="float64")
    assert_ends_in_affine(layer, model_around(layer, [(6, 3, 6)]))


@pytest.mark.parametrize("axis", [-1, [2, 3]])
def test_rms_normalization_ends_in_a_scale(axis):
    layer = layers.RMSNormalization(axis=axis, dtype="float64")
    assert_ends_in_affine(layer, model_around(layer, [IMAGE]))


def test_other_layers_end_in_none():
    assert affine_end(layers.UnitNormalization(), 2) is None
    assert affine_end(layers.BatchNormalization(), 2) is None


def test_gamma_and_beta_go_into_the_next_layer():
    """What the affine at the end is for: a layer that follows takes it in."""
    norm, dense = (
        layers.LayerNormalization(dtype="float64"),
        layers.Dense(4, use_bias=False, dtype="float64"),
    )
    model = model_around(dense, [(5, 6)], lambda x: dense(norm(x)))
    end, rule = affine_end(norm, 2), absorb.rule_for(dense)
    change = rule.forward(dense, end.affine, absorb.Reading(("inputs",), (5, 6), ("inputs",)))
    changes = Changes(
        weights={id(norm): lambda: end.weights, id(dense): lambda: change(rule.read(dense))},
        config={id(norm): end.config, id(dense): rule.gains(dense)},
    )
    folded = rebuild(model, changes)
    assert folded.get_layer(norm.name).weights == []
    inputs = data(model)
    assert_close(outputs(model, inputs), outputs(folded, inputs), dense)
    assert not Affine.identity(2).equals(end.affine)
