"""The value that folding moves around: a per-channel scale and shift, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Array = np.ndarray
Shape = Sequence[int | None]


class Refused(Exception):  # noqa: N818 - not an error: a rule declines, and says why
    """An affine cannot go where it was sent; the message is the reason, for the user."""


def known(shape: Shape) -> tuple[int, ...]:
    """`shape` with every length known; refused where one is not."""
    lengths = tuple(length for length in shape if length is not None)
    if len(lengths) < len(shape):
        raise Refused(f"the shape {tuple(shape)} is not known in full")
    return lengths


@dataclass(frozen=True, eq=False)
class Affine:
    """x ↦ scale·x + shift on one tensor.

    Both arrays have the tensor's rank without its batch axis. Along each axis their length is
    1, where nothing varies, or the tensor's. A batch normalization over the channels of images
    is (1, 1, C); seen through Flatten, it is (H·W·C,).
    """

    scale: Array
    shift: Array

    def __post_init__(self) -> None:
        scale, shift = np.asarray(self.scale, np.float64), np.asarray(self.shift, np.float64)
        if scale.shape != shift.shape:
            scale, shift = np.broadcast_arrays(scale, shift)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "shift", shift)

    @staticmethod
    def identity(rank: int) -> Affine:
        """The affine that changes nothing, on tensors with `rank` axes behind the batch axis."""
        return Affine(np.ones((1,) * rank), np.zeros((1,) * rank))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scale.shape

    @cached_property
    def scales(self) -> bool:
        return bool((self.scale != 1).any())

    @cached_property
    def shifts(self) -> bool:
        return bool((self.shift != 0).any())

    @property
    def is_identity(self) -> bool:
        return not (self.scales or self.shifts)

    def map(self, change: Callable[[Array], Array]) -> Affine:
        """The affine whose arrays are `change` of this one's."""
        return Affine(change(self.scale), change(self.shift))

    def equals(self, other: Affine) -> bool:
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)

    def after(self, first: Affine) -> Affine:
        """x ↦ self(first(x))."""
        return Affine(self.scale * first.scale, self.scale * first.shift + self.shift)

    def inverse(self) -> Affine:
        """The affine that undoes this one.

        Raises:
            Refused: a scale is zero, or so small that its inverse is not a float32.
        """
        if np.any(np.abs(self.scale) < np.finfo(np.float32).tiny):
            raise Refused("a scale is zero, which nothing can undo")
        return Affine(1 / self.scale, -self.shift / self.scale)

    def full(self, shape: Shape) -> Affine:
        """The same affine, spelled out over every element of `shape`."""
        lengths = known(shape)
        return self.map(lambda array: np.broadcast_to(array, lengths))

    def part(self, axis: int, start: int, stop: int) -> Affine:
        """The affine on the elements `start` to `stop` along `axis`."""
        where = (slice(None),) * axis + (slice(start, stop),)
        return self.map(lambda array: array[where])

    def compact(self) -> Affine:
        """The same affine with every axis along which nothing varies reduced to length 1."""
        result = self
        for axis, length in enumerate(self.shape):
            if length != 1:
                first = result.part(axis, 0, 1)
                if (first.scale == result.scale).all() and (first.shift == result.shift).all():
                    result = first
        return result

    def constant_along(self, axes: Sequence[int]) -> bool:
        return all(self.shape[axis] == 1 for axis in axes)

    def channels(self, axis: int, size: int) -> tuple[Array, Array]:
        """Scale and shift as vectors over `axis`, which has `size` channels.

        Raises:
            Refused: the affine varies along another axis too.
        """
        axis %= len(self.shape)
        others = [i for i, length in enumerate(self.shape) if length != 1 and i != axis]
        if others:
            raise Refused(
                f"its scale and shift vary along axis {others[0] + 1}, not only along the "
                f"channel axis {axis + 1}"
            )
        return (
            np.broadcast_to(self.scale.reshape(-1), (size,)),
            np.broadcast_to(self.shift.reshape(-1), (size,)),
        )
