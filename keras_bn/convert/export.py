"""A Keras model as a SavedModel that stands alone: a frozen graph with named inputs and outputs.

Keras's own export writes a SavedModel with variables, functions and a checkpoint, which
TensorFlow loads and freezes again for every conversion; that is most of the time a stock
conversion takes. Here the model is traced once with its weights as arguments, and the
arguments become constants in the graph's protobuf. Nothing is computed, and whoever reads the
result needs neither Keras nor the model's own classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_bn.errors import ConversionError
from keras_bn.signature import InputSpec, call_named, input_specs

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

SIGNATURE_KEY = "serving_default"

# Keras's compute dtypes below float32.
REDUCED_FLOATS = ("float16", "bfloat16")

# A protobuf message holds at most 2 GiB; the rest of the graph takes far less than this margin.
# https://protobuf.dev/programming-guides/proto-limits/
MAX_WEIGHT_BYTES = 2**31 - 2**26


@dataclass(frozen=True)
class Export:
    """A frozen SavedModel on disk.

    Attributes:
        folder: Holds `saved_model.pb`.
        inputs: The inputs as exported; the batch size in place of a free batch axis.
        outputs: The names of the outputs.
    """

    folder: Path
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]


def export(
    model: keras.Model,
    folder: Path,
    *,
    batch_size: int | None = 1,
    input_names: Sequence[str] | None = None,
) -> Export:
    """Write `model`, for inference in float32, as a frozen SavedModel into `folder`.

    Args:
        model: A built Functional or Sequential model. Layers with a mixed precision policy
            compute in float32 in the export; the model itself is unchanged.
        folder: An existing, empty folder.
        batch_size: The batch size of the export, None for any. A model that fixes its own
            batch size keeps that.
        input_names: Names for the inputs, in the order of `model.inputs`. Default: the model's.
            A rebuilt model's unnamed inputs have other names than the original's.

    Raises:
        ConversionError: Keras runs on another backend than TensorFlow, the model keeps state
            between calls, or its weights exceed 2 GiB.
        UnsupportedModelError: The model's inputs cannot be told.
    """
    import keras
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    if keras.backend.backend() != "tensorflow":
        raise ConversionError(
            "Expected Keras on the TensorFlow backend, which conversion traces with; it runs on "
            f"{keras.backend.backend()!r}. Save the model and convert the file with "
            "KERAS_BACKEND=tensorflow."
        )
    weight_bytes = sum(int(np.prod(v.shape)) * 4 for v in model.variables)
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise ConversionError(
            f"Expected weights of less than 2 GiB, the limit of TensorFlow's graph format; "
            f"{model.name!r} has {weight_bytes / 2**30:.1f} GiB in float32."
        )
    own_inputs = input_specs(model)
    names = input_names or [spec.name for spec in own_inputs]
    inputs = tuple(
        _as_exported(spec, name, batch_size) for spec, name in zip(own_inputs, names, strict=True)
    )
    variables = model.variables

    def serve(
        values: Sequence[tf.Tensor], tensors: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        with keras.StatelessScope() as scope:
            for variable, value in zip(variables, values, strict=True):
                scope.add_update((variable, value))
            before = dict(scope.state_mapping)
            outputs = call_named(
                model,
                {spec.name: tensors[name] for spec, name in zip(own_inputs, names, strict=True)},
            )
            updated = {
                key for key, new in scope.state_mapping.items() if new is not before.get(key)
            }
        _require_stateless(model, updated)
        return {name: _as_float32(tensor) for name, tensor in outputs.items()}

    with _computing_in_float32(model):
        traced = tf.function(serve, autograph=False).get_concrete_function(
            [tf.TensorSpec(v.shape, _widened(v.dtype)) for v in variables],
            {spec.name: tf.TensorSpec(spec.shape, spec.dtype) for spec in inputs},
        )
    outputs = tuple(traced.structured_outputs)
    if traced.captured_inputs:
        # What layers hold outside Keras's variables; little, so TensorFlow may freeze it.
        traced = convert_variables_to_constants_v2(traced)

    # tf.function lays its arguments out flat: the weights, then the inputs in tf.nest's order.
    weights, tensors = traced.inputs[: len(variables)], traced.inputs[len(variables) :]
    input_names = tf.nest.flatten({spec.name: spec.name for spec in inputs})
    output_names = tf.nest.flatten({name: name for name in outputs})

    saved_model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = saved_model.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    graph.graph_def.MergeFrom(traced.graph.as_graph_def())
    values = {
        weight.op.name: np.asarray(variable.numpy(), weight.dtype.as_numpy_dtype)
        for weight, variable in zip(weights, variables, strict=True)
    }
    for node in graph.graph_def.node:
        if node.name in values:
            _make_constant(node, values[node.name])
    signature = graph.signature_def[SIGNATURE_KEY]
    signature.method_name = "tensorflow/serving/predict"
    for name, tensor in zip(input_names, tensors, strict=True):
        _describe(signature.inputs[name], tensor)
    for name, tensor in zip(output_names, traced.outputs, strict=True):
        _describe(signature.outputs[name], tensor)
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    return Export(folder, inputs, outputs)


def _as_exported(spec: InputSpec, name: str, batch_size: int | None) -> InputSpec:
    batch = batch_size if spec.shape[0] is None else spec.shape[0]
    return InputSpec(name, (batch, *spec.shape[1:]), _widened(spec.dtype))


def _widened(dtype: str) -> str:
    return "float32" if dtype in REDUCED_FLOATS else dtype


def _as_float32(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor of its own for an output; reduced floats, rare in LiteRT's kernels, widened."""
    import tensorflow as tf

    return tf.identity(tf.cast(tensor, _widened(tensor.dtype.name)))


@contextlib.contextmanager
def _computing_in_float32(model: keras.Model) -> Iterator[None]:
    """Let every layer of `model` that computes in float16 or bfloat16 compute in float32.

    The policies are put back afterwards.
    """
    import keras

    changed = {
        layer: layer.dtype_policy
        for layer in model._flatten_layers()
        if layer.compute_dtype in REDUCED_FLOATS
    }
    try:
        for layer in changed:
            layer._dtype_policy = keras.DTypePolicy("float32")
        yield
    finally:
        for layer, policy in changed.items():
            layer._dtype_policy = policy


def _require_stateless(model: keras.Model, updated: Collection[int]) -> None:
    """Refuse a model that updates variables at inference, of which `updated` are the ids."""
    if updated:
        paths = [variable.path for variable in model.variables if id(variable) in updated]
        stateful = [x.name for x in model._flatten_layers() if getattr(x, "stateful", False)]
        raise ConversionError(
            f"Expected a model that keeps no state between calls; {model.name!r} updates "
            f"{', '.join(stateful + paths) or 'variables'} at inference. Build recurrent layers "
            "with stateful=False, and take random sampling out of the part that is deployed."
        )


def _make_constant(node: Any, value: np.ndarray) -> None:
    """Turn a Placeholder node of a GraphDef into a Const node that holds `value`."""
    dtype = node.attr["dtype"].type
    node.op = "Const"
    node.attr.clear()
    node.attr["dtype"].type = dtype
    constant = node.attr["value"].tensor
    constant.dtype = dtype
    for size in value.shape:
        constant.tensor_shape.dim.add().size = size
    constant.tensor_content = value.tobytes()


def _describe(info: Any, tensor: tf.Tensor) -> None:
    """Fill in the TensorInfo of a signature."""
    info.name = tensor.name
    info.dtype = tensor.dtype.as_datatype_enum
    info.tensor_shape.CopyFrom(tensor.shape.as_proto())
