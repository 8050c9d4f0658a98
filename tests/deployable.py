"""Small models with random weights, of the kinds that conversion and comparison must handle."""

import keras
import numpy as np
from keras import layers

from tests.random_weights import randomize


def image_model(policy: str = "float32") -> keras.Model:
    """Two convolutions with batch normalizations, and a classifier of five classes."""
    x = image = keras.Input((12, 12, 3), name="image")
    for filters in (6, 8):
        x = layers.Conv2D(filters, 3, padding="same", dtype=policy)(x)
        x = layers.BatchNormalization(dtype=policy)(x)
        x = layers.ReLU(dtype=policy)(x)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    return randomize(keras.Model(image, layers.Dense(5, dtype=policy)(x), name="image_model"))


def two_by_two_model() -> keras.Model:
    """Two inputs of one shape but very different use, two outputs; lists."""
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    x = layers.Dense(4)(layers.Rescaling(100.0)(left))
    y = layers.Dense(3)(right)
    return randomize(keras.Model([left, right], [x, layers.Concatenate()([x, y])]))


def dictionary_model() -> keras.Model:
    left, right = keras.Input((6,), name="left"), keras.Input((3,), name="right")
    outputs = {"sum": layers.Add()([left, layers.Dense(6)(right)]), "mean": layers.Dense(2)(left)}
    return randomize(keras.Model({"right": right, "left": left}, outputs))


def nested_model() -> keras.Model:
    left, right = keras.Input((6,), name="left"), keras.Input((3,), name="right")
    x, y = layers.Dense(2)(left), layers.Dense(4)(right)
    return randomize(keras.Model([left, [right]], {"deep": [x, y], "flat": y}))


def sequential_model() -> keras.Model:
    return randomize(keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(4)]))


def passing_model() -> keras.Model:
    """An input that is also an output, and an output that is given twice."""
    left = keras.Input((6,), name="left")
    x = layers.Dense(2)(left)
    return randomize(keras.Model(left, [x, left, x]))


def free_size_model() -> keras.Model:
    """Images of any size, with axes other than the batch left free."""
    x = image = keras.Input((None, None, 3), name="image")
    for _ in range(2):
        x = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2)(x))
    return randomize(keras.Model(image, layers.Dense(3)(layers.GlobalMaxPooling2D()(x))))


def token_model() -> keras.Model:
    """Integer inputs: an embedding's rows, most of which random integers would miss."""
    ids = keras.Input((7,), dtype="int32", name="ids")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(11, 4)(ids))
    return randomize(keras.Model(ids, layers.Dense(3)(x)))


def lstm_model() -> keras.Model:
    steps = keras.Input((5, 3), name="steps")
    return randomize(keras.Model(steps, layers.Dense(2)(layers.LSTM(4)(steps))))


MODELS = {
    "image": image_model,
    "two_by_two": two_by_two_model,
    "dictionary": dictionary_model,
    "nested": nested_model,
    "sequential": sequential_model,
    "passing": passing_model,
    "free_size": free_size_model,
    "tokens": token_model,
    "lstm": lstm_model,
}


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 12, 12, 3)).astype("float32")
