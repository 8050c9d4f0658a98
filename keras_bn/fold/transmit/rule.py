"""What a rule is: one family of operations, and which affines around a call go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keras import config

from keras_bn.fold.affine import Affine, Refused, Shape


@dataclass(frozen=True)
class Call:
    """What a rule has to know of a call beside its operation.

    Attributes:
        inputs, outputs: Shapes of its tensors, without the batch axis.
        constants: Its arguments that hold no tensor, by name: the key of `x[..., :3]`.
    """

    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)


class Assignment(NamedTuple):
    """Affines on the inputs and on the outputs of a call that go with each other."""

    inputs: Sequence[Affine]
    outputs: Sequence[Affine]


@dataclass(frozen=True)
class Transmit:
    """One family of operations that an affine passes.

    Attributes:
        operations: The exact classes.
        backward: (operation, affine on an output, call, which output) → assignments.
        forward: (operation, affine on an input, call, which input) → assignments.
    """

    operations: tuple[type, ...]
    backward: Callable[[Any, Affine, Call, int], Iterator[Assignment]]
    forward: Callable[[Any, Affine, Call, int], Iterator[Assignment]]


Change = Callable[[Any, Affine, Call], Affine]
"""(operation, affine, call) → the affine on the other side of an operation that has two sides."""


def single(backward: Change, forward: Change | None = None) -> Any:
    """Both directions of a rule for one input and one output.

    Without `forward` they demand and do the same.
    """
    forward = forward or backward

    def assign_backward(
        operation: Any, affine: Affine, call: Call, position: int
    ) -> Iterator[Assignment]:
        yield Assignment((backward(operation, affine, call),), (affine,))

    def assign_forward(
        operation: Any, affine: Affine, call: Call, position: int
    ) -> Iterator[Assignment]:
        yield Assignment((affine,), (forward(operation, affine, call),))

    return assign_backward, assign_forward


def unchanged(layer: Any, affine: Affine, call: Call) -> Affine:
    return affine


def spatial_axes(layer: Any, rank: int) -> list[int]:
    """The axes behind the batch axis that are not the channel axis."""
    axes = list(range(rank))
    axes.pop(channel_axis(layer))
    return axes


def channel_axis(layer: Any) -> int:
    """The channel axis, counted behind the batch axis."""
    # Operations of keras.ops leave it to the configuration where they are not told.
    data_format = getattr(layer, "data_format", "channels_last") or config.image_data_format()
    return 0 if data_format == "channels_first" else -1


def require_constant(layer: Any, affine: Affine, axes: Sequence[int]) -> None:
    if not affine.constant_along(axes):
        raise Refused(f"its scale and shift vary along an axis that '{layer.name}' moves or merges")


def of_keras(module: Any, *names: str) -> tuple[type, ...]:
    """Those classes of these names that the installed Keras has in `module`."""
    return tuple(getattr(module, name) for name in names if hasattr(module, name))
