"""Fold and convert with keras_bn beside TensorFlow's own converter on the same Keras model.

Both take turns in one run, so that whatever else the machine does hits both alike; ratios of
medians are what to trust, not the seconds. TensorFlow is imported before the clock starts on
both sides, as in a run of several conversions. Each pair's files are run on the same image.

    python -m tools.benchmarks.conversion [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.command import machine, main

if TYPE_CHECKING:
    import keras

    from keras_bn.convert.process import ConverterProcess

MODELS = ("MobileNetV2", "ResNet50")
QUICK_MODELS = ("MobileNetV2",)
ROUNDS = 3
STAGES = ("fold", "export", "convert")


def run(quick: bool) -> dict[str, Any]:
    """Measure every model; the JSON document."""
    from keras_bn.convert.process import ConverterProcess

    rounds = 1 if quick else ROUNDS
    with ConverterProcess() as process:
        models = [_measure(name, process, rounds) for name in (QUICK_MODELS if quick else MODELS)]
    return {
        "benchmark": "conversion",
        "quick": quick,
        "machine": machine(),
        "models": models,
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="Keras model to float32 .tflite: TFLiteConverter beside keras_bn")
    result.add_column("model")
    for heading in ("stock s", "keras_bn s", *STAGES, "times faster", "differs by"):
        result.add_column(heading, justify="right")
    for row in document["models"]:
        result.add_row(
            row["model"],
            f"{row['stock_s']:.2f}",
            f"{row['keras_bn_s']:.2f}",
            *(f"{row['stages_s'][stage]:.2f}" for stage in STAGES),
            f"{row['ratio']:.2f}",
            f"{row['relative_difference']:.1e}",
        )
    return result


def _measure(name: str, process: ConverterProcess, rounds: int) -> dict[str, Any]:
    import keras
    import numpy as np

    from keras_bn.compare.api import compare

    model = getattr(keras.applications, name)(weights=None)
    _move_statistics(model)
    stock_s, stages_s = [], []
    for done in range(rounds + 1):
        start = time.perf_counter()
        stock = _stock(model)
        elapsed = time.perf_counter() - start
        ours, stages = _ours(model, process)
        if done > 0:  # the first round loads libraries and warms caches
            stock_s.append(elapsed)
            stages_s.append(stages)
    with tempfile.TemporaryDirectory() as folder:
        reference, candidate = Path(folder, "stock.tflite"), Path(folder, "keras_bn.tflite")
        reference.write_bytes(stock)
        candidate.write_bytes(ours)
        image = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:]))
        difference = compare(reference, candidate, image).relative_error
    ours_s = [sum(stages.values()) for stages in stages_s]
    return {
        "model": name,
        "rounds": rounds,
        "stock_s": statistics.median(stock_s),
        "keras_bn_s": statistics.median(ours_s),
        "ratio": statistics.median(stock_s) / statistics.median(ours_s),
        "stages_s": {
            stage: statistics.median(stages[stage] for stages in stages_s) for stage in STAGES
        },
        "stock_bytes": len(stock),
        "keras_bn_bytes": len(ours),
        "relative_difference": difference,
    }


def _stock(model: keras.Model) -> bytes:
    import tensorflow as tf

    with contextlib.redirect_stdout(io.StringIO()):  # hundreds of lines of captures
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def _ours(model: keras.Model, process: ConverterProcess) -> tuple[bytes, dict[str, float]]:
    import keras_bn
    from keras_bn.convert.export import export

    times = [time.perf_counter()]
    folded = keras_bn.fold(model).model
    times.append(time.perf_counter())
    with tempfile.TemporaryDirectory(dir=process.folder) as folder:
        exported = export(folded, Path(folder))
        times.append(time.perf_counter())
        process.submit(exported, quantize="none")
        tflite = process.result()
    times.append(time.perf_counter())
    return tflite, {s: b - a for s, a, b in zip(STAGES, times[:-1], times[1:], strict=True)}


def _move_statistics(model: keras.Model) -> None:
    """Batch normalizations as after training: a fresh one is nearly the identity."""
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0.0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2.0, layer.moving_variance.shape))


if __name__ == "__main__":
    main(run, table)
