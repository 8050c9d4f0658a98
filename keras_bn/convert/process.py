"""Conversions in a process of their own, whose crash is an error and not the caller's end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from keras_bn.convert.export import Export
from keras_bn.errors import ConversionError
from keras_bn.samples import Samples

# The worker gets the caller's import path, so that it finds the same packages; in "-c" form
# none of the folders of this package end up on it.
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from keras_bn.convert.worker import main; main(sys.argv[1])"
)
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}  # conversion uses none, and must not reserve its memory
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
_LOG_TAIL_LINES = 15
# Lines that TensorFlow's quantizer prints each time, and a list of everything that is loaded.
_NOISE = ("fully_quantize:", "Extension modules:")


class ConverterProcess:
    """One worker process, started at once, that converts exports until it is closed.

    Use it as a context manager around work that prepares a conversion: TensorFlow is imported
    there while the caller builds or folds its model. Leaving the block, by whatever exception,
    ends the process and removes its scratch folder.

    Args:
        verbose: Let what TensorFlow prints through to standard error.

    Attributes:
        folder: A scratch folder, removed at the end, for exports.

    Example:
        >>> import keras, pathlib
        >>> from keras_bn.convert.export import export
        >>> x = keras.Input((4,))
        >>> with ConverterProcess() as process:
        ...     (folder := process.folder / "export").mkdir()
        ...     exported = export(keras.Model(x, keras.layers.Dense(3)(x)), folder)
        ...     process.submit(exported, quantize="float16")
        ...     tflite = process.result()
        >>> tflite[4:8]
        b'TFL3'
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="keras-bn-"))
        self._verbose = verbose
        self._log = self.folder / "log"
        self._output = self.folder / "output.tflite"
        self._busy = False
        self._start()

    def __enter__(self) -> ConverterProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker, whatever it is doing, and remove the scratch folder."""
        self._end_worker()
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(
        self,
        export: Export,
        *,
        quantize: str,
        io_dtype: str = "float32",
        calibration: Samples | None = None,
        allow_flex: bool = False,
    ) -> None:
        """Start converting `export`; `result` waits for the outcome.

        Args:
            export: What to convert.
            quantize: "none", "float16", "dynamic", "int8" or "int16x8".
            io_dtype: Dtype of the quantized inputs and outputs of an integer mode.
            calibration: Samples by input name, which an integer mode needs.
            allow_flex: Let TensorFlow's own kernels stand in for missing LiteRT operations.
        """
        request: dict[str, Any] = {
            "saved_model": str(export.folder),
            "output": str(self._output),
            "quantize": quantize,
            "io_dtype": io_dtype,
            "calibration": None,
            "batch_size": export.inputs[0].shape[0] or 1,
            "allow_flex": allow_flex,
        }
        if calibration is not None:
            file = self.folder / "calibration.npz"
            # By position: the archive's functions have parameters whose names an input may have.
            np.savez(file, *(calibration[spec.name].astype(spec.dtype) for spec in export.inputs))
            request["calibration"] = str(file)
            request["inputs"] = [spec.name for spec in export.inputs]
        if self._busy or self._worker.poll() is not None:
            # The last conversion was interrupted, or took the worker down with it.
            self._end_worker()
            self._start()
        self._busy = True
        self._log_start = self._log.stat().st_size
        with contextlib.suppress(BrokenPipeError):  # a worker that just died; `result` says so
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()

    def result(self) -> bytes:
        """The `.tflite` file that the last `submit` asked for.

        Raises:
            ConversionError: The converter refused the model, or crashed.
            OSError: There was no room for the file in the scratch folder.
        """
        line = self._answers.readline()
        self._busy = False
        if not line:
            raise ConversionError(self._account_of_crash())
        answer = json.loads(line)
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "error" in answer:
            raise ConversionError(_explained(answer["error"]))
        try:
            return self._output.read_bytes()
        finally:
            self._output.unlink()

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-c", _START, str(self.folder), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if self._verbose else log,
                env=os.environ | _NO_GPU | ({} if self._verbose else _QUIET),
                text=True,
                # Ctrl-C reaches every process of a terminal's group; this one is ended by close.
                start_new_session=True,
            )
        assert self._worker.stdin is not None and self._worker.stdout is not None
        self._requests, self._answers = self._worker.stdin, self._worker.stdout

    def _end_worker(self) -> None:
        self._worker.kill()
        self._worker.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(BrokenPipeError):  # closing sends on what is left
                pipe.close()

    def _account_of_crash(self) -> str:
        status = self._worker.wait()
        cause = f"exit status {status}"
        advice = (
            "Integer quantization of recurrent loops is known to crash it: try "
            "quantize='dynamic'. Else convert parts of the model, to find the layer at fault."
        )
        if status < 0:
            cause = f"signal {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            advice = "The system kills what takes the memory it needs: try a machine with more."
        with self._log.open(errors="replace") as log:
            log.seek(self._log_start)
            lines = [line.rstrip() for line in log if not line.startswith(_NOISE)]
        account = f"TensorFlow's converter crashed ({cause}). Nothing was written. {advice}"
        return "\n".join([account, *lines[-_LOG_TAIL_LINES:]])


def _explained(message: str) -> str:
    """TensorFlow's refusal, with the operations at fault first and what to try."""
    select = re.search(r"TF Select ops: (.*)", message)
    custom = re.search(r"Custom ops: (.*)", message)
    if select or custom:
        refused = [found.group(1) for found in (select, custom) if found]
        advice = "Replace the layers that use them"
        if select:
            advice += (
                f", or accept a file that needs the flex delegate for {select.group(1)} with "
                "allow_flex=True"
            )
        return f"LiteRT has no operation for {', '.join(refused)}. {advice}."
    advice = ""
    if "TensorListReserve" in message:
        advice = "Recurrent loops need a fixed batch: try batch_size=1. "
    if re.search(r"Unsupported (in|out)put type U?INT", message):
        advice = (
            "An operation at its border stays in float, which only io_dtype='float32' with "
            "allow_float=True accepts. "
        )
    if "Empty min/max" in message:
        advice = "This mode cannot quantize what depends on integer inputs alone: try 'int8'. "
    lines = [line for line in message.splitlines() if ": note: " not in line]
    return f"TensorFlow's converter refused the model. {advice}It said:\n" + "\n".join(
        lines[:_LOG_TAIL_LINES]
    )
