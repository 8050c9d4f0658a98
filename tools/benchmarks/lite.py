"""LiteRT files as TensorFlow's converter makes them, so that nothing but the fold differs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras


def stock(model: keras.Model) -> bytes:
    """`model` of one input by `TFLiteConverter.from_keras_model`, at batch size 1."""
    import keras
    import tensorflow as tf

    fixed = keras.Input(batch_shape=(1, *model.input_shape[1:]))
    with contextlib.redirect_stdout(io.StringIO()):  # hundreds of lines of captures
        return tf.lite.TFLiteConverter.from_keras_model(keras.Model(fixed, model(fixed))).convert()


def invoke(content: bytes) -> Callable[[], None]:
    """A function that runs the file once, on normal values and one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (detail,) = interpreter.get_input_details()
    values = np.random.default_rng(0).normal(size=detail["shape"]).astype("float32")
    interpreter.set_tensor(detail["index"], values)
    return interpreter.invoke
