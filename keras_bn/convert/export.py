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

from keras_bn.errors import ConversionError, KerasBNError
from keras_bn.signature import InputSpec, call_named, input_specs

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

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
) -> Export:
    """Write `model`, for inference in float32, as a frozen SavedModel into `folder`.

    Args:
        model: A built Functional or Sequential model. Layers with a mixed precision policy
            compute in float32 in the export; the model itself is unchanged.
        folder: An existing, empty folder.
        batch_size: The batch size of the export, None for any. A model that fixes its own
            batch size keeps that.

    Raises:
        ConversionError: Keras runs on another backend than TensorFlow, the model was quantized
            by Keras, keeps state between calls, cannot be traced, or has weights of over 2 GiB.
        UnsupportedModelError: The model's inputs cannot be told.
    """
    _require_exportable(model)
    inputs = tuple(_as_exported(spec, batch_size) for spec in input_specs(model))
    try:
        with _computing_in_float32(model):
            traced, outputs = _trace(model, inputs)
    except KerasBNError:
        raise
    except Exception as failed:  # a layer may raise anything
        raise ConversionError(
            f"Expected {model.name!r} to run in a TensorFlow graph on inputs of shape "
            f"{', '.join(str(spec.shape) for spec in inputs)}; it raised "
            f"{type(failed).__name__}: {failed}"
        ) from failed
    (folder / "saved_model.pb").write_bytes(_saved_model(model, traced, inputs, outputs))
    return Export(folder, inputs, outputs)


def _require_exportable(model: keras.Model) -> None:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ConversionError(
            "Expected Keras on the TensorFlow backend, which conversion traces with; it runs on "
            f"{keras.backend.backend()!r}. Save the model and convert the file with "
            "KERAS_BACKEND=tensorflow."
        )
    quantized = [x.name for x in model._flatten_layers() if x.dtype_policy.quantization_mode]
    if quantized:
        raise ConversionError(
            f"Expected a float model, which conversion itself quantizes; {model.name!r} was "
            f"quantized by Keras in {', '.join(quantized)}. Convert the model from before that."
        )
    weight_bytes = sum(int(np.prod(variable.shape)) * 4 for variable in model.variables)
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise ConversionError(
            f"Expected weights of less than 2 GiB, the limit of TensorFlow's graph format; "
            f"{model.name!r} has {weight_bytes / 2**30:.1f} GiB in float32."
        )


def _trace(model: keras.Model, inputs: Sequence[InputSpec]) -> tuple[Any, tuple[str, ...]]:
    """A concrete function of the model's variables and inputs, and the names of its outputs."""
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    def serve(
        values: Sequence[tf.Tensor], tensors: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        with keras.StatelessScope() as scope:
            for variable, value in zip(model.variables, values, strict=True):
                scope.add_update((variable, value))
            before = dict(scope.state_mapping)
            outputs = call_named(model, tensors)
            after = scope.state_mapping
        _require_stateless(model, {key for key in after if after[key] is not before.get(key)})
        return {name: _as_float32(tensor) for name, tensor in outputs.items()}

    traced = tf.function(serve, autograph=False).get_concrete_function(
        [tf.TensorSpec(v.shape, _widened(v.dtype)) for v in model.variables],
        {spec.name: tf.TensorSpec(spec.shape, spec.dtype) for spec in inputs},
    )
    outputs = tuple(traced.structured_outputs)
    if traced.captured_inputs:
        # What layers hold outside Keras's variables; little, so TensorFlow may freeze it.
        traced = convert_variables_to_constants_v2(traced)
    return traced, outputs


def _saved_model(
    model: keras.Model, traced: Any, inputs: Sequence[InputSpec], outputs: Sequence[str]
) -> bytes:
    """The graph of `traced`, with the model's weights for its first arguments."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = saved_model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    meta_graph.graph_def.MergeFrom(traced.graph.as_graph_def())

    variables = model.variables
    arguments, tensors = traced.inputs[: len(variables)], traced.inputs[len(variables) :]
    weights = {
        argument.op.name: np.asarray(variable.numpy(), argument.dtype.as_numpy_dtype)
        for argument, variable in zip(arguments, variables, strict=True)
    }
    for node in meta_graph.graph_def.node:
        if node.name in weights:
            _make_constant(node, weights[node.name])

    signature = meta_graph.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    # tf.function takes and gives dictionaries in the order that tf.nest flattens them in.
    in_order = tf.nest.flatten({spec.name: spec.name for spec in inputs})
    for name, tensor in zip(in_order, tensors, strict=True):
        _describe(signature.inputs[name], tensor)
    in_order = tf.nest.flatten({name: name for name in outputs})
    for name, tensor in zip(in_order, traced.outputs, strict=True):
        _describe(signature.outputs[name], tensor)
    return saved_model.SerializeToString()


def _as_exported(spec: InputSpec, batch_size: int | None) -> InputSpec:
    batch = batch_size if spec.shape[0] is None else spec.shape[0]
    return InputSpec(spec.name, (batch, *spec.shape[1:]), _widened(spec.dtype))


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
        layer: layer._dtype_policy
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
