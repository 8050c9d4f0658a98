"""Tensors with several readers: residual and dense streams, sums, and what makes good for what."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from tests.fold.agreement import assert_agree, normalizations
from tests.random_weights import randomize


def conv(name, filters=6, kernel=3, **options):
    return layers.Conv2D(filters, kernel, padding="same", name=name, **options)


def bn(name, **options):
    return layers.BatchNormalization(name=name, **options)


def with_positive_scales(model, seed=0):
    """Random weights with the signs of gamma that a ReLU lets pass."""
    randomize(model, seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization) and layer.gamma is not None:
            layer.gamma.assign(np.abs(layer.gamma))
    return model


def resnet_v2(blocks=3):
    """Pre-activation residual blocks: BN, ReLU and convolution twice, then the sum."""
    image = keras.Input((8, 8, 3))
    x = conv("stem")(image)
    for i in range(blocks):
        y = layers.ReLU()(bn(f"bn{i}a")(x))
        y = layers.ReLU()(bn(f"bn{i}b")(conv(f"conv{i}a")(y)))
        x = layers.Add(name=f"add{i}")([x, conv(f"conv{i}b")(y)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(bn("last")(x)))
    return keras.Model(image, layers.Dense(4)(x))


def densenet(blocks=3):
    image = keras.Input((8, 8, 3))
    x = conv("stem")(image)
    for i in range(blocks):
        y = conv(f"conv{i}", kernel=1)(layers.ReLU()(bn(f"bn{i}")(x)))
        x = layers.Concatenate()([x, y])
    return keras.Model(image, layers.GlobalAveragePooling2D()(x))


def records(result):
    return {r.layer: r.rule for r in result.folded}, {r.layer: r.reason for r in result.kept}


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_residual_streams_are_stored_otherwise_and_keep_no_normalization(blocks):
    model = with_positive_scales(resnet_v2(blocks))
    result = keras_bn.fold(model)
    assert result.kept == []
    assert len(result.folded) == 2 * blocks + 1
    kinds = {type(layer) for layer in result.model.layers}
    assert not kinds & {layers.BatchNormalization, layers.Rescaling}
    assert_agree(model, result.model)


def test_without_rebasing_a_residual_stream_keeps_an_addition_a_block():
    model = with_positive_scales(resnet_v2(3))
    result = keras_bn.fold(model, rebase=False)
    _, kept = records(result)
    # The blocks' second normalizations fold into their convolutions all the same.
    assert set(kept) == {"bn0a", "bn1a", "bn2a"}
    for name in kept:
        layer = result.model.get_layer(name)
        assert isinstance(layer, layers.Rescaling)
        assert layer.scale == 1.0
    assert_agree(model, result.model)


@pytest.mark.parametrize("gamma", [-0.7, 0.0, 1e-9])
def test_a_channel_that_forbids_it_keeps_its_normalization(gamma):
    """Pushing a negative scale through a ReLU, or dividing by a tiny one, would be wrong."""
    model = with_positive_scales(resnet_v2(3))
    value = np.array(model.get_layer("bn1a").gamma)
    value[2] = gamma
    model.get_layer("bn1a").gamma.assign(value)
    result = keras_bn.fold(model)
    _, kept = records(result)
    assert set(kept) == {"bn1a"}
    assert_agree(model, result.model)


def test_a_shift_far_beyond_the_tensors_values_stays():
    """Stored with it, the stream would lose the bits that the other readers need."""
    model = with_positive_scales(resnet_v2(2))
    beta = np.array(model.get_layer("bn1a").beta)
    beta[0] = 1e5
    model.get_layer("bn1a").beta.assign(beta)
    result = keras_bn.fold(model)
    _, kept = records(result)
    assert set(kept) == {"bn1a"}
    assert_agree(model, result.model)


def test_statistics_that_the_normalization_in_front_contradicts_are_not_relied_on():
    """The second says of its input that it is large, the first makes it small."""
    image = keras.Input((8, 8, 3))
    stream = conv("stem")(image)
    other = conv("other", kernel=1)(stream)
    model = keras.Model(image, [bn("second")(bn("first")(stream)), other])
    randomize(model)
    model.get_layer("first").gamma.assign(np.full(6, 1e-9))
    model.get_layer("second").moving_mean.assign(np.full(6, 1000.0))
    result = keras_bn.fold(model, verify=False)
    assert_agree(model, result.model)


def test_dense_streams_keep_one_addition_for_each_block():
    model = with_positive_scales(densenet(4))
    result = keras_bn.fold(model)
    assert normalizations(result.model) == []
    left = [layer for layer in result.model.layers if isinstance(layer, layers.Rescaling)]
    assert len(left) == len(result.kept) <= 4
    assert all(layer.scale == 1.0 for layer in left)
    assert_agree(model, result.model)


def test_a_convolution_with_two_readers_is_undone_in_the_other():
    image = keras.Input((8, 8, 3))
    x = conv("shared")(image)
    left = layers.ReLU()(bn("bn")(x))
    right = layers.Conv2D(4, 1, name="other")(x)
    model = randomize(keras.Model(image, [left, right]))
    result = keras_bn.fold(model)
    assert result.kept == []
    (record,) = result.folded
    assert sorted(record.into.split(", ")) == ["other", "shared"]
    assert_agree(model, result.model)


@pytest.mark.parametrize(
    "merge", [layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum]
)
def test_branches_take_what_follows_their_merge(merge):
    image = keras.Input((8, 8, 3))
    y = merge()([conv("left")(image), conv("right")(image)])
    model = keras.Model(image, layers.Softmax()(bn("bn")(y)))
    (with_positive_scales if merge in (layers.Maximum, layers.Minimum) else randomize)(model)
    result = keras_bn.fold(model)
    assert result.kept == []
    assert_agree(model, result.model)


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: keras.ops.maximum(a, -b),
        lambda a, b: (2.0 * a + 1.0) - b / 3.0,
        lambda a, b: 1.0 - (a + b),
    ],
)
def test_python_operators_are_passed_and_folded(combine):
    image = keras.Input((8, 8, 3))
    y = combine(conv("left")(image), conv("right")(image))
    model = keras.Model(image, layers.Softmax()(bn("bn")(y)))
    with_positive_scales(model)
    result = keras_bn.fold(model)
    assert result.kept == []
    assert {type(layer) for layer in result.model.layers}.isdisjoint({layers.Rescaling})
    assert_agree(model, result.model)


def test_a_scale_passes_a_product_and_a_shift_does_not():
    image = keras.Input((8, 8, 3))
    gate = layers.Activation("sigmoid")(conv("gate")(image))
    y = layers.Multiply()([conv("value")(image), gate])
    scale_only = bn("bn", center=False)
    model = randomize(keras.Model(image, layers.Softmax()(scale_only(y))))
    scale_only.moving_mean.assign(np.zeros(6))
    result = keras_bn.fold(model)
    assert [record.into for record in result.folded] == ["value"]
    assert_agree(model, result.model)

    randomize(model)
    result = keras_bn.fold(model)
    assert "so no shift passes" in result.kept[0].reason
    assert_agree(model, result.model)


def test_a_tensor_added_to_itself():
    image = keras.Input((8, 8, 3))
    x = conv("twice")(image)
    model = randomize(keras.Model(image, layers.Softmax()(bn("bn")(layers.Add()([x, x])))))
    result = keras_bn.fold(model)
    assert len(result.folded) + len(result.kept) == 1
    assert_agree(model, result.model)


@pytest.mark.parametrize("center", [True, False])
def test_what_stays_of_an_image_becomes_one_depthwise_convolution_when_asked(center):
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="pixels")(image)
    x = bn("bn", center=center)(layers.Activation("tanh", name="tanh")(x))
    model = randomize(keras.Model(image, layers.Activation("tanh")(x)))
    result = keras_bn.fold(model, one_operation=True)
    assert [record.layer for record in result.kept] == ["bn"]
    for name in ("pixels", "bn"):
        assert type(result.model.get_layer(name)) is layers.DepthwiseConv2D
    assert_agree(model, result.model)


def test_what_is_asked_to_be_kept_is_no_depthwise_convolution():
    image = keras.Input((8, 8, 3))
    model = randomize(keras.Model(image, layers.Softmax()(bn("bn")(image))))
    result = keras_bn.fold(model, keep=["bn"], one_operation=True)
    assert normalizations(result.model) == ["bn"]


def test_a_constant_that_keras_adds_along_another_axis_stays_where_it_is():
    """Keras's add takes an array of one axis for a bias of any axis of its length."""
    inputs = keras.Input((3, 3))
    column = np.array([[1.0], [10.0], [100.0]], "float32")
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs + column)))
    assert_agree(model, keras_bn.fold(randomize(model), verify=False).model)


def test_a_normalization_behind_a_mask_folds():
    inputs = keras.Input((5, 4))
    x = bn("bn")(layers.Dense(6, name="dense")(layers.Masking()(inputs)))
    model = randomize(keras.Model(inputs, layers.LSTM(3)(x)))
    result = keras_bn.fold(model)
    assert [record.into for record in result.folded] == ["dense"]
    assert_agree(model, result.model)


def test_a_layer_normalizations_mean_goes_into_the_layer_in_front_when_asked():
    inputs = keras.Input((5, 4))
    x = layers.LayerNormalization(name="ln")(layers.Dense(6, name="front")(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(3, name="behind")(x)))
    assert type(keras_bn.fold(model).model.get_layer("ln")) is layers.LayerNormalization
    result = keras_bn.fold(model, one_operation=True)
    assert type(result.model.get_layer("ln")) is layers.RMSNormalization
    np.testing.assert_array_equal(result.model.get_layer("ln").scale, np.ones(6))
    assert_agree(model, result.model)


@pytest.mark.parametrize("as_output", [False, True])
def test_a_layer_that_feeds_others_is_copied_only_when_asked(as_output):
    image = keras.Input((8, 8, 3))
    x = conv("shared", use_bias=False)(image)
    other = x if as_output else layers.Softmax()(x)
    model = randomize(keras.Model(image, [other, layers.Softmax()(bn("bn")(x))]))
    assert [record.layer for record in keras_bn.fold(model).kept] == ["bn"]
    result = keras_bn.fold(model, duplicate=True)
    (record,) = result.folded
    assert (record.into, record.rule) == ("shared", "backward into a copy of the Conv2D")
    assert type(result.model.get_layer("bn")) is layers.Conv2D
    assert not result.model.get_layer("shared").use_bias
    assert_agree(model, result.model)


@pytest.mark.parametrize("first", [True, False])
def test_the_shift_of_a_sum_goes_to_the_branch_that_nobody_else_reads(first):
    inputs = keras.Input((6,))
    shared, own = layers.Dense(4, name="shared")(inputs), layers.Dense(4, name="own")(inputs)
    total = layers.Add()([shared, own] if first else [own, shared])
    outputs = [layers.ReLU()(bn("bn")(total)), layers.Dense(3, name="reader")(shared)]
    model = randomize(keras.Model(inputs, outputs))
    result = keras_bn.fold(model)
    assert [record.layer for record in result.folded] == ["bn"]
    norm, dense = model.get_layer("bn"), model.get_layer("shared")
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    # The reader makes good for a scale only. float32 rounds by 6e-8.
    np.testing.assert_allclose(
        result.model.get_layer("shared").bias, scale * dense.bias.numpy(), rtol=1e-6
    )
    np.testing.assert_array_equal(
        result.model.get_layer("reader").bias, model.get_layer("reader").bias
    )
    assert_agree(model, result.model)
