"""Windows: averages and maxima of elements that share one scale and one shift."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import image as images
from keras.src.ops import nn
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Refused, Shape, known
from keras_bn.fold.transmit.rule import (
    Call,
    Change,
    Transmit,
    of_keras,
    require_constant,
    single,
    spatial_axes,
    unchanged,
)

# For Keras these are in training until they are told otherwise, as by a model in inference.
ON_IMAGES = (layers.CenterCrop, layers.RandomCrop, layers.Resizing)


def _spatially_constant(layer: Any, affine: Affine, call: Call) -> Affine:
    require_constant(layer, affine, spatial_axes(layer, len(affine.shape)))
    return affine


def _cropped(layer: Any, affine: Affine, call: Call) -> Affine:
    _require_images(layer, affine)
    return _spatially_constant(layer, affine, call)


def _require_images(layer: Any, affine: Affine) -> None:
    if len(affine.shape) != 3:
        raise Refused(f"'{layer.name}' takes the batch axis for the height of one image")


def _resized(layer: Any, affine: Affine, call: Call) -> Affine:
    # The weights sum to one, whatever the interpolation, with antialiasing or without.
    _require_images(layer, affine)
    fills = layer.pad_to_aspect_ratio and np.any(
        affine.scale * layer.fill_value + affine.shift != layer.fill_value
    )
    if fills and _pads(layer, call.inputs[0]):
        raise Refused(
            f"'{layer.name}' fills up with {layer.fill_value}, which would have to change"
        )
    return _spatially_constant(layer, affine, call)


def _pads(layer: Any, shape: Shape) -> bool:
    """Whether the images of `shape` have another aspect ratio than `layer` gives them."""
    height, width = (shape[axis] for axis in spatial_axes(layer, 3))
    if height is None or width is None:
        return True
    of_height, of_width = (
        layer.size if isinstance(layer, images.Resize) else (layer.height, layer.width)
    )
    return width * of_height != height * of_width


def _maximum(layer: Any, affine: Affine, call: Call) -> Affine:
    # Padding is −∞, which a positive scale and any shift leave where it is, and which never shows.
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{layer.name}' takes maxima")
    return _spatially_constant(layer, affine, call)


def _zero_padded(layer: Any, affine: Affine, call: Call) -> Affine:
    if np.any(affine.shift != 0):
        raise Refused(f"'{layer.name}' pads with zeros, which the shift would have to reach")
    return _spatially_constant(layer, affine, call)


def _padded_images(operation: Any, affine: Affine, call: Call) -> Affine:
    _require_images(operation, affine)
    return _zero_padded(operation, affine, call)


def _global(
    change: Change,
) -> tuple[Callable[..., Affine], Callable[..., Affine]]:
    """Both directions through a reduction over all spatial axes."""

    def backward(layer: Any, affine: Affine, call: Call) -> Affine:
        if not layer.keepdims:
            axes = spatial_axes(layer, len(call.inputs[0]))
            affine = affine.map(lambda array: np.expand_dims(array, axes))
        return change(layer, affine, call)

    def forward(layer: Any, affine: Affine, call: Call) -> Affine:
        affine = change(layer, affine, call)
        if layer.keepdims:
            return affine
        axes = tuple(spatial_axes(layer, len(call.inputs[0])))
        return affine.map(lambda array: np.squeeze(array, axes))

    return backward, forward


# Reductions by keras.ops, over axes that are given by number.


def _reduced(
    backward: Change, forward: Change | None = None
) -> tuple[Callable[..., Affine], Callable[..., Affine]]:
    """Both directions through a reduction that does to an affine what `backward` and `forward` do.

    They come with the axes still in place. Without `forward` they do the same.
    """
    forward = forward or backward

    def reduced_backward(operation: Any, affine: Affine, call: Call) -> Affine:
        axes = _reduced_axes(operation, call)
        if not getattr(operation, "keepdims", False):
            affine = affine.map(lambda array: np.expand_dims(array, axes))
        require_constant(operation, affine, axes)
        return backward(operation, affine, call)

    def reduced_forward(operation: Any, affine: Affine, call: Call) -> Affine:
        axes = _reduced_axes(operation, call)
        require_constant(operation, affine, axes)
        affine = forward(operation, affine, call)
        if getattr(operation, "keepdims", False):
            return affine
        return affine.map(lambda array: np.squeeze(array, axes))

    return reduced_backward, reduced_forward


def _reduced_axes(operation: Any, call: Call) -> tuple[int, ...]:
    rank = len(call.inputs[0]) + 1
    given: Sequence[int] = range(rank)
    if operation.axis is not None:
        given = [operation.axis] if isinstance(operation.axis, int) else operation.axis
    axes = tuple(axis % rank - 1 for axis in given)
    if -1 in axes:
        raise Refused(f"'{operation.name}' reduces the batch axis")
    return axes


def _extreme(operation: Any, affine: Affine, call: Call) -> Affine:
    if getattr(operation, "initial", None) is not None:
        raise Refused(f"'{operation.name}' compares with a constant")
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{operation.name}' compares elements")
    return affine


def _sum_backward(operation: Any, affine: Affine, call: Call) -> Affine:
    return Affine(affine.scale, affine.shift / _count(operation, affine, call))


def _sum_forward(operation: Any, affine: Affine, call: Call) -> Affine:
    return Affine(affine.scale, affine.shift * _count(operation, affine, call))


def _count(operation: Any, affine: Affine, call: Call) -> int:
    """How many elements are summed, each with its shift."""
    if not affine.shifts:
        return 1
    return math.prod(known([call.inputs[0][axis] for axis in _reduced_axes(operation, call)]))


RULES = (
    Transmit(
        (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), *single(_zero_padded)
    ),
    Transmit(
        (
            # Keras divides by the number of real elements, so padding does not show.
            layers.AveragePooling1D,
            layers.AveragePooling2D,
            layers.AveragePooling3D,
            nn.AveragePool,
            layers.Cropping1D,
            layers.Cropping2D,
            layers.Cropping3D,
            # Their windows hold real elements only.
            *of_keras(
                layers,
                "AdaptiveAveragePooling1D",
                "AdaptiveAveragePooling2D",
                "AdaptiveAveragePooling3D",
            ),
            *of_keras(nn, "AdaptiveAveragePool"),
            # Weights that sum to one, in every interpolation.
            layers.UpSampling1D,
            layers.UpSampling2D,
            layers.UpSampling3D,
        ),
        *single(_spatially_constant),
    ),
    # The first resizes images that are too small. The second does nothing in inference, whatever
    # Keras says of its output's shape.
    Transmit((layers.CenterCrop, layers.RandomCrop, images.CropImages), *single(_cropped)),
    Transmit((images.PadImages,), *single(_padded_images)),
    Transmit((layers.Resizing, images.Resize), *single(_resized)),
    Transmit(
        (
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            nn.MaxPool,
            *of_keras(
                layers, "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"
            ),
            *of_keras(nn, "AdaptiveMaxPool"),
        ),
        *single(_maximum),
    ),
    Transmit(
        (
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
        ),
        *single(*_global(_spatially_constant)),
    ),
    Transmit(
        (layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
        *single(*_global(_maximum)),
    ),
    # The weights of an average come to one, whatever they are.
    Transmit((operators.Mean, operators.Average, operators.Median), *single(*_reduced(unchanged))),
    Transmit((operators.Sum,), *single(*_reduced(_sum_backward, _sum_forward))),
    Transmit(
        (operators.Max, operators.Min, operators.Amax, operators.Amin),
        *single(*_reduced(_extreme)),
    ),
)
