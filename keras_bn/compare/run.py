"""Running a model on samples: Keras models, and `.tflite` files in ai_edge_litert.

Both kinds answer to the same three questions: what are the inputs, how many samples go in at
once, and what are the outputs for these samples. Quantized inputs and outputs of a `.tflite`
file are float32 from outside.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from keras_bn.errors import ComparisonError, UnsupportedModelError
from keras_bn.samples import Samples, read_samples
from keras_bn.signature import InputSpec, call_named, input_specs, named_outputs

if TYPE_CHECKING:
    import keras

Outputs = dict[str, np.ndarray]

# Samples a call where the model leaves the batch free: enough to use the CPU's width, few
# enough for the activations of a large image model to fit in memory.
BATCH_SIZE = 32


# Bytes 4 to 8 of every LiteRT flatbuffer (file_identifier in schema.fbs).
TFLITE_IDENTIFIER = b"TFL3"


class Runnable(Protocol):
    """A model that can be asked for its outputs."""

    specs: tuple[InputSpec, ...]
    batch_size: int | None

    def call(self, batch: Mapping[str, np.ndarray]) -> Outputs:
        """The outputs for one batch; of `batch_size` samples where that is not None."""
        ...


def predict(model: keras.Model | str | os.PathLike[str], inputs: Any) -> Outputs:
    """The outputs of a Keras model or a `.tflite`, `.keras` or `.h5` file on `inputs`.

    Args:
        model: A Keras model, or the path of a file.
        inputs: Samples in any form that `keras_bn.samples.read_samples` takes: an array, a
            dictionary or list of arrays, a path to `.npz` or `.npy`, a dataset.

    Returns:
        One array for each output, by name, with the samples on the first axis. Quantized
        outputs come back in real units.

    Raises:
        ComparisonError: The samples do not suit the model, or the file cannot be run.
        OSError: There is no such file.

    Example:
        >>> import keras
        >>> x = keras.Input((2,))
        >>> predict(keras.Model(x, keras.layers.ReLU()(x)), np.array([[-1.0, 3.0]]))
        {'output_0': array([[0., 3.]], dtype=float32)}
    """
    runnable = open_model(model)
    return run(runnable, read_samples(inputs, runnable.specs, error=ComparisonError))


def open_model(model: keras.Model | str | os.PathLike[str]) -> Runnable:
    """`model` ready to run, whether it is a Keras model or a path."""
    if not isinstance(model, str | os.PathLike):
        return KerasRunnable(model)
    path = Path(model)
    if path.suffix == ".tflite":
        if not path.is_file():
            raise FileNotFoundError(f"Expected a .tflite file; there is none at {str(path)!r}.")
        content = path.read_bytes()
        if content[4:8] != TFLITE_IDENTIFIER:
            raise UnsupportedModelError(
                f"Expected a .tflite file, which has {TFLITE_IDENTIFIER!r} behind its first four "
                f"bytes; {str(path)!r} has {content[4:8]!r}. Convert the model, or copy it, again."
            )
        return LiteRunnable(content, name=str(path))
    from keras_bn.loading import load_model

    return KerasRunnable(load_model(path))


def run(model: Runnable, samples: Samples) -> Outputs:
    """The outputs of `model` for all `samples`, in batches of the size the model wants.

    The last batch is filled up with its last sample where the model's batch size is fixed.
    """
    count = len(next(iter(samples.values())))
    size = model.batch_size or min(count, BATCH_SIZE)
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size if model.batch_size else min(start + size, count))
        outputs = model.call({k: v[np.minimum(rows, count - 1)] for k, v in samples.items()})
        for name, output in outputs.items():
            if output.ndim == 0 or len(output) != len(rows):
                raise ComparisonError(
                    f"Expected every output to have one row a sample; output {name!r} has shape "
                    f"{output.shape} for {len(rows)} samples."
                )
        parts.append({name: output[: count - start] for name, output in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class KerasRunnable:
    """A Keras model, called eagerly for inference.

    A subclassed model has to have been called once, and a call that can be traced: its graph says
    what its inputs are. What runs is the model itself.
    """

    def __init__(self, model: keras.Model) -> None:
        from keras_bn.graph.trace import opened
        from keras_bn.graph.view import functional_graph

        self.model = model
        self._readable = opened(model).model if functional_graph(model) is None else model
        self.specs = input_specs(self._readable)
        self.batch_size = self.specs[0].shape[0]

    def call(self, batch: Mapping[str, np.ndarray]) -> Outputs:
        import keras

        try:
            outputs = self._outputs(batch)
        except Exception as failed:  # a layer may raise anything at values that it cannot take
            raise ComparisonError(
                f"Expected {self.model.name!r} to run on these samples; it raised "
                f"{type(failed).__name__}: {failed}. Pass samples that it is made for with data=."
            ) from failed
        return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}

    def _outputs(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import keras

        from keras_bn.graph.trace import call_as_opened

        if self._readable is self.model:
            return call_named(self.model, batch)
        inputs = keras.tree.map_structure(lambda tensor: batch[tensor.name], self._readable.input)
        return named_outputs(call_as_opened(self.model, inputs))


class LiteRunnable:
    """A `.tflite` file in ai_edge_litert's interpreter.

    Inputs and outputs go by the names of the file's signature; a file without one goes by its
    tensors' names. Tensors get their sizes in `call`: a file may leave more than the batch free.

    Args:
        tflite: The file's content.
        name: What errors call it.
    """

    def __init__(self, tflite: bytes, name: str) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._name = name
        try:
            with _quiet():
                self._interpreter = Interpreter(model_content=tflite)
        except (ValueError, RuntimeError) as refused:
            raise ComparisonError(
                f"Expected a .tflite file that LiteRT can run; {name!r} was refused: {refused}"
            ) from refused
        signatures = self._interpreter.get_signature_list()
        self._runner = None
        if signatures:
            key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
            self._runner = self._interpreter.get_signature_runner(key)
            self._inputs = self._runner.get_input_details()
            self._outputs = self._runner.get_output_details()
        else:
            self._inputs = {d["name"]: d for d in self._interpreter.get_input_details()}
            self._outputs = {d["name"]: d for d in self._interpreter.get_output_details()}
        if not self._inputs:
            raise ComparisonError(f"Expected a file with inputs; {name!r} has none.")
        self.specs = tuple(_spec(name, detail) for name, detail in self._inputs.items())
        self.batch_size = self.specs[0].shape[0] if self.specs[0].shape else 1

    def call(self, batch: Mapping[str, np.ndarray]) -> Outputs:
        quantized = {name: _quantize(batch[name], self._inputs[name]) for name in self._inputs}
        try:
            with _quiet():
                raw = self._invoke(quantized)
        except (ValueError, RuntimeError) as failed:
            raise ComparisonError(
                f"Expected a .tflite file that LiteRT's own operations can run on these samples; "
                f"{self._name!r} failed: {failed}"
            ) from failed
        return {name: _dequantize(raw[name], self._outputs[name]) for name in self._outputs}

    def _invoke(self, tensors: Mapping[str, np.ndarray]) -> Outputs:
        if self._runner is not None:
            return self._runner(**tensors)
        for name, detail in self._inputs.items():
            self._interpreter.resize_tensor_input(detail["index"], tensors[name].shape)
        self._interpreter.allocate_tensors()
        for name, detail in self._inputs.items():
            self._interpreter.set_tensor(detail["index"], tensors[name])
        self._interpreter.invoke()
        return {n: self._interpreter.get_tensor(d["index"]) for n, d in self._outputs.items()}


def _spec(name: str, detail: Mapping[str, Any]) -> InputSpec:
    shape = tuple(None if size == -1 else int(size) for size in detail["shape_signature"])
    dtype = "float32" if _is_quantized(detail) else np.dtype(detail["dtype"]).name
    return InputSpec(name, shape, dtype)


def _is_quantized(detail: Mapping[str, Any]) -> bool:
    scale, _ = detail["quantization"]  # (0, 0) for tensors that are not quantized
    return scale != 0


def _quantize(values: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    # real = scale · (stored − zero_point), LiteRT's quantization specification
    if not _is_quantized(detail):
        return values.astype(detail["dtype"], copy=False)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    stored = np.round(values.astype(np.float64) / scale) + zero_point
    return np.clip(stored, limits.min, limits.max).astype(detail["dtype"])


def _dequantize(stored: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    if not _is_quantized(detail):
        return stored
    scale, zero_point = detail["quantization"]
    return ((stored.astype(np.float64) - zero_point) * scale).astype(np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what LiteRT's C++ writes to file descriptor 2 off the terminal.

    It announces its delegate there, once a process, and no setting turns that off. Its errors
    come as exceptions.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
