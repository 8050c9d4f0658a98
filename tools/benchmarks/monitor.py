"""A measurement of keras_bn.callbacks.NormalizationMonitor in units of training steps.

Clocks stand before and after the monitor among the callbacks of one training, so steps and
measurements take turns in the same process, and whatever else the machine does hits both alike.
A training of few epochs is measured operation by operation, a longer one by a traced graph. Times
are on the wall, and of all processors together, which other processes disturb less.

    python -m tools.benchmarks.monitor [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.timing import in_child

if TYPE_CHECKING:
    import keras

BATCH = 32
STEPS = 6  # in each epoch that is measured
EPOCHS = {"operations": 2, "graph": 10}
DIGITS_STEPS = 45  # of an epoch of the 1437 digits that are usually trained on
CASES = (("small CNN", 8), ("MobileNetV2", 96))  # and pixels a side


def run(quick: bool) -> dict[str, Any]:
    """Measure each case in a child process; the JSON document."""
    cases = CASES[:1] if quick else CASES
    return {
        "benchmark": "monitor",
        "quick": quick,
        "machine": machine(),
        "trainings": [
            in_child(f"monitor:measure({name!r}, {size}, {way!r})", onednn=True)
            for name, size in cases
            for way in EPOCHS
        ],
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title=f"NormalizationMonitor beside training steps of {BATCH}")
    for heading in ("model", "computed as"):
        result.add_column(heading)
    for heading in (
        "step ms",
        "measurement ms",
        f"of {DIGITS_STEPS} steps",
        "the same, processors",
        "first measurement s",
        "first step s",
    ):
        result.add_column(heading, justify="right")
    for row in document["trainings"]:
        result.add_row(
            row["model"],
            row["way"],
            f"{row['step_ms']:.1f}",
            f"{row['measurement_ms']:.1f}",
            f"{row['of_an_epoch']:.1%}",
            f"{row['of_an_epoch_processors']:.1%}",
            f"{row['first_measurement_s']:.2f}",
            f"{row['first_step_s']:.2f}",
        )
    return result


def measure(name: str, size: int, way: str) -> None:
    """Print one training's figures as JSON."""
    import keras
    import numpy as np

    from keras_bn.callbacks import NormalizationMonitor

    channels = 1 if name == "small CNN" else 3
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * STEPS, size, size, channels)).astype("float32")
    y = rng.integers(0, 10, len(x))
    model = _model(name, (size, size, channels))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), jit_compile=False)

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    class Clock(keras.callbacks.Callback):
        """When each epoch began and ended, and how long each step took."""

        def __init__(self) -> None:
            super().__init__()
            self.begins: list[np.ndarray] = []
            self.ends: list[np.ndarray] = []
            self.steps: list[np.ndarray] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begins.append(now())

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.steps.append(-now())

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps[-1] += now()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ends.append(now())

    before, after = Clock(), Clock()
    monitor = NormalizationMonitor((x, y), warn=False)
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=EPOCHS[way],
        verbose=0,
        callbacks=[before, monitor, after],
    )
    steps = np.median(after.steps[STEPS:], axis=0)
    measurements = np.median(np.subtract(after.ends, before.ends), axis=0)
    of_an_epoch = measurements / (DIGITS_STEPS * steps)
    json.dump(
        {
            "model": name,
            "way": way,
            "step_ms": 1000 * steps[0],
            "measurement_ms": 1000 * measurements[0],
            "of_an_epoch": of_an_epoch[0],
            "of_an_epoch_processors": of_an_epoch[1],
            "first_measurement_s": (after.begins[0] - before.begins[0])[0],
            "first_step_s": after.steps[0][0],
        },
        sys.stdout,
    )


def _model(name: str, shape: tuple[int, int, int]) -> keras.Model:
    import keras

    import keras_bn

    if name != "small CNN":
        application = getattr(keras.applications, name)
        return application(weights=None, input_shape=shape, classes=10)
    layers = [keras.Input(shape)]
    for filters in (16, 32, 64):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras_bn.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, "softmax")]
    return keras.Sequential([*layers, *head])


if __name__ == "__main__":
    main(run, table)
