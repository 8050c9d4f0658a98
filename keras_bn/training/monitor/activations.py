"""Where activation functions have no slope, so that no gradient passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

NEAR = 0.015
"""Share of an activation's range within which of a bound it is saturated.

For sigmoid and tanh that is |tanh| > 0.97 (Karpathy, 2022, Neural Networks: Zero to Hero, part 4),
where the slope is below 6 % of its largest (1 less 0.97²).
"""


@dataclass(frozen=True)
class Activation:
    """What an activation function does to gradients.

    Attributes:
        floor: The value it gives wherever it cuts its input off; None for those that never do.
        bounds: The bounds that it comes near or reaches, and flattens there.
        width: Between its lowest and highest value; 0 without bounds.
    """

    floor: float | None = None
    bounds: tuple[float, ...] = ()
    width: float = 0.0


_LOGISTIC = Activation(bounds=(0.0, 1.0), width=1.0)
_TANH = Activation(bounds=(-1.0, 1.0), width=2.0)
_BY_NAME = {
    "relu": Activation(floor=0.0),
    "relu6": Activation(floor=0.0, bounds=(6.0,), width=6.0),
    "sigmoid": _LOGISTIC,
    "hard_sigmoid": _LOGISTIC,
    "sparse_sigmoid": _LOGISTIC,
    "tanh": _TANH,
    "hard_tanh": _TANH,
    "softsign": _TANH,
}
_NEITHER_DIES_NOR_SATURATES = Activation()
# The operations of keras.ops that a Functional model holds by themselves.
_OPERATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "SparseSigmoid": "sparse_sigmoid",
    "Tanh": "tanh",
    "HardTanh": "hard_tanh",
    "Softsign": "softsign",
    "SoftSign": "softsign",
    **dict.fromkeys(
        ("LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu", "Softplus", "Mish", "HardSilu"), ""
    ),
}
_ADVANCED = (
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
)


def of_function(function: Callable[..., Any] | None) -> Activation | None:
    """The activation that `function` is; None for none at all and for the linear one."""
    name = getattr(function, "__name__", type(function).__name__)
    if function is None or name == "linear":
        return None
    if isinstance(function, keras.Operation):
        return of_operation(function) or _NEITHER_DIES_NOR_SATURATES
    return _BY_NAME.get(name, _NEITHER_DIES_NOR_SATURATES)


def of_operation(operation: keras.Operation) -> Activation | None:
    """The activation that a layer or operation applies and does nothing else; None for others.

    Example:

    >>> import keras
    >>> of_operation(keras.layers.ReLU(max_value=6.0))
    Activation(floor=0.0, bounds=(6.0,), width=6.0)
    >>> of_operation(keras.layers.Dense(3, activation="relu")) is None
    True
    """
    if isinstance(operation, keras.layers.Activation):
        return of_function(operation.activation)
    name = type(operation).__name__
    if name == "ReLU" and hasattr(operation, "max_value"):  # the layer's and the operation's name
        highest = operation.max_value
        return Activation(
            floor=None if operation.negative_slope else 0.0,
            bounds=() if highest is None else (float(highest),),
            width=0.0 if highest is None else float(highest),
        )
    if isinstance(operation, _ADVANCED):
        return _NEITHER_DIES_NOR_SATURATES
    if not isinstance(operation, keras.Layer) and name in _OPERATIONS:
        return _BY_NAME.get(_OPERATIONS[name], _NEITHER_DIES_NOR_SATURATES)
    return None
