"""Blocks of an image become its channels, and the reverse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.src.ops import image as images
from keras.src.ops import nn

from keras_bn.fold.affine import Affine, Array, Refused, known
from keras_bn.fold.transmit.parts import Part, joining, taking
from keras_bn.fold.transmit.rule import (
    Assignment,
    Call,
    Transmit,
    channel_axis,
    of_keras,
    require_constant,
    spatial_axes,
)


def _patches(operation: Any, call: Call) -> list[Part]:
    """Every patch has its pixels one after the other along the channel axis."""
    (before,), (after,) = call.inputs, call.outputs
    spatial = 2 if isinstance(operation.size, int) else len(operation.size)
    if len(before) != spatial + 1:
        raise Refused(f"'{operation.name}' takes the batch axis for an axis of one image")
    channels, features = known([shape[channel_axis(operation)] for shape in (before, after)])
    axis = channel_axis(operation) % len(before) + 1
    return [Part({axis: lambda numbers: np.tile(numbers, features // channels)})]


def _blocks(operation: Any, call: Call) -> list[Part]:
    """The channels of space-to-depth, in the order in which the backend has them."""
    size, data_format = operation.block_size, operation.data_format
    axis = channel_axis(operation) % 3 + 1

    def pick(numbers: Array) -> Array:
        block = np.broadcast_to(numbers.astype("int32"), (1, size, size, len(numbers)))
        block = nn.SpaceToDepth(size, data_format).call(np.moveaxis(block, 3, axis))
        return np.asarray(keras.ops.convert_to_numpy(block)).ravel()

    return [Part({axis: pick})]


def _spatially_constant(directions: Any) -> Any:
    """Both directions for affines that do not vary from pixel to pixel."""
    backward, forward = directions

    def constant(direction: Any) -> Any:
        def assign(
            operation: Any, affine: Affine, call: Call, position: int
        ) -> Iterator[Assignment]:
            require_constant(operation, affine, spatial_axes(operation, len(affine.shape)))
            if getattr(operation, "padding", "valid") != "valid" and affine.shifts:
                raise Refused(f"'{operation.name}' pads with zeros, which the shift does not reach")
            yield from direction(operation, affine, call, position)

        return assign

    return constant(backward), constant(forward)


_EXTRACT_PATCHES = of_keras(images, "ExtractPatches", "ExtractPatches3D")

RULES = (
    Transmit(_EXTRACT_PATCHES, *_spatially_constant(taking(_patches))),
    Transmit(of_keras(nn, "SpaceToDepth"), *_spatially_constant(taking(_blocks))),
    Transmit(of_keras(nn, "DepthToSpace"), *_spatially_constant(joining(_blocks))),
)
