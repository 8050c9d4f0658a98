"""Small `.tflite` files, made once by tf.lite itself."""

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Models:
    """`small` and `large` differ tenfold in work; `open_shape` has an unknown length."""

    small: Path
    large: Path
    indices: Path
    open_shape: Path
    endless: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    import tensorflow as tf

    def dense(width):
        weights = tf.random.stateless_normal((width, width), (1, 2))
        return lambda x: tf.nn.relu(x @ weights)

    def endless(x):
        # The condition holds for any input and cannot be folded.
        return tf.while_loop(lambda y: tf.reduce_all(y * 0 <= 0), lambda y: [y + 1], [x])[0]

    def write(name, function, *signature):
        concrete = tf.function(function, input_signature=signature).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        path = folder / f"{name}.tflite"
        path.write_bytes(converter.convert())
        return path

    folder = tmp_path_factory.mktemp("models")
    table = tf.random.stateless_normal((2, 8), (3, 4))
    return Models(
        small=write("small", dense(64), tf.TensorSpec((1, 64))),
        large=write("large", dense(512), tf.TensorSpec((1, 512))),
        indices=write("indices", lambda i: tf.gather(table, i), tf.TensorSpec((1, 5), tf.int32)),
        open_shape=write("open", lambda x: x * 2, tf.TensorSpec((None, None, 3))),
        endless=write("endless", endless, tf.TensorSpec((1,))),
    )
