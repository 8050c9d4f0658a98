"""Normalizing a batch by its own moments where no gradient is wanted, on TensorFlow's CPU.

The kernel that trains, FusedBatchNormV3, keeps its input for the gradient and writes its output
elsewhere. With large images, fetching that memory and Eigen's broadcasts take longer than the
arithmetic. Without a gradient each step below takes the place of the one before:

    mean = Σ x/m        d = x − mean        variance = ‖d‖²/m        y = d·slope + β

Sums go over each sample first, which reads memory in order and in parallel, then over samples.
Inference itself takes a multiplication and an addition; tools/benchmarks/update_bn.py compares.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import keras

from keras_bn.layers import BatchNormalization
from keras_bn.layers.moments import Moments, Tensor


def covers(layer: BatchNormalization, inputs: Tensor) -> bool:
    """Whether `normalize` does what a training call of `layer` without a mask does."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return (
        type(layer).call is BatchNormalization.call
        and layer._channel_axes == (len(inputs.shape) - 1,)
        and inputs.dtype != tf.float64
        and not (layer.synchronized or layer.renorm or layer.fused)
        # cuDNN's kernel is the fastest on a GPU.
        and not tf.config.list_logical_devices("GPU")
    )


def normalize(layer: BatchNormalization, inputs: Tensor) -> tuple[Tensor, Moments]:
    """What a training call of `layer` returns, and the moments of the batch in float32."""
    import tensorflow as tf

    channels = inputs.shape[-1]
    shape = tf.shape(inputs)
    if len(inputs.shape) == 2:
        samples, elements = 1, shape[0]
    else:  # counted, not -1, which an empty batch leaves open
        samples, elements = shape[0], tf.reduce_prod(shape[1:-1])
    flat = tf.reshape(tf.cast(inputs, tf.float32), [samples, elements, channels])
    gamma = tf.ones([channels]) if layer.gamma is None else tf.cast(layer.gamma, tf.float32)
    beta = tf.zeros([channels]) if layer.beta is None else tf.cast(layer.beta, tf.float32)
    outputs, mean, variance, count = _arithmetic()(flat, gamma, beta, layer.epsilon)
    mean.set_shape([channels])
    variance.set_shape([channels])
    outputs = tf.reshape(tf.cast(outputs, layer.compute_dtype), shape)
    outputs.set_shape(inputs.shape)
    return outputs, Moments(mean, variance, count)


@cache
def _arithmetic() -> Any:
    """The operations as one function of a graph: traced once, not once for each layer."""
    import tensorflow as tf

    vector = tf.TensorSpec([None], tf.float32)
    flat = tf.TensorSpec([None, None, None], tf.float32)  # samples, elements, channels
    number = tf.TensorSpec([], tf.float32)

    @tf.function(input_signature=[flat, vector, vector, number], autograph=False)
    def arithmetic(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor) -> tuple[Tensor, ...]:
        count = tf.cast(tf.reduce_prod(tf.shape(x)[:2]), tf.float32)
        divisor = tf.maximum(count, 1.0)
        mean = tf.reduce_sum(tf.reduce_sum(x, 1), 0) / divisor
        deviation = x - mean
        squares = tf.square(tf.math.reduce_euclidean_norm(deviation, 1))
        variance = tf.reduce_sum(squares, 0) / divisor
        return (
            deviation * (gamma * tf.math.rsqrt(variance + epsilon)) + beta,
            mean,
            variance,
            count,
        )

    return arithmetic
