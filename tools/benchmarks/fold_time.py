"""keras_bn.fold beside keras.models.clone_model on the same model: time and memory.

A fold copies the whole model, reads and changes its weights and runs both models once;
clone_model builds the same layers and leaves their weights at random. Both take turns in one
run, and the ratio of the medians is what to trust. Memory is the growth of the peak resident
set of a fresh process that does one of them once.

    python -m tools.benchmarks.fold_time [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.memory import forget_peak, peak_rss_bytes

if TYPE_CHECKING:
    import keras

MODELS = ("MobileNetV2", "ResNet50", "EfficientNetB0", "InceptionV3")
QUICK_MODELS = ("MobileNetV2",)
SIZE = 96  # pixels
ROUNDS = 7


def run(quick: bool) -> dict[str, Any]:
    """Measure every model; the JSON document."""
    return {
        "benchmark": "fold_time",
        "quick": quick,
        "machine": machine(),
        "models": [
            _measure(name, 3 if quick else ROUNDS) for name in (QUICK_MODELS if quick else MODELS)
        ],
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="keras_bn.fold beside keras.models.clone_model")
    result.add_column("model")
    for heading in ("clone s", "fold s", "fold / clone", "clone MB", "fold MB", "folded", "kept"):
        result.add_column(heading, justify="right")
    for row in document["models"]:
        result.add_row(
            row["model"],
            f"{row['clone_s']:.2f}",
            f"{row['fold_s']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['clone_peak_bytes'] / 1e6:.0f}",
            f"{row['fold_peak_bytes'] / 1e6:.0f}",
            str(row["folded"]),
            str(row["kept"]),
        )
    return result


def _measure(name: str, rounds: int) -> dict[str, Any]:
    import keras

    import keras_bn

    model = _model(name)
    clone_s, fold_s = [], []
    for done in range(rounds + 1):
        start = time.perf_counter()
        keras.models.clone_model(model)
        middle = time.perf_counter()
        result = keras_bn.fold(model)
        end = time.perf_counter()
        if done > 0:  # the first round loads libraries
            clone_s.append(middle - start)
            fold_s.append(end - middle)
    return {
        "model": name,
        "rounds": rounds,
        "clone_s": statistics.median(clone_s),
        "fold_s": statistics.median(fold_s),
        "ratio": statistics.median(fold_s) / statistics.median(clone_s),
        "clone_peak_bytes": _peak(name, "clone"),
        "fold_peak_bytes": _peak(name, "fold"),
        "folded": len(result.folded),
        "kept": len(result.kept),
    }


def _model(name: str) -> keras.Model:
    import keras

    return getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3))


def _peak(name: str, what: str) -> int:
    """Growth of the peak resident set, in bytes, in a process of its own."""
    code = f"from tools.benchmarks.fold_time import print_peak; print_peak({name!r}, {what!r})"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout.splitlines()[-1])


def print_peak(name: str, what: str) -> None:
    import keras

    import keras_bn

    # What runs once and stays, such as TensorFlow's thread pools, belongs to neither.
    small = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    keras_bn.fold(small)
    keras.models.clone_model(small)
    model = _model(name)
    model(keras.ops.zeros((2, SIZE, SIZE, 3)))
    forget_peak()
    before = peak_rss_bytes()
    result = keras_bn.fold(model) if what == "fold" else keras.models.clone_model(model)
    print(peak_rss_bytes() - before)
    del result


if __name__ == "__main__":
    main(run, table)
