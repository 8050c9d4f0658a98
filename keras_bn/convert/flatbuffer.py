"""What is inside a `.tflite` file; the only reader of the LiteRT schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    names = [_op_name(code) for code in codes]
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


def _op_name(code: Any) -> str:
    if code.CustomCode() is not None:
        return code.CustomCode().decode()
    # Codes above 127 do not fit the old one-byte field, which then holds a placeholder.
    return _OP_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]


def _tensors(operator: Any) -> Iterator[int]:
    """Indices of the operation's inputs and outputs; an optional input left out is −1."""
    for index in range(operator.InputsLength()):
        if operator.Inputs(index) >= 0:
            yield operator.Inputs(index)
    for index in range(operator.OutputsLength()):
        yield operator.Outputs(index)
