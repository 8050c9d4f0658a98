"""Whether TensorFlow Lite Micro runs a model, how close to LiteRT, and in how much memory."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_bn.bench import micro_worker
from keras_bn.bench.api import StrPath, tflite_files
from keras_bn.bench.child import PROGRESS, follow, signal_name
from keras_bn.bench.request import Progress
from keras_bn.bench.result import MicrocontrollerResult, OutputDeviation
from keras_bn.errors import DeviceError

# The worker gets the caller's import path, so that it finds the same packages.
START = (
    "import sys; arguments = sys.argv[1:]; mark = arguments.index('--'); "
    "sys.path[:] = arguments[mark + 1 :]; "
    "from keras_bn.bench.micro_worker import main; main(*arguments[:mark])"
)
# Beyond the time that an attempt may take, for the worker to start and to write its answer.
GRACE_S = 60.0


def examine(
    paths: StrPath | Iterable[StrPath],
    *,
    samples: int = 8,
    seed: int = 0,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> list[MicrocontrollerResult]:
    """Try `.tflite` files in the interpreter of TensorFlow Lite Micro, on this machine.

    It is the interpreter that runs on microcontrollers, compiled for this machine with its
    reference kernels: it tells whether a file runs there, what comes out, and how much memory it
    takes, but nothing of the time. It runs in processes of its own, so a crash is a reason among
    others. Random inputs go through it and through LiteRT as LiteRT runs by default, one after
    the other as in a stream: a model with a state keeps it. An unknown dimension is 1.

    The arena is the smallest that gives the first input's outputs bit by bit, to 16 bytes. It
    holds the interpreter's records with pointers of 64 bits and the package's book-keeping; on a
    microcontroller with 32 bits it is smaller.

    Needs the package `tflite-micro`, which exists for Linux on x86-64 (`pip install --pre
    tflite-micro`).

    Args:
        paths: One file or several.
        samples: How many random inputs the outputs are compared on.
        seed: Of the inputs.
        timeout_s: How long one try may take.
        progress: Called with (files done, files in all, what is being done).

    Returns:
        One result for each file, in the order of `paths`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError, TypeError: an argument is out of range, or a file is not a `.tflite` file.
        DeviceError: `tflite-micro` is not installed, or LiteRT itself does not run a file. The
            other files are tried all the same: their results are the error's `results`.

    Example:
        >>> [result] = examine("int8.tflite")  # doctest: +SKIP
        >>> result.runs, result.arena_bytes, result.outputs[0].max_steps  # doctest: +SKIP
        (True, 21504, 1)
    """
    files = tflite_files(paths)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, received {samples}.")
    if not 0 < timeout_s < float("inf"):
        raise ValueError(f"timeout_s must be positive and finite, received {timeout_s}.")
    require_package()
    results, failures = [], []
    for done, path in enumerate(files):
        if progress is not None:
            progress(done, len(files), f"trying {path}")
        try:
            results.append(_examine(path, samples, seed, timeout_s))
        except DeviceError as error:
            failures.append(error)
    if progress is not None:
        progress(len(files), len(files), "done")
    if failures:
        failure = failures[0] if len(failures) == 1 else DeviceError("\n".join(map(str, failures)))
        failure.results = tuple(results)
        raise failure
    return results


def require_package() -> None:
    """
    Raises:
        DeviceError: `tflite-micro` is not installed.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        where = f"{platform.system()} on {platform.machine()}"
        exists = "" if where == "Linux on x86_64" else f"; this is {where}"
        raise DeviceError(
            "The interpreter of TensorFlow Lite Micro is not installed. Install it with: "
            f"{sys.executable} -m pip install --pre tflite-micro (its wheels exist for Linux on "
            f"x86_64 only{exists})."
        )


def _examine(path: str, samples: int, seed: int, timeout_s: float) -> MicrocontrollerResult:
    content = Path(path).read_bytes()
    with tempfile.TemporaryDirectory(prefix="keras-bn-") as folder:
        litert = _worker(
            "LiteRT", timeout_s + GRACE_S, "litert", path, folder, str(samples), str(seed)
        )
        tflm = _worker("TFLM", timeout_s + GRACE_S, "tflm", path, folder, str(timeout_s))
        runs = tflm["arena_bytes"] is not None
        outputs = _deviations(Path(folder), litert["outputs"]) if runs else ()
    return MicrocontrollerResult(
        model=path,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        ops=litert["ops"],
        runs=runs,
        reason=tflm["reason"],
        stopped_by=tflm["stopped_by"],
        arena_bytes=tflm["arena_bytes"],
        outputs=outputs,
        samples=samples if runs else 0,
        environment={"litert": litert["interpreter"], "tflm": tflm["interpreter"]},
    )


def _worker(name: str, timeout_s: float, *arguments: str) -> dict[str, Any]:
    """The document of one worker process; each sign of life keeps its timeout from running out."""
    path = arguments[1]
    ended = follow(
        [sys.executable, "-c", START, *arguments, "--", *sys.path],
        name=f"Running {path} in {name}",
        timeout_s=timeout_s,
        on_line=lambda line: line.startswith(PROGRESS),
    )
    if ended.status < 0:
        raise DeviceError(f"{path} crashed {name} ({signal_name(-ended.status)}).{ended.printed}")
    try:
        document = json.loads(ended.stdout)
    except ValueError:
        raise DeviceError(
            f"Running {path} in {name} ended with status {ended.status}.{ended.printed}"
        ) from None
    if "error" in document:
        raise DeviceError(f"{name} does not run {path}: {document['error']}.")
    return document


def _deviations(folder: Path, outputs: list[dict[str, Any]]) -> tuple[OutputDeviation, ...]:
    references = micro_worker.load(folder / micro_worker.REFERENCE)
    found = micro_worker.load(folder / micro_worker.OUTPUTS)
    return tuple(
        deviation(reference, output, **each)
        for each, reference, output in zip(outputs, references, found, strict=True)
    )


def deviation(
    reference: npt.NDArray[Any],
    output: npt.NDArray[Any],
    *,
    name: str = "",
    scale: float = 0.0,
    zero_point: int = 0,
) -> OutputDeviation:
    """How far `output` is from `reference`, both as the interpreters gave them.

    Where both are the same infinity, or no number, they are equal; where one is finite and the
    other is not, the difference is infinite.

    Args:
        reference, output: Of the same shape and dtype.
        name: Of the output.
        scale, zero_point: q stands for scale · (q − zero_point); 0 for an output that stands for
            itself.

    Example:
        >>> found = deviation(np.int8([10, 20]), np.int8([10, 22]), scale=0.5)
        >>> found.max_steps, found.max_abs_error
        (2, 1.0)
    """
    wanted, got = (_real(values, scale, zero_point) for values in (reference, output))
    with np.errstate(invalid="ignore"):  # inf − inf
        difference = np.abs(got - wanted)
    difference[(got == wanted) | (np.isnan(got) & np.isnan(wanted))] = 0.0
    difference[np.isnan(difference)] = np.inf
    largest = float(difference.max(initial=0.0))
    signal = float(np.sum(np.abs(wanted[np.isfinite(wanted)]) ** 2))
    with np.errstate(divide="ignore"):
        noise = np.float64(np.sum(difference**2))
        snr_db = float(10 * np.log10(signal / noise)) if signal else (-np.inf if noise else np.inf)
    return OutputDeviation(
        name=name,
        dtype=reference.dtype.name,
        max_abs_error=largest,
        max_steps=round(largest / scale) if scale else None,
        snr_db=snr_db,
    )


def _real(values: npt.NDArray[Any], scale: float, zero_point: int) -> npt.NDArray[Any]:
    exact = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    return scale * (exact - zero_point) if scale else exact
