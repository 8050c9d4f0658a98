"""Windows: averages and maxima of elements that share one scale and one shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers
from keras.src.ops import nn as activations
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Affine, Refused, Shape
from keras_bn.fold.transmit.rule import (
    Shapes,
    Transmit,
    of_keras,
    require_constant,
    single,
    spatial_axes,
    unchanged,
)

# For Keras these are in training until they are told otherwise, as by a model in inference.
ON_IMAGES = (layers.CenterCrop, layers.RandomCrop, layers.Resizing)


def _spatially_constant(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    require_constant(layer, affine, spatial_axes(layer, len(affine.shape)))
    return affine


def _cropped(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    _require_images(layer, affine)
    return _spatially_constant(layer, affine, shapes)


def _require_images(layer: Any, affine: Affine) -> None:
    if len(affine.shape) != 3:
        raise Refused(f"'{layer.name}' takes the batch axis for the height of one image")


def _resized(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    # The weights sum to one, whatever the interpolation, with antialiasing or without.
    _require_images(layer, affine)
    fills = layer.pad_to_aspect_ratio and np.any(
        affine.scale * layer.fill_value + affine.shift != layer.fill_value
    )
    if fills and _pads(layer, shapes.inputs[0]):
        raise Refused(
            f"'{layer.name}' fills up with {layer.fill_value}, which would have to change"
        )
    return _spatially_constant(layer, affine, shapes)


def _pads(layer: Any, shape: Shape) -> bool:
    """Whether the images of `shape` have another aspect ratio than `layer` gives them."""
    height, width = (shape[axis] for axis in spatial_axes(layer, 3))
    if height is None or width is None:
        return True
    of_height, of_width = layer.height, layer.width
    return width * of_height != height * of_width


def _maximum(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    # Padding is −∞, which a positive scale and any shift leave where it is, and which never shows.
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{layer.name}' takes maxima")
    return _spatially_constant(layer, affine, shapes)


def _zero_padded(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    if np.any(affine.shift != 0):
        raise Refused(f"'{layer.name}' pads with zeros, which the shift would have to reach")
    return _spatially_constant(layer, affine, shapes)


def _global(
    change: Callable[[Any, Affine, Shapes], Affine],
) -> tuple[Callable[..., Affine], Callable[..., Affine]]:
    """Both directions through a reduction over all spatial axes."""

    def backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
        if not layer.keepdims:
            axes = spatial_axes(layer, len(shapes.inputs[0]))
            affine = affine.map(lambda array: np.expand_dims(array, axes))
        return change(layer, affine, shapes)

    def forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
        affine = change(layer, affine, shapes)
        if layer.keepdims:
            return affine
        axes = tuple(spatial_axes(layer, len(shapes.inputs[0])))
        return affine.map(lambda array: np.squeeze(array, axes))

    return backward, forward


# Reductions by keras.ops, over axes that are given by number.


def _reduced(
    change: Callable[[Any, Affine, Shapes], Affine],
) -> tuple[Callable[..., Affine], Callable[..., Affine]]:
    """Both directions through a mean or an extreme."""

    def axes_of(operation: Any, shapes: Shapes) -> tuple[int, ...]:
        rank = len(shapes.inputs[0])
        given = range(rank + 1) if operation.axis is None else operation.axis
        axes = tuple(axis % (rank + 1) - 1 for axis in given)
        if -1 in axes:
            raise Refused(f"'{operation.name}' reduces the batch axis")
        return axes

    def backward(operation: Any, affine: Affine, shapes: Shapes) -> Affine:
        axes = axes_of(operation, shapes)
        if not operation.keepdims:
            affine = affine.map(lambda array: np.expand_dims(array, axes))
        require_constant(operation, affine, axes)
        return change(operation, affine, shapes)

    def forward(operation: Any, affine: Affine, shapes: Shapes) -> Affine:
        axes = axes_of(operation, shapes)
        require_constant(operation, affine, axes)
        affine = change(operation, affine, shapes)
        return affine if operation.keepdims else affine.map(lambda array: np.squeeze(array, axes))

    return backward, forward


def _extreme(operation: Any, affine: Affine, shapes: Shapes) -> Affine:
    if operation.initial is not None:
        raise Refused(f"'{operation.name}' compares with a constant")
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{operation.name}' compares elements")
    return affine


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
            activations.AveragePool,
            layers.Cropping1D,
            layers.Cropping2D,
            layers.Cropping3D,
            # Their windows hold real elements only.
            *of_keras(
                "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"
            ),
            # Weights that sum to one, in every interpolation.
            layers.UpSampling1D,
            layers.UpSampling2D,
            layers.UpSampling3D,
        ),
        *single(_spatially_constant),
    ),
    # The first resizes images that are too small. The second does nothing in inference, whatever
    # Keras says of its output's shape.
    Transmit((layers.CenterCrop, layers.RandomCrop), *single(_cropped)),
    Transmit((layers.Resizing,), *single(_resized)),
    Transmit(
        (
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            activations.MaxPool,
            *of_keras("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"),
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
    Transmit((operators.Mean,), *single(*_reduced(unchanged))),
    Transmit((operators.Max, operators.Min), *single(*_reduced(_extreme))),
)
