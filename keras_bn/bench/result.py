"""What a benchmark measured: the values that leave this package, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Latency:
    """Latency of one model in milliseconds, from the raw samples of every timed invoke.

    Attributes:
        samples: Every timed invoke, in the order it ran, in milliseconds. Sample i of all
            results of one `benchmark` call comes from the same round i.
        median, mean, std, p5, p95, p99, minimum, maximum: In milliseconds; quantiles by linear
            interpolation, `std` with n − 1 (0 for a single sample).
        ci95: 95 % bootstrap interval of the median, in milliseconds.
    """

    samples: tuple[float, ...]
    median: float
    mean: float
    std: float
    p5: float
    p95: float
    p99: float
    minimum: float
    maximum: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class BenchmarkResult:
    """One model on one device at one thread count.

    Attributes:
        model: Path of the `.tflite` file as it was given.
        sha256: Hash of the file that was measured.
        size_bytes: Its size.
        device: "host", "ssh://…" or "adb:…".
        threads: Interpreter threads.
        latency_ms: Steady-state latency of one invoke.
        init_ms: Building the interpreter and allocating its tensors, in milliseconds.
        first_invoke_ms: The first invoke, which lazily prepares weights, in milliseconds.
        peak_rss_bytes: Peak resident set of a process that ran this model and no other.
        environment: Machine, runtime and measurement conditions, as the runner reported them.
        warnings: What makes the figures doubtful, each with advice.
        runtime_rss_bytes: Resident set of that process before it loaded the model: what Python
            and the interpreter take alone.
        inputs: The inputs that were fed, e.g. "x:0 float32 [1, 32, 32, 3]".
        preempted: In how many of the timed invokes another program got the CPU.
    """

    model: str
    sha256: str
    size_bytes: int
    device: str
    threads: int
    latency_ms: Latency
    init_ms: float
    first_invoke_ms: float
    peak_rss_bytes: int
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    runtime_rss_bytes: int | None = None
    inputs: tuple[str, ...] = ()
    preempted: int | None = None


@dataclass(frozen=True)
class Speedup:
    """How much faster one model is than another on the same device and thread count.

    Attributes:
        model, baseline: Paths as they were given.
        device, threads: Where both were measured.
        ratio: Median latency of `baseline` over that of `model`: above 1, `model` is faster.
        ci95: 95 % bootstrap interval of the ratio.
    """

    model: str
    baseline: str
    device: str
    threads: int
    ratio: float
    ci95: tuple[float, float]


def to_json(value: BenchmarkResult | Speedup) -> dict[str, Any]:
    """`value` in JSON's own types."""
    return json.loads(json.dumps(asdict(value), allow_nan=False))


def from_json(value: Mapping[str, Any]) -> BenchmarkResult:
    """The result that `to_json` wrote.

    Raises:
        TypeError: a field is missing or unknown.

    Example:
        >>> latency = Latency((1.0,), 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, (1.0, 1.0))
        >>> result = BenchmarkResult("a.tflite", "ab", 10, "host", 1, latency, 0.5, 1.5, 2048)
        >>> from_json(to_json(result)) == result
        True
    """
    latency = dict(value["latency_ms"])
    latency |= {name: tuple(latency[name]) for name in ("samples", "ci95")}
    sequences = {name: tuple(value.get(name, ())) for name in ("warnings", "inputs")}
    return BenchmarkResult(**{**value, **sequences, "latency_ms": Latency(**latency)})
