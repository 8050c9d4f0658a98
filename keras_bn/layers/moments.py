"""Mean, variance and count of a batch, per channel: the arithmetic under batch normalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import mul
from typing import Any, NamedTuple

import keras
from keras import ops

Tensor = Any  # whatever the backend computes with


class Moments(NamedTuple):
    """What a batch says about each channel; all zero where the channel saw no element."""

    mean: Tensor  # per channel
    variance: Tensor  # per channel, of the batch itself: divided by count
    # Elements behind the two: a scalar, or what broadcasts to the channels. A number of Python's
    # where the shape tells.
    count: Tensor


def computing_dtype(dtype: Any) -> str:
    """In what moments of tensors of `dtype` are computed: float32, or float64.

    Squares of half-precision values overflow, and long sums of them drop their small terms.
    Keras's promotion of float64 with float32 is float32 on some backends.
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def own_replica(partial_sum: Tensor) -> Tensor:
    """The sum over replicas where every replica keeps to its own statistics."""
    return partial_sum


def moments(
    x: Tensor,
    axes: Sequence[int],
    mask: Tensor | None = None,
    sum_over_replicas: Callable[[Tensor], Tensor] = own_replica,
) -> Moments:
    """Mean and variance of `x` over `axes`, of the unmasked elements.

        mean = Σ x / m        variance = Σ (x − mean)² / m        m = number of elements

    Two passes, because E[x²] − E[x]² loses every digit once the mean is a few thousand
    standard deviations from zero. An empty batch has mean and variance 0, not NaN.

    Args:
        x: Floating tensor, float32 or wider.
        axes: The axes to reduce; the others are the channels.
        mask: Tensor of the rank of `x`, each dimension 1 or that of `x` (see `align_mask`).
        sum_over_replicas: Adds up a partial sum over the replicas that share a batch.
    """
    axes = tuple(axes)

    def total(values: Tensor) -> Tensor:
        return sum_over_replicas(ops.sum(values, axes, keepdims=True))

    if mask is None:
        kept, count = x, _size(x, axes, x.dtype)
        if sum_over_replicas is not own_replica:
            count = sum_over_replicas(ops.cast(count, x.dtype))
    else:
        mask = ops.cast(mask, "bool")
        kept = unmasked(x, mask)
        # Each element of the mask stands for as many of x as it is broadcast over.
        share = _size(x, axes, x.dtype) / _at_least_one(_size(mask, axes, x.dtype))
        count = total(ops.cast(mask, x.dtype)) * share
    divisor = _at_least_one(count)
    mean = total(kept) / divisor

    # Σ(x − c)²/m − (mean − c)² is the variance for every constant c, so it may be derived any
    # number of times with c held constant. With c = mean the second term is zero, nothing
    # cancels, and the gradient needs no pass over the batch to find Σ(x − mean) = 0.
    centre = ops.stop_gradient(mean)
    deviation = x - centre if mask is None else unmasked(x - centre, mask)
    variance = total(ops.square(deviation)) / divisor - ops.square(mean - centre)

    if mask is not None:
        count = ops.squeeze(count, axes)
    return Moments(ops.squeeze(mean, axes), ops.squeeze(variance, axes), count)


def standardized(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """(x − mean)/√(variance + ε), mean and variance over `axes`.

    Args:
        x: Floating tensor, float32 or wider.
        axes: The axes to normalize over.
        epsilon: Added to the variance.
    """
    x = x - ops.mean(x, axes, keepdims=True)
    # Of large values the mean is off by its rounding, and so is every difference from it; the
    # mean of the differences is that error.
    rank = len(x.shape)
    if keras.backend.backend() == "torch" and list(axes) == list(range(min(axes), rank)):
        return standardized_in_one(x, len(axes), epsilon)
    x = x - ops.mean(x, axes, keepdims=True)
    return x * ops.rsqrt(ops.mean(ops.square(x), axes, keepdims=True) + epsilon)


def standardized_in_one(x: Tensor, last: int, epsilon: float) -> Tensor:
    """(x − mean)/√(variance + ε) over the `last` axes in one operation, PyTorch's."""
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-last:], eps=epsilon)


def unbiased_variance(batch: Moments) -> Tensor:
    """Bessel's correction σ²·m/(m − 1), which estimates the population's variance.

    Undefined for m = 1, where it gives 0.
    """
    return batch.variance * (batch.count / _at_least_one(batch.count - 1))


def align_mask(mask: Tensor, inputs: Tensor, channel_axes: Sequence[int]) -> Tensor:
    """Reshape `mask` to the rank of `inputs`, with ones where it is to be broadcast.

    A mask covers the leading axes of the inputs once the channel axes are taken out: (B, T) on
    (B, T, F), on (B, T, H, W, C), and with the channels at axis 1 on (B, C, T). A mask that
    does not fit so but has the shape of `inputs` without its last axis is read as Keras reads
    it, channel axis included.

    Raises:
        ValueError: the mask fits neither way.
    """
    rank = len(inputs.shape)
    reduced = [axis for axis in range(rank) if axis not in channel_axes]
    for covered in (reduced[: len(mask.shape)], list(range(rank - 1))):
        if len(covered) == len(mask.shape) and all(
            size in (None, 1, inputs.shape[axis]) or inputs.shape[axis] is None
            for size, axis in zip(mask.shape, covered, strict=True)
        ):
            sizes = ops.shape(mask)
            shape = [1] * rank
            for size, axis in zip(sizes, covered, strict=True):
                shape[axis] = size
            return ops.reshape(mask, shape)
    expected = tuple(inputs.shape[axis] for axis in reduced)
    raise ValueError(
        f"Expected a mask whose shape is {expected}, the inputs' without the channel axis, or the "
        f"first dimensions of that. Received: mask.shape={tuple(mask.shape)}, "
        f"inputs.shape={tuple(inputs.shape)}"
    )


def unmasked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where `mask` is true, and elsewhere 0.

    The 0 is made where `x` is. PyTorch would wait for a GPU to finish all that it was given
    before it sends it a number of Python's, which Keras's operations make their operands of.
    """
    return ops.where(mask, x, ops.zeros((), x.dtype))


def _size(x: Tensor, axes: Sequence[int], dtype: Any) -> Tensor | float:
    """Number of elements along `axes`: a float where the shape tells, else a tensor of `dtype`."""
    shape = ops.shape(x)
    sizes = [shape[axis] for axis in axes]
    if all(isinstance(size, int) for size in sizes):
        return float(math.prod(sizes))
    return ops.cast(reduce(mul, sizes), dtype)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return max(count, 1.0) if isinstance(count, float) else ops.maximum(count, ops.ones_like(count))
