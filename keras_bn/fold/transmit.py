"""What affines pass through: operations that leave channels alone, under a condition.

Each rule maps an affine on an operation's output to affines on its inputs (`backward`) or the
one on an input to the output's (`forward`), so that op(affine(x)) = affine'(op(x)) for every x.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_bn.fold.affine import Affine, Refused, Shape, known
from keras_bn.graph.view import Node


@dataclass(frozen=True)
class Shapes:
    """Shapes of one call's inputs and output, without the batch axis."""

    inputs: tuple[Shape, ...]
    output: Shape


@dataclass(frozen=True)
class Transmit:
    """One family of operations that an affine passes.

    Attributes:
        layers: The exact classes.
        backward: (layer, affine on the output, shapes) → an affine for every input.
        forward: (layer, affine on an input, shapes, which input) → the affine on the output.
    """

    layers: tuple[type, ...]
    backward: Callable[[Any, Affine, Shapes], Sequence[Affine]]
    forward: Callable[[Any, Affine, Shapes, int], Affine]


def rule_for(layer: Any) -> Transmit | None:
    """The rule that covers `layer`, or None: unknown operations stop every affine."""
    return next((rule for rule in RULES if type(layer) in rule.layers), None)


def check_node(node: Node) -> None:
    """Refuse a call that does more than its layer's inference on its first argument."""
    if node.training:
        raise Refused(f"'{node.path}' is called with training=True")
    if node.side_inputs:
        raise Refused(f"'{node.path}' is called with further tensors")


def _both(change: Callable[..., Affine]) -> Any:
    """A rule whose two directions demand and do the same on the single input."""
    return (
        lambda layer, affine, shapes: (change(layer, affine, shapes),),
        lambda layer, affine, shapes, position: change(layer, affine, shapes),
    )


def _spatial_axes(layer: Any, rank: int) -> list[int]:
    """The axes behind the batch axis that are not the channel axis."""
    axes = list(range(rank))
    axes.pop(0 if getattr(layer, "data_format", None) == "channels_first" else -1)
    return axes


def _require_constant(layer: Any, affine: Affine, axes: Sequence[int]) -> None:
    if not affine.constant_along(axes):
        raise Refused(f"its scale and shift vary along an axis that '{layer.name}' moves or merges")


# Dropout and noise do nothing in inference.


def _unchanged(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return affine


def _linear_activation(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    if layer.activation is not keras.activations.linear:
        name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
        raise Refused(f"the activation {name} ('{layer.name}') stands in between")
    return affine


# Elements keep their values and change their places.


def _reshaped(affine: Affine, before: Shape, after: Shape) -> Affine:
    """The affine on a tensor of shape `before` once it is reshaped, row-major, to `after`."""
    if math.prod(affine.shape) == 1:
        return affine.map(lambda array: array.reshape((1,) * len(after)))
    channels_kept = bool(before and after) and before[-1] == after[-1] is not None
    if channels_kept and affine.constant_along(range(len(before) - 1)):
        return affine.map(lambda array: array.reshape((1,) * (len(after) - 1) + (-1,)))
    lengths = known(after)
    return affine.full(before).map(lambda array: array.reshape(lengths)).compact()


def _reshape_backward(layer: Any, affine: Affine, shapes: Shapes) -> Sequence[Affine]:
    return (_reshaped(affine, shapes.output, shapes.inputs[0]),)


def _reshape_forward(layer: Any, affine: Affine, shapes: Shapes, position: int) -> Affine:
    return _reshaped(affine, shapes.inputs[0], shapes.output)


def _channels_last(layer: Any, affine: Affine, shape: Shape) -> tuple[Affine, Shape]:
    """Flatten reads channels-first data in channels-last order."""
    if layer.data_format == "channels_first" and len(shape) > 1:
        return affine.map(lambda array: np.moveaxis(array, 0, -1)), (*shape[1:], shape[0])
    return affine, shape


def _flatten_backward(layer: Any, affine: Affine, shapes: Shapes) -> Sequence[Affine]:
    shape = shapes.inputs[0]
    if layer.data_format == "channels_first" and len(shape) > 1:
        flat = _reshaped(affine, shapes.output, (*shape[1:], shape[0]))
        return (flat.map(lambda array: np.moveaxis(array, -1, 0)),)
    return (_reshaped(affine, shapes.output, shape),)


def _flatten_forward(layer: Any, affine: Affine, shapes: Shapes, position: int) -> Affine:
    affine, shape = _channels_last(layer, affine, shapes.inputs[0])
    return _reshaped(affine, shape, shapes.output)


def _permute_backward(layer: Any, affine: Affine, shapes: Shapes) -> Sequence[Affine]:
    order = np.argsort(layer.dims)
    return (affine.map(lambda array: array.transpose(order)),)


def _permute_forward(layer: Any, affine: Affine, shapes: Shapes, position: int) -> Affine:
    order = [axis - 1 for axis in layer.dims]
    return affine.map(lambda array: array.transpose(order))


# Windows: averages and maxima of elements that share one scale and one shift.


def _spatially_constant(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    _require_constant(layer, affine, _spatial_axes(layer, len(affine.shape)))
    return affine


def _upsampled(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    # Nearest and bilinear weights are positive and sum to one.
    if getattr(layer, "interpolation", "nearest") not in ("nearest", "bilinear"):
        raise Refused(f"'{layer.name}' interpolates by {layer.interpolation}")
    return _spatially_constant(layer, affine, shapes)


def _maximum(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    # Padding is −∞, which a positive scale and any shift leave where it is.
    if np.any(affine.scale <= 0):
        raise Refused(f"a scale is not positive, and '{layer.name}' takes maxima")
    return _spatially_constant(layer, affine, shapes)


def _zero_padded(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    if np.any(affine.shift != 0):
        raise Refused(f"'{layer.name}' pads with zeros, which the shift would have to reach")
    return _spatially_constant(layer, affine, shapes)


def _global_backward(change: Callable[..., Affine]) -> Callable[..., Sequence[Affine]]:
    def backward(layer: Any, affine: Affine, shapes: Shapes) -> Sequence[Affine]:
        rank = len(shapes.inputs[0])
        axes = _spatial_axes(layer, rank)
        if not layer.keepdims:
            affine = affine.map(lambda array: np.expand_dims(array, axes))
        return (change(layer, affine, shapes),)

    return backward


def _global_forward(change: Callable[..., Affine]) -> Callable[..., Affine]:
    def forward(layer: Any, affine: Affine, shapes: Shapes, position: int) -> Affine:
        affine = change(layer, affine, shapes)
        if layer.keepdims:
            return affine
        axes = tuple(_spatial_axes(layer, len(shapes.inputs[0])))
        return affine.map(lambda array: np.squeeze(array, axes))

    return forward


# Concatenate: each source takes its own stretch of the channels.


def _concatenation_axis(layer: Any, rank: int) -> int:
    axis = layer.axis % (rank + 1) - 1
    if axis < 0:
        raise Refused(f"'{layer.name}' concatenates along the batch axis")
    return axis


def _offsets(shapes: Shapes, axis: int) -> list[int]:
    lengths = known([shape[axis] for shape in shapes.inputs])
    return [0, *itertools.accumulate(lengths)]


def _concatenate_backward(layer: Any, affine: Affine, shapes: Shapes) -> Sequence[Affine]:
    axis = _concatenation_axis(layer, len(affine.shape))
    if affine.shape[axis] == 1:
        return (affine,) * len(shapes.inputs)
    offsets = _offsets(shapes, axis)
    return [affine.part(axis, start, stop).compact() for start, stop in itertools.pairwise(offsets)]


def _concatenate_forward(layer: Any, affine: Affine, shapes: Shapes, position: int) -> Affine:
    axis = _concatenation_axis(layer, len(affine.shape))
    offsets = _offsets(shapes, axis)
    shape = list(affine.shape)
    shape[axis] = offsets[-1]
    own = (slice(None),) * axis + (slice(offsets[position], offsets[position + 1]),)
    scale, shift = np.ones(shape), np.zeros(shape)
    scale[own], shift[own] = affine.scale, affine.shift
    return Affine(scale, shift)


RULES = (
    Transmit(
        (
            layers.Dropout,
            layers.SpatialDropout1D,
            layers.SpatialDropout2D,
            layers.SpatialDropout3D,
            layers.AlphaDropout,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.ActivityRegularization,
            layers.Identity,
        ),
        *_both(_unchanged),
    ),
    Transmit((layers.Activation,), *_both(_linear_activation)),
    Transmit((layers.Reshape,), _reshape_backward, _reshape_forward),
    Transmit((layers.Flatten,), _flatten_backward, _flatten_forward),
    Transmit((layers.Permute,), _permute_backward, _permute_forward),
    Transmit(
        (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), *_both(_zero_padded)
    ),
    Transmit(
        (
            # Keras divides by the number of real elements, so padding does not show.
            layers.AveragePooling1D,
            layers.AveragePooling2D,
            layers.AveragePooling3D,
            layers.Cropping1D,
            layers.Cropping2D,
            layers.Cropping3D,
        ),
        *_both(_spatially_constant),
    ),
    Transmit((layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D), *_both(_upsampled)),
    Transmit((layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D), *_both(_maximum)),
    Transmit(
        (
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
        ),
        _global_backward(_spatially_constant),
        _global_forward(_spatially_constant),
    ),
    Transmit(
        (layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
        _global_backward(_maximum),
        _global_forward(_maximum),
    ),
    Transmit((layers.Concatenate,), _concatenate_backward, _concatenate_forward),
)
