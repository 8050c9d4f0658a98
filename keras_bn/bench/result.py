"""What a device showed: the values that leave this package, and their JSON."""

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
            results of one `benchmark` call on one device comes from the same round i.
        median, mean, std, p5, p95, p99, minimum, maximum: In milliseconds; quantiles by linear
            interpolation, `std` with n − 1 (0 for a single sample).
        ci95: 95 % bootstrap interval of the median, in milliseconds.
        p5_ci95, p95_ci95, p99_ci95: Those of the quantiles; None with fewer than 200 samples, for
            p99 than 1000, which are too few for one.
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
    p5_ci95: tuple[float, float] | None = None
    p95_ci95: tuple[float, float] | None = None
    p99_ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Operation:
    """One node of a model in the profile that the runtime took of it.

    The profile comes from a run of its own: watching every node takes time, so these times add
    up to more than the latency that was measured without.

    Attributes:
        name: What the runtime calls the node, often the name of its output tensor.
        kind: Its operation, e.g. "CONV_2D"; a delegate names its own, e.g. "Convolution (NHWC)".
        mean_ms: Time that one invoke of the model spends in it, in milliseconds.
        share: Of the time of all operations together, in [0, 1].
        calls: How often one invoke runs it.
    """

    name: str
    kind: str
    mean_ms: float
    share: float
    calls: int


@dataclass(frozen=True)
class BenchmarkResult:
    """One model on one device at one thread count. What a device cannot tell is None.

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
        profile: The model's operations in the order they run; empty if none was taken.
        repeats: How many separate runs the samples come from, equally many from each, one run
            after the other.
    """

    model: str
    sha256: str
    size_bytes: int
    device: str
    threads: int
    latency_ms: Latency
    init_ms: float | None
    first_invoke_ms: float | None
    peak_rss_bytes: int | None
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    runtime_rss_bytes: int | None = None
    inputs: tuple[str, ...] = ()
    preempted: int | None = None
    profile: tuple[Operation, ...] = ()
    repeats: int = 1


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


@dataclass(frozen=True)
class OutputDeviation:
    """How far one output of TensorFlow Lite Micro is from LiteRT's, on the same inputs.

    Attributes:
        name, dtype: Of the output tensor.
        max_abs_error: Largest difference, in the output's real unit (dequantized).
        max_steps: Largest difference in quantization steps; None for an output that has none.
        snr_db: Power of LiteRT's output over that of the difference, in dB; infinite where both
            are equal.
    """

    name: str
    dtype: str
    max_abs_error: float
    max_steps: int | None
    snr_db: float


@dataclass(frozen=True)
class MicrocontrollerResult:
    """Whether TensorFlow Lite Micro runs a model, how well, and in how much memory.

    No time: the interpreter ran on this machine, which says nothing of a microcontroller's speed.

    Attributes:
        model: Path of the `.tflite` file as it was given.
        sha256, size_bytes: Of the file. It stays in flash memory.
        ops: How many nodes of each operation it has.
        runs: Whether the interpreter ran it.
        reason: Why it does not, in the interpreter's own words; None if it runs.
        stopped_by: The operation that these words name, e.g. "CONV_3D"; None if there is none.
        arena_bytes: The smallest arena (RAM for tensors and the interpreter's records of them)
            that it ran in, a multiple of 16; None if it does not run. Found with pointers of 64
            bits, so 32-bit microcontrollers take somewhat less.
        outputs: Each output beside LiteRT's; empty if it does not run.
        samples: How many random inputs these were compared on.
        environment: Versions of both interpreters.
    """

    model: str
    sha256: str
    size_bytes: int
    ops: dict[str, int]
    runs: bool
    reason: str | None = None
    stopped_by: str | None = None
    arena_bytes: int | None = None
    outputs: tuple[OutputDeviation, ...] = ()
    samples: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def max_abs_error(self) -> float | None:
        """The largest of the outputs', each in its own unit; None if it does not run."""
        return max((each.max_abs_error for each in self.outputs), default=None)

    @property
    def snr_db(self) -> float | None:
        """The lowest of the outputs'; None if it does not run."""
        return min((each.snr_db for each in self.outputs), default=None)


def to_json(value: BenchmarkResult | Speedup) -> dict[str, Any]:
    """`value` in JSON's own types."""
    return json.loads(json.dumps(asdict(value), allow_nan=False))


def from_json(value: Mapping[str, Any]) -> BenchmarkResult:
    """The result that `to_json` wrote, or an older version's.

    Raises:
        TypeError: a field is missing or unknown.

    Example:
        >>> latency = Latency((1.0,), 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, (1.0, 1.0))
        >>> result = BenchmarkResult("a.tflite", "ab", 10, "host", 1, latency, 0.5, 1.5, 2048)
        >>> from_json(to_json(result)) == result
        True
    """
    latency = dict(value["latency_ms"])
    latency = {
        name: tuple(figure) if isinstance(figure, list) else figure
        for name, figure in latency.items()
    }
    sequences: dict[str, tuple[Any, ...]] = {
        name: tuple(value.get(name, ())) for name in ("warnings", "inputs")
    }
    sequences["profile"] = tuple(Operation(**each) for each in value.get("profile", ()))
    return BenchmarkResult(**{**value, **sequences, "latency_ms": Latency(**latency)})
