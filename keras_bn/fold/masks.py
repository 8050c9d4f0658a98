"""Masks as they are when a model runs, which is not always as its graph says.

Keras puts the mask of a tensor on the tensor itself. `MultiHeadAttention` takes it off the tensors
that it reads: whatever reads one of them later, and passes on the mask that it finds there, finds
none. A call with a `mask` argument of its own, as that of a batch normalization, puts it back on
its output. So such a call does more than to scale and shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import layers

from keras_bn.fold import transmit
from keras_bn.fold.affine import Refused
from keras_bn.fold.sources import is_affine
from keras_bn.graph.view import Node, Tensor, View


def is_masked(view: View, node: Node) -> bool:
    """Whether `node` is called with a mask, given to it or carried by its input."""
    given = "mask" in node.others or node.constants.get("mask") is not None
    return given or not view.masked.isdisjoint(node.inputs)


def require_mask_stays(view: View, node: Node) -> None:
    """Refuse a call without which others would run with other masks.

    Raises:
        Refused: naming the attention that takes a mask off.
    """
    before, after = node.tensor, node.outputs[0]
    if before not in view.masked or not _is_looked_for(view, view.readers(after)):
        return
    taker = _takes_off(view, before, node)
    if taker is None and "mask" in node.others:
        taker = next(_taken_off_before(view, node), None)
    if taker is not None:
        raise Refused(f"'{taker.path}' takes the mask off what it reads, which it puts back")
    taker = _takes_off(view, after, node)
    others = [reader for reader in _readers(view, before) if reader is not node]
    if taker is not None and _is_looked_for(view, others):
        raise Refused(
            f"'{taker.path}' would take the mask off what is in front of it, which others read too"
        )


def _is_looked_for(view: View, readers: Iterable[Node]) -> bool:
    """Whether one of `readers`, or a call behind them, goes by the mask it finds on its input."""
    pending, seen = list(readers), set()
    while pending:
        reader = pending.pop()
        if reader.site in seen or _keeps_its_mask(reader):
            continue
        seen.add(reader.site)
        takes_masks = getattr(reader.operation, "_call_has_mask_arg", False)
        if _is_taker(reader) or takes_masks or isinstance(reader.operation, layers.Multiply):
            return True
        for tensor in view.masked.intersection(reader.outputs):
            pending += view.readers(tensor)
    return False


def _taken_off_before(view: View, node: Node) -> Iterator[Node]:
    """The attentions that take off a mask on its way to `node`."""
    pending, seen = [node], set()
    while pending:
        reader = pending.pop()
        if reader.site in seen:
            continue
        seen.add(reader.site)
        for tensor in view.masked.intersection(reader.tensors):
            taker = _takes_off(view, tensor, reader)
            if taker is not None:
                yield taker
            producer = view.producer(tensor)
            if producer is not None and not _keeps_its_mask(producer):
                pending.append(producer)


def _keeps_its_mask(node: Node) -> bool:
    """Whether the call has a mask argument of its own, and cannot go."""
    return "mask" in node.others and not is_affine(node.operation)


def _takes_off(view: View, tensor: Tensor, other_than: Node) -> Node | None:
    """An attention that takes the mask off `tensor`."""
    return next(
        (node for node in _readers(view, tensor) if _is_taker(node) and node is not other_than),
        None,
    )


def _readers(view: View, tensor: Tensor) -> Iterator[Node]:
    """The calls that read `tensor`, be it behind layers that give back what they are given."""
    producer = view.producer(tensor)
    while producer is not None and _gives_back(producer):
        tensor = producer.tensor
        producer = view.producer(tensor)
    pending = [tensor]
    while pending:
        for node in view.readers(pending.pop()):
            if _gives_back(node):
                pending.append(node.outputs[0])
            else:
                yield node


def _gives_back(node: Node) -> bool:
    """Whether the call's output is its very input, mask and all."""
    operation: Any = node.operation
    linear = keras.activations.linear
    is_linear = isinstance(operation, layers.Activation) and operation.activation is linear
    return isinstance(operation, transmit.NOTHING) or is_linear


def _is_taker(node: Node) -> bool:
    return isinstance(node.operation, keras.Layer) and any(
        isinstance(layer, layers.MultiHeadAttention) for layer in node.operation._flatten_layers()
    )
