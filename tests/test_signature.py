"""The names of a Keras model's inputs and outputs, against what Keras itself exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_bn.errors import UnsupportedModelError
from keras_bn.samples import random_samples
from keras_bn.signature import InputSpec, call_named, input_specs
from tests.deployable import MODELS

# Keras cannot export nested outputs; those names are ours.
EXPORTABLE = [name for name in MODELS if name != "nested"]


@pytest.mark.parametrize("name", EXPORTABLE)
def test_names_are_those_that_keras_exports(name, tmp_path, capsys):
    model = MODELS[name]()
    model.export(str(tmp_path), verbose=False)
    exported = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    assert {spec.name for spec in input_specs(model)} == set(exported.structured_input_signature[1])
    assert set(call_named(model, random_samples(model, 2))) == set(exported.structured_outputs)


@pytest.mark.parametrize("name", MODELS)
def test_call_named_gives_what_the_model_gives(name):
    model = MODELS[name]()
    named = random_samples(model, 2)
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    direct = model(keras.tree.map_structure(lambda tensor: named[tensor.name], structure))
    outputs = call_named(model, named)
    flat = keras.tree.flatten(direct)
    assert len(outputs) == len(flat)
    for tensor in flat:  # the same numbers, so the tolerance is nothing
        assert any(np.array_equal(tensor, output) for output in outputs.values())


def test_nested_outputs_are_named_by_keys_and_indices():
    model = MODELS["nested"]()
    assert list(call_named(model, random_samples(model, 2))) == ["deep_0", "deep_1", "flat"]


def test_specs_say_shape_and_dtype():
    assert input_specs(MODELS["tokens"]()) == (InputSpec("ids", (None, 7), "int32"),)


def test_subclassed_models_are_refused_with_a_way_out():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(UnsupportedModelError, match=r"keras\.Model\(inputs, model\(inputs\)\)"):
        input_specs(model)
    inputs = keras.Input((3,))
    assert len(input_specs(keras.Model(inputs, model(inputs)))) == 1


def test_text_inputs_are_refused():
    text = keras.Input((), dtype="string", name="text")
    model = keras.Model(text, layers.StringLookup(vocabulary=["a", "b"])(text))
    with pytest.raises(UnsupportedModelError, match="'text'"):
        input_specs(model)
