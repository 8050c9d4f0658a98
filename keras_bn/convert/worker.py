"""The process that runs TensorFlow's converter: exports in, `.tflite` files out.

`keras_bn.convert.process` starts it. It runs apart from the caller because the converter can
crash the process it is in, and it serves any number of conversions because importing TensorFlow
takes seconds. It reads one JSON request a line from standard input and answers each with one
JSON line. It ends when its input does, which is also how it learns that the caller has died.

This is the only file that imports `tf.lite`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_bn.convert.biases import merge_biases

# What one request asks for, by its keys:
#   saved_model   folder of the export
#   output        file to write
#   quantize      "none", "float16", "dynamic", "int8" or "int16x8"
#   io_dtype      dtype of the file's quantized inputs and outputs
#   calibration   .npz file of samples, one array an input, or null
#   inputs        the names of those inputs
#   batch_size    samples a calibration step
#   allow_flex    whether TensorFlow's own kernels may stand in for missing LiteRT operations
Request = dict[str, Any]


def main(folder: str) -> None:
    """Answer the requests on standard input until it ends, then remove `folder` and exit.

    `folder` is the caller's scratch folder: a caller that was killed cannot remove it itself.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what TensorFlow prints must not mix with the answers
    faulthandler.enable(all_threads=False)  # a crash says where
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    # In a thread, so that the end of the input is seen in the middle of a conversion too.
    threading.Thread(target=_read_requests, args=(requests, Path(folder)), daemon=True).start()
    convert = _load_converter()
    while True:
        answers.write(json.dumps(_answer(requests.get(), convert)) + "\n")
        answers.flush()


def _read_requests(requests: queue.SimpleQueue[Request], folder: Path) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _answer(request: Request, convert: Callable[[Request], bytes]) -> dict[str, Any]:
    try:
        Path(request["output"]).write_bytes(convert(request))
    except OSError as error:
        return {"os_error": [error.errno, error.strerror, error.filename]}
    except Exception as error:  # whatever it is, the caller shall hear of it
        return {"error": str(error) or type(error).__name__}
    return {}


def _load_converter() -> Callable[[Request], bytes]:
    """Import TensorFlow and return the function that converts one export."""
    import tensorflow as tf

    # `tf.lite.TFLiteConverter.from_saved_model(...).convert()` reads a SavedModel into Python
    # three times to fill in metadata, which is most of its time. The method it ends in needs
    # only the folder. It is private: setup.cfg pins the TensorFlow that it is known from.
    from tensorflow.lite.python.lite import TFLiteSavedModelConverterV2

    builtins, flex = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
    # Integer modes may fall back to float here: the caller counts what did, and names it.
    operations = {
        "int8": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, builtins],
        "int16x8": [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            builtins,
        ],
    }

    def convert(request: Request) -> bytes:
        quantize = request["quantize"]
        converter = TFLiteSavedModelConverterV2(
            request["saved_model"], {"serve"}, ["serving_default"]
        )
        converter.target_spec.supported_ops = operations.get(quantize, [builtins])
        if request["allow_flex"]:
            converter.target_spec.supported_ops.append(flex)
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize in ("int8", "int16x8"):
            converter.representative_dataset = lambda: _calibration_steps(request)
            converter.inference_input_type = tf.as_dtype(request["io_dtype"])
            converter.inference_output_type = tf.as_dtype(request["io_dtype"])
        return merge_biases(converter._convert_from_saved_model(tf.compat.v1.GraphDef()))

    return convert


def _calibration_steps(request: Request) -> Iterator[dict[str, np.ndarray]]:
    """The calibration samples in steps of the export's batch size, the last one filled up."""
    with np.load(request["calibration"]) as archive:
        arrays = [archive[f"arr_{index}"] for index in range(len(request["inputs"]))]
    samples = dict(zip(request["inputs"], arrays, strict=True))
    count, size = len(next(iter(samples.values()))), request["batch_size"]
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: array[rows] for name, array in samples.items()}
