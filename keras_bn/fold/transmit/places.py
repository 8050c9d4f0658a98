"""Elements keep their values and change their places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Refused, Shape, known
from keras_bn.fold.transmit.rule import Shapes, Transmit, require_constant, single


def _reshaped(affine: Affine, before: Shape, after: Shape) -> Affine:
    """The affine on a tensor of shape `before` once it is reshaped, row-major, to `after`."""
    if math.prod(affine.shape) == 1:
        return affine.map(lambda array: array.reshape((1,) * len(after)))
    channels_kept = bool(before and after) and before[-1] == after[-1] is not None
    if channels_kept and affine.constant_along(range(len(before) - 1)):
        return affine.map(lambda array: array.reshape((1,) * (len(after) - 1) + (-1,)))
    lengths = known(after)
    return affine.full(before).map(lambda array: array.reshape(lengths)).compact()


def _reshape_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return _reshaped(affine, shapes.output, shapes.inputs[0])


def _reshape_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return _reshaped(affine, shapes.inputs[0], shapes.output)


def _channels_last(layer: Any, affine: Affine, shape: Shape) -> tuple[Affine, Shape]:
    """Flatten reads channels-first data in channels-last order."""
    if layer.data_format == "channels_first" and len(shape) > 1:
        return affine.map(lambda array: np.moveaxis(array, 0, -1)), (*shape[1:], shape[0])
    return affine, shape


def _flatten_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    shape = shapes.inputs[0]
    if layer.data_format == "channels_first" and len(shape) > 1:
        flat = _reshaped(affine, shapes.output, (*shape[1:], shape[0]))
        return flat.map(lambda array: np.moveaxis(array, -1, 0))
    return _reshaped(affine, shapes.output, shape)


def _flatten_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    affine, shape = _channels_last(layer, affine, shapes.inputs[0])
    return _reshaped(affine, shape, shapes.output)


def _repeat_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    require_constant(layer, affine, [0])
    return affine.map(lambda array: array[0])


def _repeat_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return affine.map(lambda array: array[None])


def _permute_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    order = np.argsort(_order(layer, len(affine.shape)))
    return affine.map(lambda array: array.transpose(order))


def _permute_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    order = _order(layer, len(affine.shape))
    return affine.map(lambda array: array.transpose(order))


def _order(operation: Any, rank: int) -> list[int]:
    """Which axis behind the batch axis each of the output's axes comes from."""
    if isinstance(operation, layers.Permute):
        return [axis - 1 for axis in operation.dims]
    numbered = np.empty(range(rank + 1))  # along each axis as long as its number
    if isinstance(operation, operators.Swapaxes):
        axes = numbered.swapaxes(operation.axis1, operation.axis2).shape
    elif isinstance(operation, operators.Moveaxis):
        axes = np.moveaxis(numbered, operation.source, operation.destination).shape
    else:
        axes = numbered.transpose(operation.axes).shape
    if axes[0] != 0:
        raise Refused(f"'{operation.name}' moves the batch axis")
    return [axis - 1 for axis in axes[1:]]


RULES = (
    Transmit(
        (
            layers.Reshape,
            operators.Reshape,
            operators.Squeeze,
            operators.ExpandDims,
        ),
        *single(_reshape_backward, _reshape_forward),
    ),
    Transmit((layers.RepeatVector,), *single(_repeat_backward, _repeat_forward)),
    Transmit((layers.Flatten,), *single(_flatten_backward, _flatten_forward)),
    Transmit(
        (layers.Permute, operators.Transpose, operators.Swapaxes, operators.Moveaxis),
        *single(_permute_backward, _permute_forward),
    ),
)
