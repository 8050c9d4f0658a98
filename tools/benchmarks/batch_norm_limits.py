"""Training steps of BatchNormalization beside PyTorch's layer and the memory's bandwidth.

A step has to move eight tensors: forward it reads the batch for its moments, reads it again and
writes the result; backward it reads the gradient and the batch for the two sums, reads both again
and writes the gradient of the batch. Eight times the tensor's size over the bandwidth of a copy,
measured between the steps, is the least that a step beyond the caches can take.

PyTorch's BatchNorm2d on channels_last tensors runs along, in processes of its own, if torch is
installed (`make test-backends` leaves an environment with it: .venv-torch/bin/python): once as it
is installed, and once told to keep the memory that it has allocated, as TensorFlow with oneDNN
does by itself. All take turns; ratios of medians are what to trust. The layers' times are net: a
step with the layer less the same step without.

    python -m tools.benchmarks.batch_norm_limits [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.timing import in_child, medians_ms

# NHWC activations of common networks at a batch of 32, from those that fit a cache to those that
# fit none.
SHAPES = (
    (32, 7, 7, 512),
    (32, 14, 14, 256),
    (32, 24, 24, 144),
    (32, 56, 56, 64),
    (32, 48, 48, 96),
    (32, 112, 112, 64),
    (64, 112, 112, 64),
)
QUICK_SHAPES = ((32, 14, 14, 256), (32, 112, 112, 64))
PASSES = 8
# mallopt(3): glibc takes large tensors from the heap like others and never returns it. It would
# return them to the system and have them back in new pages at every step, which takes three times
# as long as PyTorch's layer itself at 100 MB.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
TORCH = {"torch": {}, "torch_keeping_memory": KEEP_MEMORY}
SECONDS = 12.0  # for each shape


def run(quick: bool) -> dict[str, Any]:
    """Measure in a child process with oneDNN, which is what TensorFlow is fastest with."""
    rows = in_child(f"batch_norm_limits:measure({quick})", onednn=True)
    beside = {
        torch: [row[f"{torch}_ms"] / row["keras_bn_ms"] for row in rows if f"{torch}_ms" in row]
        for torch in TORCH
    }
    return {
        "benchmark": "batch_norm_limits",
        "quick": quick,
        "machine": machine(),
        "layers": rows,
        "geometric_means": {
            torch: statistics.geometric_mean(ratios) for torch, ratios in beside.items() if ratios
        },
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="BatchNormalization's training step, net of the loss, oneDNN on")
    result.add_column("shape")
    for heading in (
        "MB",
        "copy GB/s",
        "limit ms",
        "keras_bn ms",
        "of the limit",
        "torch ms",
        "torch / keras_bn",
        "keeping memory",
    ):
        result.add_column(heading, justify="right")
    for row in document["layers"]:
        torch, keeping = row.get("torch_ms"), row.get("torch_keeping_memory_ms")
        result.add_row(
            str(tuple(row["shape"])),
            f"{row['size_bytes'] / 1e6:.0f}",
            f"{row['bandwidth_bytes_per_s'] / 1e9:.1f}",
            f"{row['limit_ms']:.2f}",
            f"{row['keras_bn_ms']:.2f}",
            f"{row['keras_bn_ms'] / row['limit_ms']:.2f}",
            f"{torch:.2f}" if torch else "-",
            f"{torch / row['keras_bn_ms']:.2f}" if torch else "-",
            f"{keeping / row['keras_bn_ms']:.2f}" if keeping else "-",
        )
    means = [f"{mean:.2f}" for mean in document["geometric_means"].values()]
    if means:
        result.add_row("geometric mean", *[""] * 6, *means, style="bold")
    return result


def measure(quick: bool) -> None:
    """Print every shape's figures as JSON."""
    shapes = QUICK_SHAPES if quick else SHAPES
    json.dump([_measure(shape, 4.0 if quick else SECONDS) for shape in shapes], sys.stdout)


def _measure(shape: tuple[int, ...], seconds: float) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    x, weights = (rng.normal(size=shape).astype("float32") for _ in range(2))
    steps = {**_tensorflow_steps(x, weights), "copy": _copy_of(x)}
    with ExitStack() as stack:
        if find_spec("torch"):
            for torch, environment in TORCH.items():
                steps |= stack.enter_context(_torch_child(torch, shape, environment))
        # PyTorch's threads go on spinning after a step, which TensorFlow's must not pay for.
        medians = medians_ms(steps, seconds=seconds, pause_s=0.03)
    bandwidth = 2 * x.nbytes / (medians["copy"] / 1000)  # a copy reads and writes
    row = {
        "shape": shape,
        "size_bytes": x.nbytes,
        "bandwidth_bytes_per_s": bandwidth,
        "limit_ms": 1000 * PASSES * x.nbytes / bandwidth,
        "keras_bn_ms": medians["keras_bn"] - medians["nothing"],
    }
    for torch in TORCH:
        if torch in medians:
            row[f"{torch}_ms"] = medians[torch] - medians[f"{torch} nothing"]
    return row


def _copy_of(x: Any) -> Callable[[], Any]:
    """Copies `x` on all cores, between two arrays that are there already."""
    import numpy as np

    source = np.ascontiguousarray(x).reshape(-1)
    target = np.zeros_like(source)
    cores = os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))

    def copy() -> None:
        list(pool.map(lambda part: np.copyto(*part), parts))

    return copy


def _tensorflow_steps(x: Any, weights: Any) -> dict[str, Callable[[], Any]]:
    import keras
    import tensorflow as tf

    import keras_bn
    from tools.benchmarks.layer_step import layer_step

    x, weights = tf.constant(x), tf.constant(weights)
    return {
        "nothing": layer_step(keras.layers.Identity(), x, weights),
        "keras_bn": layer_step(keras_bn.layers.BatchNormalization(), x, weights),
    }


@contextmanager
def _torch_child(
    name: str, shape: tuple[int, ...], environment: dict[str, str]
) -> Iterator[dict[str, Callable[[], Any]]]:
    """PyTorch's steps, run in a process of its own: libraries in one process share its memory."""
    code = f"from tools.benchmarks.batch_norm_limits import serve_torch; serve_torch({shape})"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def step(layer: str) -> None:
        assert child.stdin and child.stdout
        child.stdin.write(layer + "\n")
        child.stdin.flush()
        child.stdout.readline()

    with child:
        yield {name: partial(step, "layer"), f"{name} nothing": partial(step, "nothing")}
        child.terminate()


def serve_torch(shape: tuple[int, ...]) -> None:
    """Take a step for each line of standard input that names one, and say so."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    x, weights = (
        torch.randn(shape).permute(0, 3, 1, 2)  # NHWC in memory is channels_last
        for _ in range(2)
    )
    x.requires_grad_()

    def step_with(layer: torch.nn.Module) -> Callable[[], None]:
        def step() -> None:
            x.grad = None
            layer.zero_grad()
            (layer(x) * weights).sum().backward()

        return step

    steps = {
        "nothing": step_with(torch.nn.Identity()),
        "layer": step_with(torch.nn.BatchNorm2d(shape[-1])),
    }
    for line in sys.stdin:
        steps[line.strip()]()
        print(flush=True)


if __name__ == "__main__":
    main(run, table)
