"""Several tensors become one: side by side, as a sum, a product or the largest of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Refused, known
from keras_bn.fold.transmit.rule import Assignment, Shapes, Transmit

# Concatenate: each source takes its own stretch of the channels.


def _concatenation_axis(layer: Any, rank: int) -> int:
    axis = layer.axis % (rank + 1) - 1
    if axis < 0:
        raise Refused(f"'{layer.name}' concatenates along the batch axis")
    return axis


def _offsets(shapes: Shapes, axis: int) -> list[int]:
    lengths = known([shape[axis] for shape in shapes.inputs])
    return [0, *itertools.accumulate(lengths)]


def _concatenate_backward(layer: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    axis = _concatenation_axis(layer, len(affine.shape))
    if affine.shape[axis] == 1:
        yield Assignment((affine,) * len(shapes.inputs), affine)
        return
    offsets = _offsets(shapes, axis)
    parts = [affine.part(axis, start, stop) for start, stop in itertools.pairwise(offsets)]
    yield Assignment([part.compact() for part in parts], affine)


def _concatenate_forward(
    layer: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    rank = len(affine.shape)
    axis = _concatenation_axis(layer, rank)
    inputs = [Affine.identity(rank)] * len(shapes.inputs)
    inputs[position] = affine
    offsets = _offsets(shapes, axis)
    shape = list(affine.shape)
    shape[axis] = offsets[-1]
    own = (slice(None),) * axis + (slice(offsets[position], offsets[position + 1]),)
    scale, shift = np.ones(shape), np.zeros(shape)
    scale[own], shift[own] = affine.scale, affine.shift
    yield Assignment(inputs, Affine(scale, shift))


# Sums: all inputs have the same scale, and the shifts add up.


def _weights(operation: Any, count: int) -> list[float]:
    """What each input of a sum is multiplied by."""
    if isinstance(operation, (layers.Subtract, operators.Subtract)):
        return [1.0, -1.0]
    if isinstance(operation, layers.Average):
        return [1 / count] * count
    return [1.0] * count


def _elementwise(operation: Any, affine: Affine, shapes: Shapes) -> None:
    """Refuse an affine that varies where an input is stretched to the others' shape."""
    ranks = {len(shape) for shape in shapes.inputs}
    if ranks != {len(affine.shape)}:
        raise Refused(f"'{operation.name}' combines tensors of different ranks")
    for axis, length in enumerate(affine.shape):
        if length != 1 and any(shape[axis] == 1 for shape in shapes.inputs):
            raise Refused(f"'{operation.name}' stretches an input along an axis that it varies on")


def _sum_backward(operation: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    """One of the inputs takes the shift."""
    _elementwise(operation, affine, shapes)
    weights = _weights(operation, len(shapes.inputs))
    bare = Affine(affine.scale, np.zeros_like(affine.shift))
    if not affine.shifts:
        yield Assignment([bare] * len(weights), affine)
        return
    for position, weight in enumerate(weights):
        inputs = [bare] * len(weights)
        inputs[position] = Affine(affine.scale, affine.shift / weight)
        yield Assignment(inputs, affine)


def _sum_forward(
    operation: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    """Another input takes the opposite shift, so that the output has none; or the output has it."""
    _elementwise(operation, affine, shapes)
    weights = _weights(operation, len(shapes.inputs))
    bare = Affine(affine.scale, np.zeros_like(affine.shift))
    inputs = [bare] * len(weights)
    inputs[position] = affine
    carried = weights[position] * affine.shift
    if affine.shifts:
        for other, weight in enumerate(weights):
            if other != position:
                balanced = list(inputs)
                balanced[other] = Affine(affine.scale, -carried / weight)
                yield Assignment(balanced, bare)
    yield Assignment(inputs, Affine(affine.scale, carried))


# Products of two tensors: a scale on one of them is a scale on the product.


def _product_backward(operation: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    _no_shift_in_product(operation, affine, shapes)
    one = Affine.identity(len(affine.shape))
    for position in range(len(shapes.inputs)):
        inputs = [one] * len(shapes.inputs)
        inputs[position] = affine
        yield Assignment(inputs, affine)


def _product_forward(
    operation: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    _no_shift_in_product(operation, affine, shapes)
    inputs = [Affine.identity(len(affine.shape))] * len(shapes.inputs)
    inputs[position] = affine
    yield Assignment(inputs, affine)


def _no_shift_in_product(operation: Any, affine: Affine, shapes: Shapes) -> None:
    _elementwise(operation, affine, shapes)
    if affine.shifts:
        raise Refused(f"'{operation.name}' multiplies it by another tensor, so no shift passes")


# Extremes of several tensors: all of them are scaled and shifted alike.


def _extreme_backward(operation: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    _elementwise(operation, affine, shapes)
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{operation.name}' compares tensors")
    yield Assignment([affine] * len(shapes.inputs), affine)


def _extreme_forward(
    operation: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    yield from _extreme_backward(operation, affine, shapes)


OF_TWO = (
    operators.Add,
    operators.Subtract,
    operators.Multiply,
    operators.Maximum,
    operators.Minimum,
)


RULES = (
    Transmit(
        (layers.Concatenate, operators.Concatenate), _concatenate_backward, _concatenate_forward
    ),
    Transmit(
        (layers.Add, layers.Subtract, layers.Average, operators.Add, operators.Subtract),
        _sum_backward,
        _sum_forward,
    ),
    Transmit((layers.Multiply, operators.Multiply), _product_backward, _product_forward),
    Transmit(
        (layers.Maximum, layers.Minimum, operators.Maximum, operators.Minimum),
        _extreme_backward,
        _extreme_forward,
    ),
)
