"""What affines pass through: operations that leave channels alone, under a condition.

Each rule says which affines on an operation's inputs go with which affine on its output:
op(affine₁(x₁), affine₂(x₂), …) = affine(op(x₁, x₂, …)) for all inputs. Where several assignments
hold, as in front of an addition, whose inputs may share a shift in any way, a rule gives them in
the order in which they are to be tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import config, layers
from keras.src.ops import nn as activations
from keras.src.ops import numpy as operators

from keras_bn.fold.absorb.rule import refusing_inside
from keras_bn.fold.activation import through_activation, through_homogeneous
from keras_bn.fold.affine import Affine, Refused, Shape, known
from keras_bn.graph.view import Node, Tensor


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


def rule_for(operation: Any) -> Transmit | None:
    """The rule that covers `operation`, or None: unknown operations stop every affine."""
    if type(operation) is layers.TimeDistributed:
        inside = rule_for(operation.layer)
        return inside and _at_every_step(inside)
    return next((rule for rule in RULES if type(operation) in rule.operations), None)


def tensors_of(node: Node, masked: frozenset[Tensor]) -> tuple[Tensor, ...]:
    """The inputs of the call at `node` that the affines of an assignment stand for.

    Raises:
        Refused: the call does more than its operation's inference on them.
    """
    if node.training and not isinstance(node.operation, (*_AUGMENTATION, *_ON_IMAGES)):
        raise Refused(f"'{node.path}' is called with training=True")
    if isinstance(node.operation, layers.Multiply) and not masked.isdisjoint(node.inputs):
        raise Refused(f"'{node.path}' multiplies under a mask")
    if isinstance(node.operation, _OF_TWO):
        if node.constants:
            raise Refused(f"'{node.path}' combines it with a constant")
        return (*node.inputs, *node.side_inputs)
    masks = node.others.get("mask", ()) if _goes_by_masks(node.operation) else ()
    if len(node.side_inputs) > len(masks):
        raise Refused(f"'{node.path}' is called with further tensors")
    return node.inputs


def _goes_by_masks(operation: Any) -> bool:
    """Whether a mask leaves to `operation` what its rule says."""
    if type(operation) is layers.TimeDistributed:
        return not operation.layer._call_has_mask_arg
    return isinstance(operation, layers.GlobalAveragePooling1D)  # of fewer elements


def _at_every_step(rule: Transmit) -> Transmit:
    """The rule for a TimeDistributed, out of the rule for the layer inside it."""

    def of_a_step(layer: Any, affine: Affine, shapes: Shapes) -> tuple[Any, Affine, Shapes]:
        if not affine.constant_along([0]):
            raise Refused(f"its scale and shift vary from step to step of '{layer.name}'")
        step = Shapes(tuple(shape[1:] for shape in shapes.inputs), shapes.output[1:])
        return layer.layer, affine.map(lambda array: array[0]), step

    def of_all(assignments: Iterator[Assignment]) -> Iterator[Assignment]:
        for inputs, output in assignments:
            yield Assignment([_with_steps(affine) for affine in inputs], _with_steps(output))

    def backward(layer: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
        with refusing_inside(layer):
            yield from of_all(rule.backward(*of_a_step(layer, affine, shapes)))

    def forward(layer: Any, affine: Affine, shapes: Shapes, position: int) -> Iterator[Assignment]:
        with refusing_inside(layer):
            yield from of_all(rule.forward(*of_a_step(layer, affine, shapes), position))

    return Transmit((layers.TimeDistributed,), backward, forward)


def _with_steps(affine: Affine) -> Affine:
    return affine.map(lambda array: array[None])


def _single(
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


def _spatial_axes(layer: Any, rank: int) -> list[int]:
    """The axes behind the batch axis that are not the channel axis."""
    axes = list(range(rank))
    # Operations of keras.ops leave it to the configuration where they are not told.
    data_format = getattr(layer, "data_format", "channels_last") or config.image_data_format()
    axes.pop(0 if data_format == "channels_first" else -1)
    return axes


def _require_constant(layer: Any, affine: Affine, axes: Sequence[int]) -> None:
    if not affine.constant_along(axes):
        raise Refused(f"its scale and shift vary along an axis that '{layer.name}' moves or merges")


def _unchanged(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return affine


# Activations that are linear on each side of zero.


def _activation(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return through_activation(layer.activation, affine, f"('{layer.name}')")


def _rectified(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    if getattr(layer, "max_value", None) is not None or getattr(layer, "threshold", 0) != 0:
        raise Refused(f"'{layer.name}' bends elsewhere than at zero")
    return through_homogeneous(affine, f"'{layer.name}' ({type(layer).__name__})")


# Elements keep their values and change their places.


def _reshaped(affine: Affine, before: Shape, after: Shape) -> Affine:
    """The affine on a tensor of shape `before` once it is reshaped, row-major, to `after`."""
    if math.prod(affine.shape) == 1:
        return affine.map(lambda array: array.reshape((1,) * len(after)))
    channels_kept = bool(before and after) and before[-1] == after[-1] is not None
    if channels_kept and affine.constant_along(range(len(before) - 1)):
        return affine.map(lambda array: array.reshape((1,) * (len(after) - 1) + (-1,)))
    lengths = known(after)
    return affine.full(before).map(lambda array: array.reshape(lengths)).compact()


def _reshape_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return _reshaped(affine, shapes.output, shapes.inputs[0])


def _reshape_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return _reshaped(affine, shapes.inputs[0], shapes.output)


def _channels_last(layer: Any, affine: Affine, shape: Shape) -> tuple[Affine, Shape]:
    """Flatten reads channels-first data in channels-last order."""
    if layer.data_format == "channels_first" and len(shape) > 1:
        return affine.map(lambda array: np.moveaxis(array, 0, -1)), (*shape[1:], shape[0])
    return affine, shape


def _flatten_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    shape = shapes.inputs[0]
    if layer.data_format == "channels_first" and len(shape) > 1:
        flat = _reshaped(affine, shapes.output, (*shape[1:], shape[0]))
        return flat.map(lambda array: np.moveaxis(array, -1, 0))
    return _reshaped(affine, shapes.output, shape)


def _flatten_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    affine, shape = _channels_last(layer, affine, shapes.inputs[0])
    return _reshaped(affine, shape, shapes.output)


def _repeat_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    _require_constant(layer, affine, [0])
    return affine.map(lambda array: array[0])


def _repeat_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return affine.map(lambda array: array[None])


def _permute_backward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    order = np.argsort(_order(layer, len(affine.shape)))
    return affine.map(lambda array: array.transpose(order))


def _permute_forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    order = _order(layer, len(affine.shape))
    return affine.map(lambda array: array.transpose(order))


def _order(operation: Any, rank: int) -> list[int]:
    """Which axis behind the batch axis each of the output's axes comes from."""
    if isinstance(operation, layers.Permute):
        return [axis - 1 for axis in operation.dims]
    numbered = np.empty(range(rank + 1))  # along each axis as long as its number
    if isinstance(operation, operators.Swapaxes):
        axes = numbered.swapaxes(operation.axis1, operation.axis2).shape
    elif isinstance(operation, operators.Moveaxis):
        axes = np.moveaxis(numbered, operation.source, operation.destination).shape
    else:
        axes = numbered.transpose(operation.axes).shape
    if axes[0] != 0:
        raise Refused(f"'{operation.name}' moves the batch axis")
    return [axis - 1 for axis in axes[1:]]


# Windows: averages and maxima of elements that share one scale and one shift.


def _spatially_constant(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    _require_constant(layer, affine, _spatial_axes(layer, len(affine.shape)))
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
    height, width = (shape[axis] for axis in _spatial_axes(layer, 3))
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
            axes = _spatial_axes(layer, len(shapes.inputs[0]))
            affine = affine.map(lambda array: np.expand_dims(array, axes))
        return change(layer, affine, shapes)

    def forward(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
        affine = change(layer, affine, shapes)
        if layer.keepdims:
            return affine
        axes = tuple(_spatial_axes(layer, len(shapes.inputs[0])))
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
        _require_constant(operation, affine, axes)
        return change(operation, affine, shapes)

    def forward(operation: Any, affine: Affine, shapes: Shapes) -> Affine:
        axes = axes_of(operation, shapes)
        _require_constant(operation, affine, axes)
        affine = change(operation, affine, shapes)
        return affine if operation.keepdims else affine.map(lambda array: np.squeeze(array, axes))

    return backward, forward


def _extreme(operation: Any, affine: Affine, shapes: Shapes) -> Affine:
    if operation.initial is not None:
        raise Refused(f"'{operation.name}' compares with a constant")
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{operation.name}' compares elements")
    return affine


# Concatenate: each source takes its own stretch of the channels.


def _concatenation_axis(layer: Any, rank: int) -> int:
    axis = layer.axis % (rank + 1) - 1
    if axis < 0:
        raise Refused(f"'{layer.name}' concatenates along the batch axis")
    return axis


def _offsets(shapes: Shapes, axis: int) -> list[int]:
    lengths = known([shape[axis] for shape in shapes.inputs])
    return [0, *itertools.accumulate(lengths)]


def _concatenate_backward(layer: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    axis = _concatenation_axis(layer, len(affine.shape))
    if affine.shape[axis] == 1:
        yield Assignment((affine,) * len(shapes.inputs), affine)
        return
    offsets = _offsets(shapes, axis)
    parts = [affine.part(axis, start, stop) for start, stop in itertools.pairwise(offsets)]
    yield Assignment([part.compact() for part in parts], affine)


def _concatenate_forward(
    layer: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    rank = len(affine.shape)
    axis = _concatenation_axis(layer, rank)
    inputs = [Affine.identity(rank)] * len(shapes.inputs)
    inputs[position] = affine
    offsets = _offsets(shapes, axis)
    shape = list(affine.shape)
    shape[axis] = offsets[-1]
    own = (slice(None),) * axis + (slice(offsets[position], offsets[position + 1]),)
    scale, shift = np.ones(shape), np.zeros(shape)
    scale[own], shift[own] = affine.scale, affine.shift
    yield Assignment(inputs, Affine(scale, shift))


# Sums: all inputs have the same scale, and the shifts add up.


def _weights(operation: Any, count: int) -> list[float]:
    """What each input of a sum is multiplied by."""
    if isinstance(operation, (layers.Subtract, operators.Subtract)):
        return [1.0, -1.0]
    if isinstance(operation, layers.Average):
        return [1 / count] * count
    return [1.0] * count


def _elementwise(operation: Any, affine: Affine, shapes: Shapes) -> None:
    """Refuse an affine that varies where an input is stretched to the others' shape."""
    ranks = {len(shape) for shape in shapes.inputs}
    if ranks != {len(affine.shape)}:
        raise Refused(f"'{operation.name}' combines tensors of different ranks")
    for axis, length in enumerate(affine.shape):
        if length != 1 and any(shape[axis] == 1 for shape in shapes.inputs):
            raise Refused(f"'{operation.name}' stretches an input along an axis that it varies on")


def _sum_backward(operation: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    """One of the inputs takes the shift."""
    _elementwise(operation, affine, shapes)
    weights = _weights(operation, len(shapes.inputs))
    bare = Affine(affine.scale, np.zeros_like(affine.shift))
    if not affine.shifts:
        yield Assignment([bare] * len(weights), affine)
        return
    for position, weight in enumerate(weights):
        inputs = [bare] * len(weights)
        inputs[position] = Affine(affine.scale, affine.shift / weight)
        yield Assignment(inputs, affine)


def _sum_forward(
    operation: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    """Another input takes the opposite shift, so that the output has none; or the output has it."""
    _elementwise(operation, affine, shapes)
    weights = _weights(operation, len(shapes.inputs))
    bare = Affine(affine.scale, np.zeros_like(affine.shift))
    inputs = [bare] * len(weights)
    inputs[position] = affine
    carried = weights[position] * affine.shift
    if affine.shifts:
        for other, weight in enumerate(weights):
            if other != position:
                balanced = list(inputs)
                balanced[other] = Affine(affine.scale, -carried / weight)
                yield Assignment(balanced, bare)
    yield Assignment(inputs, Affine(affine.scale, carried))


# Products of two tensors: a scale on one of them is a scale on the product.


def _product_backward(operation: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    _no_shift_in_product(operation, affine, shapes)
    one = Affine.identity(len(affine.shape))
    for position in range(len(shapes.inputs)):
        inputs = [one] * len(shapes.inputs)
        inputs[position] = affine
        yield Assignment(inputs, affine)


def _product_forward(
    operation: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    _no_shift_in_product(operation, affine, shapes)
    inputs = [Affine.identity(len(affine.shape))] * len(shapes.inputs)
    inputs[position] = affine
    yield Assignment(inputs, affine)


def _no_shift_in_product(operation: Any, affine: Affine, shapes: Shapes) -> None:
    _elementwise(operation, affine, shapes)
    if affine.shifts:
        raise Refused(f"'{operation.name}' multiplies it by another tensor, so no shift passes")


# Extremes of several tensors: all of them are scaled and shifted alike.


def _extreme_backward(operation: Any, affine: Affine, shapes: Shapes) -> Iterator[Assignment]:
    _elementwise(operation, affine, shapes)
    if np.any(affine.scale < 0):
        raise Refused(f"a scale is negative, and '{operation.name}' compares tensors")
    yield Assignment([affine] * len(shapes.inputs), affine)


def _extreme_forward(
    operation: Any, affine: Affine, shapes: Shapes, position: int
) -> Iterator[Assignment]:
    yield from _extreme_backward(operation, affine, shapes)


_OF_TWO = (
    operators.Add,
    operators.Subtract,
    operators.Multiply,
    operators.Maximum,
    operators.Minimum,
)


def _of_keras(*names: str) -> tuple[type, ...]:
    """Those of Keras's layers of these names that the installed version has."""
    return tuple(getattr(layers, name) for name in names if hasattr(layers, name))


_AUGMENTATION = _of_keras(
    "AugMix",
    "CutMix",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
)

# For Keras these are in training until they are told otherwise, as by a model in inference.
_ON_IMAGES = (layers.CenterCrop, layers.RandomCrop, layers.Resizing)

NOTHING = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
    layers.Identity,
    *_AUGMENTATION,
)
"""What gives back its very input in inference."""

RULES = (
    Transmit(NOTHING, *_single(_unchanged)),
    Transmit((layers.Activation,), *_single(_activation)),
    Transmit(
        (layers.ReLU, layers.LeakyReLU, layers.PReLU, activations.Relu, activations.LeakyRelu),
        *_single(_rectified),
    ),
    Transmit(
        (
            layers.Reshape,
            operators.Reshape,
            operators.Squeeze,
            operators.ExpandDims,
        ),
        *_single(_reshape_backward, _reshape_forward),
    ),
    Transmit((layers.RepeatVector,), *_single(_repeat_backward, _repeat_forward)),
    Transmit((layers.Flatten,), *_single(_flatten_backward, _flatten_forward)),
    Transmit(
        (layers.Permute, operators.Transpose, operators.Swapaxes, operators.Moveaxis),
        *_single(_permute_backward, _permute_forward),
    ),
    Transmit(
        (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), *_single(_zero_padded)
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
            *_of_keras(
                "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"
            ),
            # Weights that sum to one, in every interpolation.
            layers.UpSampling1D,
            layers.UpSampling2D,
            layers.UpSampling3D,
        ),
        *_single(_spatially_constant),
    ),
    # The first resizes images that are too small. The second does nothing in inference, whatever
    # Keras says of its output's shape.
    Transmit((layers.CenterCrop, layers.RandomCrop), *_single(_cropped)),
    Transmit((layers.Resizing,), *_single(_resized)),
    Transmit(
        (
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            activations.MaxPool,
            *_of_keras("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"),
        ),
        *_single(_maximum),
    ),
    Transmit(
        (
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
        ),
        *_single(*_global(_spatially_constant)),
    ),
    Transmit(
        (layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
        *_single(*_global(_maximum)),
    ),
    Transmit((operators.Mean,), *_single(*_reduced(_unchanged))),
    Transmit((operators.Max, operators.Min), *_single(*_reduced(_extreme))),
    Transmit(
        (layers.Concatenate, operators.Concatenate), _concatenate_backward, _concatenate_forward
    ),
    Transmit(
        (layers.Add, layers.Subtract, layers.Average, operators.Add, operators.Subtract),
        _sum_backward,
        _sum_forward,
    ),
    Transmit((layers.Multiply, operators.Multiply), _product_backward, _product_forward),
    Transmit(
        (layers.Maximum, layers.Minimum, operators.Maximum, operators.Minimum),
        _extreme_backward,
        _extreme_forward,
    ),
)
