"""What one tensor takes out of another: the parts of a whole.

A slice, an output of a split, elements that are repeated, flipped or rolled: each such tensor is a
part of the operation's input, the whole. Where tensors are put side by side, each of them is a part
of what comes out. Along each axis a part consists of elements of the whole, by their numbers, and
NumPy tells which, when it does to the numbers what the operation does to the elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Array, Refused, Shape, known
from keras_bn.fold.transmit.rule import Assignment, Call, of_keras

Pick = Callable[[Array], Array]
"""Numbers of all the elements along an axis → of those that are picked, in order."""


@dataclass(frozen=True)
class Part:
    """What a tensor takes of another one, the whole.

    Axes are counted from the batch axis, which is 0, and along which no affine varies.

    Attributes:
        picks: By axis of the whole, where not all elements are taken in their order.
        dropped: Axes of the whole along which one element is picked, and which the part lacks.
        inserted: Axes that only the part has, along which everything is repeated.
    """

    picks: Mapping[int, Pick] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    inserted: tuple[int, ...] = ()

    def of(self, whole: Affine) -> Affine:
        """The affine that the part has where the whole has `whole`."""
        lengths = (1, *whole.shape)
        numbers = {
            axis: pick(np.arange(lengths[axis]))
            for axis, pick in self.picks.items()
            if lengths[axis] != 1
        }

        def taken(array: Array) -> Array:
            array = array[None]
            for axis, picked in numbers.items():
                array = array.take(picked, axis)
            if self.dropped:
                array = array.squeeze(self.dropped)
            if self.inserted:
                array = np.expand_dims(array, self.inserted)
            return _without_batch_axis(array)

        return whole.map(taken).compact()

    def within(self, affine: Affine, whole: Shape) -> Iterator[Affine]:
        """The affines on a whole of shape `whole` where the part has `affine`.

        The first does to the elements that are not picked what it does to those that are, wherever
        it can. The second lets them be.

        Raises:
            Refused: an element is picked several times, and `affine` differs there.
        """
        result = affine.map(lambda array: array[None])
        if not result.constant_along(self.inserted):
            raise Refused("its scale and shift vary along an axis on which elements are repeated")
        result = result.map(
            lambda array: np.expand_dims(array.squeeze(self.inserted), self.dropped)
        )
        lengths = (None, *whole)
        others_left = {}
        for axis, pick in self.picks.items():
            length = lengths[axis]
            if result.shape[axis] != 1:
                (length,) = known([length])
                result = _placed(result, axis, pick(np.arange(length)), length)
            elif length is not None:
                numbers = pick(np.arange(length))
                if len(np.unique(numbers)) < length:
                    others_left[axis] = numbers, length
        yield result.map(_without_batch_axis)
        # Over two axes and more it would be a large affine, and no layer's.
        if len(others_left) == 1:
            ((axis, (numbers, length)),) = others_left.items()
            yield _placed(result, axis, numbers, length).map(_without_batch_axis)


def _without_batch_axis(array: Array) -> Array:
    if len(array) != 1:
        raise Refused("its scale and shift would vary along the batch axis")
    return array[0]


def _placed(affine: Affine, axis: int, numbers: Array, length: int) -> Affine:
    """`affine` at the elements `numbers` along `axis`, and what changes nothing at the others."""

    def placed(array: Array, elsewhere: float) -> Array:
        shape = list(array.shape)
        shape[axis] = length
        result = np.full(shape, elsewhere)
        result[(slice(None),) * axis + (numbers,)] = array
        if np.any(result.take(numbers, axis) != array):
            raise Refused("its scale and shift differ where the same element is repeated")
        return result

    return Affine(placed(affine.scale, 1.0), placed(affine.shift, 0.0))


def at(index: Any) -> Pick:
    return lambda numbers: numbers[index]


Parts = Callable[[Any, Call], Sequence[Part]]
"""(operation, call) → the part that each of the tensors on one side is of the one on the other."""


def taking(parts_of: Parts) -> Any:
    """Both directions of a rule for one input, of which every output is a part."""

    def backward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        parts = parts_of(operation, call)
        for whole in parts[position].within(affine, call.inputs[0]):
            outputs = [part.of(whole) for part in parts]
            outputs[position] = affine
            yield Assignment((whole,), outputs)

    def forward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        yield Assignment((affine,), [part.of(affine) for part in parts_of(operation, call)])

    return backward, forward


def joining(parts_of: Parts) -> Any:
    """Both directions of a rule for one output, of which every input is a part."""

    def backward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        yield Assignment([part.of(affine) for part in parts_of(operation, call)], (affine,))

    def forward(operation: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        parts = parts_of(operation, call)
        # Other inputs are others' business where they can stay what they are.
        for whole in reversed([*parts[position].within(affine, call.outputs[0])]):
            inputs = [part.of(whole) for part in parts]
            inputs[position] = affine
            yield Assignment(inputs, (whole,))

    return backward, forward


# What the operations say of themselves.


def rank_of(shape: Shape) -> int:
    """How many axes there are, with the batch axis."""
    return len(shape) + 1


def axis_of(operation: Any, rank: int) -> int:
    """The axis that `operation` works along, counted from the batch axis."""
    if operation.axis is None:
        raise Refused(f"'{operation.name}' mixes the batch axis with others")
    axis: int = operation.axis % rank
    return axis


def integers(operation: Any, values: Any) -> Array:
    """Numbers that are known when the model is built, and stay what they are."""
    if isinstance(values, keras.Variable):
        raise Refused(f"'{operation.name}' picks by what is not known beforehand")
    return np.asarray(keras.ops.convert_to_numpy(values))


def axes_by_class(*names: str) -> dict[type, int]:
    """Those of these classes that Keras has; each works along the axis of its place among them."""
    return {kind: axis for axis, name in enumerate(names) for kind in of_keras(operators, name)}
