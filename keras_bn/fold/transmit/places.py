"""Elements keep their values and change their places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Refused, Shape, known
from keras_bn.fold.transmit.rule import Call, Transmit, single


def _reshaped(operation: Any, affine: Affine, before: Shape, after: Shape) -> Affine:
    """The affine on a tensor of shape `before` once it is reshaped, row-major, to `after`.

    Where it does not vary along the first axes it repeats itself, row-major, every so many
    elements, and it does so in any other shape.

    Raises:
        Refused: in the new shape it varies along the batch axis, or a length is not known.
    """
    rank = len(before)
    found = (
        endings
        for endings in _equal_endings(before, after)
        if affine.constant_along(range(rank - len(endings[0])))
    )
    ending, lengths = next(found, (None, None))
    if ending is None or lengths is None:
        known([*before, *after])
        raise Refused(f"'{operation.name}' merges the batch axis with others")
    own = affine.shape[rank - len(ending) :]
    shape = (*(1,) * (len(after) - len(lengths)), *lengths)
    repeated = affine.map(lambda array: array.reshape(own)).full(ending)
    return repeated.map(lambda array: array.reshape(shape)).compact()


def _equal_endings(before: Shape, after: Shape) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The last axes of both shapes that hold equally many elements, fewest first."""
    for ending in _endings(before):
        for lengths in _endings(after):
            if math.prod(ending) == math.prod(lengths):
                yield ending, lengths
                break


def _endings(shape: Shape) -> Iterator[tuple[int, ...]]:
    """The last axes of `shape`, none, one, two and so on, as far as their lengths are known."""
    for start in range(len(shape), -1, -1):
        if None in shape[start:]:
            return
        yield known(shape[start:])


def _reshape_backward(layer: Any, affine: Affine, call: Call) -> Affine:
    return _reshaped(layer, affine, call.outputs[0], call.inputs[0])


def _reshape_forward(layer: Any, affine: Affine, call: Call) -> Affine:
    return _reshaped(layer, affine, call.inputs[0], call.outputs[0])


def _channels_last(layer: Any, affine: Affine, shape: Shape) -> tuple[Affine, Shape]:
    """Flatten reads channels-first data in channels-last order."""
    if layer.data_format == "channels_first" and len(shape) > 1:
        return affine.map(lambda array: np.moveaxis(array, 0, -1)), (*shape[1:], shape[0])
    return affine, shape


def _flatten_backward(layer: Any, affine: Affine, call: Call) -> Affine:
    shape = call.inputs[0]
    if layer.data_format == "channels_first" and len(shape) > 1:
        flat = _reshaped(layer, affine, call.outputs[0], (*shape[1:], shape[0]))
        return flat.map(lambda array: np.moveaxis(array, -1, 0))
    return _reshaped(layer, affine, call.outputs[0], shape)


def _flatten_forward(layer: Any, affine: Affine, call: Call) -> Affine:
    affine, shape = _channels_last(layer, affine, call.inputs[0])
    return _reshaped(layer, affine, shape, call.outputs[0])


def _permute_backward(layer: Any, affine: Affine, call: Call) -> Affine:
    return _permuted(layer, affine, np.argsort(_order(layer, len(affine.shape) + 1)).tolist())


def _permute_forward(layer: Any, affine: Affine, call: Call) -> Affine:
    return _permuted(layer, affine, _order(layer, len(affine.shape) + 1))


def _permuted(layer: Any, affine: Affine, order: Sequence[int]) -> Affine:
    moved = affine.map(lambda array: array[None].transpose(order))
    if not moved.constant_along([0]):
        raise Refused(f"'{layer.name}' puts an axis that it varies along in front")
    return moved.map(lambda array: array[0])


def _order(operation: Any, rank: int) -> Sequence[int]:
    """Which axis each of the output's `rank` axes comes from, the batch axis included."""
    if isinstance(operation, layers.Permute):
        return [0, *operation.dims]
    numbered = np.empty(range(rank))  # along each axis as long as its number
    if isinstance(operation, operators.Swapaxes):
        return numbered.swapaxes(operation.axis1, operation.axis2).shape
    if isinstance(operation, operators.Moveaxis):
        return np.moveaxis(numbered, operation.source, operation.destination).shape
    return numbered.transpose(operation.axes).shape


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
    Transmit((layers.Flatten,), *single(_flatten_backward, _flatten_forward)),
    Transmit(
        (layers.Permute, operators.Transpose, operators.Swapaxes, operators.Moveaxis),
        *single(_permute_backward, _permute_forward),
    ),
)
