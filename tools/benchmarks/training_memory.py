"""Peak memory of training with this package's BatchNormalization beside Keras's own.

Each is the growth of the peak resident set of a fresh process that builds a model and takes a few
training steps, the median of several processes.

    python -m tools.benchmarks.training_memory [--quick] [--json FILE]
"""

from __future__ import annotations

import json
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
STEPS = 4
LAYERS = ("keras", "keras_bn")


def run(quick: bool) -> dict[str, Any]:
    """Measure every model in processes that take turns; the JSON document."""
    rows = []
    for model in QUICK_MODELS if quick else MODELS:
        for onednn in (True, False):
            peaks: dict[str, list[int]] = {layers: [] for layers in LAYERS}
            for _ in range(1 if quick else 5):
                for layers in LAYERS:
                    call = f"training_memory:measure({model!r}, {layers!r})"
                    peaks[layers].append(in_child(call, onednn=onednn))
            medians = {f"{name}_bytes": statistics.median(peaks[name]) for name in LAYERS}
            ratio = medians["keras_bn_bytes"] / medians["keras_bytes"]
            rows.append({"model": model, "onednn": onednn, **medians, "ratio": ratio})
    return {"benchmark": "training_memory", "quick": quick, "machine": machine(), "models": rows}


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title=f"Peak memory of training, {SIZE} pixels a side, batch {BATCH}")
    for heading in ("model", "oneDNN"):
        result.add_column(heading)
    for heading in ("Keras MB", "keras_bn MB", "keras_bn / Keras"):
        result.add_column(heading, justify="right")
    for row in document["models"]:
        result.add_row(
            row["model"],
            "on" if row["onednn"] else "off",
            f"{row['keras_bytes'] / 1e6:.0f}",
            f"{row['keras_bn_bytes'] / 1e6:.0f}",
            f"{row['ratio']:.2f}",
        )
    return result


def measure(name: str, layers: str) -> None:
    """Print the growth of the peak while a model trains, as JSON."""
    import keras
    import numpy as np

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
    json.dump(peak_rss_bytes() - before, sys.stdout)


if __name__ == "__main__":
    main(run, table)
