"""How linear operations take an affine in: pure functions of float64 arrays.

s is the affine's scale and t its shift, both vectors over channels. "Backward" means that the
affine follows the operation, "forward" that it precedes it.
"""

from __future__ import annotations

from typing import NamedTuple

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


def embedding_backward(table: Array, s: Array, t: Array) -> Array:
    """Row i of the table becomes s·row + t."""
    return table * s + t


class Einsum(NamedTuple):
    """The axes of a product Σ kernel·input, a letter each; the batch axis is left out."""

    input: str
    kernel: str
    output: str


def aligned(array: Array, axes: str, target: str) -> Array:
    """An array with the axes `axes` as one with those of `target`, 1 along those it does not have.

    Its axes that `target` does not have are of length 1.
    """
    kept = [axis for axis in axes if axis in target]
    lengths = dict(zip(axes, array.shape, strict=True))
    array = array.reshape([lengths[axis] for axis in kept])
    array = array.transpose([kept.index(axis) for axis in target if axis in kept])
    return array.reshape([lengths.get(axis, 1) for axis in target])


def einsum_backward(
    axes: Einsum, kernel: Array, bias: Array, s: Array, t: Array
) -> tuple[Array, Array]:
    """s·(Σ W·x + b) + t = Σ (sW)·x + (s·b + t), where s varies along axes of the kernel only.

    b, s and t have the axes of the output, or 1 where nothing varies.
    """
    return kernel * aligned(s, axes.output, axes.kernel), bias * s + t


def einsum_forward(
    axes: Einsum, kernel: Array, bias: Array, s: Array, t: Array
) -> tuple[Array, Array]:
    """Σ W·(s·x + t) + b = Σ (Ws)·x + (b + Σ W·t), where s varies along axes of the kernel only.

    b has the axes of the output; s and t have those of the input, or 1 where nothing varies, but t
    its full length along the axes that are summed.
    """
    constant = np.einsum(f"{axes.input},{axes.kernel}->{axes.output}", t, kernel)
    return kernel * aligned(s, axes.input, axes.kernel), bias + constant


def recurrent_forward(kernel: Array, bias: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """What the input adds to the gates, W(s·x + t) + b, at every time step alike.

    The kernel is (inputs, gates·units). A bias of two rows has that of the inputs first and that
    of the state, which stays, second.
    """
    if bias.ndim == 1:
        return dense_forward(kernel, bias, s, t)
    kernel, of_inputs = dense_forward(kernel, bias[0], s, t)
    return kernel, np.stack([of_inputs, bias[1]])


def normalization_backward(gamma: Array, beta: Array, s: Array, t: Array) -> tuple[Array, Array]:
    """s·(γx̂ + β) + t = (sγ)x̂ + (s·β + t), whatever x̂ is normalised over."""
    return gamma * s, beta * s + t
