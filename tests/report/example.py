"""A results document with everything in it, from the real dataclasses."""

import math
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from keras_bn.bench import stats
from keras_bn.bench.api import speedups
from keras_bn.bench.result import (
    BenchmarkResult,
    MicrocontrollerResult,
    Operation,
    OutputDeviation,
)
from keras_bn.compare.result import Comparison, OutputComparison
from keras_bn.convert.result import Conversion
from keras_bn.fold.result import FoldedLayer, FoldResult, KeptLayer
from keras_bn.report.results import ModelSummary, document

FLOAT, INT8 = Path("out/net-float32.tflite"), Path("out/net-int8.tflite")
CREATED = datetime(2026, 3, 4, 5, 6, tzinfo=timezone.utc)
VERSIONS = {"keras_bn": "0.1.0", "tensorflow": "2.21.0"}

FOLD = FoldResult(
    model=None,
    folded=[
        FoldedLayer("bn_1", "conv_1", "into the convolution before"),
        FoldedLayer("bn_2", "dense", "into the layer after"),
    ],
    kept=[KeptLayer("bn_3", "its input is read by add_2 too")],
    max_abs_error=3.4e-7,
    others=[
        FoldedLayer("rescaling", "conv_1", "backward into Conv2D"),
        KeptLayer("norm (gamma)", "its output is read by add_1 too"),
    ],
)
PROFILE = (Operation("conv", "CONV_2D", 1.5, 0.75, 1), Operation("probs", "SOFTMAX", 0.5, 0.25, 1))
MICRO = MicrocontrollerResult(
    str(INT8),
    "cd" * 32,
    27_800,
    {"CONV_2D": 6},
    runs=True,
    arena_bytes=20_480,
    outputs=(
        OutputDeviation("probs", "int8", 0.0078, 2, 41.5),
        OutputDeviation("features", "float32", 1e-7, None, math.inf),
    ),
    samples=8,
    environment={"tflite-micro": "0.dev1", "ai-edge-litert": "2.3.0"},
)
REFUSED = MicrocontrollerResult(
    str(FLOAT), "ef" * 32, 100_000, {"CUMSUM": 1}, runs=False, reason="Didn't find op for CUMSUM"
)


def comparison(snr_db=30.25, top1_agreement=0.988, outputs=1) -> Comparison:
    figures = OutputComparison("probabilities", 0.031, snr_db, 0.99812, top1_agreement)
    return Comparison((figures,) * outputs, samples=256)


def conversion(path=FLOAT, quantize="none", size_bytes=100_000, **compared) -> Conversion:
    ops = Counter(CONV_2D=6, SOFTMAX=1)
    in_float = Counter(SOFTMAX=1) if quantize == "int8" else Counter()
    return Conversion(path, size_bytes, quantize, ops, in_float, comparison(**compared), FOLD)


def measurement(
    path=FLOAT, median=4.0, threads=1, device="host", runs=30, **fields
) -> BenchmarkResult:
    samples = median * np.random.default_rng(threads).normal(1, 0.01, runs)
    return BenchmarkResult(
        model=str(path),
        sha256="ab" * 32,
        size_bytes=100_000,
        device=device,
        threads=threads,
        latency_ms=stats.summarize(samples),
        **{
            "init_ms": 1.5,
            "first_invoke_ms": 5.5,
            "peak_rss_bytes": 50_000_000,
            "environment": {
                "cpu": "Cortex-A72",
                "xnnpack": True,
                "affinity": [0, 1],
                "before": {"temperature_c": 48.3, "governor": None},
                "memory_bytes": 4_000_000_000,
            },
            "runtime_rss_bytes": 43_000_000,
            "inputs": ("x float32 [1, 8]",),
            "preempted": 0,
            **fields,
        },
    )


def whole(**changes) -> dict:
    """Two conversions, each measured with 1, 2 and 4 threads; int8 is smaller and faster."""
    measured = [measurement(FLOAT, 4.0 / t, t) for t in (1, 2, 4)]
    measured += [
        measurement(INT8, 2.0 / t, t, warnings=("Too noisy. Be quiet.",)) for t in (1, 2, 4)
    ]
    arguments = {
        "title": "Digits",
        "created": CREATED,
        "environment": VERSIONS,
        "model": ModelSummary("digits.keras", 14730, 22, 186_167, 0.9781),
        "conversions": [conversion(), conversion(INT8, "int8", 27_800)],
        "accuracies": {FLOAT: 0.9781, INT8: 0.9742},
        "benchmarks": measured,
        "speedups": speedups(measured),
    }
    return document(**arguments | changes)


HOST, BOARD, PHONE = "host", "ssh://pi@board.local", "adb:1A051FDF6007CD"


def three_devices(**changes) -> dict:
    """The same two files on three devices, the slowest first, and on TensorFlow Lite Micro.

    The phone tells no peak memory, and takes a profile.
    """
    measured = [
        measurement(path, median / threads**0.7, threads, device, **fields)
        for device, counts, slowness, fields in (
            (BOARD, (1, 2, 4), 3.0, {"warnings": ("9 of 30 samples are outliers. Be quiet.",)}),
            (HOST, (1, 2), 1.0, {}),
            (PHONE, (1,), 0.5, {"profile": PROFILE, "peak_rss_bytes": None, "init_ms": None}),
        )
        for path, median in ((FLOAT, 4.0 * slowness), (INT8, 1.5 * slowness))
        for threads in counts
    ]
    arguments = {
        "benchmarks": measured,
        "speedups": speedups(measured),
        "microcontrollers": [MICRO, REFUSED],
    }
    return whole(**arguments | changes)
