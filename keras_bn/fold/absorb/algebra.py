"""How linear operations take an affine in: pure functions of float64 arrays.

s is the affine's scale and t its shift, both vectors over channels. "Backward" means that the
affine follows the operation, "forward" that it precedes it.
"""

from __future__ import annotations

import numpy as np

from keras_bn.fold.affine import Array


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
