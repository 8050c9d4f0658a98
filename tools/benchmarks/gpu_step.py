"""Training steps on a GPU, by the backend that KERAS_BACKEND names: torch or jax.

BatchNormalization beside Keras's layer and, on PyTorch, beside torch.nn.BatchNorm2d over the same
memory; LayerNormLSTM beside the textbook cell and Keras's layers; update_bn beside inference.
Everything takes turns in one process; ratios of medians are what to trust.

On PyTorch each is measured twice: launched operation by operation, which Python often cannot do
as fast as a GPU computes, and replayed as a CUDA graph, which is the GPU's own time. The least
that a step of a batch normalization can take is that of moving eight tensors
(tools/benchmarks/batch_norm_limits.py), at the bandwidth of a copy that is measured as well.
Tensors that fit the GPU's cache beat it.

    KERAS_BACKEND=torch python -m tools.benchmarks.gpu_step [--quick] [--json FILE]

TensorFlow need not be installed.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import keras
import numpy as np
from rich.table import Table

import keras_bn
from tools.benchmarks.command import machine, main
from tools.benchmarks.recurrent_step import TEXTBOOK
from tools.benchmarks.timing import medians_ms

BACKEND = keras.backend.backend()

# Activations of convolutional networks, NHWC: ResNet's at batches of 32 and 256, MobileNet's.
SHAPES = (
    (32, 7, 7, 512),
    (32, 14, 14, 256),
    (32, 56, 56, 64),
    (32, 112, 112, 64),
    (256, 7, 7, 2048),
    (256, 14, 14, 384),
    (256, 56, 56, 64),
    (256, 56, 56, 256),
)
QUICK_SHAPES = ((32, 14, 14, 256), (256, 56, 56, 64))
DTYPES = ("float32", "mixed_float16", "mixed_bfloat16")
PASSES = 8
BATCH, TIME, UNITS = 32, 64, 256
STEPS = 10  # between two looks at the clock, for which the GPU has to come to an end
SECONDS = 0.4  # for each row


def run(quick: bool) -> dict[str, Any]:
    """Measure everything; the JSON document."""
    implementation = {"torch": _OnTorch, "jax": _OnJax}[BACKEND]()
    shapes, seconds = (QUICK_SHAPES, 0.2) if quick else (SHAPES, SECONDS)
    bandwidth = _bandwidth(implementation)
    layers = [
        {"shape": shape, "layout": layout, "dtype": dtype, **steps}
        for shape in shapes
        for layout in ("NHWC", "NCHW", "NHWC masked")
        for dtype in (DTYPES if layout != "NHWC masked" else DTYPES[:1])
        for steps in _batch_norms(implementation, shape, layout, dtype, seconds)
    ]
    for row in layers:
        size = np.prod(row["shape"]) * (4 if row["dtype"] == "float32" else 2)
        row["limit_ms"] = 1000 * PASSES * float(size) / bandwidth
    return {
        "benchmark": "gpu_step",
        "quick": quick,
        "machine": {**machine(), "gpu": implementation.name(), "backend": BACKEND},
        "bandwidth_bytes_per_s": bandwidth,
        "layers": layers,
        "recurrent": list(_recurrent(implementation, seconds)),
        "update_bn": _update_bn(implementation, ("MobileNetV2", "ResNet50")[: 1 if quick else 2]),
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    gpu = document["machine"]["gpu"]
    result = Table(
        title=f"Steps on {gpu}, {document['bandwidth_bytes_per_s'] / 1e12:.2f} TB/s, {BACKEND}, ms"
    )
    for heading in ("what", "as", "way"):
        result.add_column(heading)
    for heading in ("limit", "keras_bn", "Keras / keras_bn", "torch / keras_bn", "of the limit"):
        result.add_column(heading, justify="right")
    for row in document["layers"]:
        ours = row["keras_bn_ms"]
        result.add_row(
            f"{tuple(row['shape'])} {row['layout']}",
            row["dtype"],
            row["way"],
            f"{row['limit_ms']:.3f}",
            f"{ours:.3f}",
            f"{row['keras_ms'] / ours:.2f}",
            f"{row['torch_ms'] / ours:.2f}" if "torch_ms" in row else "-",
            f"{row['limit_ms'] / ours:.2f}",
        )
    for row in document["recurrent"]:
        times = ", ".join(f"{k.removesuffix('_ms')} {v:.2f}" for k, v in row.items() if "_ms" in k)
        result.add_row(f"{row['network']} {row['variant']}", times, row["way"])
    for row in document["update_bn"]:
        times = ", ".join(f"{k.removesuffix('_ms')} {v:.2f}" for k, v in row.items() if "_ms" in k)
        result.add_row(f"update_bn {row['model']}", times, f"{row['of_inference']:.2f}")
    return result


def _bandwidth(on: Any) -> float:
    """Bytes per second of a copy far larger than the cache, which reads and writes."""
    size = 2**30
    source = keras.ops.ones((size // 4,), "float32")
    copy = on.compiled(lambda x: x + 1.0)
    medians = medians_ms({"copy": on.repeated(lambda: copy(source))}, rounds=20)
    return 2 * size / (medians["copy"] / STEPS / 1000)


def _batch_norms(
    on: Any, shape: tuple[int, ...], layout: str, dtype: str, seconds: float
) -> list[dict[str, Any]]:
    """Forward and backward of the layer alone, given the gradient of its output."""
    n, h, w, c = shape
    half = dtype.removeprefix("mixed_")
    as_laid_out = (n, c, h, w) if layout == "NCHW" else shape
    x, dy = (keras.random.normal(as_laid_out, dtype=half, seed=seed) for seed in range(2))
    axis = 1 if layout == "NCHW" else -1
    mask = None
    if layout == "NHWC masked":
        mask = keras.random.uniform((n, h, w), seed=2) < 0.8
    layers = {
        "keras": keras.layers.BatchNormalization(axis=axis, dtype=dtype),
        "keras_bn": keras_bn.layers.BatchNormalization(axis=axis, dtype=dtype),
    }
    steps = {name: on.step(layer, x, dy, mask) for name, layer in layers.items()}
    if BACKEND == "torch" and mask is None:
        steps["torch"] = on.torch_step(x, dy, axis)
    return on.measured(steps, seconds, graphs=mask is None)  # Keras's waits, with a mask


def _recurrent(on: Any, seconds: float) -> Any:
    x, dy = (keras.random.normal((BATCH, TIME, UNITS), seed=seed) for seed in range(2))
    for network in ("LSTM", "GRU"):
        for variant in ("gate", "paper"):
            layers = {
                "textbook": keras.layers.RNN(
                    TEXTBOOK[network](UNITS, variant), return_sequences=True
                ),
                "keras_bn": getattr(keras_bn.layers, f"LayerNorm{network}")(
                    UNITS, variant=variant, return_sequences=True
                ),
                "plain": getattr(keras.layers, network)(
                    UNITS, return_sequences=True, use_cudnn=False
                ),
            }
            steps = {name: on.step(layer, x, dy, None) for name, layer in layers.items()}
            # As the textbook's GRU does, in Keras's split.
            for row in on.measured(steps, seconds, repeats=1, graphs=network == "LSTM"):
                yield {"network": network, "variant": variant, **row}


def _update_bn(on: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Passes over the same batches, from one batch's request to the next; without the first."""
    data = [np.random.default_rng(0).normal(size=(BATCH, 224, 224, 3)).astype("float32")] * 12
    rows = []
    for name in names:
        model = getattr(keras.applications, name)(weights=None)
        infer = on.compiled_inference(model)

        def inference(batches: Iterator[Any], infer: Any = infer) -> None:
            for x in batches:
                on.wait(infer(x))

        passes: dict[str, Callable[[Iterator[Any]], Any]] = {
            "inference": inference,
            "update_bn": lambda batches, model=model: keras_bn.update_bn(model, batches),
        }
        times: dict[str, list[float]] = {kind: [] for kind in passes}
        for _ in range(3):
            for kind, run_pass in passes.items():
                requests: list[float] = []
                run_pass(_noting_requests(data, requests))
                times[kind] += [after - before for before, after in pairwise(requests)][1:]
        medians = {f"{kind}_ms": 1000 * statistics.median(t) for kind, t in times.items()}
        ratio = medians["inference_ms"] / medians["update_bn_ms"]
        rows.append({"model": name, **medians, "of_inference": ratio})
    return rows


def _noting_requests(data: list[Any], requests: list[float]) -> Iterator[Any]:
    for x in data:
        requests.append(time.perf_counter())
        yield x
    requests.append(time.perf_counter())


class _OnTorch:
    """Steps of PyTorch's, eager and as CUDA graphs."""

    def name(self) -> str:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"

    def wait(self, _: Any = None) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def compiled_inference(self, model: keras.Model) -> Callable[[Any], Any]:
        import torch

        def infer(x: Any) -> Any:
            with torch.no_grad():
                return model(x, training=False)

        return infer

    def repeated(self, step: Callable[[], Any], repeats: int = STEPS) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(repeats):
                step()
            self.wait()

        return steps

    def step(self, layer: keras.Layer, x: Any, dy: Any, mask: Any) -> Callable[[], Any]:
        layer.build(x.shape)
        parameters = [variable.value for variable in layer.trainable_variables]
        options = {} if mask is None else {"mask": mask}
        return self._step(lambda x: layer(x, training=True, **options), parameters, x, dy)

    def torch_step(self, x: Any, dy: Any, axis: int) -> Callable[[], Any]:
        import torch

        layer = torch.nn.BatchNorm2d(x.shape[axis]).to(x.device)
        if axis == -1:  # NHWC in memory is channels_last
            x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
        return self._step(layer, list(layer.parameters()), x, dy)

    def _step(
        self, call: Callable[[Any], Any], parameters: list[Any], x: Any, dy: Any
    ) -> Callable[[], Any]:
        import torch

        x = x.detach().requires_grad_()
        return lambda: torch.autograd.grad(call(x), [x, *parameters], dy, allow_unused=True)

    def measured(
        self,
        steps: dict[str, Callable[[], Any]],
        seconds: float,
        *,
        repeats: int = STEPS,
        graphs: bool = True,
    ) -> list[dict[str, Any]]:
        import torch

        ways = {"launched": steps}
        if graphs and torch.cuda.is_available():  # which hold nothing that waits for the GPU
            ways["graph"] = {name: self._graph(step) for name, step in steps.items()}
        rows = []
        for way, of_it in ways.items():
            repeated = {name: self.repeated(step, repeats) for name, step in of_it.items()}
            medians = medians_ms(repeated, seconds=seconds)
            rows.append({"way": way, **{f"{k}_ms": v / repeats for k, v in medians.items()}})
        return rows

    def _graph(self, step: Callable[[], Any]) -> Callable[[], None]:
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


class _OnJax:
    """Steps of JAX's, compiled."""

    def name(self) -> str:
        import jax

        return jax.devices()[0].device_kind

    def wait(self, result: Any) -> None:
        import jax

        jax.block_until_ready(result)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import jax

        return jax.jit(function)

    def compiled_inference(self, model: keras.Model) -> Callable[[Any], Any]:
        import jax

        trainable = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]
        infer = jax.jit(lambda t, o, x: model.stateless_call(t, o, x, training=False)[0])
        return lambda x: infer(trainable, others, x)

    def repeated(self, step: Callable[[], Any], repeats: int = STEPS) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(repeats):
                result = step()
            self.wait(result)

        return steps

    def step(self, layer: keras.Layer, x: Any, dy: Any, mask: Any) -> Callable[[], Any]:
        import jax

        layer.build(x.shape)
        trainable = [variable.value for variable in layer.trainable_variables]
        others = [variable.value for variable in layer.non_trainable_variables]
        options = {} if mask is None else {"mask": mask}

        @jax.jit
        def step(trainable: Any, others: Any, x: Any, dy: Any) -> Any:
            def call(trainable: Any, x: Any) -> Any:
                return layer.stateless_call(trainable, others, x, training=True, **options)

            _, pull, others_after = jax.vjp(call, trainable, x, has_aux=True)
            return pull(dy), others_after

        return lambda: step(trainable, others, x, dy)

    def measured(
        self,
        steps: dict[str, Callable[[], Any]],
        seconds: float,
        *,
        repeats: int = STEPS,
        graphs: bool = True,
    ) -> list[dict[str, Any]]:
        repeated = {name: self.repeated(step, repeats) for name, step in steps.items()}
        medians = medians_ms(repeated, seconds=seconds)
        return [{"way": "jit", **{f"{k}_ms": v / repeats for k, v in medians.items()}}]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(run, table)
