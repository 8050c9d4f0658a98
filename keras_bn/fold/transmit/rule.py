"""What a rule is: one family of operations, and which affines around a call go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import config, layers

from keras_bn.fold.affine import Affine, Refused, Shape


@dataclass(frozen=True)
class Shapes:
    """Shapes of one call's inputs and output, without the batch axis."""

    inputs: tuple[Shape, ...]
    output: Shape


class Assignment(NamedTuple):
    """Affines on the inputs and on the output of a call that go with each other."""

    inputs: Sequence[Affine]
    output: Affine


@dataclass(frozen=True)
class Transmit:
    """One family of operations that an affine passes.

    Attributes:
        operations: The exact classes.
        backward: (operation, affine on the output, shapes) → assignments.
        forward: (operation, affine on an input, shapes, which input) → assignments.
    """

    operations: tuple[type, ...]
    backward: Callable[[Any, Affine, Shapes], Iterator[Assignment]]
    forward: Callable[[Any, Affine, Shapes, int], Iterator[Assignment]]


def single(
    backward: Callable[[Any, Affine, Shapes], Affine],
    forward: Callable[[Any, Affine, Shapes], Affine] | None = None,
) -> Any:
    """Both directions of a rule for one input; without `forward` they demand and do the same."""
    forward = forward or backward

    def assign_backward(operation: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
        yield Assignment((backward(operation, affine, shapes),), affine)

    def assign_forward(
        operation: Any, affine: Affine, shapes: Shapes, position: int
    ) -> Iterator[Assignment]:
        yield Assignment((affine,), forward(operation, affine, shapes))

    return assign_backward, assign_forward


def spatial_axes(layer: Any, rank: int) -> list[int]:
    """The axes behind the batch axis that are not the channel axis."""
    axes = list(range(rank))
    # Operations of keras.ops leave it to the configuration where they are not told.
    data_format = getattr(layer, "data_format", "channels_last") or config.image_data_format()
    axes.pop(0 if data_format == "channels_first" else -1)
    return axes


def require_constant(layer: Any, affine: Affine, axes: Sequence[int]) -> None:
    if not affine.constant_along(axes):
        raise Refused(f"its scale and shift vary along an axis that '{layer.name}' moves or merges")


def unchanged(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return affine


def of_keras(*names: str) -> tuple[type, ...]:
    """Those of Keras's layers of these names that the installed version has."""
    return tuple(getattr(layers, name) for name in names if hasattr(layers, name))
