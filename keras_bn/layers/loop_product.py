"""The product with a kernel in a loop over time steps that is trained on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_bn.layers.moments import Tensor


def product_with(kernel: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """x·K of x and `kernel` K, with its derivatives written out: dx = dy·Kᵀ, dK = xᵀ·dy.

    TensorFlow's own dx arranges Kᵀ anew at every step. Where oneDNN is off, that takes three
    times as long as the product itself for a batch of 32; here Kᵀ is made once, before the loop.
    Only for training: a graph for inference would hold derivatives for nothing. The benchmark
    is tools/benchmarks/recurrent_step.py.

    Args:
        kernel: (rows, columns). To be given again to the product, whose derivative it gets.
    """
    import tensorflow as tf

    transposed = tf.transpose(kernel)

    @tf.custom_gradient
    def product(x: Tensor, kernel: Tensor) -> Any:
        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            return tf.matmul(dy, transposed), tf.matmul(x, dy, transpose_a=True)

        return tf.matmul(x, kernel), gradient

    return product
