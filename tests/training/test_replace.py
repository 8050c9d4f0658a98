import keras
import numpy as np
import pytest

import keras_bn.layers
from keras_bn.errors import UnsupportedModelError
from keras_bn.training.replace import replace_batch_norm
from tests.random_weights import randomize

STOCK = keras.layers.BatchNormalization
OURS = keras_bn.layers.BatchNormalization


def sequential():
    return keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), STOCK(name="bn"), keras.layers.ReLU()]
    )


def branching():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    shared = STOCK(center=False, name="shared")
    joined = keras.ops.add(shared(left), 2.0 * shared(right))
    outputs = {"sum": joined, "norm": STOCK(scale=False, axis=1)(keras.layers.Dense(5)(joined))}
    return keras.Model({"left": left, "right": right}, outputs, name="branching")


def nested():
    inner = keras.Sequential([keras.Input((4,)), STOCK(), keras.layers.Dense(4)], name="inner")
    x = keras.Input((4,))
    middle = keras.Model(x, inner(STOCK(name="outside")(x)), name="middle")
    y = keras.Input((4,))
    return keras.Model(y, middle(inner(y)))


def wrapped():
    layers = [
        keras.Input((5, 3)),
        keras.layers.TimeDistributed(STOCK(), name="steps"),
        keras.layers.TimeDistributed(keras.layers.Dense(2)),
    ]
    return keras.Sequential(layers)


def adapted():
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (64, 4)))
    return keras.Sequential([keras.Input((4,)), normalization, STOCK(), keras.layers.Dropout(0.5)])


def in_half_precision():
    return keras.Sequential([keras.Input((4,)), STOCK(dtype="mixed_float16")])


MODELS = [sequential, branching, nested, wrapped, adapted, in_half_precision]


def inputs_for(model, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {t.name: rng.normal(size=(6, *t.shape[1:])).astype("float32") for t in model.inputs}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def arrays(tensors):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


def layers_of(model, kind):
    return [layer for layer in model._flatten_layers() if type(layer) is kind]


@pytest.mark.parametrize("build", MODELS)
def test_every_stock_layer_is_replaced_and_inference_is_exactly_the_same(build):
    model = build()
    if build is not adapted:  # random weights would undo its adapt()
        randomize(model)
    x = inputs_for(model)
    before = arrays(model(x))
    replaced = replace_batch_norm(model)
    assert layers_of(replaced, STOCK) == []
    assert len(layers_of(replaced, OURS)) == len(layers_of(model, STOCK)) > 0
    keras.tree.map_structure(np.testing.assert_array_equal, arrays(replaced(x)), before)
    assert [layer.name for layer in replaced.layers] == [layer.name for layer in model.layers]
    assert replaced.name == model.name
    # The caller's model keeps its layers, its weights and its outputs.
    assert layers_of(model, OURS) == []
    keras.tree.map_structure(np.testing.assert_array_equal, arrays(model(x)), before)
    assert not {id(w) for w in model.weights} & {id(w) for w in replaced.weights}


def test_the_result_trains_with_unbiased_statistics_and_leaves_the_original_alone():
    model = randomize(keras.Sequential([keras.Input((3,)), STOCK(momentum=0.0)]))
    before = model.get_weights()
    replaced = replace_batch_norm(model)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    replaced(x, training=True)
    np.testing.assert_allclose(  # float32 sums of 8 terms
        arrays(replaced.layers[0].moving_variance), x.var(0, ddof=1), rtol=1e-5
    )
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_options_go_to_every_layer_and_arguments_carry_over():
    stock = STOCK(
        momentum=0.9,
        epsilon=1e-5,
        gamma_regularizer=keras.regularizers.L2(0.1),
        beta_constraint=keras.constraints.NonNeg(),
        trainable=False,
        name="bn",
    )
    model = keras.Sequential([keras.Input((3,)), stock])
    (layer,) = layers_of(replace_batch_norm(model, momentum=None, unbiased=False), OURS)
    assert (layer.momentum, layer.unbiased, layer.epsilon) == (None, False, 1e-5)
    assert layer.gamma_regularizer is stock.gamma_regularizer
    assert layer.beta_constraint is stock.beta_constraint
    assert layer.trainable is False
    assert layer.num_batches_tracked is not None


def test_arguments_need_not_be_serializable():
    class Penalty(keras.regularizers.Regularizer):  # not registered
        def __call__(self, gamma):
            return keras.ops.sum(gamma)

        def get_config(self):
            return {}

    penalty = Penalty()
    model = keras.Sequential([keras.Input((3,)), STOCK(gamma_regularizer=penalty)])
    assert layers_of(replace_batch_norm(model), OURS)[0].gamma_regularizer is penalty


def test_shared_layers_stay_shared():
    replaced = replace_batch_norm(branching())
    (shared,) = [layer for layer in layers_of(replaced, OURS) if layer.name == "shared"]
    assert len(shared._inbound_nodes) == 2


def test_inputs_keep_their_names_and_structure():
    model = branching()
    replaced = replace_batch_norm(model)
    assert set(replaced.input) == {"left", "right"}
    assert set(replaced.output) == {"sum", "norm"}
    names = [[tensor.name for tensor in m.inputs] for m in (model, replaced)]
    assert names[0] == names[1]


def test_training_arguments_of_calls_carry_over():
    inputs = keras.Input((3,))
    model = randomize(keras.Model(inputs, STOCK()(inputs, training=True)))
    replaced = replace_batch_norm(model, unbiased=False)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    # Both normalize by the batch, in float32 and in different orders of operations.
    np.testing.assert_allclose(arrays(replaced(x)), arrays(model(x)), rtol=1e-5, atol=1e-5)


def test_masks_reach_the_replacement():
    inputs = keras.Input((None, 2))
    model = keras.Model(inputs, STOCK(momentum=0.0)(keras.layers.Masking()(inputs)))
    replaced = replace_batch_norm(model, unbiased=False)
    x = np.array([[[1, 5], [2, 5], [0, 0]]], "float32")
    replaced(x, training=True)
    np.testing.assert_allclose(arrays(layers_of(replaced, OURS)[0].moving_mean), [1.5, 5.0])


def test_ours_and_subclasses_stay_what_they_are():
    class Own(STOCK):
        pass

    model = keras.Sequential([keras.Input((3,)), OURS(momentum=0.5), Own()])
    ours, own = replace_batch_norm(model, momentum=None).layers
    assert (type(ours), ours.momentum) == (OURS, 0.5)
    assert type(own) is Own


def test_compile_settings_carry_over():
    model = sequential()
    model.compile("sgd", "mse")
    replaced = replace_batch_norm(model)
    assert replaced.compiled and not replace_batch_norm(sequential()).compiled


def test_a_sequential_model_without_input_shape_is_replaced():
    model = keras.Sequential([STOCK(name="bn")])
    (layer,) = replace_batch_norm(model).layers
    assert type(layer) is OURS


class Written(keras.Model):
    def __init__(self):
        super().__init__(name="written")
        self.normalize = STOCK(name="hidden")

    def call(self, x):
        return self.normalize(x)


def test_a_subclassed_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="'written' of class Written"):
        replace_batch_norm(Written())


def test_a_subclassed_model_within_is_refused_by_name():
    model = keras.Sequential([keras.Input((3,)), Written()])
    with pytest.raises(UnsupportedModelError, match=r"'written' of class Written .*\(hidden\)"):
        replace_batch_norm(model)


def test_unnamed_inputs_keep_the_names_that_dictionaries_use():
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], keras.layers.BatchNormalization()(a + b))
    assert [t.name for t in replace_batch_norm(model).inputs] == [t.name for t in model.inputs]
