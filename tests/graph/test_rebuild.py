"""Reading a model and building it again, with nothing changed."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.inputs import random_inputs
from keras_bn.graph.rebuild import Changes, rebuild
from keras_bn.graph.view import view
from tests.fold.agreement import outputs
from tests.random_weights import randomize


def nested():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="d"), layers.Dropout(0.5)], name="inner"
    )
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    return keras.Model({"a": a, "b": b}, {"sum": inner(a) + inner(b), "a": inner(a)}, name="outer")


def attention():
    x = keras.Input((5, 8))
    y = layers.MultiHeadAttention(2, 4)(x, value=x, key=x)
    return keras.Model(x, layers.Bidirectional(layers.LSTM(3))(layers.LayerNormalization()(y + x)))


def masked():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 4, mask_zero=True)(tokens)
    return keras.Model(tokens, layers.GRU(3)(layers.TimeDistributed(layers.Dense(4))(x)))


def frozen():
    return keras.Sequential([keras.Input((3,)), layers.Dense(2, trainable=False), layers.Dense(2)])


@pytest.mark.parametrize("make", [nested, attention, masked, frozen])
def test_a_rebuilt_model_computes_the_same_with_variables_of_its_own(make):
    model = randomize(make())
    copy = rebuild(model, Changes())
    x = random_inputs(model)
    for a, b in zip(outputs(model, x), outputs(copy, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [weight.name for weight in copy.weights] == [weight.name for weight in model.weights]
    assert len(copy.trainable_weights) == len(model.trainable_weights)
    assert {id(w) for w in copy.weights}.isdisjoint(id(w) for w in model.weights)


def test_the_view_opens_nested_models_once_for_each_call():
    graph = view(nested())
    dense = [node for node in graph.nodes if node.path == "inner/d"]
    assert len(dense) == 3
    assert len({node.site for node in dense}) == 1


def test_the_original_stays_usable_after_a_rebuild(tmp_path):
    model = randomize(nested())
    x = random_inputs(model)
    before = outputs(model, x)
    rebuild(model, Changes())
    model.save(tmp_path / "model.keras")
    after = outputs(keras.models.load_model(tmp_path / "model.keras"), x)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_random_inputs_follow_vocabulary_dtype_and_structure():
    x = random_inputs(masked(), samples=50)
    assert x.shape == (50, 6) and x.dtype == np.int32
    assert x.min() >= 0 and x.max() == 10
    assert sorted(random_inputs(nested())) == ["a", "b"]


def test_random_inputs_find_a_length_for_unknown_axes():
    image = keras.Input((None, None, 3))
    y = layers.Conv2D(2, 3, strides=2)(layers.Conv2D(2, 20)(image))
    assert random_inputs(keras.Model(image, y)).shape == (2, 32, 32, 3)


def test_strings_are_not_made_up():
    words = keras.Input((1,), dtype="string", name="words")
    with pytest.raises(UnsupportedModelError, match="'words' takes strings"):
        random_inputs(keras.Model(words, layers.Identity()(words)))
