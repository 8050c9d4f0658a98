"""Batch normalization of a training batch as one differentiable operation, on TensorFlow.

Two implementations:

- `_kernel`, TensorFlow's FusedBatchNormV3, with one operation each way;
- `_closed_form`, with its derivative written out: what XLA fuses best, and the faster one for
  small batches.

`normalize` chooses. The benchmark behind its constant is tools/benchmarks/batch_norm_step.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras_bn.layers.moments import Moments, Tensor

DTYPES = ("float32", "float16", "bfloat16")

# Elements in a batch below which the kernel's fixed cost (oneDNN sets up a primitive each way,
# 0.2 ms) outweighs what it saves. It takes twice as long as stock Keras at 65 000 elements and
# half as long at 131 000.
KERNEL_PAYS_FROM = 2**17

# Samples assumed in a batch of unknown size: what `fit` takes by default.
ASSUMED_BATCH = 32


def normalize(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Moments]:
    """See `keras_bn.layers.fused.normalize`."""
    import tensorflow as tf

    channels = x.shape[axis]
    gamma = tf.ones([channels]) if gamma is None else gamma
    beta = tf.zeros([channels]) if beta is None else beta

    elements = math.prod(ASSUMED_BATCH if size is None else size for size in x.shape)
    if elements >= KERNEL_PAYS_FROM and not _under_xla():
        return _kernel(x, gamma, beta, axis, epsilon)
    return _closed_form(x, gamma, beta, axis, epsilon)


def _kernel(
    x: Tensor, gamma: Tensor, beta: Tensor, axis: int, epsilon: float
) -> tuple[Tensor, Moments]:
    """FusedBatchNormV3, which takes images; other shapes are seen as images."""
    import tensorflow as tf

    channels = x.shape[axis]
    if axis < len(x.shape) - 1:
        data_format, image_shape = "NCHW", [_size_before(x, axis), channels, -1, 1]
        as_it_is = len(x.shape) == 4 and axis == 1
    else:
        data_format, image_shape = "NHWC", [-1, 1, _pixels_a_row(x), channels]
        # cuDNN is as fast on any image, and has a limit to how many there may be in a batch.
        as_it_is = len(x.shape) == 4 and bool(tf.config.list_physical_devices("GPU"))
    count = _count(x, channels)
    gamma = tf.where(count > 0, gamma, 0.0)  # whose second derivatives are NaN on an empty batch
    y, mean, sample_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x if as_it_is else tf.reshape(x, image_shape),
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        exponential_avg_factor=1.0,
        data_format=data_format,
        is_training=True,
    )
    # The kernel divides by m − 1 (by 1 when m is 1) and calls the moments of an empty batch NaN.
    mean = tf.math.multiply_no_nan(mean, tf.minimum(count, 1.0))
    biased = tf.maximum(count - 1.0, 0.0) / tf.maximum(count, 1.0)
    variance = tf.math.multiply_no_nan(sample_variance, biased)
    return y if as_it_is else _shaped_like(x, y), Moments(mean, variance, count)


def _pixels_a_row(x: Tensor) -> int:
    """How wide the images should be that the kernel sees `x`, channels last, as.

    oneDNN normalizes an image 8 channels at a time (16 with AVX-512) with stores that bypass the
    caches. On images of many pixels those of a cache line are far apart in time, and it is
    written to memory in pieces: the kernel takes twice as long. On a few pixels it is written as
    a whole, and more than one share the root that is taken for each 8 channels.
    """
    return math.gcd(4, math.prod(size for size in x.shape[1:-1] if size is not None))


def _closed_form(
    x: Tensor, gamma: Tensor, beta: Tensor, axis: int, epsilon: float
) -> tuple[Tensor, Moments]:
    """The mathematics, with its derivative written out.

        x̂ = (x − mean)·r        r = 1/√(variance + ε)
        dβ = Σ dy               dγ = Σ dy·x̂
        dx = γ·r·(dy − dβ/m − x̂·dγ/m)

    In float32 whatever the dtype of `x`, and on a matrix or on planes, over which XLA's sums
    are up to six times as fast as over an image.
    """
    import tensorflow as tf

    channels = x.shape[axis]
    total: Callable[[Tensor], Tensor]
    if axis == len(x.shape) - 1:
        total = _column_sums
        flat = x if len(x.shape) == 2 else tf.reshape(x, [-1, channels])
    else:
        total = _plane_sums
        flat = tf.reshape(x, [_size_before(x, axis), channels, -1])
        gamma, beta = gamma[:, None], beta[:, None]
    flat = tf.cast(flat, tf.float32)
    count = _count(x, channels)
    divisor = tf.maximum(count, 1.0)

    mean = total(flat) / divisor
    centre = tf.stop_gradient(mean)  # as in moments.moments
    variance = total(tf.math.squared_difference(flat, centre)) / divisor - (mean - centre) ** 2

    # The gradient for x below is the whole of it, the part that goes through the moments
    # included, so they get none. They are arguments all the same: differentiating that
    # gradient again has to see how they depend on x.
    @tf.custom_gradient
    def normalized(x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        r = tf.math.rsqrt(variance + epsilon)
        slope = gamma * r
        y = x * slope + (beta - mean * slope)

        def gradient(dy: Tensor) -> tuple[Any, ...]:
            d_beta = total(dy)
            d_gamma = total(dy * (x - mean)) * r
            tilt = slope * r * d_gamma / divisor
            dx = slope * dy - tilt * x + (tilt * mean - slope * d_beta / divisor)
            return dx, None, None, d_gamma, d_beta

        return y, gradient

    y = tf.cast(normalized(flat, mean, variance, gamma, beta), x.dtype)
    moments = Moments(tf.reshape(mean, [channels]), tf.reshape(variance, [channels]), count)
    return y if len(x.shape) == 2 else _shaped_like(x, y), moments


def _column_sums(matrix: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.reduce_sum(matrix, 0)


def _plane_sums(planes: Tensor) -> Tensor:
    """(outer, channels, inner) -> (channels, 1)"""
    import tensorflow as tf

    return tf.reduce_sum(planes, (0, 2), keepdims=True)[0]


def _shaped_like(x: Tensor, y: Tensor) -> Tensor:
    import tensorflow as tf

    y = tf.reshape(y, tf.shape(x))
    y.set_shape(x.shape)
    return y


def _size_before(x: Tensor, axis: int) -> Any:
    """Product of the dimensions before `axis`, which may hold unknown ones."""
    import tensorflow as tf

    return tf.reduce_prod(tf.shape(x)[:axis])


def _count(x: Tensor, channels: int) -> Tensor:
    """Elements in each channel, as float32."""
    import tensorflow as tf

    elements = x.shape.num_elements()
    if elements is not None:
        return tf.constant(elements // channels, tf.float32)
    return tf.cast(tf.size(x), tf.float32) / channels


def _under_xla() -> bool:
    """Whether what is being traced will be compiled by XLA.

    There the kernel becomes E[x²] − E[x]², whose variance is off by 1 % where the mean is 100
    standard deviations from zero and by 100 % at 1000.
    """
    from tensorflow.python.framework import ops
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph())
