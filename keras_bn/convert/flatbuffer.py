"""What is inside a `.tflite` file: read in place, or taken apart and put together again.

The LiteRT schema is known here, and to `biases`, which changes what is taken apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

_OP_NAMES = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}
_TYPE_NAMES = {
    code: name.lower() for name, code in vars(schema.TensorType).items() if not name.startswith("_")
}
_FLOAT_TYPES = {"float16", "bfloat16", "float32", "float64"}
# They may stand beside floats without computing in them: the boundaries of an integer file, and
# what asks for a tensor's shape only.
_NOT_COMPUTING = {"QUANTIZE", "DEQUANTIZE", "SHAPE"}


@dataclass(frozen=True)
class Contents:
    """Histograms of one file, over all its subgraphs.

    Attributes:
        ops: How often each operation occurs; a custom one goes by its own name, and one that
            runs TensorFlow's kernel by "Flex" and that kernel's name.
        float_ops: Those that take or give floats, boundaries aside.
        dtypes: How many tensors there are of each dtype, by lower-case name.
        io_dtypes: The dtypes of the file's inputs and outputs.
    """

    ops: Counter[str]
    float_ops: Counter[str]
    dtypes: Counter[str]
    io_dtypes: Counter[str]


def read_contents(tflite: bytes) -> Contents:
    """The operations and dtypes of a `.tflite` file.

    Example:
        >>> import pathlib
        >>> read_contents(pathlib.Path("model.tflite").read_bytes()).ops  # doctest: +SKIP
        Counter({'CONV_2D': 2, 'FULLY_CONNECTED': 1})
    """
    model = schema.Model.GetRootAs(tflite)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    names = [
        # Codes above 127 do not fit the old one-byte field, which then holds a placeholder.
        op_name(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), code.CustomCode())
        for code in codes
    ]
    ops: Counter[str] = Counter()
    float_ops: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        types = [_TYPE_NAMES[graph.Tensors(i).Type()] for i in range(graph.TensorsLength())]
        dtypes.update(types)
        for operator in (graph.Operators(i) for i in range(graph.OperatorsLength())):
            name = names[operator.OpcodeIndex()]
            ops[name] += 1
            if name not in _NOT_COMPUTING and any(
                types[tensor] in _FLOAT_TYPES for tensor in _tensors(operator)
            ):
                float_ops[name] += 1
    main = model.Subgraphs(0)
    boundary = [main.Inputs(i) for i in range(main.InputsLength())]
    boundary += [main.Outputs(i) for i in range(main.OutputsLength())]
    io_dtypes = Counter(_TYPE_NAMES[main.Tensors(tensor).Type()] for tensor in boundary)
    return Contents(ops, float_ops, dtypes, io_dtypes)


def op_name(builtin_code: int, custom_code: bytes | None) -> str:
    """What an operation is called: as in the schema, or by its own name if it is a custom one."""
    return _OP_NAMES[builtin_code] if custom_code is None else custom_code.decode()


def _tensors(operator: Any) -> Iterator[int]:
    """Indices of the operation's inputs and outputs; an optional input left out is −1."""
    for index in range(operator.InputsLength()):
        if operator.Inputs(index) >= 0:
            yield operator.Inputs(index)
    for index in range(operator.OutputsLength()):
        yield operator.Outputs(index)


def unpack(tflite: bytes) -> Any:
    """The file as a tree of objects, those of the schema whose names end in T."""
    return schema.ModelT.InitFromPackedBuf(tflite)


def pack(model: Any) -> bytes:
    """The file that `model`, a tree such as `unpack` gives, stands for."""
    builder = _Builder(sum(len(b.data) for b in model.buffers if b.data is not None) + 2**16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Begins arrays of bytes at a multiple of 16, as the schema demands of constants."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)
