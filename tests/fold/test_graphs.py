"""Folding in graphs: branches, nesting, sharing, several inputs and outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from onnx.reference import ReferenceEvaluator

import keras_bn
from keras_bn.errors import UnsupportedModelError
from keras_bn.fold.plan import plan
from keras_bn.graph.view import view
from tests.fold.agreement import assert_agree, normalizations
from tests.random_weights import randomize


def conv(name, filters=4, kernel=3, **options):
    options.setdefault("padding", "same")
    return layers.Conv2D(filters, kernel, name=name, **options)


def bn(name="bn", **options):
    return layers.BatchNormalization(name=name, **options)


def fold(model, **options):
    """Fold with random weights and check that the result agrees with the original."""
    randomize(model)
    result = keras_bn.fold(model, **options)
    assert_agree(model, result.model)
    # The figure that the result states is the same kind of difference, on other inputs.
    assert 0 <= result.max_abs_error < 1e-4
    return result


def reasons(result):
    return {record.layer: record.reason for record in result.kept}


def rules(result):
    return {record.layer: (record.into, record.rule) for record in result.folded}


def test_concatenated_branches_each_take_their_part():
    image = keras.Input((6, 6, 3))
    left, right = conv("left", 4)(image), conv("right", 2, 1)(image)
    y = layers.ReLU()(bn()(layers.Concatenate()([left, right])))
    result = fold(keras.Model(image, y))
    assert rules(result) == {"bn": ("left, right", "backward into Conv2D through Concatenate")}
    assert normalizations(result.model) == []


def test_concatenation_along_another_axis_hands_the_affine_on_whole():
    image = keras.Input((6, 6, 3))
    parts = [conv("top")(image), conv("bottom")(image)]
    result = fold(keras.Model(image, bn()(layers.Concatenate(axis=1)(parts))))
    assert normalizations(result.model) == []


def test_a_branch_that_refuses_keeps_the_whole():
    image = keras.Input((6, 6, 3))
    parts = [conv("linear")(image), conv("rectified", activation="relu")(image)]
    result = fold(keras.Model(image, bn()(layers.Concatenate()(parts))))
    assert "the activation relu inside 'rectified'" in reasons(result)["bn"]


def test_one_normalized_branch_moves_forward_through_a_concatenation():
    image = keras.Input((6, 6, 3))
    joined = layers.Concatenate()([image, bn()(layers.ReLU()(conv("first")(image)))])
    result = fold(keras.Model(image, conv("last", padding="valid")(joined)))
    assert rules(result) == {"bn": ("last", "forward into Conv2D through Concatenate")}


def test_every_reader_absorbs_when_moving_forward():
    image = keras.Input((6, 6, 3))
    x = bn()(image)
    y = [conv("a", padding="valid")(x), layers.Dense(2, name="b")(x)]
    result = fold(keras.Model(image, y))
    assert sorted(rules(result)["bn"][0].split(", ")) == ["a", "b"]
    assert normalizations(result.model) == []


def test_a_second_reader_of_the_convolution_stops_it():
    image = keras.Input((6, 6, 3))
    x = conv("shared_output")(image)
    y = layers.Add(name="add")([layers.ReLU()(bn()(x)), x])
    result = fold(keras.Model(image, y))
    assert "'shared_output' also feeds 'add'" in reasons(result)["bn"]


def test_the_models_output_counts_as_a_reader():
    image = keras.Input((6, 6, 3))
    x = conv("both")(image)
    result = fold(keras.Model(image, [x, layers.ReLU()(bn()(x))]))
    assert "the output of 'both' is also an output of the model" in reasons(result)["bn"]


def test_folding_one_normalization_clears_the_way_for_another():
    image = keras.Input((6, 6, 3))
    x = layers.ReLU()(conv("c", padding="valid")(image))
    left = conv("l", padding="valid")(bn("bn_left")(x))
    right = conv("r", padding="valid")(bn("bn_right")(x))
    result = fold(keras.Model(image, layers.Add()([left, right])))
    assert set(rules(result)) == {"bn_left", "bn_right"}


def test_nested_models_fold_inside_and_across_their_boundary():
    inner_input = keras.Input((6, 6, 4))
    inner = keras.Model(
        inner_input,
        conv("last")(layers.ReLU()(bn("inside")(conv("first")(inner_input)))),
        name="inner",
    )
    image = keras.Input((6, 6, 3))
    y = layers.ReLU()(bn("outside")(inner(conv("stem")(image))))
    result = fold(keras.Model(image, y, name="outer"))
    assert rules(result) == {
        "inner/inside": ("inner/first", "backward into Conv2D"),
        "outside": ("inner/last", "backward into Conv2D"),
    }
    inside = result.model.get_layer("inner").layers
    assert [type(layer).__name__ for layer in inside] == ["InputLayer", "Conv2D", "ReLU", "Conv2D"]
    assert result.model.name == "outer"


def test_nested_sequential_models_stay_sequential():
    block = keras.Sequential([conv("c"), bn("b"), layers.ReLU()], name="block")
    model = keras.Sequential([keras.Input((6, 6, 3)), block, layers.Flatten(), layers.Dense(2)])
    result = fold(model)
    assert isinstance(result.model, keras.Sequential)
    assert isinstance(result.model.get_layer("block"), keras.Sequential)
    assert rules(result) == {"block/b": ("block/c", "backward into Conv2D")}


def test_a_sequential_model_of_nothing_but_a_normalization_stays_callable():
    only = keras.Sequential([bn()], name="only")
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="dense"), only])
    result = fold(model)
    assert rules(result) == {"only/bn": ("dense", "backward into Dense")}


def test_a_nested_model_called_twice_folds_once_for_both():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d"), bn("b")], name="twin")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    result = fold(keras.Model([a, b], layers.Concatenate()([inner(a), inner(b)])))
    assert rules(result) == {"twin/b": ("twin/d", "backward into Dense")}
    assert len({id(layer) for layer in result.model.layers if layer.name == "twin"}) == 1


def test_a_shared_block_folds_when_its_calls_agree():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    dense, norm = layers.Dense(5, name="dense"), bn()
    result = fold(keras.Model([a, b], [norm(dense(a)), norm(dense(b))]))
    assert rules(result) == {"bn": ("dense", "backward into Dense")}
    assert len([layer for layer in result.model.layers if layer.name == "dense"]) == 1


def test_equal_normalizations_at_the_calls_of_a_shared_layer_go_together():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    dense = layers.Dense(5, name="dense")
    model = randomize(keras.Model([a, b], [bn("one")(dense(a)), bn("two")(dense(b))]))
    model.get_layer("two").set_weights(model.get_layer("one").get_weights())
    result = keras_bn.fold(model)
    assert set(rules(result)) == {"one", "two"}
    assert_agree(model, result.model)


def test_a_shared_layer_with_different_normalizations_is_refused():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    dense = layers.Dense(5, name="dense")
    result = fold(keras.Model([a, b], [bn("one")(dense(a)), bn("two")(dense(b))]))
    assert set(reasons(result)) == {"one", "two"}
    assert "its calls meet different normalizations" in reasons(result)["one"]


def test_a_shared_layer_with_one_bare_call_is_refused():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    dense = layers.Dense(5, name="dense")
    result = fold(keras.Model([a, b], [bn()(dense(a)), dense(b)]))
    assert "'dense' is shared by 2 calls" in reasons(result)["bn"]


def test_a_shared_normalization_leaves_where_it_can_and_stays_where_it_must():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    norm = bn()
    outputs = [norm(layers.Dense(6, name="dense")(a)), norm(layers.ReLU()(b))]
    result = fold(keras.Model([a, b], outputs))
    assert "(folded at 1 of its 2 calls)" in reasons(result)["bn"]
    assert rules(result) == {}


def test_names_and_structures_of_inputs_and_outputs_survive():
    inputs = {"image": keras.Input((6, 6, 3), name="image"), "flag": keras.Input((4,), name="flag")}
    image = layers.GlobalAveragePooling2D()(bn()(conv("c")(inputs["image"])))
    joined = layers.Concatenate()([image, inputs["flag"]])
    outputs = {"score": layers.Dense(1, name="score")(joined), "features": [joined, image]}
    model = keras.Model(inputs, outputs)
    result = fold(model)
    assert normalizations(result.model) == []
    x = {"image": np.ones((2, 6, 6, 3), "float32"), "flag": np.ones((2, 4), "float32")}
    before, after = model(x), result.model(x)
    keras.tree.assert_same_structure(before, after)
    assert sorted(after) == ["features", "score"]
    assert [t.name for t in result.model.inputs] == [t.name for t in model.inputs]


def test_python_operators_between_layers_survive():
    image = keras.Input((6, 6, 3))
    x = bn()(conv("c")(image))
    y = keras.ops.mean(x[:, 1:-1, :, ::2] * 2.0 + 1.0, axis=1)
    result = fold(keras.Model(image, y))
    assert normalizations(result.model) == []


def test_training_true_is_refused_also_around_a_nested_model():
    image = keras.Input((6, 6, 3))
    model = keras.Model(image, bn()(conv("c")(image), training=True))
    assert "training=True" in reasons(keras_bn.fold(randomize(model)))["bn"]
    inner = keras.Sequential([keras.Input((6, 6, 3)), conv("c"), bn("b")], name="inner")
    model = keras.Model(image, inner(image, training=True))
    assert "training=True" in reasons(keras_bn.fold(randomize(model)))["inner/b"]


def test_training_false_folds():
    image = keras.Input((6, 6, 3))
    result = fold(keras.Model(image, bn()(conv("c")(image), training=False)))
    assert normalizations(result.model) == []


def test_keep_leaves_named_layers_alone():
    image = keras.Input((6, 6, 3))
    inner = keras.Sequential([keras.Input((6, 6, 4)), conv("c"), bn("b")], name="inner")
    model = keras.Model(image, inner(bn("outer")(conv("stem")(image))))
    result = fold(model, keep=["inner/b"])
    assert reasons(result) == {"inner/b": "asked to be kept"}
    assert set(rules(result)) == {"outer"}
    with pytest.raises(ValueError, match=r"'nothing'.*it has inner/b, outer"):
        keras_bn.fold(model, keep=["nothing"])
    with pytest.raises(TypeError, match="collection of layer names"):
        keras_bn.fold(model, keep="outer")


@pytest.mark.parametrize("name", ["gamma", "beta", "moving_mean", "moving_variance"])
def test_statistics_that_are_not_finite_are_refused(name):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), bn()])
    variable = getattr(model.get_layer("bn"), name)
    variable.assign(np.full(5, np.nan, "float32"))
    with pytest.raises(UnsupportedModelError, match=f"{name} of 'bn' holds NaN"):
        keras_bn.fold(model)


def test_a_negative_variance_is_refused():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), bn()])
    model.get_layer("bn").moving_variance.assign(np.full(5, -1.0, "float32"))
    with pytest.raises(UnsupportedModelError, match="not positive"):
        keras_bn.fold(model)


@pytest.mark.parametrize("gamma", [0.0, 1e-20, -1e-6, 1e6])
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_extreme_scales_stay_correct(gamma, direction):
    stack = [layers.Dense(5), bn()] if direction == "backward" else [bn(), layers.Dense(5)]
    model = randomize(keras.Sequential([keras.Input((6,)), *stack]))
    values = np.array(model.get_layer("bn").gamma.numpy())
    values[2] = gamma
    model.get_layer("bn").gamma.assign(values)
    result = keras_bn.fold(model)
    assert normalizations(result.model) == []
    assert_agree(model, result.model)


def test_quantized_and_lora_layers_are_refused():
    model = randomize(keras.Sequential([keras.Input((6,)), layers.Dense(5, name="d"), bn()]))
    model.get_layer("d").enable_lora(2)
    assert "LoRA" in reasons(keras_bn.fold(model))["bn"]
    model = randomize(keras.Sequential([keras.Input((6,)), layers.Dense(5, name="d"), bn()]))
    model.get_layer("d").quantize("int8")
    assert "quantized to int8" in reasons(keras_bn.fold(model))["bn"]


@keras.saving.register_keras_serializable("tests")
class Doubling(layers.Conv2D):
    def call(self, inputs):
        return 2.0 * super().call(inputs)


def test_a_subclass_may_compute_something_else():
    model = keras.Sequential([keras.Input((6, 6, 3)), Doubling(4, 3, name="doubling"), bn()])
    assert "'doubling' (Doubling) is not a layer" in reasons(fold(model))["bn"]


class Block(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.norm = conv("conv"), bn("norm")

    def call(self, inputs):
        return self.norm(self.conv(inputs))


class Scaled(Block):
    def build(self, input_shape):
        self.factor = self.add_weight(shape=(4,), name="factor")

    def call(self, inputs):
        return super().call(inputs) * self.factor


def test_what_a_layer_of_the_users_calls_folds():
    model = keras.Sequential([keras.Input((6, 6, 3)), Block(name="block"), layers.Flatten()])
    result = fold(model)
    assert rules(result) == {"block/norm": ("block/conv", "backward into Conv2D")}
    assert normalizations(result.model) == []


def test_normalizations_inside_closed_layers_are_accounted_for():
    model = keras.Sequential([keras.Input((6, 6, 3)), Scaled(name="scaled"), layers.Flatten()])
    (reason,) = reasons(fold(model)).values()
    assert "it is inside 'scaled' (Scaled), which" in reason
    assert "factor" in reason


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_models_without_a_graph_are_refused():
    with pytest.raises(UnsupportedModelError, match="Subclassed overrides call"):
        keras_bn.fold(Subclassed())
    with pytest.raises(UnsupportedModelError, match="no input shape yet"):
        keras_bn.fold(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(UnsupportedModelError, match=r"received .*Dense"):
        keras_bn.fold(layers.Dense(2))


def test_a_layer_that_cannot_be_made_again_is_named():
    class Needy(layers.Layer):
        def __init__(self, secret):
            super().__init__(name="needy")
            self.secret = secret

        def call(self, inputs):
            return inputs

        def get_config(self):
            return {"name": "needy"}

    model = keras.Sequential([keras.Input((6,)), Needy(3), layers.Dense(5), bn()])
    with pytest.raises(UnsupportedModelError, match=r"layer 'needy' \(Needy\) cannot be made anew"):
        keras_bn.fold(model)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
def test_dtype_policies_survive(policy):
    stack = [conv("c", dtype=policy), bn(dtype=policy), layers.ReLU(dtype=policy)]
    model = randomize(keras.Sequential([keras.Input((6, 6, 3)), *stack]))
    result = keras_bn.fold(model)
    folded = result.model.get_layer("c")
    assert normalizations(result.model) == []
    assert folded.dtype_policy.name == policy
    assert folded.kernel.dtype == model.get_layer("c").kernel.dtype
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    a, b = (np.asarray(m(x), np.float64) for m in (model, result.model))
    # Rounding to the compute dtype: 2⁻¹¹ for float16, 2⁻⁸ for bfloat16, a few operations deep.
    tolerance = {"mixed_bfloat16": 4e-2, "float64": 1e-12}.get(policy, 4e-3)
    assert np.max(np.abs(a - b)) < tolerance * np.max(np.abs(a))


def test_channels_first_folds_on_its_own_axis():
    # Not every TensorFlow build runs channels-first convolutions on a CPU, so the weights are
    # checked against the algebra and not against a run.
    model = keras.Sequential(
        [
            keras.Input((3, 6, 6)),
            # 5 channels of 4×4: Keras's add would take a bias of 4 for one of the columns.
            layers.Conv2D(5, 3, data_format="channels_first", name="c"),
            bn(axis=1),
        ]
    )
    randomize(model)
    decisions = plan(view(model))
    assert [record.layer for record in decisions.folded] == ["bn"]
    c, b = model.layers
    scale = b.gamma.numpy().astype("float64") / np.sqrt(b.moving_variance.numpy() + b.epsilon)
    np.testing.assert_allclose(
        decisions.changes.weights[id(c)]()["kernel"], c.kernel.numpy() * scale, rtol=1e-6
    )


def test_the_folded_model_saves_loads_and_trains(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), conv("c"), bn(), layers.Flatten(), layers.Dense(2)]
    )
    result = fold(model)
    result.model.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    assert_agree(result.model, loaded)
    loaded.compile("sgd", "mse")
    loaded.fit(np.ones((4, 6, 6, 3)), np.ones((4, 2)), verbose=0)


def test_training_a_folded_model_warns_that_its_normalizations_are_gone():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), bn(), layers.Dense(2)])
    folded = fold(model).model
    folded.compile("sgd", "mse")
    x, y = np.ones((4, 6)), np.ones((4, 2))
    folded.evaluate(x, y, verbose=0)  # without a warning
    with pytest.warns(UserWarning, match=r"1 batch normalization was folded into its weights"):
        folded.fit(x, y, verbose=0)


def test_a_model_without_normalizations_trains_without_a_warning():
    folded = keras_bn.fold(keras.Sequential([keras.Input((6,)), layers.Dense(2)])).model
    folded.compile("sgd", "mse")
    folded.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)


def test_the_folded_model_exports_to_a_saved_model(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 3)), conv("c"), bn(), layers.ReLU()])
    folded = fold(model).model
    folded.export(tmp_path / "saved", verbose=False)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))  # whose variables live as long as it
    np.testing.assert_allclose(loaded.serve(x), model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.filterwarnings("ignore:In the future `np:FutureWarning:keras")  # Keras patching np
def test_the_folded_model_exports_to_onnx(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 3)), conv("c"), bn(), layers.ReLU()])
    folded = fold(model).model
    folded.export(tmp_path / "folded.onnx", format="onnx", verbose=False)
    evaluator = ReferenceEvaluator(str(tmp_path / "folded.onnx"))
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    (output,) = evaluator.run(None, {evaluator.input_names[0]: x})
    # Sums of 27 products around 1 in float32, in another order.
    np.testing.assert_allclose(output, model.predict(x, verbose=0), atol=1e-5)


def test_layers_with_derived_state_keep_it():
    data = np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(data)
    model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(3), bn()])
    result = keras_bn.fold(model)
    np.testing.assert_allclose(result.model(data), model(data), rtol=1e-5, atol=1e-6)


def test_lambda_layers_in_memory_are_trusted():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Lambda(lambda x: 2 * x), layers.Dense(3), bn()]
    )
    assert normalizations(fold(model).model) == []


def test_folding_leaves_the_states_of_recurrent_layers_alone():
    lstm = layers.LSTM(3, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(2, 4, 5)), lstm, layers.Dense(3), bn()])
    randomize(model)
    for state in lstm.states:
        state.assign(np.full(state.shape, 0.25, "float32"))
    assert normalizations(keras_bn.fold(model).model) == []
    for state in lstm.states:
        np.testing.assert_array_equal(state, 0.25)


def test_a_model_that_random_inputs_break_folds_unmeasured():
    words = keras.Input((1,), dtype="string")
    x = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(words)
    model = randomize(keras.Model(words, bn()(layers.Dense(3)(x))))
    result = keras_bn.fold(model)
    assert normalizations(result.model) == []
    assert np.isnan(result.max_abs_error)


def test_unnamed_inputs_keep_the_names_that_dictionaries_use():
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], bn()(layers.Dense(3)(a + b)))
    result = fold(model)
    assert [t.name for t in result.model.inputs] == [t.name for t in model.inputs]


# What follows broke once: each is a model that was folded wrongly, or not at all.


def head(shape=(6, 8)):
    inputs = keras.Input(shape)
    x = bn("head_bn")(inputs)
    return keras.Model(inputs, layers.Dense(4, activation="tanh", name="d")(x), name="head")


# Keras says that the nested model does not pass the mask on, which is its own business.
@pytest.mark.filterwarnings("ignore:Layer 'head'.*does not support masking:UserWarning")
def test_a_nested_model_called_with_a_mask_is_opened_too():
    ids, features = keras.Input((6,), dtype="int32"), keras.Input((6, 8))
    shared = head()
    masked = shared(layers.Embedding(20, 8, mask_zero=True, name="words")(ids))
    plain = shared(layers.Dense(8, name="plain")(features))
    result = fold(keras.Model([ids, features], [masked, plain]))
    into, _ = rules(result)["head/head_bn"]
    assert sorted(into.split(", ")) == ["plain", "words"]
    assert normalizations(result.model) == []


def test_a_nested_model_that_is_also_called_on_another_rank_stays_as_it_is():
    a, b = keras.Input((4,)), keras.Input((4, 1))
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, layers.ReLU()(bn("inside")(inputs)), name="inner")
    result = fold(keras.Model([a, b], [inner(layers.Dense(4)(a)), inner(b)]))
    assert "also called on inputs of another rank" in reasons(result)["inner/inside"]
    assert normalizations(result.model) == ["inside"]


def test_a_layer_that_also_runs_inside_a_closed_call_absorbs_nothing():
    a, b = keras.Input((4,)), keras.Input((4, 1))
    dense, inputs = layers.Dense(4, name="dense"), keras.Input((4,))
    inner = keras.Model(inputs, layers.ReLU()(dense(inputs)), name="inner")
    result = fold(keras.Model([a, b], [bn()(dense(a)), inner(b)]))
    assert "'dense' also runs inside a model that cannot be opened up" in reasons(result)["bn"]


def test_a_normalization_that_changes_the_dtype_stays():
    x = keras.Input((8,))
    y = bn(dtype="float32")(layers.Dense(4, name="d", dtype="mixed_float16")(x))
    model = randomize(keras.Model(x, layers.ReLU()(y)))
    result = keras_bn.fold(model)
    assert "'bn' takes float16 and gives float32" in reasons(result)["bn"]


@pytest.mark.parametrize("between", [layers.Conv2D(4, 3), layers.UpSampling2D(2)])
def test_a_normalization_of_integers_stays(between):
    pixels = keras.Input((8, 8, 3), dtype="uint8")
    model = randomize(keras.Model(pixels, layers.Dense(2)(between(bn()(pixels)))))
    assert "'bn' takes uint8 and gives float32" in reasons(keras_bn.fold(model))["bn"]


def test_the_outer_models_training_argument_rules_the_inner_ones():
    inputs = keras.Input((8,))
    inner = keras.Model(inputs, bn("b")(layers.Dense(4)(inputs), training=False), name="inner")
    outer = keras.Input((8,))
    model = randomize(keras.Model(outer, inner(outer, training=True)))
    assert "training=True" in reasons(keras_bn.fold(model))["inner/b"]


@pytest.mark.parametrize("first", [layers.Embedding(10, 8, mask_zero=True), layers.Masking()])
def test_sequential_models_with_masks_fold(first):
    shape = (6,) if isinstance(first, layers.Embedding) else (6, 8)
    stack = [first, layers.LSTM(4), layers.Dense(4, name="d"), bn(), layers.Dense(2)]
    result = fold(keras.Sequential([keras.Input(shape), *stack]))
    assert rules(result) == {"bn": ("d", "backward into Dense")}


def test_a_nested_model_of_nothing_but_a_normalization_on_a_narrower_shape():
    inputs = keras.Input((None, None, 3))
    inner = keras.Model(inputs, bn("only")(inputs), name="inner")
    image = keras.Input((8, 8, 3))
    result = fold(keras.Model(image, layers.ReLU()(inner(conv("c", 3)(image)))))
    assert rules(result) == {"inner/only": ("c", "backward into Conv2D")}


def test_the_batch_axis_is_refused():
    x = keras.Input(batch_shape=(4, 8))
    model = keras.Model(x, layers.Dense(4)(bn(axis=0)(layers.Dense(8)(x))))
    assert "the batch axis" in reasons(fold(model))["bn"]


def test_arguments_that_a_layer_does_not_have_do_not_disturb():
    x = keras.Input((8,))
    model = keras.Model(x, bn()(layers.Dense(4)(x, training=False)))
    assert normalizations(fold(model).model) == []


def test_keyword_calls_in_any_order():
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(4)(bn()(training=False, inputs=x)))
    assert normalizations(fold(model).model) == []


class Automatic(layers.Layer):
    """Its configuration is derived by Keras, which leaves the name out."""

    def __init__(self, units=3, **options):
        super().__init__(**options)
        self.dense = layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs)


def test_names_survive_configurations_without_them():
    x = keras.Input((6,))
    y = bn()(layers.Dense(4)(Automatic(name="features")(x)))
    result = fold(keras.Model(x, layers.ReLU(name="automatic")(y)))
    assert result.model.get_layer("features")
    assert keras_bn.replace_batch_norm(keras.Model(x, y)).get_layer("features")


def test_outputs_keep_the_names_that_losses_go_by():
    x = keras.Input((6,))
    model = keras.Model(x, [bn("o1")(layers.Dense(4)(x)), bn("o2")(layers.Dense(4)(x))])
    result = fold(model)
    assert normalizations(result.model) == []
    assert result.model.output_names == ["o1", "o2"]
    assert normalizations(keras_bn.fold(result.model).model) == []


def test_what_is_kept_absorbs_nothing():
    x = keras.Input((6,))
    model = randomize(keras.Model(x, layers.ReLU()(bn("two")(bn("one")(x)))))
    for keep in ("one", "two"):
        result = keras_bn.fold(model, keep=[keep])
        assert normalizations(result.model) == ["one", "two"]
        kept, original = (m.get_layer(keep).get_weights() for m in (result.model, model))
        for a, b in zip(kept, original, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_normalization_reached_on_two_paths_is_accounted_for_once():
    i = keras.Input((4,))
    inner = keras.Model(i, layers.Dense(4, name="d")(bn()(i)), name="inner")
    j = keras.Input((4,))
    outer = keras.Model(j, layers.ReLU()(inner(j)), name="outer")
    x = keras.Input((4,))
    result = fold(keras.Model(x, [inner(x), outer(x)]))
    assert len(result.folded) == 1
    assert result.kept == []


def test_a_shared_normalization_after_two_layers_is_one_record():
    a, b = keras.Input((6,)), keras.Input((6,))
    norm = bn()
    outputs = [norm(layers.Dense(5, name="left")(a)), norm(layers.Dense(5, name="right")(b))]
    result = fold(keras.Model([a, b], outputs))
    (record,) = result.folded
    assert sorted(record.into.split(", ")) == ["left", "right"]
    assert record.rule == "backward into Dense"


def test_a_normalization_inside_a_nested_model_gains_a_gamma():
    i = keras.Input((5,))
    inner = keras.Model(i, bn("inside", scale=False)(i), name="inner")
    x = keras.Input((5,))
    result = fold(keras.Model(x, inner(bn("before")(x))))
    assert rules(result)["before"] == ("inner/inside", "forward into BatchNormalization")


def test_one_tensor_added_to_itself_is_not_shifted_in_one_place_alone():
    x = keras.Input((5,))
    y = layers.Dense(5, name="d")(x)
    for total in (layers.Add()([y, y]), layers.Add()([y, y, y]), y + y):
        result = fold(keras.Model(x, bn()(total)))
        assert "only the scale backward into Dense" in reasons(result)["bn"]


def test_what_is_left_of_an_operator_computes_in_its_dtype():
    x = keras.Input((5,), dtype="float64")
    y = layers.ReLU(dtype="float64")(-layers.BatchNormalization(dtype="float64")(x))
    result = fold(keras.Model(x, y))
    assert len(result.folded) == 1
    assert {layer.compute_dtype for layer in result.model.layers[1:]} == {"float64"}


def test_a_shared_attention_whose_calls_read_a_tensor_in_other_roles():
    x, q = keras.Input((6, 4)), keras.Input((6, 4))
    y = bn()(x)
    attention = layers.MultiHeadAttention(2, 2, name="attention")
    result = fold(keras.Model([x, q], [attention(y, y), attention(q, y)]))
    assert "'attention' is shared, and its calls meet different" in reasons(result)["bn"]


def test_a_shared_sum_over_more_steps_at_one_call_than_at_the_other():
    short, long = keras.Input((3, 4)), keras.Input((5, 4))
    norm, total = bn(), layers.EinsumDense("abc,cd->ad", 2, bias_axes="d", name="total")
    result = fold(keras.Model([short, long], [total(norm(short)), total(norm(long))]))
    assert "'total' is shared, and its calls meet different" in reasons(result)["bn"]


def test_an_operator_that_ends_a_mask_stays():
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="words")(ids)
    result = fold(keras.Model(ids, layers.SimpleRNN(3)(-x)))
    assert "Negative" in {type(operation).__name__ for operation in result.model.operations}


def test_two_normalizations_in_one_round_as_little_as_apart():
    one, two = bn("one", epsilon=0.0), bn("two", epsilon=0.0)
    model = keras.Sequential([keras.Input((4,)), one, two])
    one.set_weights([np.full(4, v, "float32") for v in (1.0, 1.0, 0.0, 1e-4)])
    two.set_weights([np.full(4, v, "float32") for v in (1.0, 0.0, 1.0, 1.0)])
    result = keras_bn.fold(model)
    assert rules(result)["one"] == ("two", "forward into BatchNormalization")
    x = np.random.default_rng(0).normal(0.0, 0.01, (64, 4)).astype("float32")
    # 100·x. To take 1, the mean of what came in once, off x would cost a hundred times 2⁻²⁴.
    np.testing.assert_allclose(result.model(x), 100 * x.astype("float64"), rtol=1e-6)


def test_a_normalization_of_what_is_stored_smaller_rounds_as_it_did():
    """One scales a tensor to 1e-8 of what it was; to take its old mean off loses all of it."""
    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    inputs = keras.Input((5,))
    stream = layers.Dense(4, name="d")(inputs)
    outputs = [layers.ReLU()(bn(name)(stream)) for name in ("other", "small")]
    model = randomize(keras.Model(inputs, outputs))
    values = model.get_layer("d")(x).numpy()
    for name in ("small", "other"):  # which know what they meet, as after training
        model.get_layer(name).moving_mean.assign(values.mean(0))
        model.get_layer(name).moving_variance.assign(values.var(0))
    model.get_layer("small").gamma.assign(np.full(4, 1e-8))
    model.get_layer("small").beta.assign(np.full(4, 1e-9))
    result = keras_bn.fold(model, verify=False)
    assert sorted(rules(result)["small"][0].split(", ")) == ["d", "other"]
    for a, b in zip(model(x), result.model(x), strict=True):
        # Of 6e-8 an operation, some five operations deep.
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-6 * np.max(np.abs(a)))


def test_a_layer_told_to_train_takes_nothing_in():
    inputs = keras.Input((5, 4))
    x = bn()(inputs)
    lstm = layers.LSTM(3, dropout=0.5, name="lstm")
    result = fold(keras.Model(inputs, lstm(x, training=True)))
    assert "'lstm' is called with training=True" in reasons(result)["bn"]
    dense = layers.Dense(3, name="dense")  # for which it is all the same
    assert rules(fold(keras.Model(inputs, dense(x, training=True)))) == {
        "bn": ("dense", "forward into Dense")
    }


def test_a_normalization_of_every_step_that_is_asked_to_be_kept():
    inputs = keras.Input((5, 4))
    each = layers.TimeDistributed(bn("norm"), name="each")
    model = randomize(keras.Model(inputs, layers.Dense(3)(each(inputs))))
    for name in ("each", "norm", "each/norm"):
        result = keras_bn.fold(model, keep=[name])
        assert reasons(result) == {"each/norm": "asked to be kept"}
    with pytest.raises(ValueError, match="it has each/norm"):
        keras_bn.fold(model, keep=["other"])


def test_normalizations_of_every_step_in_training_or_of_broken_statistics():
    inputs = keras.Input((5, 4))
    each = layers.TimeDistributed(bn("norm"), name="each")
    result = fold(keras.Model(inputs, layers.Dense(3)(each(inputs, training=True))))
    assert "training=True" in reasons(result)["each/norm"]
    each.layer.moving_mean.assign(np.full(4, np.nan))
    with pytest.raises(UnsupportedModelError, match="moving_mean of 'norm' holds NaN"):
        keras_bn.fold(keras.Model(inputs, layers.Dense(3)(each(inputs))))


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (5, 5)])
def test_a_scale_or_shift_that_stays_where_images_have_their_channels_first(channels_first, shape):
    """Keras takes a Rescaling's scale for one of channels then, whatever it scales."""
    inputs = keras.Input(shape)
    scaled = bn("scaled")(layers.Activation("tanh")(inputs))
    negated = bn("negated")(layers.Activation("tanh")(inputs))
    outputs = [layers.Softmax()(2.0 * scaled), layers.Softmax()(1.0 - negated)]
    rows = layers.BatchNormalization(axis=1, name="rows")(layers.ReLU()(inputs))
    outputs.append(layers.Dense(2)(layers.ReLU()(rows)))
    model = randomize(keras.Model(inputs, outputs))
    assert_agree(model, keras_bn.fold(model, verify=False).model)
