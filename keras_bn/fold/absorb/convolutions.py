"""Dense layers and convolutions: one kernel over channels, or two, and a bias."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import layers

from keras_bn.fold.absorb import algebra
from keras_bn.fold.absorb.rule import (
    Absorb,
    Arrays,
    Change,
    Reading,
    array,
    before_activation,
    only_argument,
    over_channels,
    require_added_along,
    with_bias,
)
from keras_bn.fold.affine import Affine, Array, Refused, Shape

Pair = tuple[Array, Array]
"""Kernel and bias."""


def _channel_axis(layer: Any) -> int:
    """The channel axis among the axes behind the batch axis."""
    return 0 if getattr(layer, "data_format", None) == "channels_first" else -1


def _require_bias_on_channels(layer: Any, input_shape: Shape) -> None:
    if _channel_axis(layer) == 0:
        require_added_along(layer, 0, layer.compute_output_shape(input_shape)[1:])


Algebra = Callable[[Any, Arrays, Array, Array], Arrays]
"""(layer, weights, scale, shift) → what the weights become."""


def _behind(outputs: Callable[[Any], int], algebra: Algebra) -> Callable[[Any, Affine], Change]:
    """A rule's `backward`: the affine moves before the activation, into `outputs` channels."""

    def backward(layer: Any, affine: Affine) -> Change:
        _require_bias_on_channels(layer, layer.get_build_config()["input_shape"])
        affine = before_activation(layer, affine)
        s, t = over_channels(layer, affine, _channel_axis(layer), outputs(layer))
        return lambda weights: algebra(layer, weights, s, t)

    return backward


def _in_front(
    inputs: Callable[[Any], int], check_shift: Callable[[Any, Shape], None], algebra: Algebra
) -> Callable[[Any, Affine, Reading], Change]:
    """A rule's `forward`, for an affine over `inputs` channels."""

    def forward(layer: Any, affine: Affine, reading: Reading) -> Change:
        only_argument(layer, reading)
        _require_bias_on_channels(layer, (None, *reading.shape))
        if affine.shifts:
            check_shift(layer, reading.shape)
        s, t = over_channels(layer, affine, _channel_axis(layer), inputs(layer))
        return lambda weights: algebra(layer, weights, s, t)

    return forward


# --- what a shift demands -----------------------------------------------------------------------


def no_padding(layer: Any, shape: Shape) -> None:
    if _pads(layer, shape):
        raise Refused(
            f"'{layer.name}' pads its input with zeros ({layer.padding}), which the shift would "
            "have to reach as well"
        )


def _pads(layer: Any, shape: Shape) -> bool:
    """Whether the convolution's own padding adds zeros to an input of shape `shape`."""
    padding = getattr(layer, "padding", "valid")  # a Dense layer has none
    if padding == "valid":
        return False
    spatial = shape[1:] if layer.data_format == "channels_first" else shape[:-1]
    strides, dilations = _each(layer.strides), _each(layer.dilation_rate)
    for size, kernel, stride, dilation in zip(
        spatial,
        layer.kernel_size,
        itertools.cycle(strides),
        itertools.cycle(dilations),
        strict=False,
    ):
        extent = (kernel - 1) * dilation + 1
        if size is None or padding == "causal":
            padded = extent > 1
        else:  # the last window starts there and has to end inside the input
            padded = (-(-size // stride) - 1) * stride + extent > size
        if padded:
            return True
    return False


def _one_tap(layer: Any, shape: Shape) -> None:
    if {*_each(layer.kernel_size), *_each(layer.strides)} != {1}:
        raise Refused(
            f"'{layer.name}' spreads its input over overlapping or separate positions, so that "
            "the shift would come out different at each"
        )


def _each(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


# --- a kernel and a bias ------------------------------------------------------------------------


def _kernel_rule(
    classes: tuple[type, ...],
    inputs: Callable[[Any], int],
    outputs: Callable[[Any], int],
    backward: Callable[..., Pair],
    forward: Callable[..., Pair],
    check_shift: Callable[[Any, Shape], None],
) -> Absorb:
    """A rule out of algebra on (kernel, bias, s, t), which groups follow where there are any."""

    def read(layer: Any) -> Arrays:
        bias = np.zeros(outputs(layer)) if layer.bias is None else array(layer.bias)
        return {"kernel": array(layer.kernel), "bias": bias}

    def behind(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
        kernel, bias = backward(weights["kernel"], weights["bias"], s, t)
        return {"kernel": kernel, "bias": bias}

    def in_front(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
        groups = {"groups": layer.groups} if getattr(layer, "groups", 1) > 1 else {}
        kernel, bias = forward(weights["kernel"], weights["bias"], s, t, **groups)
        return {"kernel": kernel, "bias": bias}

    return Absorb(
        classes,
        read,
        _behind(outputs, behind),
        _in_front(inputs, check_shift, in_front),
        with_bias,
    )


def _last(layer: Any) -> int:
    return layer.kernel.shape[-1]


def _second_last(layer: Any) -> int:
    return layer.kernel.shape[-2]


def _grouped_inputs(layer: Any) -> int:
    return layer.kernel.shape[-2] * getattr(layer, "groups", 1)


def _depthwise_outputs(layer: Any) -> int:
    return layer.kernel.shape[-2] * layer.kernel.shape[-1]


# --- separable convolutions: two kernels and a bias ---------------------------------------------


def _separable_outputs(layer: Any) -> int:
    return layer.pointwise_kernel.shape[-1]


def _separable_inputs(layer: Any) -> int:
    return layer.depthwise_kernel.shape[-2]


def _read_separable(layer: Any) -> Arrays:
    return {
        "depthwise_kernel": array(layer.depthwise_kernel),
        "pointwise_kernel": array(layer.pointwise_kernel),
        "bias": np.zeros(_separable_outputs(layer)) if layer.bias is None else array(layer.bias),
    }


def _separable_behind(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
    pointwise, bias = algebra.dense_backward(weights["pointwise_kernel"], weights["bias"], s, t)
    return {**weights, "pointwise_kernel": pointwise, "bias": bias}


def _separable_in_front(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
    depthwise, bias = algebra.separable_forward(
        weights["depthwise_kernel"], weights["pointwise_kernel"], weights["bias"], s, t
    )
    return {**weights, "depthwise_kernel": depthwise, "bias": bias}


RULES = (
    # BN(Dense(x)) -> Dense(x), Dense(BN(x)) -> Dense(x); convolutions alike, padding permitting
    _kernel_rule(
        (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D),
        _grouped_inputs,
        _last,
        algebra.dense_backward,
        algebra.dense_forward,
        no_padding,
    ),
    _kernel_rule(
        (layers.DepthwiseConv1D, layers.DepthwiseConv2D),
        _second_last,
        _depthwise_outputs,
        algebra.depthwise_backward,
        algebra.depthwise_forward,
        no_padding,
    ),
    _kernel_rule(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
        _last,
        _second_last,
        algebra.transpose_backward,
        algebra.transpose_forward,
        _one_tap,
    ),
    Absorb(
        (layers.SeparableConv1D, layers.SeparableConv2D),
        _read_separable,
        _behind(_separable_outputs, _separable_behind),
        _in_front(_separable_inputs, no_padding, _separable_in_front),
        with_bias,
    ),
)
