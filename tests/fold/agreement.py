"""The oracle of every folding test: the original model, on random inputs."""

import keras
import numpy as np
from keras import tree

from keras_bn.graph.inputs import random_inputs


def outputs(model: keras.Model, inputs) -> list[np.ndarray]:
    return [np.asarray(y, np.float64) for y in tree.flatten(model(inputs, training=False))]


def relative_error(original: keras.Model, folded: keras.Model) -> float:
    """Largest difference between the outputs, relative to the largest output."""
    inputs = random_inputs(original, samples=3, seed=7)
    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(a)))
        for a, b in zip(outputs(original, inputs), outputs(folded, inputs), strict=True)
    )


def assert_agree(original: keras.Model, folded: keras.Model) -> None:
    # float32 carries 2⁻²⁴ ≈ 6e-8 an operation; sums over some hundred taps and a few layers
    # stay below a hundred times that.
    assert relative_error(original, folded) < 1e-5


def normalizations(model: keras.Model) -> list[str]:
    return [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
