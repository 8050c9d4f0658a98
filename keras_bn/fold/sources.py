"""Where affines come from: operations that are nothing but a scale and a shift in inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.errors import UnsupportedModelError
from keras_bn.fold.absorb.rule import require_added_along
from keras_bn.fold.affine import Affine, Array, Refused, Shape
from keras_bn.graph.view import Node
from keras_bn.layers import BatchNormalization

_CALLS = (keras.layers.BatchNormalization.call, BatchNormalization.call)


def unwrapped(operation: Any) -> Any:
    """What is called for every step where `operation` is a TimeDistributed, else itself."""
    while type(operation) is layers.TimeDistributed:
        operation = operation.layer
    return operation


def path_of(node: Node) -> str:
    """The path of what scales and shifts at `node`: "backbone/each/bn" of a TimeDistributed."""
    path, operation = node.path, node.operation
    while type(operation) is layers.TimeDistributed:
        operation = operation.layer
        path = f"{path}/{operation.name}"
    return path


def is_batch_norm(operation: Any) -> bool:
    """Whether `operation` normalises batches as Keras's layer or ours does, at every step maybe."""
    layer = unwrapped(operation)
    return isinstance(layer, keras.layers.BatchNormalization) and type(layer).call in _CALLS


def is_affine(operation: Any) -> bool:
    """Whether the call of `operation` may be a scale and a shift, and so may go."""
    return is_batch_norm(operation) or type(unwrapped(operation)) in _READERS


@dataclass(frozen=True)
class Met:
    """Mean and deviation of the values that an affine meets, over the axes that it varies along."""

    mean: Array
    deviation: Array

    @property
    def magnitude(self) -> Array:
        return np.abs(self.mean) + self.deviation

    def or_smaller(self, other: Met) -> Met:
        """Of the values in `other` those that are smaller, where it is about the same axes."""
        if other.mean.shape != self.mean.shape:
            return self
        smaller = other.magnitude < self.magnitude
        return Met(
            np.where(smaller, other.mean, self.mean),
            np.where(smaller, other.deviation, self.deviation),
        )

    def stored_as(self, affine: Affine) -> Met:
        """The same of affine(x), where these are of x."""
        deviation = np.where(affine.scale == 0, 0.0, self.deviation)  # which may be infinite
        return Met(affine.scale * self.mean + affine.shift, np.abs(affine.scale) * deviation)

    def stored_under(self, undo: Affine) -> Met:
        """The same of x', where these are of x = undo(x').

        Where `undo` takes x' to be zero, nothing is known of it and nothing comes of it.
        """
        scale = np.where(undo.scale == 0, 1.0, undo.scale)
        return self.stored_as(Affine(1 / scale, -undo.shift / scale))


@dataclass(frozen=True)
class Source:
    """An affine, and what it meets."""

    affine: Affine
    met: Met


def source_of(node: Node, shape: Shape) -> Source | None:
    """What the operation called at `node` does to tensors of `shape`, the batch axis left out.

    None where it does something else, as an addition of two tensors does.

    Raises:
        Refused: it scales or shifts along the batch axis, or not as its shape says.
        UnsupportedModelError: its statistics are not finite, or a variance is negative.
    """
    if type(node.operation) is layers.TimeDistributed:
        inside = source_of(_inside(node), shape[1:])
        return None if inside is None else _at_every_step(inside)
    if is_batch_norm(node.operation):
        return _batch_norm(node.operation, len(shape))
    affine = _READERS[type(node.operation)](node, len(shape))
    if affine is not None and isinstance(node.operation, operators.Add):
        axes = [axis for axis, length in enumerate(affine.shape) if length != 1]
        if len(axes) == 1:
            require_added_along(node.operation, axes[0], shape)
    return None if affine is None else Source(affine, unknown(len(shape)))


def unknown(rank: int) -> Met:
    """What is large enough for whatever is done to it, on tensors of `rank` axes and the batch's.

    Only a batch normalization knows what it meets.
    """
    one = np.ones((1,) * rank)
    return Met(0 * one, np.inf * one)


def _inside(node: Node) -> Node:
    """The call of the layer inside the TimeDistributed at `node`, at any of its steps."""
    return replace(node, operation=node.operation.layer)


def _at_every_step(inside: Source) -> Source:
    met = Met(inside.met.mean[None], inside.met.deviation[None])
    return Source(inside.affine.map(lambda array: array[None]), met)


# --- layers --------------------------------------------------------------------------------------


def batch_norm_affine(
    gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
) -> tuple[Array, Array]:
    """BN(x) = γ·(x − μ)/√(σ² + ε) + β as (scale, shift), float64 arrays in and out."""
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def gamma_beta(
    scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float
) -> tuple[Array, Array]:
    """The γ and β with which BN(x) = scale·x + shift; the reverse of `batch_norm_affine`."""
    return scale * np.sqrt(variance + epsilon), shift + mean * scale


def read_batch_norm(layer: Any) -> dict[str, Array]:
    """γ, β and the moving statistics in float64; ones and zeros for a missing γ or β.

    Raises:
        UnsupportedModelError: a value is not finite, or a variance is negative.
    """
    weights = {
        name: _array(variable)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
        if (variable := getattr(layer, name)) is not None
    }
    for name, value in weights.items():
        if not np.all(np.isfinite(value)):
            raise UnsupportedModelError(
                f"{name} of '{layer.name}' holds NaN or infinity; the model is damaged or its "
                "training diverged. Train it again, or replace the statistics with "
                "keras_bn.update_bn(model, data)"
            )
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    if np.any(variance + layer.epsilon <= 0):
        raise UnsupportedModelError(
            f"moving_variance + epsilon of '{layer.name}' is not positive, which no variance can "
            "be. Replace the statistics with keras_bn.update_bn(model, data)"
        )
    return {
        "gamma": weights.get("gamma", np.ones_like(mean)),
        "beta": weights.get("beta", np.zeros_like(mean)),
        "moving_mean": mean,
        "moving_variance": variance,
    }


def spread(layer: Any, vector: Array, rank: int) -> Array:
    """An array over the axes that the batch normalization `layer` normalises, over all `rank` axes.

    Raises:
        Refused: it normalises over the batch axis, whose elements have statistics of their own.
    """
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = sorted(axis % (rank + 1) for axis in axes)
    if 0 in axes:
        raise Refused("its channel axis is the batch axis")
    lengths = iter(vector.shape if vector.ndim == len(axes) else [vector.size])
    return vector.reshape([next(lengths) if axis in axes else 1 for axis in range(1, rank + 1)])


def _batch_norm(layer: Any, rank: int) -> Source:
    weights = read_batch_norm(layer)
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    scale, shift = batch_norm_affine(
        weights["gamma"], weights["beta"], mean, variance, layer.epsilon
    )
    scale, shift, mean, deviation = (
        spread(layer, vector, rank)
        for vector in (scale, shift, mean, np.sqrt(variance + layer.epsilon))
    )
    return Source(Affine(scale, shift), Met(mean, deviation))


def _rescaling(node: Node, rank: int) -> Affine:
    """scale·x + offset; arrays of them stand on the last axes, or on the channels in front."""
    layer = node.operation
    scale, offset = _array(layer.scale), _array(layer.offset)
    if scale.ndim and keras.config.image_data_format() == "channels_first":
        scale = scale.reshape(scale.shape + (1,) * (3 - scale.ndim))
    return _broadcast(scale, offset, rank)


def _normalization(node: Node, rank: int) -> Affine:
    """(x − mean)/√variance, or the reverse of it."""
    layer = node.operation
    mean, variance = _array(layer.mean), _array(layer.variance)
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    affine = _broadcast(deviation, mean, rank)
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(deviation))):
        raise UnsupportedModelError(
            f"mean or variance of '{layer.name}' is not finite; adapt it on finite data"
        )
    return affine if layer.invert else affine.inverse()


# --- Python operators and keras.ops with a constant ----------------------------------------------


def _add(node: Node, rank: int) -> Affine | None:
    constant = _constant(node)
    return None if constant is None else _broadcast(1.0, constant, rank)


def _subtract(node: Node, rank: int) -> Affine | None:
    constant = _constant(node)
    if constant is None:
        return None
    if "x1" in node.constants:  # constant − x
        return _broadcast(-1.0, constant, rank)
    return _broadcast(1.0, -constant, rank)


def _multiply(node: Node, rank: int) -> Affine | None:
    constant = _constant(node)
    return None if constant is None else _broadcast(constant, 0.0, rank)


def _divide(node: Node, rank: int) -> Affine | None:
    constant = _constant(node)
    if constant is None or "x1" in node.constants or np.any(constant == 0):
        return None
    return _broadcast(1 / constant, 0.0, rank)


def _negative(node: Node, rank: int) -> Affine:
    return _broadcast(-1.0, 0.0, rank)


def _constant(node: Node) -> Array | None:
    """The constant that an operator combines its one tensor with; None where there is none."""
    values = [value for name, value in node.constants.items() if name in ("x1", "x2")]
    if len(values) != 1 or keras.utils.is_keras_tensor(values[0]):
        return None
    if isinstance(values[0], keras.Variable):  # somebody may still assign to it
        return None
    constant = _array(values[0])
    return constant if np.all(np.isfinite(constant)) else None


def _broadcast(scale: Array | float, shift: Array | float, rank: int) -> Affine:
    """The affine whose arrays stand on the last axes of tensors with `rank` axes behind the batch.

    Raises:
        Refused: an array reaches the batch axis.
    """

    def place(array: Array) -> Array:
        if array.ndim == rank + 1 and array.shape[0] == 1:
            array = array[0]
        if array.ndim > rank:
            raise Refused("its scale or shift varies along the batch axis")
        return array.reshape((1,) * (rank - array.ndim) + array.shape)

    return Affine(place(np.asarray(scale)), place(np.asarray(shift)))


def _array(value: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(value), np.float64)


_READERS: Mapping[type, Callable[[Node, int], Affine | None]] = {
    layers.Rescaling: _rescaling,
    layers.Normalization: _normalization,
    operators.Add: _add,
    operators.Subtract: _subtract,
    operators.Multiply: _multiply,
    operators.Divide: _divide,
    operators.TrueDivide: _divide,
    operators.Negative: _negative,
}
