"""Where affines end: linear layers that take one in, before or after themselves.

The algebra comes first, as pure functions of float64 arrays. Below it, `RULES` says which layer
uses which, and under what condition. "Backward" means that the affine follows the layer and
moves back into it; "forward", that it precedes the layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_bn.fold.affine import Affine, Refused, Shape
from keras_bn.fold.sources import is_batch_norm, read_batch_norm
from keras_bn.graph.view import Node

Array = np.ndarray
Arrays = dict[str, np.ndarray]


# --- algebra: s is the affine's scale, t its shift, both vectors over channels -----------------


def dense_backward(kernel: Array, bias: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """s·(Wx + b) + t = (sW)x + (s·b + t); output channels are the kernel's last axis."""
    return kernel * s, bias * s + t


def dense_forward(
    kernel: Array, bias: Array, s: Array, t: Array, groups: int = 1
) -> tuple[Array, Array]:
    """W(s·x + t) + b = (Ws)x + (b + Σ W·t) over taps and input channels.

    The kernel is (taps…, input channels of one group, output channels). Output channel j
    belongs to group j // (outputs / groups) and sees that group's inputs only.
    """
    inputs, outputs = kernel.shape[-2:]

    def seen(vector: Array) -> Array:  # (input channels,) -> (inputs of one group, outputs)
        return np.repeat(vector.reshape(groups, inputs).T, outputs // groups, axis=1)

    taps = tuple(range(kernel.ndim - 1))
    return kernel * seen(s), bias + np.sum(kernel * seen(t), axis=taps)


def depthwise_backward(kernel: Array, bias: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """Output channel c·multiplier + m comes from kernel[…, c, m]."""
    return kernel * s.reshape(kernel.shape[-2:]), bias * s + t


def depthwise_forward(kernel: Array, bias: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """Every output of input channel c sees that channel alone."""
    taps = tuple(range(kernel.ndim - 2))
    constant = np.sum(kernel, axis=taps) * t[:, None]
    return kernel * s[:, None], bias + constant.reshape(-1)


def separable_forward(
    depthwise_kernel: Array, pointwise_kernel: Array, bias: Array, s: Array, t: Array
) -> tuple[Array, Array]:
    """The depthwise half takes the scale; the shift passes both halves into the bias."""
    outputs = depthwise_kernel.shape[-2] * depthwise_kernel.shape[-1]
    depthwise_kernel, constant = depthwise_forward(depthwise_kernel, np.zeros(outputs), s, t)
    return depthwise_kernel, bias + constant @ pointwise_kernel.reshape(outputs, -1)


def transpose_backward(kernel: Array, bias: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """A transposed convolution's kernel is (taps…, output channels, input channels)."""
    return kernel * s[:, None], bias * s + t


def transpose_forward(kernel: Array, bias: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """For a single tap, or t = 0: with more taps a shift would vary with the position."""
    taps = tuple(range(kernel.ndim - 2))
    return kernel * s, bias + np.sum(kernel, axis=taps) @ t


def batch_norm_backward(gamma: Array, beta: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """s·(γx̂ + β) + t = (sγ)x̂ + (s·β + t); the statistics stay."""
    return gamma * s, beta * s + t


def batch_norm_forward(
    gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float, s: Array, t: Array
) -> tuple[Array, Array]:
    """γ(s·x + t − μ)/σ + β = (γs)(x − μ)/σ + (β + γ(s·μ + t − μ)/σ); the statistics stay."""
    deviation = np.sqrt(variance + epsilon)
    return gamma * s, beta + gamma * (mean * s + t - mean) / deviation


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Absorb:
    """One family of layers and how it takes an affine in.

    Attributes:
        layers: The exact classes; a subclass may compute something else.
        inputs, outputs: layer → its number of input and of output channels.
        read: layer → its weights as float64 arrays by name, a missing bias as zeros.
        backward, forward: (layer, weights, scale, shift) → the new weights.
        check_shift: (layer, shape of its input) → None; refuses to take a shift in forward.
        gains: Constructor arguments of a layer that now needs every array of `read`.
    """

    layers: tuple[type, ...]
    inputs: Callable[[Any], int]
    outputs: Callable[[Any], int]
    read: Callable[[Any], Arrays]
    backward: Callable[[Any, Arrays, Array, Array], Arrays]
    forward: Callable[[Any, Arrays, Array, Array], Arrays]
    check_shift: Callable[[Any, Shape], None]
    gains: Mapping[str, Any]


def rule_for(layer: Any) -> Absorb | None:
    """The rule that covers `layer`, or None."""
    if is_batch_norm(layer):
        return BATCH_NORM
    return next((rule for rule in RULES if type(layer) in rule.layers), None)


def backward_channels(rule: Absorb, node: Node, affine: Affine) -> tuple[Array, Array]:
    """Scale and shift over the output channels of the layer called at `node`.

    Raises:
        Refused: the layer cannot absorb `affine` on its output.
    """
    layer = node.operation
    _check_call(node)
    activation = getattr(layer, "activation", keras.activations.linear)
    if activation is not keras.activations.linear:
        name = getattr(activation, "__name__", type(activation).__name__)
        raise Refused(f"the activation {name} inside '{layer.name}' stands between them")
    return affine.channels(_channel_axis(layer), rule.outputs(layer))


def forward_channels(rule: Absorb, node: Node, affine: Affine, shape: Shape) -> tuple[Array, Array]:
    """Scale and shift over the input channels of the layer, whose input has `shape`.

    Raises:
        Refused: the layer cannot absorb `affine` on its input.
    """
    layer = node.operation
    _check_call(node)
    scale, shift = affine.channels(_channel_axis(layer), rule.inputs(layer))
    if np.any(shift != 0):
        rule.check_shift(layer, shape)
    return scale, shift


def _check_call(node: Node) -> None:
    """Refuse a call whose layer does not compute with plain weights."""
    layer = node.operation
    if getattr(layer, "quantization_mode", None):
        raise Refused(f"'{node.path}' holds weights quantized to {layer.quantization_mode}")
    if getattr(layer, "lora_enabled", False):
        raise Refused(f"'{node.path}' has LoRA enabled, whose update is kept apart")
    if node.side_inputs:
        raise Refused(f"'{node.path}' is called with further tensors")
    if is_batch_norm(layer) and node.training:
        raise Refused(f"'{node.path}' is called with training=True")


def _channel_axis(layer: Any) -> int:
    """The channel axis among the axes behind the batch axis."""
    if is_batch_norm(layer):
        if not isinstance(layer.axis, int):
            raise Refused(f"'{layer.name}' normalises over several axes at once")
        return layer.axis if layer.axis < 0 else layer.axis - 1
    return 0 if getattr(layer, "data_format", None) == "channels_first" else -1


def _no_shift_into_padding(layer: Any, shape: Shape) -> None:
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
    spatial = shape[2:] if layer.data_format == "channels_first" else shape[1:-1]
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


def _no_shift_over_positions(layer: Any, shape: Shape) -> None:
    if {*_each(layer.kernel_size), *_each(layer.strides)} != {1}:
        raise Refused(
            f"'{layer.name}' spreads its input over overlapping or separate positions, so that "
            "the shift would come out different at each"
        )


def _any_shift(layer: Any, shape: Shape) -> None:
    return


def _each(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


def _array(variable: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _reader(outputs: Callable[[Any], int], *kernels: str) -> Callable[[Any], Arrays]:
    """Reads the kernels and the bias, which is zero where the layer has none."""

    def read(layer: Any) -> Arrays:
        weights = {name: _array(getattr(layer, name)) for name in kernels}
        weights["bias"] = np.zeros(outputs(layer)) if layer.bias is None else _array(layer.bias)
        return weights

    return read


def _on_kernel(change: Callable[..., tuple[Array, Array]]) -> Callable[..., Arrays]:
    """Algebra of (kernel, bias, s, t) as a rule's."""

    def algebra(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
        kernel, bias = change(weights["kernel"], weights["bias"], s, t)
        return {"kernel": kernel, "bias": bias}

    return algebra


def _grouped_forward(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
    groups = getattr(layer, "groups", 1)
    kernel, bias = dense_forward(weights["kernel"], weights["bias"], s, t, groups)
    return {"kernel": kernel, "bias": bias}


def _separable_backward(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
    pointwise, bias = dense_backward(weights["pointwise_kernel"], weights["bias"], s, t)
    return {**weights, "pointwise_kernel": pointwise, "bias": bias}


def _separable_forward(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
    depthwise, bias = separable_forward(
        weights["depthwise_kernel"], weights["pointwise_kernel"], weights["bias"], s, t
    )
    return {**weights, "depthwise_kernel": depthwise, "bias": bias}


def _batch_norm_backward(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
    gamma, beta = batch_norm_backward(weights["gamma"], weights["beta"], s, t)
    return {**weights, "gamma": gamma, "beta": beta}


def _batch_norm_forward(layer: Any, weights: Arrays, s: Array, t: Array) -> Arrays:
    gamma, beta = batch_norm_forward(
        weights["gamma"],
        weights["beta"],
        weights["moving_mean"],
        weights["moving_variance"],
        layer.epsilon,
        s,
        t,
    )
    return {**weights, "gamma": gamma, "beta": beta}


def _last(layer: Any) -> int:
    return layer.kernel.shape[-1]


def _second_last(layer: Any) -> int:
    return layer.kernel.shape[-2]


def _grouped_inputs(layer: Any) -> int:
    return layer.kernel.shape[-2] * getattr(layer, "groups", 1)


def _depthwise_outputs(layer: Any) -> int:
    return layer.kernel.shape[-2] * layer.kernel.shape[-1]


def _separable_inputs(layer: Any) -> int:
    return layer.depthwise_kernel.shape[-2]


def _separable_outputs(layer: Any) -> int:
    return layer.pointwise_kernel.shape[-1]


def _statistics(layer: Any) -> int:
    return layer.moving_mean.shape[0]


RULES = (
    # BN(Dense(x)) -> Dense(x), Dense(BN(x)) -> Dense(x); convolutions alike, padding permitting
    Absorb(
        (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D),
        _grouped_inputs,
        _last,
        _reader(_last, "kernel"),
        _on_kernel(dense_backward),
        _grouped_forward,
        _no_shift_into_padding,
        {"use_bias": True},
    ),
    Absorb(
        (layers.DepthwiseConv1D, layers.DepthwiseConv2D),
        _second_last,
        _depthwise_outputs,
        _reader(_depthwise_outputs, "kernel"),
        _on_kernel(depthwise_backward),
        _on_kernel(depthwise_forward),
        _no_shift_into_padding,
        {"use_bias": True},
    ),
    Absorb(
        (layers.SeparableConv1D, layers.SeparableConv2D),
        _separable_inputs,
        _separable_outputs,
        _reader(_separable_outputs, "depthwise_kernel", "pointwise_kernel"),
        _separable_backward,
        _separable_forward,
        _no_shift_into_padding,
        {"use_bias": True},
    ),
    Absorb(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
        _last,
        _second_last,
        _reader(_second_last, "kernel"),
        _on_kernel(transpose_backward),
        _on_kernel(transpose_forward),
        _no_shift_over_positions,
        {"use_bias": True},
    ),
)

# BN(BN(x)) -> BN(x)
BATCH_NORM = Absorb(
    (),  # found by `is_batch_norm`: Keras's class and ours
    _statistics,
    _statistics,
    read_batch_norm,
    _batch_norm_backward,
    _batch_norm_forward,
    _any_shift,
    {"center": True, "scale": True},
)
