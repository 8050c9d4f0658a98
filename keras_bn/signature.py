"""The names, shapes and dtypes that a Keras model is called with and answers with.

Inputs carry the names of their `keras.Input`; outputs the keys of an output dictionary, else
`output_0`, `output_1`, … in order. These are the names that `model.export` writes into the
signature of a `.tflite` file, so a Keras model and its conversion are matched by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_bn.errors import UnsupportedModelError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: The name that data and signatures use for it.
        shape: Its shape with the batch axis first; None where a size is free.
        dtype: NumPy's name of its dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        sizes = ", ".join("None" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} ({sizes})"


def input_specs(model: keras.Model) -> tuple[InputSpec, ...]:
    """The inputs of a Functional or Sequential model, in the order of `model.inputs`.

    Raises:
        UnsupportedModelError: The model is subclassed or unbuilt, or an input is not a dense
            tensor of numbers with a batch axis.

    Example:
        >>> import keras
        >>> inputs = keras.Input((8,), name="samples")
        >>> [str(spec) for spec in input_specs(keras.Model(inputs, keras.layers.ReLU()(inputs)))]
        ['samples: float32 (None, 8)']
    """
    if not getattr(model, "inputs", None):
        raise UnsupportedModelError(
            f"Expected a built Functional or Sequential model; {model.name!r} "
            f"({type(model).__name__}) does not say what its inputs are. Wrap it: "
            "inputs = keras.Input(...); keras.Model(inputs, model(inputs))."
        )
    for tensor in model.inputs:
        if tensor.sparse or getattr(tensor, "ragged", False) or tensor.dtype == "string":
            raise UnsupportedModelError(
                f"Expected dense numeric inputs; input {tensor.name!r} of {model.name!r} is "
                "sparse, ragged or text. Take that layer out and feed what it produces."
            )
        if not tensor.shape:
            raise UnsupportedModelError(
                f"Expected inputs with a batch axis; input {tensor.name!r} is a scalar."
            )
    return tuple(InputSpec(t.name, tuple(t.shape), t.dtype) for t in model.inputs)


def call_named(model: keras.Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Call `model` for inference on tensors by input name; its outputs, by output name.

    Works eagerly and while TensorFlow traces. `inputs` maps every name of `input_specs(model)`
    to a tensor or array with a batch axis.
    """
    import keras

    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    packed = keras.tree.map_structure(lambda tensor: inputs[tensor.name], structure)
    return named_outputs(model(packed, training=False))


def named_outputs(outputs: Any) -> dict[str, Any]:
    """What a model returned, by output name."""
    return dict(_named("output", outputs, top=True))


def _named(prefix: str, value: Any, *, top: bool = False) -> Iterator[tuple[str, Any]]:
    """(name, tensor) for each tensor of a nested structure, names built from keys and indices."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(str(key) if top else f"{prefix}_{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _named(f"{prefix}_{index}", item)
    else:
        yield f"{prefix}_0" if top else prefix, value
