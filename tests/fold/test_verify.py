"""A fold that makes the result worse than rounding does is undone."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.fold.state import Absorbed
from keras_bn.fold.verify import Verifier
from tests.fold.agreement import assert_agree, normalizations
from tests.random_weights import randomize


def chain(*names):
    model = keras.Sequential([keras.Input((6,))])
    for name in names:
        model.add(layers.Dense(5, name=f"dense_{name}"))
        model.add(layers.BatchNormalization(name=name))
        model.add(layers.ReLU())
    return randomize(model)


def test_weights_that_overflow_when_folded_stay_apart():
    """In float16 nothing exceeds 65504: 3x·60000 is fine for small x, a kernel of 180000 is not."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, name="first", dtype="float16"),
            layers.BatchNormalization(name="harmless", dtype="float16"),
            layers.ReLU(dtype="float16"),
            layers.Dense(3, name="second", dtype="float16"),
            layers.BatchNormalization(name="harmful", dtype="float16"),
        ]
    )
    randomize(model)
    model.get_layer("harmless").gamma.assign(np.full(3, 1e-3))
    model.get_layer("harmless").beta.assign(np.zeros(3))
    model.get_layer("harmless").moving_mean.assign(np.zeros(3))
    model.get_layer("second").kernel.assign(np.full((3, 3), 3.0))
    model.get_layer("second").bias.assign(np.zeros(3))
    model.get_layer("harmful").gamma.assign(np.full(3, 6e4))
    model.get_layer("harmful").moving_mean.assign(np.zeros(3))
    result = keras_bn.fold(model)
    assert [record.layer for record in result.folded] == ["harmless"]
    assert [record.layer for record in result.kept] == ["harmful"]
    for weight in result.model.weights:
        assert np.all(np.isfinite(np.array(weight)))


@pytest.mark.parametrize("wrong", ["a", "b", "c"])
def test_a_wrong_rule_is_found_out_and_undone(monkeypatch, wrong):
    """Stands for a mistake in a rule: one layer comes out one percent too large."""
    model = chain("a", "b", "c")
    true = Absorbed.__call__

    def mistaken(self):
        weights = true(self)
        if self.layer.name == f"dense_{wrong}":
            weights["bias"] = weights["bias"] * 1.01 + 0.01
        return weights

    monkeypatch.setattr(Absorbed, "__call__", mistaken)
    result = keras_bn.fold(model)
    assert [record.layer for record in result.kept] == [wrong]
    assert "folding it made the result worse: off by" in result.kept[0].reason
    assert normalizations(result.model) == [wrong]
    assert_agree(model, result.model)

    unverified = keras_bn.fold(model, verify=False)
    assert unverified.kept == []
    assert np.isnan(unverified.max_abs_error)


def test_rounding_that_the_original_amplifies_too_is_nobodys_fault():
    """Differences of nearly equal numbers: float32 is off by percents, folded or not."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(64, name="dense")(inputs))
    y = layers.Dense(64, use_bias=False, name="next")(x)
    model = keras.Model(inputs, keras.ops.sin(1e5 * y))
    randomize(model)
    assert keras_bn.fold(model).kept == []


def test_a_model_that_is_random_in_inference_is_not_judged():
    class Noise(layers.Layer):
        def call(self, inputs):
            return inputs + np.random.default_rng().normal()

    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.BatchNormalization()])
    model.add(Noise())
    result = keras_bn.fold(randomize(model))
    assert result.kept == []
    assert np.isnan(result.max_abs_error)


def test_verdict_of_a_model_on_itself():
    model = chain("a")
    verdict = Verifier(model, model)(model)
    assert verdict.holds
    assert verdict.max_abs_error == verdict.error == 0.0


def test_not_a_number_where_the_original_has_numbers_does_not_hold():
    model = chain("a")
    broken = keras.models.clone_model(model)
    broken.set_weights(model.get_weights())
    broken.get_layer("dense_a").bias.assign(np.full(5, np.nan))
    assert not Verifier(model, model)(broken).holds


@pytest.mark.parametrize("head", [layers.GlobalAveragePooling2D, layers.Flatten])
def test_of_large_images_a_part_is_tried_where_the_model_takes_one(monkeypatch, head):
    """Either way a wrong rule is found out; a Flatten with a Dense takes whole images only."""
    model = keras.Sequential(
        [
            keras.Input((200, 150, 3)),
            layers.Conv2D(4, 3, strides=8, name="conv"),
            layers.BatchNormalization(name="bn"),
            head(),
            layers.Dense(2),
        ]
    )
    randomize(model)
    part = head is layers.GlobalAveragePooling2D
    assert Verifier(model, model).inputs.shape == (1, *((128, 128) if part else (200, 150)), 3)
    assert keras_bn.fold(model).kept == []
    true = Absorbed.__call__
    monkeypatch.setattr(
        Absorbed, "__call__", lambda self: {k: w * 1.01 + 0.01 for k, w in true(self).items()}
    )
    assert [record.layer for record in keras_bn.fold(model).kept] == ["bn"]
