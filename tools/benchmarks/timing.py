"""Times of steps that take turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def medians_ms(
    steps: dict[str, Callable[[], Any]],
    *,
    seconds: float = math.inf,
    rounds: int = 10_000,
    warm_ups: int = 2,
    pause_s: float = 0.0,
) -> dict[str, float]:
    """Median time of each step, taken in turn until the seconds or the rounds are over.

    With a pause, threads that wait for more work by spinning have stopped when another step
    begins, which then runs once untimed to wake its own.
    """
    for _ in range(warm_ups):  # tracing and compiling, then allocating
        for step in steps.values():
            step()
    samples_ms: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 5 and time.perf_counter() > end:
            break
        # Whoever follows the shortest step gains a little by it: each starts in turn.
        names = list(steps)[done % len(steps) :] + list(steps)[: done % len(steps)]
        for name in names:
            step = steps[name]
            if pause_s:
                time.sleep(pause_s)
                step()
            start = time.perf_counter()
            step()
            samples_ms[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(samples) for name, samples in samples_ms.items()}


def in_child(call: str, *, onednn: bool | None = None, backend: str = "tensorflow") -> Any:
    """What `call`, a call of a function "module:function(…)", prints in a child as JSON.

    Args:
        call: "module:function(arguments)" of a module in this package.
        onednn: Whether TensorFlow uses oneDNN, which it decides when it is loaded; None leaves
            it to TensorFlow.
        backend: Keras's.
    """
    module, _, expression = call.partition(":")
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if onednn is not None:
        environment["TF_ENABLE_ONEDNN_OPTS"] = str(int(onednn))
    child = subprocess.run(
        [sys.executable, "-c", f"from tools.benchmarks import {module}; {module}.{expression}"],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(child.stdout)
