"""Lengths that are not known while tracing, in the shapes that code asks for.

Outside tracing `keras.ops.shape(x)[0]` is the batch size. Of a symbolic tensor it is None, and
`keras.ops.reshape(x, (None, 8, 4))` is taken down as it stands, which no backend runs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from keras.src.ops.node import Node
from keras.src.ops.numpy import Reshape


@contextlib.contextmanager
def batch_sizes_known() -> Iterator[None]:
    """While it lasts, shapes are inferred as if None in a shape asked for were the batch size."""
    infer = Reshape.compute_output_spec

    def infer_resolved(self: Any, x: Any) -> Any:
        newshape = _with_one_unknown(self.newshape, x.shape)
        return infer(self if newshape is None else Reshape(newshape, name=self.name), x)

    Reshape.compute_output_spec = infer_resolved
    try:
        yield
    finally:
        Reshape.compute_output_spec = infer


def write_batch_sizes(nodes: list[Any]) -> bool:
    """Write -1 for None in the shapes that were asked for at `nodes`, where only one is unknown.

    Returns whether any needed a guess that has to be checked.
    """
    guessed = False
    for node in nodes:
        operation = node.operation
        if type(operation) is Reshape and has_unknown(operation.newshape):
            newshape = _with_one_unknown(operation.newshape, node.input_tensors[0].shape)
            if newshape is not None:
                guessed |= -1 in operation.newshape
                operation = Reshape(newshape, name=operation.name)
                Node(operation, node.arguments.args, node.arguments.kwargs, node.outputs)
    return guessed


def _with_one_unknown(newshape: Any, before: tuple[Any, ...]) -> tuple[int, ...] | None:
    """`newshape` with -1 for its None, where that leaves nothing else unknown.

    A -1 beside it becomes known if the None is what is unknown `before`: a guess.
    """
    if not has_unknown(newshape) or newshape.count(None) != 1:
        return None
    known = math.prod(length for length in newshape if length not in (None, -1))
    if -1 in newshape:
        size = math.prod(length for length in before if length is not None)
        if before.count(None) != 1 or not known or size % known:
            return None
        newshape = tuple(size // known if length == -1 else length for length in newshape)
    return tuple(-1 if length is None else length for length in newshape)


def has_unknown(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and any(item is None for item in value)
