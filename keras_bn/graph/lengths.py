"""Lengths that are not known while tracing, in the shapes that code asks for.

Outside tracing `keras.ops.shape(x)[0]` is the batch size. Of a symbolic tensor it is None, and
`keras.ops.reshape(x, (None, 8, 4))` is taken down as it stands, which no backend runs.
"""

from __future__ import annotations

import math
from typing import Any

from keras import tree
from keras.src.ops.node import Node
from keras.src.ops.numpy import Reshape


def resolve_lengths(nodes: list[Any]) -> bool:
    """Write -1 for the batch size, unknown while tracing, in shapes that the code asks for.

    Shapes after it are inferred anew. Returns whether any needed a guess that has to be checked.
    """
    guessed = False
    changed: set[int] = set()
    for node in nodes:
        operation, recorded = node.operation, node.arguments
        if type(operation) is Reshape and has_unknown(operation.newshape):
            before = node.input_tensors[0].shape
            newshape = _with_one_unknown(operation.newshape, before)
            if newshape is not None:
                guessed |= -1 in operation.newshape
                operation = Reshape(newshape, name=operation.name)
                Node(operation, recorded.args, recorded.kwargs, node.outputs)
        if operation is not node.operation or not changed.isdisjoint(map(id, node.input_tensors)):
            found = operation.compute_output_spec(*recorded.args, **recorded.kwargs)
            for tensor, new in zip(node.outputs, tree.flatten(found), strict=True):
                if tensor.shape != new.shape:
                    tensor._shape = new.shape
                    changed.add(id(tensor))
    return guessed


def _with_one_unknown(newshape: tuple[Any, ...], before: tuple[Any, ...]) -> tuple[int, ...] | None:
    """`newshape` with -1 for its None, where that leaves nothing else unknown.

    A -1 beside it becomes known if the None is what is unknown `before`: a guess.
    """
    known = math.prod(length for length in newshape if length not in (None, -1))
    if newshape.count(None) != 1:
        return None
    if -1 in newshape:
        size = math.prod(length for length in before if length is not None)
        if before.count(None) != 1 or not known or size % known:
            return None
        newshape = tuple(size // known if length == -1 else length for length in newshape)
    return tuple(-1 if length is None else length for length in newshape)


def has_unknown(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and any(item is None for item in value)
