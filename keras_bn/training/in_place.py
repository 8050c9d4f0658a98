"""Normalizing a batch by its own moments where no gradient is wanted, on TensorFlow's CPU.

The kernel that trains, FusedBatchNormV3, keeps its input for the gradient and writes its output
elsewhere. With large images, fetching that memory and Eigen's broadcasts take longer than the
arithmetic. Without a gradient each step below takes the place of the one before:

    mean = Σ x/m        d = x − mean        variance = ‖d‖²/m        y = d·slope + β

Sums go over each sample first, which reads memory in order and in parallel, then over samples.
Inference itself takes a multiplication and an addition; tools/benchmarks/update_bn.py compares.
"""

from __future__ import annotations

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

    x = tf.cast(inputs, tf.float32)
    if len(x.shape) == 2:
        x = x[tf.newaxis]  # one sample of many positions
    positions = list(range(1, len(x.shape) - 1))
    count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)

    # No number of elements divides nothing: an empty batch has mean and variance 0.
    total = tf.reduce_sum(tf.reduce_sum(x, positions), 0)
    mean = tf.math.divide_no_nan(total, count)
    deviation = x - mean
    squares = tf.square(tf.math.reduce_euclidean_norm(deviation, positions))
    variance = tf.math.divide_no_nan(tf.reduce_sum(squares, 0), count)

    slope = tf.math.rsqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        slope *= tf.cast(layer.gamma, tf.float32)
    outputs = deviation * slope
    if layer.beta is not None:
        outputs += tf.cast(layer.beta, tf.float32)
    outputs = tf.cast(outputs, layer.compute_dtype)
    if len(inputs.shape) == 2:
        outputs = outputs[0]
    return outputs, Moments(mean, variance, count)
