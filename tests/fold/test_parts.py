"""Whole models whose tensors are split, sliced, stacked, padded and reordered, in float64."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bn
from tests.fold.agreement import normalizations, outputs
from tests.random_weights import randomize

pytestmark = pytest.mark.backend(
    "tensorflow", because="elsewhere Keras computes float64 in float32"
)


@pytest.fixture(scope="module", autouse=True)
def float64():
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    yield
    keras.config.set_dtype_policy(before[0])
    keras.config.set_floatx(before[1])


def bn(name):
    return layers.BatchNormalization(name=name)


def conv(filters, size=1, name=None, **options):
    return layers.Conv2D(filters, size, name=name, **options)


def folded(inputs, outputs_, **weights):
    """The result of folding a model with random weights, some of them given, that agrees."""
    model = randomize(keras.Model(inputs, outputs_))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 3.0)  # a shift that shows
    for name, gamma in weights.items():
        model.get_layer(name).gamma.assign(
            np.broadcast_to(gamma, model.get_layer(name).gamma.shape)
        )
    result = keras_bn.fold(model, verify=False)  # which would undo what is wrong
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(2, *(n or 6 for n in t.shape[1:]))) for t in model.inputs]
    data = data if len(data) > 1 else data[0]
    for before, after in zip(outputs(model, data), outputs(result.model, data), strict=True):
        # Some hundred roundings of 1e-16, relative to the largest output.
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-13 * np.max(np.abs(before)))
    return result


def where(result):
    return {record.layer: record.rule for record in result.folded}


def why(result):
    return {record.layer: record.reason for record in result.kept}


def test_each_output_of_a_split_has_its_own_normalization():
    inputs = keras.Input((6, 6, 3))
    first, second = ops.split(conv(6, 3, "conv")(inputs), [2], axis=-1)
    result = folded(inputs, [ops.relu(bn("one")(first)), ops.tanh(bn("two")(second))])
    assert where(result) == dict.fromkeys(("one", "two"), "backward into Conv2D through Split")


def test_the_other_outputs_of_a_split_stay_what_they_are():
    inputs = keras.Input((6, 6, 3))
    x = conv(6, 3, "conv")(inputs)
    first, second, _ = ops.split(x, 3, axis=-1)
    # A gamma of zero, which nothing could undo for the second output.
    result = folded(inputs, [ops.tanh(bn("bn")(first)), ops.tanh(second)], bn=[1.0, 0.0])
    assert where(result) == {"bn": "backward into Conv2D through Split"}


def test_a_normalization_in_front_of_a_split_goes_into_the_readers_of_all_its_outputs():
    inputs = keras.Input((6, 6, 6))
    first, second, _ = ops.split(bn("bn")(inputs), 3, axis=-1)
    result = folded(inputs, [conv(4, 3, "one")(first), layers.Dense(3, name="two")(second)])
    (record,) = result.folded
    assert (record.into, record.rule) == ("one, two", "forward into Conv2D, Dense through Split")


def test_an_output_of_a_split_that_is_the_models_own_keeps_what_is_in_front():
    inputs = keras.Input((6, 6, 6))
    first, second = ops.split(bn("bn")(inputs), 2, axis=-1)
    result = folded(inputs, [conv(4, 3)(first), second])
    assert "its output reaches an output of the model" in why(result)["bn"]


def test_rows_of_a_split_are_undone_for_the_readers_of_the_others():
    inputs = keras.Input((6, 4))
    first, second = ops.split(layers.Dense(4, name="dense")(inputs), 2, axis=1)
    outputs_ = [ops.tanh(bn("bn")(first)), layers.Dense(3, name="other")(second)]
    result = folded(inputs, outputs_)
    (record,) = result.folded
    assert record.into == "dense, other"
    result = folded(inputs, outputs_, bn=0.0)
    assert "also feeds 'other'" in why(result)["bn"]


@pytest.mark.parametrize("apart", ["slices", "take", "slice"])
def test_slices_of_one_tensor_fold_apart(apart):
    inputs = keras.Input((6, 6, 3), batch_size=2)
    x = conv(5, 3, "conv", padding="same")(inputs)
    first, second = {
        "slices": lambda: (x[..., :2], x[..., 2:]),
        "take": lambda: (ops.take(x, [1, 0], axis=-1), ops.take(x, [-1, 2, 3], axis=-1)),
        "slice": lambda: (
            ops.slice(x, [0, 0, 0, 0], [2, 6, 6, 2]),
            ops.slice(x, [0, 0, 0, 2], [2, 6, 6, 3]),
        ),
    }[apart]()
    # Zeros, which nothing can undo: each has to leave the other's channels alone.
    result = folded(
        inputs,
        [ops.tanh(bn("one")(first)), ops.tanh(bn("two")(second))],
        one=[0.0, 2.0],
        two=[1.0, -3.0, 0.0],
    )
    assert set(where(result)) == {"one", "two"}
    assert normalizations(result.model) == []


def test_overlapping_slices_do_not():
    inputs = keras.Input((6, 6, 3))
    x = conv(5, 3, "conv")(inputs)
    result = folded(
        inputs, [ops.tanh(bn("one")(x[..., :3])), ops.tanh(x[..., 2:])], one=[1.0, 2.0, 0.0]
    )
    assert "'conv' also feeds 'get_item" in why(result)["one"]


def test_time_steps():
    inputs = keras.Input((4, 3))
    dense = layers.Dense(5, name="linear")
    last = dense(layers.LSTM(4, name="lstm", return_sequences=True)(inputs))[:, -1]
    steps = ops.unstack(bn("shared")(layers.Dense(5, name="steps")(inputs)), axis=1)
    readers = [layers.Dense(2)(step) for step in steps]
    result = folded(inputs, [ops.tanh(bn("last")(last)), *readers])
    assert where(result)["last"] == "backward into Dense through GetItem"
    assert where(result)["shared"] == "backward into Dense"
    inputs = keras.Input((4, 3))
    readers = [layers.Dense(2)(step) for step in ops.unstack(bn("all")(inputs), axis=1)]
    assert where(folded(inputs, readers)) == {"all": "forward into Dense through Unstack"}


def test_stacked_branches():
    inputs = keras.Input((6, 6, 3))
    branches = [conv(4, size, f"conv{size}", padding="same")(inputs) for size in (1, 3)]
    x = bn("behind")(ops.sum(ops.stack(branches, axis=1), axis=1))
    y = bn("per_branch")(ops.stack([conv(4)(inputs), conv(4)(inputs)], axis=-1))
    result = folded(inputs, [ops.tanh(x), ops.tanh(y)])
    assert where(result) == {
        "behind": "backward into Conv2D through Sum, Stack",
        "per_branch": "backward into Conv2D through Stack",
    }


def test_a_shortcut_of_slices_and_padding():
    """As in CIFAR's residual networks: every second pixel, and channels of zeros."""
    inputs = keras.Input((8, 8, 3))
    x = ops.relu(bn("stem")(conv(4, 3, "conv", padding="same")(inputs)))
    shortcut = ops.pad(x[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], [1, 1]])
    y = bn("bn")(conv(6, 3, padding="same", strides=2)(x))
    plain = keras.Input((8, 8, 4))
    widened = ops.pad(bn("in_front")(plain)[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], [1, 1]])
    result = folded([inputs, plain], [ops.tanh(y + shortcut), conv(3, 1)(widened)])
    assert where(result) == {
        "stem": "backward into Conv2D",
        "bn": "backward into Conv2D",
        "in_front": "forward into Conv2D through GetItem, Pad",
    }


def shuffled(x, groups):
    """Channel shuffle, as in ShuffleNet."""
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height, width, groups, channels // groups))(x)
    x = layers.Permute((1, 2, 4, 3))(x)
    return layers.Reshape((height, width, channels))(x)


def test_shuffled_channels():
    inputs = keras.Input((6, 6, 3))
    first, second = ops.split(conv(8, 3, padding="same")(inputs), 2, axis=-1)
    second = conv(4)(ops.relu(bn("inside")(conv(4)(second))))
    x = shuffled(ops.concatenate([bn("left")(first), second], axis=-1), 2)
    result = folded(inputs, ops.relu(bn("behind")(x)))
    assert set(where(result)) == {"inside", "left", "behind"}


def pixel_shuffled(x, size):
    """What depth_to_space does, of images of any size."""
    channels = x.shape[-1] // size**2
    _, height, width, _ = ops.shape(x)
    x = ops.reshape(x, (-1, height, width, size, size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height * size, width * size, channels))


UPSAMPLINGS = [pixel_shuffled]
if hasattr(ops, "depth_to_space"):  # which not every Keras has
    UPSAMPLINGS.append(ops.depth_to_space)


@pytest.mark.parametrize("upsampled", UPSAMPLINGS)
def test_channels_that_become_pixels(upsampled):
    inputs = keras.Input((6, 6, 3))
    x = bn("bn")(upsampled(conv(12, 3, "conv")(inputs), 2))
    result = folded(inputs, ops.relu(x))
    (record,) = result.folded
    assert (record.layer, record.into) == ("bn", "conv")


def test_images_of_any_size_become_channels():
    inputs = keras.Input((None, None, 3))
    x = ops.image.extract_patches(bn("bn")(inputs), 2)
    y = ops.image.extract_patches(layers.Rescaling(1 / 128, -1.0, name="images")(inputs), 3)
    result = folded(inputs, [conv(4)(x), layers.Dense(5, name="dense")(y)])
    assert where(result) == {"bn": "forward into Conv2D through ExtractPatches"}
    assert [record.layer for record in result.others] == ["images"]
    assert result.others[0].into == "dense"


def test_the_scale_of_attention_goes_into_its_projections():
    inputs = keras.Input((5, 6))
    query, key, value = ops.split(layers.Dense(12, name="projections")(inputs), 3, axis=-1)
    scores = ops.softmax(ops.matmul(query, ops.swapaxes(key, 1, 2)) / np.sqrt(4.0))
    result = folded(inputs, ops.tanh(ops.matmul(scores, value)))
    (record,) = result.others
    assert record.into == "projections"
    assert record.rule == "backward into Dense through Matmul, Split"


def test_two_normalizations_joined_along_the_batch():
    first, second = keras.Input((4,)), keras.Input((4,))
    shared = layers.Dense(3, name="shared")
    x = bn("bn")(shared(ops.concatenate([first, second], axis=0)))
    assert where(folded([first, second], ops.tanh(x))) == {"bn": "backward into Dense"}
    joined = layers.Concatenate(axis=0)([layers.Dense(3)(first), layers.Dense(3)(second)])
    result = folded([first, second], ops.tanh(bn("bn")(joined)))
    assert where(result) == {"bn": "backward into Dense through Concatenate"}


def test_constants_among_tensors_take_no_affine():
    inputs = keras.Input((6, 6, 3))
    constant = np.random.default_rng(1).normal(size=(1, 4, 4, 4))
    x = bn("added")(layers.Add()([conv(4, 3)(inputs), constant]))
    y = bn("beside")(layers.Concatenate(axis=1)([conv(4, 3)(inputs), np.repeat(constant, 2, 0)]))
    result = folded(inputs, [ops.tanh(x), ops.tanh(y)])
    assert set(why(result)) == {"added", "beside"}
    assert all("combines it with a constant" in reason for reason in why(result).values())


def test_rows_that_a_reshape_puts_into_the_batch():
    inputs = keras.Input((6, 4))
    x = layers.BatchNormalization(axis=1, name="rows")(inputs)
    result = folded(inputs, layers.Dense(3)(ops.reshape(x, (-1, 4))))
    assert "merges the batch axis with others" in why(result)["rows"]
    x = bn("columns")(inputs)
    result = folded(inputs, layers.Dense(3)(ops.reshape(x, (-1, 4))))
    assert where(result) == {"columns": "forward into Dense through Reshape"}


def test_a_pipeline_lets_pass_what_all_its_layers_let_pass():
    inputs = keras.Input((6, 6, 3))
    cropped = layers.Pipeline([layers.RandomFlip(), layers.CenterCrop(4, 5), layers.Dropout(0.5)])
    x = bn("bn")(cropped(conv(4, 3, "conv", padding="same")(inputs)))
    result = folded(inputs, ops.tanh(x))
    assert where(result) == {"bn": "backward into Conv2D through Pipeline"}
    softened = layers.Pipeline([layers.Dropout(0.5), layers.Softmax()], name="steps")
    result = folded(inputs, ops.tanh(bn("bn")(softened(conv(4, 3, "conv")(inputs)))))
    assert "'steps' (Pipeline) is not a layer that a scale and shift can pass" in why(result)["bn"]
