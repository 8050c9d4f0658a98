"""Products of tensors: a scale on one of them is a scale on the product, and no shift passes.

Where elements are multiplied and then summed, as by a matrix product, a scale passes along every
axis that the product has too. The one that is summed over, it may not vary along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from string import ascii_letters
from typing import Any

from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Array, Refused
from keras_bn.fold.transmit.merges import elementwise
from keras_bn.fold.transmit.rule import Assignment, Call, Transmit


def _no_shift(operation: Any, affine: Affine) -> None:
    if affine.shifts:
        raise Refused(f"'{operation.name}' multiplies it by another tensor, so no shift passes")


def _on_one(affine: Affine, position: int, call: Call) -> list[Affine]:
    """Affines on all inputs of which one alone changes anything."""
    inputs = [Affine.identity(len(shape)) for shape in call.inputs]
    inputs[position] = affine
    return inputs


# Element by element.


def _product_backward(
    operation: Any, affine: Affine, call: Call, position: int
) -> Iterator[Assignment]:
    elementwise(operation, affine, call)
    _no_shift(operation, affine)
    for taker in range(len(call.inputs)):
        yield Assignment(_on_one(affine, taker, call), (affine,))


def _product_forward(
    operation: Any, affine: Affine, call: Call, position: int
) -> Iterator[Assignment]:
    elementwise(operation, affine, call)
    _no_shift(operation, affine)
    yield Assignment(_on_one(affine, position, call), (affine,))


# Element by element and then summed. Each axis has a letter, as in einsum's equations.

Equation = tuple[list[str], str]
"""The letters of the axes of every input, and of the output, the batch axis included."""


def _of_matmul(operation: Any, call: Call) -> Equation:
    first, second = (len(shape) + 1 for shape in call.inputs)
    if min(first, second) < 2:
        raise Refused(f"'{operation.name}' multiplies vectors")
    stacked = ascii_letters[3 : 1 + max(first, second)]
    inputs = [
        stacked[len(stacked) - (rank - 2) :] + matrix
        for rank, matrix in ((first, "ab"), (second, "bc"))
    ]
    return inputs, f"{stacked}ac"


def _of_einsum(operation: Any, call: Call) -> Equation:
    before, arrow, output = operation.subscripts.replace(" ", "").partition("->")
    inputs = before.split(",")
    if not arrow or "." in before or any(len(set(axes)) < len(axes) for axes in inputs):
        raise Refused(f"the equation '{operation.subscripts}' does not name every axis once")
    return inputs, output


def _of_dot(layer: Any, call: Call) -> Equation:
    if layer.normalize:
        raise Refused(f"'{layer.name}' normalizes its inputs")
    axes = layer.axes if isinstance(layer.axes, (list, tuple)) else (layer.axes,) * 2
    ranks = [len(shape) + 1 for shape in call.inputs]
    letters = iter(ascii_letters[2:])
    inputs = []
    for axis, rank in zip(axes, ranks, strict=True):
        own = ["a", *(next(letters) for _ in range(rank - 1))]
        own[axis % rank] = "b"
        inputs.append("".join(own))
    output = "a" + "".join(axes[1:] for axes in inputs).replace("b", "")
    return inputs, output if len(output) > 1 else "aA"


def _contraction(equation_of: Callable[[Any, Call], Equation]) -> Any:
    """Both directions of a rule for operations that multiply and sum as an equation says."""

    def backward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        _no_shift(operation, affine)
        inputs, output = equation_of(operation, call)
        refusals = []
        for taker, axes in enumerate(inputs):
            try:
                taken = affine.map(partial(_carried, axes=output, target=axes))
                _not_stretched(operation, taken, call, taker)
            except Refused as refusal:
                refusals.append(refusal)
            else:
                yield Assignment(_on_one(taken, taker, call), (affine,))
        if len(refusals) == len(inputs):
            raise refusals[0]

    def forward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        _no_shift(operation, affine)
        inputs, output = equation_of(operation, call)
        product = affine.map(partial(_carried, axes=inputs[position], target=output))
        yield Assignment(_on_one(affine, position, call), (product,))

    return backward, forward


def _carried(array: Array, axes: str, target: str) -> Array:
    """`array`, whose axes behind the batch axis have the letters `axes`, over those of `target`."""
    lengths = dict(zip(axes, (1, *array.shape), strict=True))
    if any(length != 1 and axis not in target for axis, length in lengths.items()):
        raise Refused("a scale varies along an axis that is summed over, or that one tensor lacks")
    if lengths.get(target[0], 1) != 1:
        raise Refused("a scale would vary along the batch axis")
    kept = [axis for axis in axes if axis in target]
    order = [kept.index(axis) for axis in target if axis in kept]
    array = array.reshape([lengths[axis] for axis in kept]).transpose(order)
    return array.reshape([lengths.get(axis, 1) for axis in target[1:]])


def _not_stretched(operation: Any, affine: Affine, call: Call, position: int) -> None:
    for length, own in zip(affine.shape, call.inputs[position], strict=True):
        if length != 1 and own == 1:
            raise Refused(f"'{operation.name}' stretches an input along an axis that it varies on")


RULES = (
    Transmit((layers.Multiply, operators.Multiply), _product_backward, _product_forward),
    Transmit((operators.Matmul,), *_contraction(_of_matmul)),
    Transmit((operators.Einsum,), *_contraction(_of_einsum)),
    Transmit((layers.Dot,), *_contraction(_of_dot)),
)
