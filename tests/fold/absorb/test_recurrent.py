"""Recurrent layers take what precedes them into the kernels of their inputs."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.fold import absorb
from tests.fold.absorb.absorption import (
    DTYPES,
    assert_forward,
    assert_refused,
    data,
    model_around,
    random_affine,
)

STACK = (layers.LSTMCell(4), layers.GRUCell(5, use_bias=False), layers.SimpleRNNCell(3))


def rnn(*cells, **options):
    """RNN around cells made anew, of the dtype of the layer."""
    dtype = options.get("dtype")
    made = [type(cell).from_config({**cell.get_config(), "dtype": dtype}) for cell in cells]
    cell = layers.StackedRNNCells(made, dtype=dtype) if len(made) > 1 else made[0]
    return layers.RNN(cell, **options)


LAYERS = {
    "lstm": lambda **o: layers.LSTM(4, **o),
    "lstm-no-bias": lambda **o: layers.LSTM(4, use_bias=False, **o),
    "lstm-no-forget-bias": lambda **o: layers.LSTM(
        4, use_bias=False, unit_forget_bias=False, bias_initializer="ones", **o
    ),
    "lstm-gate-by-gate": lambda **o: layers.LSTM(4, recurrent_dropout=0.3, dropout=0.2, **o),
    "gru": lambda **o: layers.GRU(4, **o),
    "gru-no-bias": lambda **o: layers.GRU(4, use_bias=False, **o),
    "gru-reset-before": lambda **o: layers.GRU(4, reset_after=False, **o),
    "gru-reset-before-no-bias": lambda **o: layers.GRU(4, reset_after=False, use_bias=False, **o),
    "simple": lambda **o: layers.SimpleRNN(4, **o),
    "simple-no-bias": lambda **o: layers.SimpleRNN(4, use_bias=False, **o),
    "cell": lambda **o: rnn(layers.GRUCell(4), **o),
    "cell-no-bias": lambda **o: rnn(layers.LSTMCell(4, use_bias=False), **o),
    "stack": lambda **o: rnn(*STACK, **o),
    "stack-no-bias": lambda **o: rnn(layers.GRUCell(5, use_bias=False), layers.LSTMCell(3), **o),
    "bidirectional": lambda **o: layers.Bidirectional(layers.LSTM(4, **o), dtype=o["dtype"]),
    "bidirectional-gru-no-bias-sum": lambda **o: layers.Bidirectional(
        layers.GRU(4, use_bias=False, **o), merge_mode="sum", dtype=o["dtype"]
    ),
    "bidirectional-two-kinds": lambda **o: layers.Bidirectional(
        layers.LSTM(4, use_bias=False, **o),
        backward_layer=layers.SimpleRNN(4, go_backwards=True, **o),
        dtype=o["dtype"],
    ),
    "bidirectional-stack": lambda **o: layers.Bidirectional(rnn(*STACK, **o), dtype=o["dtype"]),
}
EACH = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)

NORMALISED = {
    f"{kind}-{variant}": (
        lambda kind=kind, variant=variant, **o: getattr(keras_bn.layers, f"LayerNorm{kind}")(
            4, variant=variant, **o
        )
    )
    for kind in ("LSTM", "GRU", "SimpleRNN")
    for variant in ("gate", "paper")
}
EACH_NORMALISED = pytest.mark.parametrize("make", NORMALISED.values(), ids=NORMALISED)


def masked(layer):
    """Calls `layer` on sequences in which the steps that begin with zero are masked."""
    masking = layers.Masking(dtype=layer.dtype_policy)

    def call(x, steps):
        return layer(x, mask=keras.ops.any(masking(steps) != 0, axis=-1))

    return call


@EACH
def test_forward(make):
    layer = make(dtype="float64", return_sequences=True)
    model = model_around(layer, [(5, 6)])
    assert_forward(model, layer, random_affine((1, 6)), ["sequences"])


@DTYPES
@pytest.mark.parametrize("name", ["lstm-no-bias", "gru", "simple", "stack", "bidirectional"])
def test_forward_where_steps_are_masked(name, dtype):
    make = LAYERS[name]
    layer = make(dtype=dtype, return_sequences=True)
    model = model_around(layer, [(5, 6), (5, 2)], masked(layer))
    inputs = data(model)
    inputs[1][0, 1:3] = inputs[1][1, 0] = inputs[1][2, 3:] = 0.0
    assert_forward(model, layer, random_affine((1, 6)), ["sequences"], ["mask"], inputs=inputs)


@pytest.mark.parametrize(
    "options",
    [
        {"go_backwards": True},
        {"unroll": True},
        {"return_state": True, "return_sequences": True},
        {"zero_output_for_mask": True},
    ],
    ids=str,
)
def test_options_stay(options):
    layer = layers.GRU(4, use_bias=False, dtype="float64", **options)
    model = model_around(layer, [(5, 6)])
    assert_forward(model, layer, random_affine((1, 6)), ["sequences"])


def test_initial_states_stay():
    layer = layers.LSTM(4, use_bias=False, dtype="float64")
    model = model_around(
        layer, [(5, 6), (4,), (4,)], lambda x, h, c: layer(x, initial_state=[h, c])
    )
    assert_forward(model, layer, random_affine((1, 6)), ["sequences"], ["initial_state"])


def test_a_gru_keeps_the_bias_of_its_state():
    """It has two; that of the state is weighed by the reset gate, that of the inputs is not."""
    layer = layers.GRU(4, dtype="float64")
    model = model_around(layer, [(5, 6)])
    changed = assert_forward(model, layer, random_affine((1, 6)), ["sequences"])
    before = keras.ops.convert_to_numpy(layer.cell.bias)
    after = keras.ops.convert_to_numpy(changed.get_layer(layer.name).cell.bias)
    np.testing.assert_array_equal(after[1], before[1])
    assert np.all(after[0] != before[0])


def test_the_later_cells_of_a_stack_stay():
    layer = rnn(layers.LSTMCell(4, use_bias=False), layers.GRUCell(3, use_bias=False))
    model = model_around(layer, [(5, 6)])
    changed = assert_forward(model, layer, random_affine((1, 6)), ["sequences"])
    first, second = changed.get_layer(layer.name).cell.cells
    assert first.bias is not None and second.bias is None


@EACH_NORMALISED
def test_layer_normalised_kernels_take_scales(make):
    layer = make(dtype="float64", return_sequences=True)
    model = model_around(layer, [(5, 6)])
    assert_forward(model, layer, random_affine((1, 6), shifts=False), ["sequences"])
    assert_refused(layer, random_affine((1, 6)), "no bias for the shift", ["sequences"])


def test_layer_normalised_cells_take_scales():
    layer = layers.RNN(keras_bn.layers.LayerNormGRUCell(4, dtype="float64"), dtype="float64")
    model = model_around(layer, [(5, 6)])
    assert_forward(model, layer, random_affine((1, 6), shifts=False), ["sequences"])
    layer = layers.Bidirectional(keras_bn.layers.LayerNormLSTM(4, dtype="float64"), dtype="float64")
    model = model_around(layer, [(5, 6)])
    assert_forward(model, layer, random_affine((1, 6), shifts=False), ["sequences"])
    assert_refused(layer, random_affine((1, 6)), "no bias for the shift", ["sequences"])


# --- convolutions inside the step ----------------------------------------------------------------

CONVOLUTIONS = {
    "1d": lambda **o: (layers.ConvLSTM1D(3, 2, **o), (4, 6, 5)),
    "1d-strided": lambda **o: (layers.ConvLSTM1D(3, 2, strides=2, **o), (4, 6, 5)),
    "2d": lambda **o: (layers.ConvLSTM2D(3, 2, **o), (4, 5, 4, 5)),
    "2d-no-bias": lambda **o: (layers.ConvLSTM2D(3, 2, use_bias=False, **o), (4, 5, 4, 5)),
    "2d-dilated": lambda **o: (layers.ConvLSTM2D(3, 2, dilation_rate=2, **o), (4, 5, 4, 5)),
    "2d-same-one-tap": lambda **o: (layers.ConvLSTM2D(3, 1, padding="same", **o), (4, 5, 4, 5)),
    "3d": lambda **o: (layers.ConvLSTM3D(2, 2, **o), (3, 4, 3, 4, 5)),
}
EACH_CONVOLUTION = pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)


@EACH_CONVOLUTION
def test_convolutional_forward(make):
    layer, shape = make(dtype="float64", return_sequences=True)
    model = model_around(layer, [shape])
    affine = random_affine((1,) * (len(shape) - 1) + (5,))
    assert_forward(model, layer, affine, ["sequences"])


def test_padded_convolutions_take_scales():
    layer = layers.ConvLSTM2D(3, 3, padding="same", dtype="float64")
    model = model_around(layer, [(4, 5, 4, 6)])
    assert_forward(model, layer, random_affine((1, 1, 1, 6), shifts=False), ["sequences"])
    assert_refused(layer, random_affine((1, 1, 1, 6)), "pads", ["sequences"], shape=(4, 5, 4, 6))


def test_convolutions_in_both_directions():
    layer = layers.Bidirectional(
        layers.ConvLSTM1D(3, 2, use_bias=False, dtype="float64"), dtype="float64"
    )
    model = model_around(layer, [(4, 6, 5)])
    assert_forward(model, layer, random_affine((1, 1, 5)), ["sequences"])


# --- refusals -----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class DoublingCell(layers.LSTMCell):
    def call(self, inputs, states, training=False):
        return super().call(2 * inputs, states, training)


@pytest.mark.parametrize("name", ["gru", "stack", "bidirectional"])
def test_refusals(name):
    layer = LAYERS[name](dtype="float32")
    model_around(layer, [(5, 6)])
    assert absorb.rule_for(layer).backward is None
    assert_refused(layer, random_affine((5, 6)), "vary along axis 1", ["sequences"])
    assert_refused(layer, random_affine((4,)), "`initial_state`", ["initial_state"], ["sequences"])
    assert_refused(layer, random_affine((1, 6)), "`mask`", ["sequences", "mask"])


def test_cells_of_other_classes_are_refused():
    affine = random_affine((1, 6))
    for layer in (
        layers.RNN(DoublingCell(4)),
        layers.RNN([DoublingCell(4), layers.LSTMCell(4)]),
        layers.Bidirectional(layers.RNN(DoublingCell(4))),
    ):
        model_around(layer, [(5, 6)])
        assert_refused(layer, affine, "DoublingCell", ["sequences"])


def test_a_cell_that_is_stacked_twice_is_refused():
    cell = layers.LSTMCell(6)
    layer = layers.RNN([cell, cell])
    model_around(layer, [(5, 6)])
    assert_refused(layer, random_affine((1, 6)), "again", ["sequences"])
