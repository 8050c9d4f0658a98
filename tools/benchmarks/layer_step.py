"""Forward and backward of a single layer on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def layer_step(
    layer: keras.Layer, x: Any, weights: Any, *, jit_compile: bool = False
) -> Callable[[], Any]:
    """A compiled step with the loss Σ weights·layer(x), by x and the layer's weights."""
    layer.build((None, *x.shape[1:]))
    # As in fit: the batch size is not known to the graph.
    signature = [tf.TensorSpec((None, *x.shape[1:]))] * 2

    @tf.function(input_signature=signature, jit_compile=jit_compile, autograph=False)
    def step(x: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * weights)
        return tape.gradient(loss, [x, *(w.value for w in layer.trainable_weights)])

    return lambda: step(x, weights)[0][0].numpy()
