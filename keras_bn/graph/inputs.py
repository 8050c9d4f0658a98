"""Random inputs that a model accepts, for running it without data of the user's."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import tree

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.trace import opened
from keras_bn.graph.view import View, functional_graph, structure, view

# Unknown axes are tried at these lengths, shortest first: many image models shrink their input
# thirty-two times, and InceptionV3 needs 75 pixels.
_LENGTHS = (16, 32, 64, 128, 256)


def random_inputs(model: keras.Model, samples: int = 2, *, seed: int = 0) -> Any:
    """Random inputs in the structure that `model` takes, batch axis first.

    A subclassed model has to have been called once: the shapes are those that it remembers.
    Floating-point inputs are normal with mean 0 and deviation 1; integers, and floating-point
    inputs that an Embedding reads, are drawn below the smallest vocabulary; booleans are fair.

    Raises:
        UnsupportedModelError: an input takes strings, or no length of an unknown axis fits, or
            the model is subclassed and `opened` cannot open it up.

    Example:
        >>> import keras
        >>> random_inputs(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])).shape
        (2, 3)
    """
    rng = np.random.default_rng(seed)
    traced = opened(model).model
    graph = view(traced)
    specs, _ = structure(functional_graph(traced))
    vocabulary = _vocabulary(model)
    indices = _read_by_embeddings(graph)
    for length in _LENGTHS:
        arrays = [
            _random(rng, spec, samples, length, vocabulary, number in indices)
            for spec, number in zip(tree.flatten(specs), graph.inputs, strict=True)
        ]
        unknown = any(None in spec.shape[1:] for spec in tree.flatten(specs))
        structured = tree.pack_sequence_as(specs, arrays)
        if not unknown or _accepts(model, structured):
            return structured
    raise UnsupportedModelError(
        f"no input of '{model.name}' could be made up: its axes of unknown length accept none of "
        f"{', '.join(map(str, _LENGTHS))}; give keras.Input its full shape"
    )


def _random(
    rng: np.random.Generator, spec: Any, samples: int, length: int, vocabulary: int, index: bool
) -> np.ndarray:
    batch = spec.shape[0] or samples
    shape = (batch, *(size or length for size in spec.shape[1:]))
    if spec.dtype == "string":
        raise UnsupportedModelError(f"input '{spec.name}' takes strings, which are not made up")
    if spec.dtype == "bool":
        return rng.random(shape) < 0.5
    if index or keras.backend.is_int_dtype(spec.dtype):
        return rng.integers(0, vocabulary, shape).astype(spec.dtype)
    return rng.normal(size=shape).astype("float32")


def _vocabulary(model: keras.Model) -> int:
    """The largest index that every Embedding of the model knows, plus one; 2 without any."""
    sizes = [
        layer.input_dim
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Embedding)
    ]
    return min(sizes, default=2)


def _read_by_embeddings(graph: View) -> set[int]:
    return {
        tensor
        for node in graph.nodes
        if isinstance(node.operation, keras.layers.Embedding)
        for tensor in node.inputs
    }


def _accepts(model: keras.Model, inputs: Any) -> bool:
    try:
        symbolic = tree.map_structure(
            lambda array: keras.KerasTensor(array.shape, str(array.dtype)), inputs
        )
        model.compute_output_spec(symbolic)
    except Exception:
        return False
    return True
