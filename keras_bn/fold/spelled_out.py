"""Activations written out in arithmetic, such as x·relu6(x + 3)/6, which LiteRT runs as one.

Its converter knows a hard swish and a GELU by the operations that they are written in. The
constants in them are scales and shifts, but to fold one of them leaves all the others where there
was one operation, or an error function, which LiteRT does not have.

They are found by what they compute: wherever everything between a tensor and a later one depends
on the first alone, element by element, that is evaluated and compared.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.ops import math as functions
from keras.src.ops import nn as activations
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Array
from keras_bn.fold.sources import is_affine
from keras_bn.graph.view import Node, Site, Tensor, View

# The longest of them, a GELU by tanh, has ten operations.
_LONGEST = 12

# Where they are compared, and how closely: constants are rounded to five digits by some, and the
# two GELUs are 5e-4 apart.
_POINTS = np.linspace(-6, 6, 97)
_TOLERANCE = 1e-4


def _relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


_erf = np.vectorize(math.erf, otypes=[np.float64])

KNOWN: Mapping[str, Callable[[Array], Array]] = {
    "a hard swish": lambda x: x * _relu6(x + 3) / 6,
    "a GELU": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "an approximate GELU": lambda x: (
        x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    ),
}


def spelled_out(view: View) -> dict[Site, str]:
    """What each call of an affine is a part of, for those that are part of an activation."""
    if not any(_bends(node) for node in view.nodes):
        return {}
    order = {node.outputs[0]: number for number, node in enumerate(view.nodes)}
    found: dict[Site, str] = {}
    for node in view.nodes:
        for start, region in _regions(view, order, node):
            if any(_bends(part) for part in region):
                name = _known(start, region, node)
                found |= {part.site: name for part in region if name and is_affine(part.operation)}
    return found


def _regions(
    view: View, order: Mapping[Tensor, int], end: Node
) -> Iterator[tuple[Tensor, list[Node]]]:
    """Tensors on which alone the output of `end` depends, and the calls in between, in order."""
    calls: list[Node] = []
    pending = [(-order[end.outputs[0]], end.outputs[0])]  # the latest first
    while len(calls) < _LONGEST:
        _, tensor = heapq.heappop(pending)
        node = view.producer(tensor)
        if node is None or _function(node) is None:
            return
        calls.append(node)
        known = {other for _, other in pending}
        for other in set(node.tensors) - known:
            heapq.heappush(pending, (-order.get(other, -1), other))
        if len(pending) == 1:
            yield pending[0][1], calls[::-1]


def _known(start: Tensor, region: list[Node], end: Node) -> str | None:
    """The name of the activation that `region` computes of the tensor `start`."""
    values = {start: _POINTS}
    with np.errstate(all="ignore"):
        for node in region:
            function = _function(node)
            assert function is not None
            values[node.outputs[0]] = function(*_arguments(node, values))
    for name, activation in KNOWN.items():
        if np.max(np.abs(values[end.outputs[0]] - activation(_POINTS))) < _TOLERANCE:
            return name
    return None


def _arguments(node: Node, values: Mapping[Tensor, Array]) -> list[Array]:
    """The operands of the call in their order: its tensors, or x1 and x2, one a constant maybe."""
    operands = [values[tensor] for tensor in node.inputs]
    if "x1" in node.constants:
        operands.append(_number(node.constants["x1"]))
    operands += [values[tensor] for tensor in node.side_inputs]
    if "x2" in node.constants:
        operands.append(_number(node.constants["x2"]))
    return operands


def _number(constant: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(constant), np.float64).reshape(-1)[:1]


# --- functions of single elements ----------------------------------------------------------------


def _bends(node: Node) -> bool:
    """Whether the call is what makes one of the activations more than a polynomial."""
    return _function(node) in _BENT or isinstance(node.operation, _CLIPPING)


def _function(node: Node) -> Callable[..., Array] | None:
    """What the call computes of single elements; None where it is none of these."""
    operation: Any = node.operation
    constants = [node.constants[name] for name in ("x1", "x2") if name in node.constants]
    if any(
        isinstance(constant, keras.Variable) or np.size(constant) != 1 for constant in constants
    ):
        return None
    if isinstance(operation, layers.Rescaling):
        if np.size(operation.scale) != 1 or np.size(operation.offset) != 1:
            return None
        scale, offset = _number(operation.scale), _number(operation.offset)
        return lambda x: scale * x + offset
    if isinstance(operation, layers.ReLU):
        if operation.max_value != 6 or operation.negative_slope or operation.threshold:
            return None
        return _relu6
    if isinstance(operation, layers.Activation):
        return _BY_ACTIVATION.get(operation.activation)
    if isinstance(operation, operators.Clip):
        return lambda x: np.clip(x, operation.x_min, operation.x_max)
    return _BY_CLASS.get(type(operation))


_BENT = (_relu6, _erf, np.tanh)
_CLIPPING = (operators.Clip, operators.Minimum)

_BY_ACTIVATION: Mapping[Any, Callable[[Array], Array]] = {
    keras.activations.relu6: _relu6,
    keras.activations.tanh: np.tanh,
}

_BY_CLASS: Mapping[type, Callable[..., Array]] = {
    operators.Add: np.add,
    operators.Subtract: np.subtract,
    operators.Multiply: np.multiply,
    operators.Divide: np.divide,
    operators.TrueDivide: np.divide,
    operators.Negative: np.negative,
    operators.Power: np.power,
    operators.Square: np.square,
    operators.Minimum: np.minimum,
    operators.Maximum: np.maximum,
    operators.Tanh: np.tanh,
    activations.Relu: lambda x: np.maximum(x, 0),
    activations.Relu6: _relu6,
    functions.Erf: _erf,
    layers.Add: lambda *terms: sum(terms),
    layers.Subtract: np.subtract,
    layers.Multiply: lambda *factors: math.prod(factors),
}
