"""What a rule is: one family of layers, and how their weights take an affine in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_bn.fold.activation import through_activation
from keras_bn.fold.affine import Affine, Array, Refused, Shape

Arrays = dict[str, Array]
"""Weights in float64 by the path of the attribute that holds them, such as "kernel"."""

Change = Callable[[Arrays], Arrays]
"""The arithmetic of one absorption: a layer's weights → what they become."""


@dataclass(frozen=True)
class Reading:
    """How one call of a layer reads a tensor.

    Attributes:
        arguments: Names of the call's arguments that the tensor arrives at.
        shape: The tensor's shape without its batch axis.
    """

    arguments: tuple[str, ...]
    shape: Shape


@dataclass(frozen=True)
class Absorb:
    """One family of layers and how it takes an affine in.

    "Backward" means that the affine follows the layer and moves back into it, "forward" that it
    precedes the layer. Both look at the layer alone and raise `Refused`, naming it, where it
    cannot take the affine; its weights are read when the returned change is carried out.

    Attributes:
        layers: The exact classes; a subclass may compute something else.
        read: layer → the weights that may change, a missing bias as zeros.
        backward: (layer, the affine on its output) → the change of weights with which the layer
            gives affine(output); None where its output cannot take an affine.
        forward: (layer, affine, reading) → the change of weights with which the layer gives from
            x what it gave from affine(x); None likewise.
        gains: layer → constructor arguments with which it has every array of `read`.
    """

    layers: tuple[type, ...]
    read: Callable[[Any], Arrays]
    backward: Callable[[Any, Affine], Change] | None
    forward: Callable[[Any, Affine, Reading], Change] | None
    gains: Callable[[Any], Mapping[str, Any]]


def with_bias(layer: Any) -> Mapping[str, Any]:
    """What a layer is constructed with so that it has a bias."""
    return {"use_bias": True}


def array(variable: Any) -> Array:
    """The variable's value in float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def before_activation(layer: Any, affine: Affine) -> Affine:
    """The affine in front of the layer's own activation that does what `affine` does behind it."""
    return through_activation(layer.activation, affine, f"inside '{layer.name}'")


def only_argument(layer: Any, reading: Reading) -> None:
    """Refuse a tensor that reaches the layer elsewhere than at its first argument alone."""
    if len(reading.arguments) > 1:
        raise Refused(f"'{layer.name}' reads it in more than one role")
