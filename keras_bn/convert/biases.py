"""Biases and activations that TensorFlow's converter leaves beside 3-D convolutions.

    CONV_3D -> ADD of one value a channel -> RELU    becomes    CONV_3D

and likewise CONV_3D_TRANSPOSE. LiteRT's kernels take a bias and an activation, which the converter
gives to two-dimensional convolutions only. The convolution's result must be read by nothing else,
and be a float: what integer modes leave here is another dtype on either side of the addition.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/conv3d.cc
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/conv3d_transpose.cc
"""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from keras_bn.convert.flatbuffer import op_name, pack, read_contents, unpack

# Which input of a convolution is its bias; −1 stands there for none.
_BIAS = {"CONV_3D": 2, "CONV_3D_TRANSPOSE": 3}
# Which axis of a convolution's kernel holds the output's channels.
_CHANNELS = {"CONV_3D": 4, "CONV_3D_TRANSPOSE": 3}
_ACTIVATIONS = {
    "RELU": schema.ActivationFunctionType.RELU,
    "RELU_N1_TO_1": schema.ActivationFunctionType.RELU_N1_TO_1,
    "RELU6": schema.ActivationFunctionType.RELU6,
}


def merge_biases(tflite: bytes) -> bytes:
    """The file with every such addition and activation done by the convolution before it."""
    if read_contents(tflite).ops.keys().isdisjoint(_BIAS):
        return tflite
    model = unpack(tflite)
    names = [op_name(code.builtinCode, code.customCode) for code in model.operatorCodes]
    filled = {i for i, buffer in enumerate(model.buffers) if buffer.data is not None}
    for graph in model.subgraphs:
        constants = _constants(graph, names, filled)
        for convolution in [op for op in graph.operators if names[op.opcodeIndex] in _BIAS]:
            _take_bias(graph, names, convolution, constants)
            _take_activation(graph, names, convolution)
    return pack(model)


def _constants(graph: Any, names: list[str], filled: set[int]) -> set[int]:
    """The tensors that hold constants, also such as are stored in float16 and widened."""
    stored = {i for i, tensor in enumerate(graph.tensors) if tensor.buffer in filled}
    widened = {
        op.outputs[0]
        for op in graph.operators
        if names[op.opcodeIndex] == "DEQUANTIZE" and op.inputs[0] in stored
    }
    return stored | widened


def _take_bias(graph: Any, names: list[str], convolution: Any, constants: set[int]) -> None:
    reader = _only_reader(graph, convolution)
    if reader is None or names[reader.opcodeIndex] != "ADD":
        return
    name = names[convolution.opcodeIndex]
    bias, taken = _BIAS[name], convolution.inputs.copy()  # as read, it is not to be written
    added = [tensor for tensor in reader.inputs if tensor != convolution.outputs[0]]
    if taken[bias] >= 0 or len(added) != 1 or added[0] not in constants:
        return
    channels = _shape(graph, taken[1])[_CHANNELS[name]]
    if _shape(graph, added[0]) not in ((channels,), (1, 1, 1, 1, channels)):
        return
    taken[bias] = added[0]
    convolution.inputs = taken
    _take_place(graph, convolution, reader, reader.builtinOptions.fusedActivationFunction)


def _take_activation(graph: Any, names: list[str], convolution: Any) -> None:
    reader = _only_reader(graph, convolution)
    if reader is not None and names[reader.opcodeIndex] in _ACTIVATIONS:
        activation = _ACTIVATIONS[names[reader.opcodeIndex]]
        _take_place(graph, convolution, reader, activation)


def _only_reader(graph: Any, convolution: Any) -> Any | None:
    """What alone reads the convolution's result, while nothing is done to that yet."""
    (result,) = convolution.outputs
    readers = [operator for operator in graph.operators if result in operator.inputs]
    if (
        len(readers) != 1
        or result in graph.outputs
        or graph.tensors[result].type != schema.TensorType.FLOAT32
        or convolution.builtinOptions.fusedActivationFunction != schema.ActivationFunctionType.NONE
    ):
        return None
    return readers[0]


def _shape(graph: Any, tensor: int) -> tuple[int, ...]:
    shape = graph.tensors[tensor].shape
    return () if shape is None else tuple(map(int, shape))


def _take_place(graph: Any, convolution: Any, reader: Any, activation: int) -> None:
    """Have the convolution give what `reader` gives, from where the bias is known to be ready."""
    convolution.builtinOptions.fusedActivationFunction = activation
    convolution.outputs = reader.outputs
    graph.operators.remove(convolution)
    graph.operators[graph.operators.index(reader)] = convolution
