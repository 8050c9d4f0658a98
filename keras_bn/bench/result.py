"""What a benchmark measured: the values that leave this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Latency:
    """Latency of one model in milliseconds, from the raw samples of every timed invoke.

    Attributes:
        samples: Every timed invoke, in the order it ran, in milliseconds.
        median, mean, std, p5, p95, p99, minimum, maximum: In milliseconds; quantiles by linear
            interpolation, `std` with n − 1.
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
        peak_rss_bytes: Peak resident set of the process that ran the model.
        environment: Machine, runtime and measurement conditions, as the runner reported them.
        warnings: What makes the figures doubtful, each with advice.
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
