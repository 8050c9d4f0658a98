"""What a rule is: one family of layers, and how their weights take an affine in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_bn.fold.activation import through_activation
from keras_bn.fold.affine import Affine, Array, Refused, Shape
from keras_bn.graph.view import first_argument

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
        given: Names of all of the call's arguments that are not None. An attention whose `key` is
            not among them takes its keys from `value`.
    """

    arguments: tuple[str, ...]
    shape: Shape
    given: tuple[str, ...]


@dataclass(frozen=True)
class Absorb:
    """One family of layers and how it takes an affine in.

    "Backward" means that the affine follows the layer and moves back into it, "forward" that it
    precedes the layer. Both look at the layer alone and raise `Refused`, naming it, where it
    cannot take the affine, or is built around a layer that cannot; its weights are read when the
    returned change is carried out.

    Attributes:
        layers: The exact classes; a subclass may compute something else.
        read: layer → the weights that may change, a missing bias as zeros.
        backward: (layer, the affine on its output) → the change of weights with which the layer
            gives affine(output); None where its output cannot take an affine.
        forward: (layer, affine, reading) → the change of weights with which the layer gives from
            x what it gave from affine(x); None likewise.
        gains: layer → constructor arguments with which it has every array of `read`.
        zeroed_by_mask: layer → whether it gives zeros where its call's mask is False, which no
            shift in its weights reaches.
    """

    layers: tuple[type, ...]
    read: Callable[[Any], Arrays]
    backward: Callable[[Any, Affine], Change] | None
    forward: Callable[[Any, Affine, Reading], Change] | None
    gains: Callable[[Any], Mapping[str, Any]]
    zeroed_by_mask: Callable[[Any], bool] = lambda layer: False


def with_bias(layer: Any) -> Mapping[str, Any]:
    """What a layer is constructed with so that it has a bias."""
    return {"use_bias": True}


def nothing(layer: Any) -> Mapping[str, Any]:
    """`gains` of a layer that always has every array it can use."""
    return {}


def array(variable: Any) -> Array:
    """The variable's value in float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def before_activation(layer: Any, affine: Affine) -> Affine:
    """The affine in front of the layer's own activation that does what `affine` does behind it."""
    return through_activation(layer.activation, affine, f"inside '{layer.name}'")


def over_channels(layer: Any, affine: Affine, axis: int, size: int) -> tuple[Array, Array]:
    """Scale and shift as vectors over the `size` channels that `layer` has along `axis`."""
    try:
        return affine.channels(axis, size)
    except Refused as refusal:
        raise Refused(f"{refusal} of '{layer.name}'") from None


def require_added_along(layer: Any, axis: int, output: Shape) -> None:
    """Refuse a layer whose bias, which varies along `axis` alone, Keras adds along another one.

    On TensorFlow, Keras 3.15's `ops.add` takes any array that varies along one axis for a bias: of
    the last axis if that is as long, else of the first one behind the batch axis if that is. A
    bias of channels in front of as many columns comes out along the columns.

    Args:
        layer: A layer that adds its bias by `ops.add`.
        axis: The axis of the output that the bias varies along, the batch axis left out.
        output: The output's shape without its batch axis.
    """
    taken = [place for place in (len(output) - 1, 0) if output[place] in (output[axis], None)]
    if keras.backend.backend() == "tensorflow" and taken and taken[0] != axis:
        raise Refused(
            f"Keras may add the bias of '{layer.name}' along another axis of the same length"
        )


# --- the call's arguments -----------------------------------------------------------------------


def only_argument(layer: Any, reading: Reading) -> None:
    """Refuse a tensor that reaches the layer elsewhere than at its first argument alone."""
    if reading.arguments != (first_argument(layer),):
        names = " and ".join(f"`{name}`" for name in reading.arguments)
        raise Refused(f"'{layer.name}' reads it as {names}")


# --- layers inside a layer ----------------------------------------------------------------------


@contextmanager
def refusing_inside(layer: Any) -> Iterator[None]:
    """Have the refusals of layers inside `layer`, whose names nobody chose, name it too."""
    try:
        yield
    except Refused as refusal:
        raise Refused(f"inside '{layer.name}': {refusal}") from None


def require_plain_weights(layer: Any) -> None:
    """Refuse a layer that computes with something else than its weights, itself or inside it."""
    for part in layer._flatten_layers():
        if part.quantization_mode is not None:
            raise Refused(f"'{part.name}' is quantized ({part.quantization_mode})")
        if getattr(part, "lora_enabled", False):
            raise Refused(f"'{part.name}' adds a LoRA product to its weights")


def from_outside(path: str, weights: Arrays) -> Arrays:
    """The weights of the layer at `path`, named by their paths from the layer around it."""
    return {f"{path}.{name}": value for name, value in weights.items()}


def from_inside(path: str, weights: Arrays) -> Arrays:
    """The reverse: those of `weights` that lie in the layer at `path`, by their own paths."""
    prefix = f"{path}."
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def rebuilt_around(layer: Any, argument: str, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The constructor arguments of `layer` with which the layer it takes as `argument` has others.

    Args:
        layer: A layer made of another one.
        argument: The argument that takes that one.
        changes: The inner layer's constructor arguments that differ.
    """
    inner = layer.get_config()[argument]
    return {argument: {**inner, "config": {**inner["config"], **changes}}}
