"""Sums, and the largest or smallest of several tensors, element by element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Refused
from keras_bn.fold.transmit.rule import Assignment, Call, Transmit

# Sums: all inputs have the same scale, and the shifts add up.


def _weights(operation: Any, count: int) -> list[float]:
    """What each input of a sum is multiplied by."""
    if isinstance(operation, (layers.Subtract, operators.Subtract)):
        return [1.0, -1.0]
    if isinstance(operation, layers.Average):
        return [1 / count] * count
    return [1.0] * count


def elementwise(operation: Any, affine: Affine, call: Call) -> None:
    """Refuse an affine that varies where an input is stretched to the others' shape."""
    ranks = {len(shape) for shape in call.inputs}
    if ranks != {len(affine.shape)}:
        raise Refused(f"'{operation.name}' combines tensors of different ranks")
    for axis, length in enumerate(affine.shape):
        if length != 1 and any(shape[axis] == 1 for shape in call.inputs):
            raise Refused(f"'{operation.name}' stretches an input along an axis that it varies on")


def _sum_backward(
    operation: Any, affine: Affine, call: Call, position: int
) -> Iterator[Assignment]:
    """One of the inputs takes the shift."""
    elementwise(operation, affine, call)
    weights = _weights(operation, len(call.inputs))
    bare = Affine(affine.scale, np.zeros_like(affine.shift))
    if not affine.shifts:
        yield Assignment([bare] * len(weights), (affine,))
        return
    for taker, weight in enumerate(weights):
        inputs = [bare] * len(weights)
        inputs[taker] = Affine(affine.scale, affine.shift / weight)
        yield Assignment(inputs, (affine,))


def _sum_forward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
    """Another input takes the opposite shift, so that the output has none; or the output has it."""
    elementwise(operation, affine, call)
    weights = _weights(operation, len(call.inputs))
    bare = Affine(affine.scale, np.zeros_like(affine.shift))
    inputs = [bare] * len(weights)
    inputs[position] = affine
    carried = weights[position] * affine.shift
    if affine.shifts:
        for other, weight in enumerate(weights):
            if other != position:
                balanced = list(inputs)
                balanced[other] = Affine(affine.scale, -carried / weight)
                yield Assignment(balanced, (bare,))
    yield Assignment(inputs, (Affine(affine.scale, carried),))


# Extremes: all tensors are scaled and shifted alike, and what does not change leaves a constant.


def _extreme(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
    elementwise(operation, affine, call)
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{operation.name}' compares tensors")
    for constant in call.constants.values():
        if np.ndim(constant) or np.any(affine.scale * float(constant) + affine.shift != constant):
            raise Refused(f"'{operation.name}' compares it with a constant that would have to move")
    yield Assignment([affine] * len(call.inputs), (affine,))


WITH_CONSTANTS = (operators.Maximum, operators.Minimum)
"""What an affine passes also where one of the two tensors is a constant."""

RULES = (
    Transmit(
        (layers.Add, layers.Subtract, layers.Average, operators.Add, operators.Subtract),
        _sum_backward,
        _sum_forward,
    ),
    Transmit((layers.Maximum, layers.Minimum, *WITH_CONSTANTS), _extreme, _extreme),
)
