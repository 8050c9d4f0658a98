"""Recurrent layers: the kernel of the inputs takes in what precedes them, at every step alike.

Behind them nothing is absorbed: an activation and the next step stand in between.

A masked step leaves the state alone whatever its input is, so masks are no obstacle. The cells of
a stack see the layer's input in the first of them only. A layer-normalised cell normalises the
product of its kernel and the input: the scale goes into the kernel as ever, but a shift would
have to be added inside the normalization, where there is no bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import layers

from keras_bn.fold.absorb import algebra
from keras_bn.fold.absorb.convolutions import no_padding
from keras_bn.fold.absorb.rule import (
    Absorb,
    Arrays,
    Change,
    Reading,
    array,
    from_inside,
    from_outside,
    only_argument,
    over_channels,
    rebuilt_around,
    refusing_inside,
    require_plain_weights,
    with_bias,
)
from keras_bn.fold.affine import Affine, Refused
from keras_bn.layers import (
    LayerNormGRU,
    LayerNormGRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LayerNormSimpleRNN,
    LayerNormSimpleRNNCell,
)

_KERAS_CELLS = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)
_LAYER_NORM_CELLS = (LayerNormLSTMCell, LayerNormGRUCell, LayerNormSimpleRNNCell)


# --- layers made of a cell ----------------------------------------------------------------------


def _first_cell(layer: Any) -> tuple[str, Any]:
    """The cell that reads the input of `layer`, and its path."""
    if type(layer.cell) is not layers.StackedRNNCells:
        return "cell", layer.cell
    first, *others = layer.cell.cells
    if any(cell is first for cell in others):
        raise Refused(f"'{layer.name}' uses its first cell again, on another input")
    return "cell.cells.0", first


def _read(layer: Any) -> Arrays:
    path, cell = _first_cell(layer)
    weights = {"kernel": array(cell.kernel)}
    if type(cell) in _KERAS_CELLS:
        weights["bias"] = _zero_bias(cell) if cell.bias is None else array(cell.bias)
    return from_outside(path, weights)


def _zero_bias(cell: Any) -> np.ndarray:
    gates = cell.kernel.shape[-1]
    return np.zeros((2, gates) if getattr(cell, "reset_after", False) else gates)


def _forward(layer: Any, affine: Affine, reading: Reading) -> Change:
    only_argument(layer, reading)
    path, cell = _first_cell(layer)
    if type(cell) not in (*_KERAS_CELLS, *_LAYER_NORM_CELLS):
        raise Refused(f"'{layer.name}' runs a cell of a class of its own, {type(cell).__name__}")
    with refusing_inside(layer):
        require_plain_weights(layer)
    s, t = over_channels(layer, affine, -1, cell.kernel.shape[0])
    if type(cell) in _LAYER_NORM_CELLS:
        if affine.shifts:
            raise Refused(
                f"'{layer.name}' normalises the product of its kernel and the input, inside which "
                "there is no bias for the shift"
            )
        return lambda weights: {f"{path}.kernel": weights[f"{path}.kernel"] * s[:, None]}

    def change(weights: Arrays) -> Arrays:
        own = from_inside(path, weights)
        kernel, bias = algebra.recurrent_forward(own["kernel"], own["bias"], s, t)
        return from_outside(path, {"kernel": kernel, "bias": bias})

    return change


def _gains(layer: Any) -> Mapping[str, Any]:
    if type(layer) in _LAYER_NORM_LAYERS:
        return {}
    if type(layer) is layers.RNN:
        return rebuilt_around(layer, "cell", _cell_gains(layer.cell))
    return with_bias(layer)


def _cell_gains(cell: Any) -> Mapping[str, Any]:
    if type(cell) is layers.StackedRNNCells:
        first, *others = cell.get_config()["cells"]
        changed = {**first, "config": {**first["config"], **_cell_gains(cell.cells[0])}}
        return {"cells": [changed, *others]}
    return with_bias(cell) if type(cell) in _KERAS_CELLS else {}


_LAYER_NORM_LAYERS = (LayerNormLSTM, LayerNormGRU, LayerNormSimpleRNN)

# LSTM(BN(x)) -> LSTM(x)
_OF_A_CELL = Absorb(
    (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN, *_LAYER_NORM_LAYERS),
    _read,
    None,
    _forward,
    _gains,
)


# --- convolutions inside the step ---------------------------------------------------------------


def _read_convolution(layer: Any) -> Arrays:
    cell = layer.cell
    bias = np.zeros(cell.kernel.shape[-1]) if cell.bias is None else array(cell.bias)
    return {"cell.kernel": array(cell.kernel), "cell.bias": bias}


def _forward_convolution(layer: Any, affine: Affine, reading: Reading) -> Change:
    only_argument(layer, reading)
    if affine.shifts:
        no_padding(layer, reading.shape[1:])
    axis = 1 if layer.data_format == "channels_first" else -1
    s, t = over_channels(layer, affine, axis, layer.cell.kernel.shape[-2])

    def change(weights: Arrays) -> Arrays:
        kernel, bias = algebra.dense_forward(weights["cell.kernel"], weights["cell.bias"], s, t)
        return {"cell.kernel": kernel, "cell.bias": bias}

    return change


# ConvLSTM(BN(x)) -> ConvLSTM(x), where the convolution of the input does not pad
_CONVOLUTIONAL = Absorb(
    (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D),
    _read_convolution,
    None,
    _forward_convolution,
    with_bias,
)


# --- both directions ----------------------------------------------------------------------------

_DIRECTIONS = {"forward_layer": "layer", "backward_layer": "backward_layer"}
"""The layers inside Bidirectional, and which constructor argument makes each."""


def _rule_inside(inner: Any) -> Absorb:
    for rule in (_OF_A_CELL, _CONVOLUTIONAL):
        if type(inner) in rule.layers:
            return rule
    raise Refused(f"'{inner.name}' ({type(inner).__name__}) takes no scale and shift in")


def _read_both(layer: Any) -> Arrays:
    weights: Arrays = {}
    for name in _DIRECTIONS:
        inner = getattr(layer, name)
        weights |= from_outside(name, _rule_inside(inner).read(inner))
    return weights


def _forward_both(layer: Any, affine: Affine, reading: Reading) -> Change:
    only_argument(layer, reading)
    changes = {}
    with refusing_inside(layer):
        for name in _DIRECTIONS:
            inner = getattr(layer, name)
            absorb = _rule_inside(inner).forward
            assert absorb is not None
            changes[name] = absorb(inner, affine, reading)

    def change(weights: Arrays) -> Arrays:
        return {
            path: value
            for name, change_one in changes.items()
            for path, value in from_outside(name, change_one(from_inside(name, weights))).items()
        }

    return change


def _gains_both(layer: Any) -> Mapping[str, Any]:
    gains: dict[str, Any] = {}
    for name, argument in _DIRECTIONS.items():
        inner = getattr(layer, name)
        gains |= rebuilt_around(layer, argument, _rule_inside(inner).gains(inner))
    return gains


# Bidirectional(LSTM)(BN(x)) -> Bidirectional(LSTM)(x)
_BIDIRECTIONAL = Absorb((layers.Bidirectional,), _read_both, None, _forward_both, _gains_both)

RULES = (_OF_A_CELL, _CONVOLUTIONAL, _BIDIRECTIONAL)
