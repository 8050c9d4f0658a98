"""Opening up layers and models of the user's: the same numbers, the same layers, no trace left."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops, tree

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.inputs import random_inputs
from keras_bn.graph.rebuild import Changes, rebuild
from keras_bn.graph.trace import opened
from keras_bn.graph.view import view
from tests.graph.blocks import (
    IDS,
    Attention,
    ConvNorm,
    DenseBlock,
    Encoder,
    InvertedResidual,
    Patches,
    Residual,
    ResNet,
    Siamese,
    Tokens,
    Transfer,
    UNet,
    called,
    masked_functional,
    mixed_arguments,
    normal,
    own_mask,
    sequential,
)
from tests.random_weights import randomize

# Keras says so of a layer that takes no masks, in the original too.
pytestmark = pytest.mark.filterwarnings("ignore:Layer 'unmasked'.*does not support masking")


def outputs(model, inputs, **options):
    return [
        np.asarray(ops.convert_to_numpy(y), np.float64)
        for y in tree.flatten(model(inputs, **options))
    ]


def assert_same(model, other, inputs, **options):
    assert_close(outputs(model, inputs, **options), outputs(other, inputs, **options))


def assert_close(expected, computed):
    for a, b in zip(expected, computed, strict=True):
        # The same operations on the same values; a backend may add up in another order.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.max(np.abs(a)))


def paths(model):
    return [node.path for node in view(model).nodes]


def layer_paths(model):
    """Paths of the nodes that are layers: operations take their names from a counter."""
    return [node.path for node in view(model).nodes if isinstance(node.operation, keras.Layer)]


IMAGES = normal(2, 8, 8, 3)
VECTORS = normal(5, 4)
CASES = {
    "ResNet": (lambda: called(ResNet(), IMAGES), normal(3, 8, 8, 3)),
    "inverted residual": (lambda: sequential(InvertedResidual(3), InvertedResidual(3)), IMAGES),
    "dense block": (lambda: sequential(DenseBlock(), layers.Flatten()), IMAGES),
    "U-Net": (lambda: called(UNet(), IMAGES), normal(3, 8, 8, 3)),
    "Siamese": (
        lambda: called(Siamese(), {"left": IMAGES, "right": IMAGES}),
        {"left": normal(3, 8, 8, 3), "right": normal(3, 8, 8, 3)},
    ),
    "transfer": (lambda: called(Transfer(), IMAGES), normal(3, 8, 8, 3)),
    "transformer": (lambda: called(Tokens(masked=False), IDS), IDS),
    "masked transformer": (lambda: called(Tokens(), IDS), IDS),
    "mask out of a nested model": (masked_functional, IDS),
    "mask of a composite": (own_mask, IDS),
    "attention by hand": (
        lambda: sequential(Attention(), layers.LSTM(2), shape=(6, 8)),
        normal(2, 6, 8),
    ),
    "patches": (lambda: called(Patches(), IMAGES), normal(3, 8, 8, 3)),
    "several arguments": (mixed_arguments, {"a": VECTORS, "b": normal(5, 4)}),
    "nested Sequential": (
        lambda: sequential(Residual(3), keras.Sequential([ConvNorm(4), Residual(4, 2)])),
        IMAGES,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_opened_model_and_what_is_built_from_it_compute_the_same(case):
    make, inputs = CASES[case]
    model = randomize(make())
    expected = model(inputs, training=False)
    result = opened(model)
    assert result.closed == {}
    computed = result.model(inputs)
    tree.assert_same_structure(expected, computed)
    numbers = [ops.convert_to_numpy(y) for y in tree.flatten(expected)]
    assert_close(numbers, [ops.convert_to_numpy(y) for y in tree.flatten(computed)])
    assert_close(numbers, outputs(rebuild(result.model, Changes()), inputs))


@pytest.mark.parametrize("case", CASES)
def test_its_layers_are_the_callers_and_none_stays_closed(case):
    model = CASES[case][0]()
    leaves = {
        id(layer) for layer in model._flatten_layers() if type(layer).__module__.startswith("keras")
    }
    known = {id(layer) for layer in model._flatten_layers()}
    graph = view(opened(model).model)
    weighted = [n.operation for n in graph.nodes if getattr(n.operation, "weights", None)]
    assert weighted and all(id(layer) in leaves for layer in weighted)
    assert {id(w) for layer in weighted for w in layer.weights} == {id(w) for w in model.weights}
    assert not graph.closed & known


@pytest.mark.parametrize("case", CASES)
def test_the_original_is_left_as_it_was(case, tmp_path):
    model = CASES[case][0]()
    weights = model.get_weights()

    def state():
        return [
            (
                {name: id(value) for name, value in vars(layer).items()},
                [id(node) for node in (*layer._inbound_nodes, *layer._outbound_nodes)],
                [id(item) for v in vars(layer).values() if isinstance(v, list) for item in v],
            )
            for layer in model._flatten_layers()
        ]

    found = state()
    opened(model)
    assert state() == found
    np.testing.assert_equal(model.get_weights(), weights)
    model.summary(print_fn=lambda *_, **__: None)
    model.save_weights(tmp_path / "all.weights.h5")


def test_a_model_without_composites_comes_back_itself():
    inner = sequential(layers.Conv2D(2, 3), layers.BatchNormalization())
    model = sequential(inner, layers.TimeDistributed(layers.Dense(2)))
    assert opened(model).model is model


def test_paths_lead_through_the_blocks():
    model = called(ResNet(), IMAGES)
    assert layer_paths(opened(model).model) == [
        "stem/conv",
        "stem/norm",
        "block0/first/conv",
        "block0/first/norm",
        "block0/second/conv",
        "block0/second/norm",
        "block1/first/conv",
        "block1/first/norm",
        "block1/second/conv",
        "block1/second/norm",
        "block1/shortcut/conv",
        "block1/shortcut/norm",
        "pool",
        "head",
    ]


def test_sequential_models_stay_sequential():
    model = opened(CASES["nested Sequential"][0]()).model
    assert isinstance(model, keras.Sequential)
    assert isinstance(model.layers[1], keras.Sequential)


def test_a_block_called_twice_is_one_model_called_twice():
    model = opened(CASES["Siamese"][0]()).model
    convolutions = [node for node in view(model).nodes if node.path == "encoder/first/conv"]
    assert len(convolutions) == 2
    assert len({node.site for node in convolutions}) == 1


def test_calls_with_other_options_get_a_model_of_their_own():
    dense = [n for n in view(opened(mixed_arguments()).model).nodes if n.path.endswith("/dense")]
    assert len(dense) == 3
    assert len({node.site for node in dense}) == 2
    assert len({id(node.operation) for node in dense}) == 1


def test_nothing_is_warned_of_anew():
    class Unmasked(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    ids = keras.Input((6,), dtype="int32")
    model = keras.Model(ids, Unmasked()(layers.Embedding(20, 8, mask_zero=True)(ids)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(model).closed == {}


# --- names --------------------------------------------------------------------------------------


class Namesakes(layers.Layer):
    """Two layers of one name, and one with the name of an operation that the call makes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = layers.Dense(4, name="same"), layers.Dense(4, name="same")
        self.norm = layers.BatchNormalization(name="add")

    def call(self, x):
        return self.first(self.norm(x) + self.second(x)) + self.second(self.first(x))


def test_layers_of_one_name_in_one_block_and_blocks_of_one_name_stay_apart():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [Namesakes(name="block"), Namesakes(name="block")]
            self.dense = layers.Dense(2, name="block")

        def call(self, x):
            return self.dense(self.blocks[1](self.blocks[0](x)))

    model = randomize(called(Net(), VECTORS))
    result = opened(model)
    assert result.closed == {}
    assert_same(model, result.model, VECTORS)
    assert_same(model, rebuild(result.model, Changes()), VECTORS)
    assert len(layer_paths(result.model)) == 2 * 5 + 1
    assert [layer.name for layer in model._flatten_layers()].count("block") == 3


def test_outputs_are_known_by_the_names_they_had():
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(20, 8, mask_zero=True)(ids)
    y = Encoder(name="last")(Encoder(name="before")(x))
    model = randomize(keras.Model({"ids": ids}, {"y": y, "x": layers.ReLU(name="relu")(x)}))
    result = opened(model)
    assert result.model.output_names == model.output_names == ["relu", "last"]
    assert "before_mask/identity" in paths(result.model)
    assert_same(model, result.model, {"ids": IDS})


# --- training -----------------------------------------------------------------------------------


def test_training_of_a_block_in_a_functional_model_reaches_its_layers():
    image = keras.Input((8, 8, 3))
    y = ConvNorm(4, name="on")(image, training=True)
    y = ConvNorm(4, name="off")(y, training=False)
    model = opened(keras.Model(image, y)).model
    flags = {node.path: node.training for node in view(model).nodes}
    assert flags["on/norm"] is True
    assert not flags["off/norm"]


def test_training_of_what_stays_closed_survives():
    image = keras.Input((8, 8, 3))
    plain = keras.Sequential([layers.BatchNormalization(name="inner")], name="plain")
    x = plain(image, training=True)
    model = opened(keras.Model(image, ConvNorm(4)(Scaled(name="scaled")(x, training=True)))).model
    flags = {node.path: node.training for node in view(model).nodes}
    assert flags["plain/inner"] is True
    assert flags["scaled"] is True


class Unfreezable(keras.Model):
    """It normalises every batch anew, whatever it is told."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4, name="dense")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x):
        return self.norm(self.dense(x), training=True)


def test_training_said_in_code_holds_against_what_the_model_is_told(tmp_path):
    model = randomize(called(Unfreezable(), VECTORS))
    result = opened(model)
    assert_same(model, result.model, VECTORS, training=False)
    assert paths(result.model) == ["dense", "norm"]
    norm = view(result.model).nodes[1].operation
    assert "training=True" in result.closed[id(norm)]
    built = rebuild(result.model, Changes())
    built.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(model, loaded, VECTORS, training=False)


def test_a_block_whose_training_is_said_in_code_stays_closed():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.block, self.after = ConvNorm(4, name="block"), ConvNorm(4, name="after")

        def call(self, x):
            return self.block(self.after(x), training=True)

    model = randomize(called(Net(), IMAGES))
    result = opened(model)
    assert "training=True" in result.closed[id(model.block)]
    assert layer_paths(result.model) == ["after/conv", "after/norm", "block"]
    assert_same(model, result.model, IMAGES, training=False)


def test_the_branch_for_inference_is_taken():
    model = sequential(InvertedResidual(3, name="block"))
    assert not any("dropout" in path for path in paths(opened(model).model))


# --- masks and dtypes ---------------------------------------------------------------------------


def change_by_other_padding(model):
    """How far the outputs move when the embedding of the padding does."""
    (table,) = [layer for layer in model._flatten_layers() if isinstance(layer, layers.Embedding)]
    before = outputs(model, IDS)
    rows = table.get_weights()[0]
    rows[0] += 5.0
    table.set_weights([rows])
    return max(np.max(np.abs(a - b)) for a, b in zip(before, outputs(model, IDS), strict=True))


@pytest.mark.parametrize(
    "case", ["masked transformer", "mask out of a nested model", "mask of a composite"]
)
def test_padding_has_no_say_in_the_opened_model(case):
    # Without a mask, as in CASES["transformer"], the outputs move by 1.
    # Masked values are multiplied by zero, or by exp(-1e9).
    assert change_by_other_padding(opened(randomize(CASES[case][0]())).model) < 1e-6


FLOAT64 = pytest.param(
    "float64",
    marks=pytest.mark.backend("tensorflow", "torch", because="JAX has to be told to compute in it"),
)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", FLOAT64])
def test_casts_at_the_boundary_of_a_block_stay(policy):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="plain")(image)
    block = Residual(4, name="block")
    for layer in block._flatten_layers():
        layer.dtype_policy = policy
    model = randomize(keras.Model(image, layers.Flatten(dtype="float32")(block(x))))
    result = opened(model)
    assert result.closed == {}
    for a, b in zip(outputs(model, IMAGES), outputs(result.model, IMAGES), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what stays closed --------------------------------------------------------------------------


class Scaled(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(4)
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

    def call(self, x):
        return self.dense(x) * self.scale


class ScaledBefore(Scaled):
    def call(self, x):
        return self.dense(x) * (1.0 + self.scale)


class Noisy(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(4)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return self.dense(x) + keras.random.normal((4,), seed=self.seed_generator)


class Counting(Scaled):
    def call(self, x):
        self.scale.assign(self.scale * 2.0)
        return self.dense(x)


class WithLoss(Scaled):
    def call(self, x):
        y = self.dense(x)
        self.add_loss(ops.mean(y))
        return y


class Positions(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.table, self.dense = layers.Embedding(4, 4, name="table"), layers.Dense(4)

    def call(self, x):
        return self.dense(x) + self.table(ops.arange(1))


class OwnCall(Scaled):
    def __call__(self, x, **options):
        return super().__call__(x, **options)

    def call(self, x):
        return self.dense(x)


class Squashed(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(3, name="dense")

    def call(self, x):
        return self.dense(ops.tanh(x))


class Merging(layers.Layer):
    """Windows are put together again: -1 is not what it was before."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(2)

    def call(self, x):
        batch = ops.shape(x)[0]
        windows = self.dense(ops.reshape(x, (-1, 1, 2)))
        whole = ops.softmax(ops.reshape(windows, (batch, -1, 2)), axis=1)
        return ops.reshape(whole, (batch, 4))


CLOSED = {
    Scaled: "reads the variable 'block/scale'",
    ScaledBefore: "reads the variable 'block/scale'",
    Noisy: "draws random numbers",
    Counting: "assigns to 'block/scale'",
    WithLoss: r"stops at `self.add_loss\(ops.mean\(y\)\)` \(test_trace.py, line \d+\): a loss",
    Positions: "reads the variable '.*block/table/embeddings'",
    OwnCall: "overrides __call__",
    Merging: "the length of an axis that is not known before it runs",
}


@pytest.mark.parametrize("block", CLOSED, ids=lambda block: block.__name__)
def test_a_block_that_does_more_than_call_layers_stays_closed(block):
    layer = block(name="block")
    model = keras.Sequential([keras.Input((4,)), layer, Squashed(name="other")], name="sequential")
    randomize(model)
    weights = model.get_weights()
    result = opened(model)
    assert list(result.closed) == [id(layer)]
    assert re.search(CLOSED[block], result.closed[id(layer)]), result.closed[id(layer)]
    assert layer_paths(result.model) == ["block", "other/dense"]
    np.testing.assert_equal(model.get_weights(), weights)
    if block is not Noisy:
        assert_same(model, result.model, VECTORS)


@pytest.mark.backend("tensorflow", because="it calls TensorFlow")
def test_an_operation_of_the_backend_is_named():
    import tensorflow as tf

    class Raw(Squashed):
        def call(self, x):
            return tf.nn.relu(self.dense(x))

    layer = Raw(name="block")
    reason = opened(keras.Sequential([keras.Input((4,)), layer])).closed[id(layer)]
    assert "stops at `tf.nn.relu(self.dense(x))` (test_trace.py, line " in reason


def test_a_condition_on_values_is_named():
    class Undecided(Squashed):
        def compute_output_shape(self, shape):
            return (*shape[:-1], 3)

        def call(self, x):
            return self.dense(x) if ops.max(x) > 0 else x

    layer = Undecided(name="block")
    layer.dense.build((None, 4))
    layer.build((None, 4))
    reason = opened(keras.Sequential([keras.Input((4,)), layer])).closed[id(layer)]
    assert "stops at `ops.max(x) > 0`" in reason
    assert "a condition in Python on the value of a tensor" in reason


def test_what_the_code_notes_down_while_traced_is_forgotten():
    class Keeping(Squashed):
        def __init__(self, **options):
            super().__init__(**options)
            self.seen, self.table = [], {}

        def call(self, x):
            self.last = super().call(x)
            self.seen.append(self.last)
            self.table["last"] = self.last
            return self.last

    layer = Keeping(name="block")
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.seen, layer.table, layer.last = [], {}, None
    assert opened(model).closed == {}
    assert (layer.seen, layer.table, layer.last) == ([], {}, None)


def test_losses_of_the_last_call_and_records_of_calls_stay():
    regularized = layers.Dense(4, activity_regularizer="l2")
    block = Squashed(name="block")
    model = keras.Sequential([keras.Input((4,)), regularized, block])
    model(VECTORS)
    (loss,) = model.losses
    opened(model)
    assert model.losses[0] is loss
    with pytest.raises(AttributeError, match="output"):
        _ = block.dense.output


# --- subclassed models --------------------------------------------------------------------------


class Structured(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.table = layers.Dense(4), layers.Embedding(11, 4)

    def call(self, inputs):
        a = self.dense(inputs["x"])
        return {"a": a, "b": [self.table(inputs["ids"]), (a + inputs["pair"][0],)]}


def test_inputs_of_a_subclassed_model_are_what_it_was_called_on():
    inputs = {"x": VECTORS, "ids": np.ones((5, 7), "int32"), "pair": [VECTORS, VECTORS]}
    model = called(Structured(), inputs)
    result = opened(model).model
    found = {name: tree.flatten(tensors) for name, tensors in result.input.items()}
    assert {k: [(t.name, t.shape, t.dtype) for t in v] for k, v in found.items()} == {
        "x": [("x", (None, 4), "float32")],
        "ids": [("ids", (None, 7), "int32")],  # an Embedding reads it
        "pair": [("pair_0", (None, 4), "float32"), ("pair_1", (None, 4), "float32")],
    }
    made_up = random_inputs(model, samples=3)
    assert made_up["ids"].dtype == np.int32 and made_up["ids"].max() <= 10
    assert_same(model, result, made_up)
    tree.assert_same_structure(model(made_up), result(made_up))


def test_a_single_input_is_named_for_the_argument_of_call():
    model = called(ResNet(name="net"), IMAGES)
    result = opened(model).model
    assert (result.name, result.input.name, result.input.shape) == (
        "net",
        "inputs",
        (None, 8, 8, 3),
    )
    assert random_inputs(model, samples=5).shape == (5, 8, 8, 3)


class TwoArguments(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, left, right):
        return self.dense(left - right)


class BuiltForTwo(TwoArguments):
    def build(self, left_shape, right_shape):
        self.dense.build(left_shape)


def test_several_arguments_become_a_dictionary():
    model = BuiltForTwo()
    before = model(VECTORS, VECTORS[::-1])
    after = opened(model).model({"left": VECTORS, "right": VECTORS[::-1]})
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (before, after)))


@keras.saving.register_keras_serializable("tests")
class Saved(keras.Model):
    def __init__(self, width=4, **options):
        super().__init__(**options)
        self.width = width
        self.conv = layers.Conv2D(width, 3)
        self.norm = layers.BatchNormalization()

    def call(self, inputs, training=None):
        return {"y": self.norm(self.conv(inputs["image"]), training=training)}

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_loaded_model_remembers_its_inputs(tmp_path):
    model = randomize(called(Saved(), {"image": IMAGES}))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    result = opened(loaded).model
    assert result.input["image"].shape == (None, 8, 8, 3)
    assert_same(model, result, {"image": IMAGES})


def test_a_model_in_mixed_precision_takes_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = randomize(called(ResNet(), IMAGES))
    finally:
        keras.config.set_dtype_policy("float32")
    result = opened(model).model
    assert result.input.dtype == "float32"
    for a, b in zip(outputs(model, IMAGES), outputs(result, IMAGES), strict=True):
        np.testing.assert_array_equal(a, b)


class Doubled(keras.Model):
    """A Functional model with a call of its own."""

    def __init__(self):
        image = keras.Input((8, 8, 3), name="image")
        super().__init__({"image": image}, ConvNorm(4, name="block")(image))

    def call(self, inputs, **options):
        return super().call({"image": 2.0 * inputs["image"]}, **options)


def test_a_functional_model_with_a_call_of_its_own():
    model = randomize(Doubled())
    result = opened(model).model
    assert list(result.input) == ["image"]
    assert_same(model, result, {"image": IMAGES})


class Searching(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, x):
        y = self.dense(x)
        while ops.max(y) > 1.0:
            y = y / 2.0
        return y


class Averaging(Searching):
    def call(self, x):
        return self.dense(x) - np.asarray(x)[0, 0]


class Tempered(Searching):
    def __init__(self):
        super().__init__()
        self.temperature = self.add_weight(name="temperature", initializer="ones")

    def call(self, x):
        return self.dense(x) / self.temperature


class Incomplete(Searching):
    def call(self, x):
        return {"y": self.dense(x), "aux": None}


REFUSED = {
    Searching: r"stops at `ops.max\(y\) > 1.0` \(test_trace.py, line \d+\): a condition",
    Averaging: r"stops at `np.asarray\(x\)` .*: the value of a tensor is needed",
    Tempered: "reads the variable 'tempered.*/temperature'",
    Incomplete: "returns NoneType beside tensors",
}


@pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state:UserWarning")
@pytest.mark.filterwarnings("ignore:`build.*was called on layer:UserWarning")
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_subclassed_model_that_cannot_be_traced_says_what_stopped_it(kind):
    model = called(kind(), VECTORS)
    with pytest.raises(UnsupportedModelError, match=REFUSED[kind]):
        opened(model)
    model(VECTORS)
    assert model.dense._inbound_nodes == []


def test_what_has_no_inputs_yet_says_what_to_do():
    with pytest.raises(UnsupportedModelError, match="call it once on data"):
        opened(ResNet())
    with pytest.raises(UnsupportedModelError, match=r"add a keras\.Input"):
        opened(keras.Sequential([ConvNorm(3)]))
    with pytest.raises(UnsupportedModelError, match=r"expected a keras\.Model, received"):
        opened("model.keras")
    model = TwoArguments()
    model(VECTORS, VECTORS)
    with pytest.raises(UnsupportedModelError, match=r"takes left, right.*define build\(left_shape"):
        opened(model)
