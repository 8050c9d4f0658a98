"""Recurrent layers that go on where they stopped, from one `predict` to the next."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn.layers
from tests.random_weights import randomize

pytestmark = pytest.mark.backend(
    "tensorflow", "torch", because="on JAX Keras's `predict` keeps no layer's states"
)

NETWORKS = ("LSTM", "GRU", "SimpleRNN")
BATCH, STEPS, FEATURES = 4, 3, 2
# Compiled and uncompiled float32 agree to 7 digits at a step, which pass their error on.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def data(batches):
    rng = np.random.default_rng(1)
    return rng.normal(1, 2, (batches * BATCH, STEPS, FEATURES)).astype("float32")


def stateful(layer_class, **options):
    layer = layer_class(5, stateful=True, return_sequences=True, **options)
    return randomize(keras.Sequential([keras.Input(batch_shape=(BATCH, STEPS, FEATURES)), layer]))


def states_of(model):
    return [ops.convert_to_numpy(state) for state in model.layers[0].states]


def predicted(model, x):
    return model.predict(x, batch_size=BATCH, verbose=0)


def start(model):
    """States as a sequence that was interrupted leaves them: no zeros."""
    rng = np.random.default_rng(2)
    for state in model.layers[0].states:
        state.assign(rng.normal(size=state.shape).astype("float32"))


@pytest.mark.parametrize("variant", ["gate", "paper"])
@pytest.mark.parametrize("network", NETWORKS)
def test_predict_goes_on_as_calls_do(network, variant):
    model = stateful(getattr(keras_bn.layers, f"LayerNorm{network}"), variant=variant)
    x = data(3)
    parts = np.split(x, 3)
    start(model)
    before = states_of(model)
    calls = np.concatenate([ops.convert_to_numpy(model(part)) for part in parts])
    after = states_of(model)
    ways = {
        "batches of one predict": lambda: predicted(model, x),
        "several predicts": lambda: np.concatenate([predicted(model, part) for part in parts]),
    }
    for name, way in ways.items():
        start(model)
        np.testing.assert_array_equal(states_of(model), before)
        np.testing.assert_allclose(way(), calls, **CLOSE, err_msg=name)
        np.testing.assert_allclose(states_of(model), after, **CLOSE, err_msg=name)
    # The same inputs from where that ended give something else.
    assert np.abs(predicted(model, parts[0]) - calls[:BATCH]).max() > 0.01


@pytest.mark.parametrize("network", NETWORKS)
def test_predict_keeps_and_resets_states_as_in_kerass_layers(network):
    x = data(2)

    def outcome(layer_class):
        model = stateful(layer_class)
        layer = model.layers[0]
        start(model)
        first, second = predicted(model, x), predicted(model, x)
        kept = [np.any(state != 0) for state in states_of(model)]
        layer.reset_state()
        reset = [np.any(state != 0) for state in states_of(model)]
        from_zero = predicted(model, x)
        layer.reset_state()
        return {
            "goes on": not np.allclose(first[:BATCH], second[:BATCH], **CLOSE),
            "kept": kept,
            "kept after a reset": reset,
            "begins anew": np.allclose(from_zero, predicted(model, x), **CLOSE),
        }

    ours = outcome(getattr(keras_bn.layers, f"LayerNorm{network}"))
    assert ours == outcome(getattr(keras.layers, network))
    assert ours["goes on"] and ours["begins anew"]
