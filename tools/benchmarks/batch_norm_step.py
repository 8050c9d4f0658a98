"""Training steps with this package's BatchNormalization beside Keras's own.

Each pair runs in the same process, step by step in turn, so that whatever else the machine
does hits both alike; ratios of medians are what to trust, not the milliseconds. oneDNN is
chosen when TensorFlow is loaded, so with and without it are two child processes.

    python -m tools.benchmarks.batch_norm_step [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.timing import in_child, medians_ms

# Activations of common networks at a batch of 32, and the small and odd ones around them.
SHAPES = (
    (32, 128),
    (256, 512),
    (1024, 256),
    (64, 100, 64),
    (32, 48, 48, 96),
    (32, 56, 56, 64),
    (32, 24, 24, 144),
    (32, 14, 14, 256),
    (32, 7, 7, 512),
    (32, 3, 3, 960),
    (2, 8, 32, 32, 32),
)
QUICK_SHAPES = ((32, 128), (256, 512), (64, 100, 64), (32, 14, 14, 256))
MODELS = {"MobileNetV2": 96, "ResNet50": 96}  # name in keras.applications: image size
QUICK_MODELS = {"MobileNetV2": 96}
BATCH = 32
SECONDS_PER_LAYER = 1.5
MODEL_STEPS = 12


def run(quick: bool) -> dict[str, Any]:
    """Measure, in a child process for each oneDNN setting; the JSON document."""
    call = f"batch_norm_step:measure({quick})"
    measured = [in_child(call, onednn=onednn) for onednn in (False, True)]
    layers = [row for document in measured for row in document["layers"]]
    return {
        "benchmark": "batch_norm_step",
        "quick": quick,
        "machine": machine(),
        "layers": layers,
        "models": [row for document in measured for row in document["models"]],
        "geometric_means": _geometric_means(layers),
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="Training step: keras.layers.BatchNormalization beside keras_bn's")
    for heading in ("what", "compiled as", "oneDNN"):
        result.add_column(heading)
    for heading in ("Keras ms", "keras_bn ms", "times faster"):
        result.add_column(heading, justify="right")
    for row in document["layers"]:
        _add_row(result, str(tuple(row["shape"])), row)
    for mean in document["geometric_means"]:
        onednn = "on" if mean["onednn"] else "off"
        ratio = f"{mean['ratio']:.2f}"
        result.add_row("geometric mean", mean["mode"], onednn, "", "", ratio, style="bold")
    for row in document["models"]:
        _add_row(result, f"{row['model']} at {row['image']}", row)
    return result


def _add_row(result: Table, what: str, row: dict[str, Any]) -> None:
    result.add_row(
        what,
        row["mode"],
        "on" if row["onednn"] else "off",
        f"{row['keras_ms']:.3f}",
        f"{row['keras_bn_ms']:.3f}",
        f"{row['ratio']:.2f}",
    )


def _geometric_means(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    settings = sorted({(row["mode"], row["onednn"]) for row in layers})
    return [
        {
            "mode": mode,
            "onednn": onednn,
            "ratio": statistics.geometric_mean(
                row["ratio"] for row in layers if (row["mode"], row["onednn"]) == (mode, onednn)
            ),
        }
        for mode, onednn in settings
    ]


def measure(quick: bool) -> None:
    """Print everything under the oneDNN setting of this process, as JSON."""
    onednn = os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    layers = [
        {"shape": shape, "mode": mode, "onednn": onednn, **_layer_step(shape, mode == "XLA")}
        for mode in ("graph", "XLA")
        for shape in (QUICK_SHAPES if quick else SHAPES)
    ]
    models = [
        {"model": name, "image": size, "batch": BATCH, "mode": "graph", "onednn": onednn}
        | _model_step(name, size)
        for name, size in (QUICK_MODELS if quick else MODELS).items()
    ]
    json.dump({"layers": layers, "models": models}, sys.stdout)


def _layer_step(shape: tuple[int, ...], jit_compile: bool) -> dict[str, float]:
    """Forward and backward of the layer alone: a step with it less the same step without."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_bn
    from tools.benchmarks.layer_step import layer_step

    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=shape), tf.float32)
    weights = tf.constant(rng.normal(size=shape), tf.float32)
    layers = {
        "nothing": keras.layers.Identity(),
        "keras": keras.layers.BatchNormalization(),
        "keras_bn": keras_bn.layers.BatchNormalization(),
    }
    steps = {
        name: layer_step(layer, x, weights, jit_compile=jit_compile)
        for name, layer in layers.items()
    }
    medians = medians_ms(steps, seconds=SECONDS_PER_LAYER)
    keras_ms = medians["keras"] - medians["nothing"]
    keras_bn_ms = medians["keras_bn"] - medians["nothing"]
    # Where XLA hides the layer's own work behind the launch, the difference is noise around 0.
    least_ms = 0.02 * medians["nothing"]
    ratio = max(keras_ms, least_ms) / max(keras_bn_ms, least_ms)
    return {"keras_ms": keras_ms, "keras_bn_ms": keras_bn_ms, "ratio": ratio}


def _model_step(name: str, size: int) -> dict[str, float]:
    """A whole `train_on_batch` of a model from keras.applications."""
    import keras
    import numpy as np

    import keras_bn

    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, size, size, 3)).astype("float32")
    y = rng.integers(0, 10, BATCH)

    def step_of(model: keras.Model) -> Callable[[], Any]:
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        return lambda: model.train_on_batch(x, y)

    application = getattr(keras.applications, name)
    model = application(weights=None, input_shape=(size, size, 3), classes=10)
    medians = medians_ms(
        {"keras": step_of(model), "keras_bn": step_of(keras_bn.replace_batch_norm(model))},
        rounds=MODEL_STEPS,
    )
    return {
        "keras_ms": medians["keras"],
        "keras_bn_ms": medians["keras_bn"],
        "ratio": medians["keras"] / medians["keras_bn"],
    }


if __name__ == "__main__":
    main(run, table)
