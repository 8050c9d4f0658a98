"""A pass of keras_bn.update_bn beside plain inference over the same batches.

Three passes take turns in one process, so that whatever else the machine does hits all alike:
update_bn, the model's compiled inference, and `model.predict`. Times are between one batch's
request and the next; what a pass does before its second batch, tracing above all, is apart.
Ratios of medians are what to trust, not the milliseconds; on a machine that is busy with other
things, the ratio of processor time rather than that of throughput. oneDNN is chosen when
TensorFlow is loaded, so with and without it are two child processes.

    python -m tools.benchmarks.update_bn [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.timing import in_child

if TYPE_CHECKING:
    import keras
    import numpy as np

MODELS = ("small CNN", "MobileNetV2", "ResNet50")
QUICK_MODELS = ("small CNN", "MobileNetV2")
SIZE = 96  # pixels a side
BATCH = 32
BATCHES = 8  # in each pass
ROUNDS = 6


def run(quick: bool) -> dict[str, Any]:
    """Measure, in a child process for each oneDNN setting; the JSON document."""
    return {
        "benchmark": "update_bn",
        "quick": quick,
        "machine": machine(),
        "models": [
            row
            for onednn in (False, True)
            for row in in_child(f"update_bn:measure({quick})", onednn=onednn)
        ],
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    title = f"keras_bn.update_bn beside inference, {SIZE} pixels a side, ms a batch of {BATCH}"
    result = Table(title=title)
    for heading in ("model", "oneDNN"):
        result.add_column(heading)
    for heading in (
        "inference",
        "predict",
        "update_bn",
        "of inference's throughput",
        "of predict's",
        "in processor time",
        "tracing s",
        "inference's s",
    ):
        result.add_column(heading, justify="right")
    for row in document["models"]:
        result.add_row(
            row["model"],
            "on" if row["onednn"] else "off",
            f"{row['inference_ms']:.1f}",
            f"{row['predict_ms']:.1f}",
            f"{row['update_bn_ms']:.1f}",
            f"{row['of_inference']:.2f}",
            f"{row['of_predict']:.2f}",
            f"{row['of_inference_cpu']:.2f}",
            f"{row['tracing_s']:.2f}",
            f"{row['inference_tracing_s']:.2f}",
        )
    return result


def measure(quick: bool) -> None:
    """Print every model's figures under the oneDNN setting of this process, as JSON."""
    onednn = os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    names, rounds = (QUICK_MODELS, 2) if quick else (MODELS, ROUNDS)
    rows = [{"model": name, "onednn": onednn, **_measure(name, rounds)} for name in names]
    json.dump(rows, sys.stdout)


def _measure(name: str, rounds: int) -> dict[str, float]:
    import numpy as np

    import keras_bn

    model = _model(name)
    images = np.random.default_rng(0).normal(size=(BATCHES, BATCH, SIZE, SIZE, 3))
    data = list(images.astype("float32"))
    passes: dict[str, Callable[[Iterable[np.ndarray]], Any]] = {
        "inference": _inference(model),
        "predict": lambda batches: model.predict(((x,) for x in batches), verbose=0),
        "update_bn": lambda batches: keras_bn.update_bn(model, batches),
    }
    batch_ms: dict[str, list[float]] = {name: [] for name in passes}
    batch_cpu_ms: dict[str, list[float]] = {name: [] for name in passes}
    first_s: dict[str, list[float]] = {name: [] for name in passes}
    for done in range(rounds + 1):
        # Whoever follows the shortest pass gains a little by it: each starts in turn.
        names = list(passes)[done % len(passes) :] + list(passes)[: done % len(passes)]
        for pass_name in names:
            requests: list[tuple[float, float]] = []
            passes[pass_name](_noting_requests(data, requests))
            intervals, cpu_intervals = (
                [after - before for before, after in pairwise(clock)]
                for clock in zip(*requests, strict=True)
            )
            first_s[pass_name].append(intervals[0])
            if done > 0:  # the first round loads libraries
                batch_ms[pass_name] += [1000 * seconds for seconds in intervals[1:]]
                batch_cpu_ms[pass_name] += [1000 * seconds for seconds in cpu_intervals[1:]]
    median_ms = {name: statistics.median(samples) for name, samples in batch_ms.items()}
    median_cpu_ms = {name: statistics.median(samples) for name, samples in batch_cpu_ms.items()}
    return {
        **{f"{name}_ms": median for name, median in median_ms.items()},
        "of_inference": median_ms["inference"] / median_ms["update_bn"],
        "of_predict": median_ms["predict"] / median_ms["update_bn"],
        **{f"{name}_cpu_ms": median for name, median in median_cpu_ms.items()},
        "of_inference_cpu": median_cpu_ms["inference"] / median_cpu_ms["update_bn"],
        # update_bn traces in every call, inference in its first.
        "tracing_s": statistics.median(first_s["update_bn"][1:]) - median_ms["update_bn"] / 1000,
        "inference_tracing_s": first_s["inference"][0] - median_ms["inference"] / 1000,
    }


def _noting_requests(
    data: list[np.ndarray], requests: list[tuple[float, float]]
) -> Iterator[np.ndarray]:
    """Notes the clock and this process's processor time at each request."""
    for x in data:
        requests.append((time.perf_counter(), time.process_time()))
        yield x
    requests.append((time.perf_counter(), time.process_time()))


def _inference(model: keras.Model) -> Callable[[Iterable[np.ndarray]], None]:
    import tensorflow as tf

    @tf.function(reduce_retracing=True, autograph=False)
    def infer(x: Any) -> Any:
        return model(x, training=False)

    def infer_all(batches: Iterable[np.ndarray]) -> None:
        for x in batches:
            infer(x).numpy()

    return infer_all


def _model(name: str) -> keras.Model:
    import keras

    import keras_bn

    if name != "small CNN":
        application = getattr(keras.applications, name)
        return application(weights=None, input_shape=(SIZE, SIZE, 3), classes=10)
    layers = [keras.Input((SIZE, SIZE, 3))]
    for filters in (16, 32, 64):
        layers += [
            keras.layers.Conv2D(filters, 3, strides=2, use_bias=False),
            keras_bn.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    return keras.Sequential(
        [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


if __name__ == "__main__":
    main(run, table)
