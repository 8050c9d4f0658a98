"""Reading a model and building it again, with nothing changed."""

from operator import attrgetter

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


X = np.random.default_rng(3).normal(size=(5, 4)).astype("float32")


def sites(model, *names):
    return frozenset(node.site for node in view(model).nodes if node.operation.name in names)


def operation(model, name):
    """The layer or operation of that name, at any depth."""
    return next(node.operation for node in view(model).nodes if node.operation.name == name)


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: x * 2.0,
        lambda x: 2.0 * x,
        lambda x: x / 3.0,
        lambda x: 1.0 - x,
        lambda x: keras.ops.add(np.ones(4, "float32"), x),
        lambda x: keras.ops.multiply(x1=np.full((1, 4), 2.0, "float32"), x2=x),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_a_removed_operation_hands_its_tensor_on_wherever_it_stands(operate, last):
    x = keras.Input((4,))
    y = operate(x)
    name = y._keras_history.operation.name
    model = keras.Model(x, y if last else keras.ops.exp(y))
    new = rebuild(model, Changes(removed=sites(model, name)))
    np.testing.assert_array_equal(
        outputs(new, X)[0], outputs(keras.Model(x, x if last else keras.ops.exp(x)), X)[0]
    )
    assert new.output_names == model.output_names


SCALE = np.array([2.0, -3.0, 0.5, 1.0])
SHIFT = np.array([0.1, 0.2, -0.3, 4.0])


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")

    def call(self, x):
        return x * self.scale + self.shift


def replaced(*operations):
    """Changes that put a `Scale` of known weights in the place of `operations`."""
    return Changes(
        replaced=dict.fromkeys(map(id, operations), Scale),
        weights=dict.fromkeys(map(id, operations), lambda: {"scale": SCALE, "shift": SHIFT}),
    )


def test_a_layer_stands_in_for_an_operation_under_its_name():
    x = keras.Input((4,))
    y = 3.0 * layers.Dense(4, name="d")(x)
    name = y._keras_history.operation.name
    model = randomize(keras.Model(x, [y, layers.Dense(2)(y)]))
    new = rebuild(model, replaced(operation(model, name)))
    d = X @ model.get_layer("d").kernel.numpy() + model.get_layer("d").bias.numpy()
    # One multiplication and one addition in float32, after a sum of four products.
    np.testing.assert_allclose(outputs(new, X)[0], d * SCALE + SHIFT, rtol=1e-5, atol=1e-5)
    assert isinstance(new.get_layer(name), Scale)
    assert new.output_names == model.output_names


def test_a_layer_stands_in_for_another_at_every_call_and_inside_other_models():
    inner = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="bn")], name="in")
    x = keras.Input((4,))
    y = inner(x)
    model = randomize(keras.Model(x, [y, inner(keras.ops.exp(y)), inner.layers[0](x)]))
    new = rebuild(model, replaced(inner.layers[0]))
    once = X * SCALE + SHIFT
    expected = [once, np.exp(once) * SCALE + SHIFT, once]
    for computed, wanted in zip(outputs(new, X), expected, strict=True):
        np.testing.assert_allclose(computed, wanted, rtol=1e-5, atol=1e-6)  # a few roundings
    assert len(new.weights) == 2
    assert new.get_layer("in").layers[0].name == "bn"


def test_the_layer_that_stands_in_gets_the_first_tensors_and_no_other_argument():
    x = keras.Input((4,))
    attended = layers.MultiHeadAttention(1, 2, name="mha")(x[:, None], value=x[:, None])
    added = layers.Add(name="sum")([x, attended[:, 0]])
    model = keras.Model(x, [attended, added])
    new = rebuild(
        model,
        Changes(
            replaced={
                id(operation(model, "mha")): layers.Identity,
                id(operation(model, "sum")): layers.Concatenate,
            }
        ),
    )
    computed = outputs(new, X)
    np.testing.assert_array_equal(computed[0], X[:, None])
    np.testing.assert_array_equal(computed[1], np.concatenate([X, X], axis=1))


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_model_stays_callable_whose_only_layer_goes(functional, change):
    x, bn = keras.Input((4,)), layers.BatchNormalization(name="bn")
    model = keras.Model(x, bn(x)) if functional else keras.Sequential([x, bn])
    if change == "removed":
        new, expected = rebuild(model, Changes(removed=sites(model, "bn"))), X
    else:
        new, expected = rebuild(model, replaced(bn)), X * SCALE + SHIFT
    np.testing.assert_allclose(outputs(new, X)[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_changed_weights_are_named_by_the_path_to_them_and_the_others_are_copied():
    tokens = keras.Input((6, 4))
    x = layers.TimeDistributed(layers.Dense(4, use_bias=False), name="td")(tokens)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="bi")(x)
    x = layers.MultiHeadAttention(2, 3, name="mha")(x, x)
    model = randomize(keras.Model(tokens, x))
    td, bi, mha = (operation(model, name) for name in ("td", "bi", "mha"))
    rng = np.random.default_rng(5)
    values = {
        td: {"layer.kernel": rng.normal(size=(4, 4)), "layer.bias": rng.normal(size=4)},
        bi: {"backward_layer.cell.recurrent_kernel": rng.normal(size=(3, 12))},
        mha: {
            "_query_dense.kernel": rng.normal(size=(6, 2, 3)),
            "_output_dense.bias": SCALE[[0] * 6],
        },
    }
    inner = keras.layers.serialize(td.layer)
    inner["config"]["use_bias"] = True
    changes = Changes(
        weights={id(layer): lambda layer=layer: values[layer] for layer in values},
        config={id(td): {"layer": inner}},
    )
    new = rebuild(model, changes)
    given = {
        f"{layer.name}.{path}": value for layer in values for path, value in values[layer].items()
    }
    paths = [
        ("td", "layer.kernel"),
        ("td", "layer.bias"),
        *(
            ("bi", f"{direction}_layer.cell.{weight}")
            for direction in ("forward", "backward")
            for weight in ("kernel", "recurrent_kernel", "bias")
        ),
        *(
            ("mha", f"_{part}_dense.{weight}")
            for part in ("query", "key", "value", "output")
            for weight in ("kernel", "bias")
        ),
    ]
    assert len(new.weights) == len(paths)
    for name, path in paths:
        computed = attrgetter(path)(new.get_layer(name)).numpy()
        if f"{name}.{path}" in given:
            np.testing.assert_array_equal(computed, given[f"{name}.{path}"].astype("float32"))
        else:
            np.testing.assert_array_equal(computed, attrgetter(path)(model.get_layer(name)).numpy())


class Twice(keras.layers.Layer):
    """Weights of one name, one of them in a list, and one more on demand, which comes first."""

    def __init__(self, use_bias=False, **kwargs):
        super().__init__(**kwargs)
        self.use_bias = use_bias

    def build(self, shape):
        if self.use_bias:
            self.bias = self.add_weight(shape=(4,), name="w")
        self.scales = [self.add_weight(shape=(4,), name="w") for _ in range(2)]
        self.add_weight(shape=(4,), name="w")

    def call(self, x):
        return x * self.scales[0] * self.scales[1]

    def get_config(self):
        return {**super().get_config(), "use_bias": self.use_bias}


def test_weights_of_one_name_find_their_twins_beside_one_that_is_gained():
    model = keras.Sequential([keras.Input((4,)), Twice(name="twice")])
    model.set_weights([SCALE, SHIFT, SCALE + SHIFT])
    layer = model.layers[0]
    changes = Changes(
        weights={id(layer): lambda: {"bias": SCALE - SHIFT}}, config={id(layer): {"use_bias": True}}
    )
    weights = rebuild(model, changes).get_weights()
    np.testing.assert_array_equal(
        weights, np.array([SCALE - SHIFT, SCALE, SHIFT, SCALE + SHIFT], "float32")
    )


def test_a_weight_that_a_layer_gains_has_to_be_given():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, use_bias=False, name="d")])
    layer = model.layers[0]
    changes = Changes(
        weights={id(layer): lambda: {"kernel": np.ones((4, 4))}},
        config={id(layer): {"use_bias": True}},
    )
    with pytest.raises(UnsupportedModelError, match=r"'d' .* has a weight '.*/bias' of shape"):
        rebuild(model, changes)
