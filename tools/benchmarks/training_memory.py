"""Peak memory of training with this package's BatchNormalization beside Keras's own.

Each is the growth of the peak resident set of a fresh process that builds a model and takes some
training steps, the median of several processes. With oneDNN, TensorFlow cuts its tensors out of
regions of doubling size, and whether a model's tensors still fit the last but one depends on the
order in which a step happens to free them: the resident set then differs by a quarter between
runs of one and the same model. What the tensors themselves hold at most, which the allocator counts
with oneDNN only, stands beside it.

    python -m tools.benchmarks.training_memory [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from typing import Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.memory import forget_peak, peak_rss_bytes
from tools.benchmarks.timing import in_child

MODELS = ("MobileNetV2", "ResNet50")
QUICK_MODELS = ("MobileNetV2",)
SIZE = 96  # pixels a side
BATCH = 32
STEPS = 12  # the peak still grows in the first eight
LAYERS = ("keras", "keras_bn")


def run(quick: bool) -> dict[str, Any]:
    """Measure every model in processes that take turns; the JSON document."""
    rows = []
    for model in QUICK_MODELS if quick else MODELS:
        for onednn in (True, False):
            peaks: dict[str, list[dict[str, int]]] = {layers: [] for layers in LAYERS}
            for _ in range(1 if quick else 5):
                for layers in LAYERS:
                    call = f"training_memory:measure({model!r}, {layers!r})"
                    peaks[layers].append(in_child(call, onednn=onednn))
            for memory in peaks["keras"][0]:
                medians = {
                    f"{layers}_bytes": statistics.median(peak[memory] for peak in peaks[layers])
                    for layers in LAYERS
                }
                ratio = medians["keras_bn_bytes"] / medians["keras_bytes"]
                row = {"model": model, "onednn": onednn, "memory": memory}
                rows.append({**row, **medians, "ratio": ratio})
    return {"benchmark": "training_memory", "quick": quick, "machine": machine(), "models": rows}


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title=f"Peak memory of training, {SIZE} pixels a side, batch {BATCH}")
    for heading in ("model", "oneDNN", "memory"):
        result.add_column(heading)
    for heading in ("Keras MB", "keras_bn MB", "keras_bn / Keras"):
        result.add_column(heading, justify="right")
    for row in document["models"]:
        result.add_row(
            row["model"],
            "on" if row["onednn"] else "off",
            row["memory"],
            f"{row['keras_bytes'] / 1e6:.0f}",
            f"{row['keras_bn_bytes'] / 1e6:.0f}",
            f"{row['ratio']:.2f}",
        )
    return result


def measure(name: str, layers: str) -> None:
    """Print the peaks while a model trains, in bytes, as JSON."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_bn

    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype("float32")
    y = rng.integers(0, 10, BATCH)
    # What runs once and stays, such as TensorFlow's thread pools, belongs to neither.
    small = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten()])
    small.compile("sgd", "mse")
    small.train_on_batch(x, x.reshape(BATCH, -1))

    application = getattr(keras.applications, name)
    model = application(weights=None, input_shape=(SIZE, SIZE, 3), classes=10)
    if layers == "keras_bn":
        model = keras_bn.replace_batch_norm(model)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    forget_peak()
    before = peak_rss_bytes()
    for _ in range(STEPS):
        model.train_on_batch(x, y)
    peaks = {"resident set": peak_rss_bytes() - before}
    if os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1":
        peaks["tensors"] = tf.config.experimental.get_memory_info("CPU:0")["peak"]
    json.dump(peaks, sys.stdout)


if __name__ == "__main__":
    main(run, table)
