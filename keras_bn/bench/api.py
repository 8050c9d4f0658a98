"""The public functions: `benchmark`, and `speedups` between its results."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from keras_bn.bench import advice, devices, stats
from keras_bn.bench.request import Progress, Request
from keras_bn.bench.result import BenchmarkResult, Operation, Speedup
from keras_bn.errors import DeviceError

NS_PER_MS = 1_000_000
# Bytes 4 to 8 of every LiteRT flatbuffer (file_identifier in schema.fbs).
TFLITE_IDENTIFIER = b"TFL3"

StrPath = str | os.PathLike[str]


def benchmark(
    paths: StrPath | Iterable[StrPath],
    *,
    device: str | Iterable[str] = "host",
    threads: int | Iterable[int] = (1,),
    runs: int = 50,
    repeats: int = 1,
    warmup: int = 5,
    xnnpack: bool = True,
    affinity: Iterable[int] | None = None,
    cooldown_s: float = 0.0,
    profile: bool = False,
    seed: int = 0,
    timeout_s: float = 300.0,
    python: str | None = None,
    benchmark_binary: StrPath | None = None,
    progress: Progress | None = None,
) -> list[BenchmarkResult]:
    """Measure the latency and memory of `.tflite` files.

    Every model is measured with every thread count. The measurements are interleaved round by
    round in a shuffled order, so that drift and disturbances hit all alike; compare the results
    of one call with `speedups`. Inputs are random, with a batch of 1 where the batch is open.

    Args:
        paths: One file or several.
        device: "host", this machine; "ssh://[user@]host[:port]", a computer that the system's
            ssh client reaches without a question; "adb" or "adb:SERIAL", an Android device. Or
            several of them, which are measured one after the other.
        threads: Interpreter threads: one count or several.
        runs: Timed invokes of each model and thread count.
        repeats: How often to do all of that, each time in new processes. What shifts a whole run
            shows only between several; comparisons with a baseline need them.
        warmup: Untimed invokes of each before the first round.
        xnnpack: Whether the XNNPACK delegate may run what it can, as it does by default in an
            application. False measures the built-in kernels.
        affinity: CPU numbers to stay on (Linux); None for all.
        cooldown_s: How long the run may wait, in all, for the machine to cool to within 2 °C of
            its temperature before the run; 0 for not at all.
        profile: Whether to time each operation as well, after everything else: watching them
            slows a model down. Where the runtime has no profiler, a warning says so.
        seed: Of the inputs and of the order within a round.
        timeout_s: The run is stopped when nothing happened for so long: more than the slowest
            single invoke takes.
        python: The Python to use on devices other than the host, as it is called there; None to
            look for one that has numpy and ai_edge_litert or tflite_runtime. Nothing is ever
            installed there.
        benchmark_binary: LiteRT's benchmark_model for Android devices, which have no Python.
        progress: Called with (steps done, steps in all, what is being done).

    Returns:
        One result for each device, model and thread count, the devices in the order of `device`,
        the models in the order of `paths`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError, TypeError: an argument is out of range, or a file is not a `.tflite` file.
        DeviceError: a device is out of reach, or the run on it failed, crashed the interpreter,
            or was silent for `timeout_s`. The other devices are measured all the same: their
            results are the error's `results`.

    Example:
        >>> results = benchmark(["float32.tflite", "int8.tflite"])  # doctest: +SKIP
        >>> [f"{r.model}: {r.latency_ms.median:.2f} ms" for r in results]  # doctest: +SKIP
        ['float32.tflite: 3.61 ms', 'int8.tflite: 1.22 ms']
    """
    names = _devices(device)
    measures = [devices.resolve(name) for name in names]
    request = Request(
        models=tflite_files(paths),
        threads=_counts("threads", [threads] if isinstance(threads, int) else threads, 1),
        runs=_count("runs", runs, 1),
        warmup=_count("warmup", warmup, 0),
        xnnpack=xnnpack,
        affinity=None if affinity is None else _counts("affinity", affinity, 0),
        cooldown_s=_seconds("cooldown_s", cooldown_s, at_least=0.0),
        seed=_count("seed", seed, 0),
        timeout_s=_seconds("timeout_s", timeout_s, at_least=math.ulp(0.0)),
        progress=progress,
        python=_python(python, names),
        benchmark_binary=_benchmark_binary(benchmark_binary, names),
        profile=profile,
    )
    times = _count("repeats", repeats, 1)
    results: list[BenchmarkResult] = []
    failures: list[DeviceError] = []
    for name, measure in zip(names, measures, strict=True):
        try:
            document = _repeated(
                measure, request if len(names) == 1 else _telling(request, name), times
            )
        except DeviceError as error:
            failures.append(error)
            continue
        files = {file["model"]: file for file in document["models"]}
        results += [
            _result(measurement, files[measurement["model"]], name, document["environment"], times)
            for measurement in document["measurements"]
        ]
    if failures:
        failure = failures[0] if len(failures) == 1 else DeviceError("\n".join(map(str, failures)))
        failure.results = tuple(results)
        raise failure
    return results


def speedups(results: Sequence[BenchmarkResult]) -> list[Speedup]:
    """How much faster each model is than the first one, for every device and thread count.

    Args:
        results: Of one `benchmark` call: its models are then compared round by round. Results
            with different numbers of samples are compared as separate runs.

    Example:
        >>> for s in speedups(results):  # doctest: +SKIP
        ...     print(f"{s.model}: {s.ratio:.2f}× [{s.ci95[0]:.2f}, {s.ci95[1]:.2f}]")
        int8.tflite: 2.96× [2.91, 3.01]
    """
    baselines: dict[tuple[str, int], BenchmarkResult] = {}
    found = []
    for result in results:
        where = (result.device, result.threads)
        baseline = baselines.setdefault(where, result)
        if baseline is result:
            continue
        slower, faster = baseline.latency_ms.samples, result.latency_ms.samples
        ratio, low, high = stats.ratio_interval(slower, faster, paired=len(slower) == len(faster))
        found.append(Speedup(result.model, baseline.model, *where, ratio, (low, high)))
    return found


def _repeated(
    measure: Callable[[Request], dict[str, Any]], request: Request, times: int
) -> dict[str, Any]:
    """The document of several runs: their samples one after the other, and the rest of them all.

    Each has inputs and an order of its own. The operations are those of the first.
    """
    documents = []
    for number in range(times):
        one = replace(
            request,
            seed=request.seed + number,
            profile=request.profile and number == 0,
            progress=_part(request.progress, number, times),
        )
        documents.append(measure(one))
    first, last = documents[0], documents[-1]
    environment = first["environment"] | {"after": last["environment"]["after"]}
    cells = zip(*(document["measurements"] for document in documents), strict=True)
    return first | {
        "environment": environment,
        "measurements": [_merged(cell) for cell in cells],
    }


def _merged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One cell's measurements: medians of what is timed once a run, the peak of memory."""

    def over_all(combine: Callable[[list[int]], float], name: str) -> float | None:
        values = [run[name] for run in runs if run[name] is not None]
        return combine(values) if values else None

    return runs[0] | {
        "samples_ns": [sample for run in runs for sample in run["samples_ns"]],
        "preempted": over_all(sum, "preempted"),
        "init_ns": over_all(statistics.median, "init_ns"),
        "first_invoke_ns": over_all(statistics.median, "first_invoke_ns"),
        "peak_rss_bytes": over_all(max, "peak_rss_bytes"),
    }


def _part(progress: Progress | None, number: int, times: int) -> Progress | None:
    """Tells `progress` of one run of several as of a part of them all."""
    if progress is None or times == 1:
        return progress
    return lambda done, total, what: progress(number * total + done, times * total, what)


def _result(
    measured: Mapping[str, Any],
    file: Mapping[str, Any],
    device: str,
    environment: dict[str, Any],
    repeats: int,
) -> BenchmarkResult:
    latency = stats.summarize([ns / NS_PER_MS for ns in measured["samples_ns"]])
    problem = measured.get("profile_problem")
    return BenchmarkResult(
        model=measured["model"],
        sha256=file["sha256"],
        size_bytes=file["size_bytes"],
        device=device,
        threads=measured["threads"],
        latency_ms=latency,
        init_ms=_ms(measured["init_ns"]),
        first_invoke_ms=_ms(measured["first_invoke_ns"]),
        peak_rss_bytes=measured["peak_rss_bytes"],
        environment=environment,
        warnings=(
            *advice.warnings(
                latency,
                threads=measured["threads"],
                preempted=measured["preempted"],
                inputs=measured["inputs"],
                environment=environment,
            ),
            *([f"No profile: {problem}."] if problem else []),
        ),
        runtime_rss_bytes=measured["runtime_rss_bytes"],
        inputs=tuple(
            f"{each['name']} {each['dtype']} {each['shape']}" for each in measured["inputs"]
        ),
        preempted=measured["preempted"],
        profile=tuple(Operation(**each) for each in measured.get("profile", ())),
        repeats=repeats,
    )


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / NS_PER_MS


def _telling(request: Request, device: str) -> Request:
    """`request`, with the device in what is reported of its progress."""
    progress = request.progress
    if progress is None:
        return request

    def told(done: int, total: int, what: str) -> None:
        progress(done, total, f"{device}: {what}")

    return replace(request, progress=told)


def _devices(device: str | Iterable[str]) -> list[str]:
    names = [device] if isinstance(device, str) else list(device)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"device must name one device, or several different ones: {names}.")
    return names


def _python(python: str | None, names: list[str]) -> str | None:
    if python is None:
        return None
    if not python or python.startswith("-"):
        raise ValueError(
            f"python must be the path or name of a Python on the device, received {python!r}."
        )
    if names == ["host"]:
        raise ValueError(
            f"python={python!r} is for other devices than the host, which is measured by the "
            "Python that keras-bn runs in."
        )
    return python


def _benchmark_binary(path: StrPath | None, names: list[str]) -> str | None:
    if path is None:
        return None
    if not any(name.startswith("adb") for name in names):
        raise ValueError(
            f"benchmark_binary={os.fspath(path)!r} is for Android devices (adb); measured are "
            f"{', '.join(names)}."
        )
    with Path(path).open("rb"):
        return os.fspath(path)


def tflite_files(paths: StrPath | Iterable[StrPath]) -> tuple[str, ...]:
    """`paths` as text, each found to be a `.tflite` file."""
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise ValueError("paths names no file; pass the path of a .tflite file, or several.")
    for path in several:
        with Path(path).open("rb") as file:
            identifier = file.read(8)[4:]
        if identifier != TFLITE_IDENTIFIER:
            raise ValueError(
                f"{os.fspath(path)} is not a .tflite file: bytes 4 to 8 are {identifier!r}, "
                f"expected {TFLITE_IDENTIFIER!r}. Keras models are converted first, with "
                "keras_bn.convert(model, path) or `keras-bn convert`."
            )
    return tuple(os.fspath(path) for path in several)


def _counts(name: str, values: Iterable[int], at_least: int) -> tuple[int, ...]:
    counts = tuple(_count(name, value, at_least) for value in values)
    if not counts or len(set(counts)) < len(counts):
        raise ValueError(f"{name} must be one or several different numbers, received {counts}.")
    return counts


def _count(name: str, value: int, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be whole numbers, received {value!r}.")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, received {value}.")
    return value


def _seconds(name: str, value: float, *, at_least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, received {value!r}.")
    if not at_least <= value < math.inf:
        sign = "positive" if at_least else "zero or positive"
        raise ValueError(f"{name} must be {sign} and finite, received {value!r}.")
    return float(value)
