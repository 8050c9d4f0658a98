"""Keras's own records of symbolic calls: what leads to a tensor, and what a call was made with."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree
from keras.src import backend


def node_of(tensor: Any) -> Any:
    """Keras's node that gave `tensor`."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def is_input(tensor: Any) -> bool:
    return node_of(tensor).is_input


def is_layer(operation: Any) -> bool:
    return isinstance(operation, keras.Layer)


def nodes_before(outputs: list[Any]) -> list[Any]:
    """The nodes that lead to `outputs`, the first called first."""
    found: dict[int, Any] = {}
    pending = list(reversed(outputs))
    while pending:
        node = node_of(pending[-1])
        missing = [t for t in node.input_tensors if id(node_of(t)) not in found]
        if missing and id(node) not in found:
            pending += reversed(missing)
            continue
        found.setdefault(id(node), node)
        pending.pop()
    return list(found.values())


def chain(inputs: Any, outputs: Any) -> list[Any] | None:
    """The layers between `inputs` and `outputs`, input included, if each feeds just the next."""
    if tree.is_nested(inputs) or tree.is_nested(outputs):
        return None
    layers: list[Any] = []
    tensor = outputs
    while tensor is not inputs:
        node = node_of(tensor)
        alone = len(node.arguments.args) == 1 and not node.arguments.kwargs
        if not (is_layer(node.operation) and alone and len(node.outputs) == 1):
            return None
        layers.insert(0, node.operation)
        (tensor,) = node.arguments.args
        if not isinstance(tensor, keras.KerasTensor):
            return None
    return [inputs, *layers] if layers else None


def distinct(args: Any, kwargs: Any) -> list[Any]:
    """The different symbolic tensors among arguments and those that are their masks, in order."""
    found: dict[int, Any] = {}
    for value in tree.flatten((args, kwargs)):
        if isinstance(value, keras.KerasTensor):
            found.setdefault(id(value), value)
            mask = backend.get_keras_mask(value)
            if mask is not None:
                found.setdefault(id(mask), mask)
    return list(found.values())


def signature(args: Any, kwargs: Any) -> str:
    """Equal for arguments on which a call does the same."""
    numbers = {id(tensor): number for number, tensor in enumerate(distinct(args, kwargs))}

    def describe(value: Any) -> str:
        if isinstance(value, keras.KerasTensor):
            mask = numbers.get(id(backend.get_keras_mask(value)))
            return f"{numbers[id(value)]} {value.shape} {value.dtype} {value.sparse} {mask}"
        if value is None or isinstance(value, (bool, int, float, str)):
            return repr(value)
        return f"{type(value).__name__} {id(value)}"

    return repr(tree.map_structure(describe, (args, kwargs)))
