"""Slices of a tensor, and its elements repeated or in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import core
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Array, Refused, known
from keras_bn.fold.transmit.parts import (
    Part,
    Pick,
    at,
    axes_by_class,
    axis_of,
    integers,
    rank_of,
    taking,
)
from keras_bn.fold.transmit.rule import Call, Transmit, of_keras


def _indexed(operation: Any, call: Call) -> list[Part]:
    """x[key], which NumPy and all backends agree on for integers, slices, None and `...`."""
    key = call.constants["key"]
    key = list(key) if isinstance(key, (tuple, list)) else [key]
    ellipsis = next((place for place, each in enumerate(key) if each is ...), len(key))
    left_out = rank_of(call.inputs[0]) - sum(each is not None and each is not ... for each in key)
    key[ellipsis : ellipsis + 1] = [slice(None)] * left_out
    picks: dict[int, Pick] = {}
    dropped: list[int] = []
    inserted: list[int] = []
    axis = 0
    for place, each in enumerate(key):
        if each is None:
            inserted.append(place - len(dropped))
            continue
        if isinstance(each, int) and not isinstance(each, bool):
            picks[axis] = at([each])
            dropped.append(axis)
        elif isinstance(each, slice) and all(
            bound is None or isinstance(bound, int) for bound in (each.start, each.stop, each.step)
        ):
            picks[axis] = at(each)
        else:
            raise Refused(f"'{operation.name}' picks by what is not known beforehand")
        axis += 1
    return [Part(picks, tuple(dropped), tuple(inserted))]


def _sliced(operation: Any, call: Call) -> list[Part]:
    """ops.slice(x, start, shape)"""

    def stretch(start: int, length: int) -> Pick:
        def pick(numbers: Array) -> Array:
            stop = len(numbers) if length == -1 else start + length
            if not 0 <= start <= stop <= len(numbers):
                raise Refused(f"'{operation.name}' reaches beyond its input")
            return numbers[start:stop]

        return pick

    starts = integers(operation, call.constants["start_indices"])
    lengths = integers(operation, operation.shape)
    pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
    return [Part({axis: stretch(*pair) for axis, pair in enumerate(pairs)})]


def _taken_by_number(operation: Any, call: Call) -> list[Part]:
    """ops.take(x, indices, axis)"""
    axis = axis_of(operation, rank_of(call.inputs[0]))
    indices = integers(operation, call.constants["indices"])
    if indices.ndim > 1:
        raise Refused(f"'{operation.name}' takes a table of elements")

    def pick(numbers: Array) -> Array:
        if np.any((indices < -len(numbers)) | (indices >= len(numbers))):
            raise Refused(f"'{operation.name}' reaches beyond its input")
        return numbers[np.atleast_1d(indices)]

    return [Part({axis: pick}, dropped=() if indices.ndim else (axis,))]


_ARRAY_SPLIT = of_keras(operators, "ArraySplit")
_SPLIT_AXES = axes_by_class("Vsplit", "Hsplit", "Dsplit")


def _split(operation: Any, call: Call) -> list[Part]:
    rank = rank_of(call.inputs[0])
    axis = _SPLIT_AXES.get(type(operation))
    axis = axis_of(operation, rank) if axis is None else axis
    if axis >= rank:
        raise Refused(f"'{operation.name}' splits the batch axis")
    split = np.array_split if isinstance(operation, _ARRAY_SPLIT) else np.split

    def stretch(number: int) -> Pick:
        return lambda numbers: split(numbers, operation.indices_or_sections)[number]

    return [Part({axis: stretch(number)}) for number in range(len(call.outputs))]


def _unstacked(operation: Any, call: Call) -> list[Part]:
    axis = axis_of(operation, rank_of(call.inputs[0]))
    return [Part({axis: at([n])}, dropped=(axis,)) for n in range(len(call.outputs))]


# Elements that change places or appear several times.

_FLIP_AXES = axes_by_class("Flipud", "Fliplr")


def _flipped(operation: Any, call: Call) -> list[Part]:
    rank = rank_of(call.inputs[0])
    axes = _FLIP_AXES.get(type(operation), getattr(operation, "axis", None))
    flipped = range(rank) if axes is None else np.atleast_1d(axes) % rank
    return [Part({int(axis): at(slice(None, None, -1)) for axis in flipped})]


def _rolled(operation: Any, call: Call) -> list[Part]:
    if operation.axis is None:
        raise Refused(f"'{operation.name}' mixes the batch axis with others")
    rank = rank_of(call.inputs[0])
    steps: dict[int, int] = {}
    for step, axis in np.broadcast(operation.shift, operation.axis):
        steps[int(axis) % rank] = steps.get(int(axis) % rank, 0) + int(step)

    def roll(step: int) -> Pick:
        return lambda numbers: np.roll(numbers, step)

    return [Part({axis: roll(step) for axis, step in steps.items()})]


def _repeated(operation: Any, call: Call) -> list[Part]:
    axis = axis_of(operation, rank_of(call.inputs[0]))
    repeats = integers(operation, operation.repeats)
    return [Part({axis: lambda numbers: np.repeat(numbers, repeats)})]


def _tiled(operation: Any, call: Call) -> list[Part]:
    rank = rank_of(call.inputs[0])
    repeats = np.atleast_1d(integers(operation, operation.repeats)).tolist()
    if len(repeats) > rank:
        raise Refused(f"'{operation.name}' puts axes in front of the batch axis")

    def tile(count: int) -> Pick:
        return lambda numbers: np.tile(numbers, count)

    first = rank - len(repeats)
    return [Part({first + place: tile(count) for place, count in enumerate(repeats)})]


def _broadcast(operation: Any, call: Call) -> list[Part]:
    (before,), (after,) = call.inputs, call.outputs
    if len(before) != len(after):
        raise Refused(f"'{operation.name}' puts axes in front of the batch axis")

    def repeat(count: int) -> Pick:
        return lambda numbers: np.repeat(numbers, count)

    lengths = zip(before, known(after), strict=True)
    stretched = {axis: count for axis, (length, count) in enumerate(lengths, 1) if length == 1}
    return [Part({axis: repeat(count) for axis, count in stretched.items()})]


def _repeated_vector(layer: Any, call: Call) -> list[Part]:
    return [Part(inserted=(1,))]


_SLICES = (
    Transmit((operators.GetItem,), *taking(_indexed)),
    Transmit((core.Slice,), *taking(_sliced)),
    Transmit((operators.Take,), *taking(_taken_by_number)),
    Transmit((operators.Split, *_ARRAY_SPLIT, *_SPLIT_AXES), *taking(_split)),
    Transmit((core.Unstack,), *taking(_unstacked)),
)

SLICES = tuple(operation for rule in _SLICES for operation in rule.operations)
"""What need not read everything of its input."""

RULES = (
    *_SLICES,
    Transmit((operators.Flip, *_FLIP_AXES), *taking(_flipped)),
    Transmit((operators.Roll,), *taking(_rolled)),
    Transmit((operators.Repeat,), *taking(_repeated)),
    Transmit((operators.Tile,), *taking(_tiled)),
    Transmit((operators.BroadcastTo,), *taking(_broadcast)),
    Transmit((layers.RepeatVector,), *taking(_repeated_vector)),
)
