"""Tensors side by side, and padding around one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Array, Refused, known
from keras_bn.fold.transmit.parts import (
    Part,
    Pick,
    at,
    axes_by_class,
    axis_of,
    joining,
    rank_of,
    taking,
)
from keras_bn.fold.transmit.rule import Assignment, Call, Transmit

_JOIN_AXES = axes_by_class("Vstack", "Hstack", "Dstack")


def _concatenated(operation: Any, call: Call) -> list[Part]:
    axis = _JOIN_AXES.get(type(operation))
    axis = axis_of(operation, rank_of(call.outputs[0])) if axis is None else axis
    if axis >= rank_of(call.inputs[0]):
        raise Refused(f"'{operation.name}' puts tensors side by side on an axis that they lack")

    def stretch(position: int) -> Pick:
        def pick(numbers: Array) -> Array:
            lengths = known([shape[axis - 1] for shape in call.inputs])
            start, stop = list(itertools.accumulate(lengths, initial=0))[position : position + 2]
            return numbers[start:stop]

        return pick

    return [Part({axis: stretch(position)}) for position in range(len(call.inputs))]


def _stacked(operation: Any, call: Call) -> list[Part]:
    axis = axis_of(operation, rank_of(call.outputs[0]))
    return [Part({axis: at([n])}, dropped=(axis,)) for n in range(len(call.inputs))]


# Padding with elements of the tensor, or around it with a constant.

_REPEATING = ("edge", "reflect", "symmetric", "wrap")
"""The modes in which padding repeats elements."""


def _with_repeated(operation: Any, call: Call) -> list[Part]:
    """The output as a part of the input."""
    if operation.mode not in _REPEATING:
        raise Refused(f"'{operation.name}' pads with numbers made of several elements")

    def pad(width: tuple[int, int]) -> Pick:
        return lambda numbers: np.pad(numbers, width, mode=operation.mode)

    widths = _widths(operation, call)
    return [Part({axis: pad(width) for axis, width in enumerate(widths)})]


def _inside(operation: Any, call: Call) -> Part:
    """The input as a part of the output."""

    def stretch(before: int, after: int) -> Pick:
        return lambda numbers: numbers[before : len(numbers) - after]

    widths = _widths(operation, call)
    return Part({axis: stretch(*width) for axis, width in enumerate(widths) if width != (0, 0)})


def _widths(operation: Any, call: Call) -> list[tuple[int, int]]:
    """How much padding there is before and after, along every axis."""
    widths = [(int(before), int(after)) for before, after in operation.pad_width]
    return widths * rank_of(call.inputs[0]) if len(widths) == 1 else widths


def _require_padding_stays(operation: Any, affine: Affine, call: Call) -> None:
    """Refuse an affine on the output that would change what `operation` pads with."""
    constant = call.constants.get("constant_values")
    constant = 0.0 if constant is None else constant
    message = f"'{operation.name}' pads with a constant, which would have to change"
    if np.ndim(constant):
        raise Refused(message)
    stays = (affine.scale * float(constant) + affine.shift == constant)[None]
    for axis, pick in _inside(operation, call).picks.items():
        length = stays.shape[axis]
        inside = pick(np.arange(length if length != 1 else 0))
        if not np.all(np.delete(stays, inside, axis)):
            raise Refused(message)


_REPEATED = taking(_with_repeated)


def _pad_backward(
    operation: Any, affine: Affine, call: Call, position: int
) -> Iterator[Assignment]:
    if operation.mode != "constant":
        yield from _REPEATED[0](operation, affine, call, position)
        return
    _require_padding_stays(operation, affine, call)
    yield Assignment((_inside(operation, call).of(affine),), (affine,))


def _pad_forward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
    """Where the affine varies along a padded axis, it lets the padding be."""
    if operation.mode != "constant":
        yield from _REPEATED[1](operation, affine, call, position)
        return
    padded = next(_inside(operation, call).within(affine, call.outputs[0]))
    _require_padding_stays(operation, padded, call)
    yield Assignment((affine,), (padded,))


RULES = (
    Transmit(
        (layers.Concatenate, operators.Concatenate, operators.Append, *_JOIN_AXES),
        *joining(_concatenated),
    ),
    Transmit((operators.Stack,), *joining(_stacked)),
    Transmit((operators.Pad,), _pad_backward, _pad_forward),
)
