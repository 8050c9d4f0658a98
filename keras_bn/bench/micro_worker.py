"""The processes that `micro` starts: one for LiteRT, one for TensorFlow Lite Micro (TFLM).

Each ends with one JSON document on standard output and keeps arrays in a folder of the caller's.
LiteRT's process draws the inputs, writes what it made of them, and counts the file's operations.
TFLM's process then tries the file in arenas of different sizes, each in a child of its own:
an arena that is too small makes the interpreter fail, crash, or write beside it. Forking costs
milliseconds where a new Python would cost a second. TFLM's wheels exist for Linux alone.

This is the only file that imports `tflite_micro`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_bn.bench import runner
from keras_bn.bench.child import printable, signal_name

INPUTS, REFERENCE, OUTPUTS, TRIED = "inputs.npz", "litert.npz", "tflm.npz", "tried.npz"

# Where a failure says something about the model: no microcontroller has more. The pages of an
# arena are taken when they are written to, so its size alone costs nothing.
AMPLE_BYTES = 2**28
# What TFLM's allocator aligns an arena to (MicroArenaBufferAlignment in micro_arena_constants.h).
ALIGNMENT = 16
SMALLEST_TRY_BYTES = 1024

WORDS_KEPT = 1000
# How the interpreter names the operation it stops at.
STOPPED_BY = re.compile(
    r"builtin opcode '(?P<missing>\w+)'"
    r"|registration from op code (?P<unregistered>\S+)"
    r"|Node (?P<failing>\S+) \(number \d+\) failed"
)

Arrays = list[np.ndarray]


def main(kind: str, path: str, folder: str, *options: str) -> None:
    """Do the work of `kind` on the file at `path` and exit; 1 if it cannot be done."""
    threading.Thread(target=end_with_the_caller, args=(folder,), daemon=True).start()
    stdout = runner.take_stdout()
    try:
        document = WORK[kind](path, folder, *options)
    except runner.RunError as error:
        document = {"error": str(error)}
    with stdout:
        json.dump(document, stdout)
    sys.stdout.flush()
    # Without the interpreters' destructors: nothing is left to do.
    os._exit(1 if "error" in document else 0)


def end_with_the_caller(folder: str) -> None:
    """Leave nothing when standard input closes: the caller, who holds it, was killed."""
    while os.read(0, 4096):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)  # the caller started a process group


def progress(what: str) -> None:
    """A sign of life; how much there is to do nobody knows."""
    runner.Progress(0).report(what, always=True)


# --- LiteRT ------------------------------------------------------------------------------------


def litert(path: str, folder: str, samples: str, seed: str) -> dict[str, Any]:
    """LiteRT's outputs for random inputs, which are kept for TFLM.

    The inputs follow each other in one interpreter, as in a stream: a model with a state keeps it.
    """
    from keras_bn.convert.flatbuffer import read_contents

    options = runner.parse(["--seed", seed, "--", path])
    interpreter = runner.build(path, 1, options)
    details = interpreter.get_input_details(), interpreter.get_output_details()
    rng = np.random.RandomState(int(seed))
    fed: list[list[np.ndarray]] = [[] for _ in details[0]]
    given: list[list[np.ndarray]] = [[] for _ in details[1]]
    for _ in range(int(samples)):
        for detail, values in zip(details[0], fed, strict=True):
            values.append(runner.random_input(detail, path, rng))
            interpreter.set_tensor(detail["index"], values[-1])
        runner.invoke(interpreter, path)
        for detail, values in zip(details[1], given, strict=True):
            values.append(interpreter.get_tensor(detail["index"]))
        progress("ran in LiteRT")
    save(Path(folder, INPUTS), [np.stack(values) for values in fed])
    save(Path(folder, REFERENCE), [np.stack(values) for values in given])
    return {
        "interpreter": runner.runtime(),
        "ops": dict(read_contents(Path(path).read_bytes()).ops.most_common()),
        "outputs": [
            {
                "name": str(detail["name"]),
                "scale": float(detail["quantization"][0]),
                "zero_point": int(detail["quantization"][1]),
            }
            for detail in details[1]
        ],
    }


# --- TensorFlow Lite Micro ---------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A run in one arena. `outputs` are None if it failed; `words` say why."""

    outputs: Arrays | None
    words: str = ""


def tflm(path: str, folder: str, timeout_s: str) -> dict[str, Any]:
    """Whether TFLM runs the inputs in `folder`, and in how small an arena."""
    import tflite_micro

    model, inputs = Path(path).read_bytes(), load(Path(folder, INPUTS))
    reference = load(Path(folder, REFERENCE))

    def work(arena_bytes: int, samples: int) -> Arrays:
        interpreter = tflite_micro.runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
        return run(interpreter, inputs, samples, len(reference))

    def attempt(arena_bytes: int, samples: int) -> Attempt:
        progress(f"trying an arena of {arena_bytes} bytes")
        return in_a_child(lambda: work(arena_bytes, samples), Path(folder, TRIED), float(timeout_s))

    ample = attempt(AMPLE_BYTES, len(reference[0]))
    found: dict[str, Any] = {
        "interpreter": f"tflite-micro {tflite_micro.__version__}",
        "reason": ample.words or None,
        "stopped_by": operation_in(ample.words),
        "arena_bytes": None,
    }
    if ample.outputs is None:
        return found
    shapes = [[values.shape[1:] for values in outputs] for outputs in (ample.outputs, reference)]
    if shapes[0] != shapes[1]:
        return found | {"reason": "its outputs have shapes {}, LiteRT's {}".format(*shapes)}
    save(Path(folder, OUTPUTS), ample.outputs)
    expected = [values[:1].tobytes() for values in ample.outputs]

    def holds(arena_bytes: int) -> bool:
        outputs = attempt(arena_bytes, 1).outputs
        return outputs is not None and [values.tobytes() for values in outputs] == expected

    return found | {"arena_bytes": smallest(holds)}


def smallest(holds: Callable[[int], bool]) -> int:
    """The smallest multiple of ALIGNMENT, up to AMPLE_BYTES, that `holds`; AMPLE_BYTES does.

    It doubles until the arena holds, then halves the interval, so most failures, which are quick,
    come before the successes. What comes out was tried and held; ALIGNMENT less was tried and
    failed.
    """
    fails, enough = 0, SMALLEST_TRY_BYTES
    while enough < AMPLE_BYTES and not holds(enough):
        fails, enough = enough, enough * 2
    while enough - fails > ALIGNMENT:
        middle = (fails + enough) // 2 // ALIGNMENT * ALIGNMENT
        if holds(middle):
            enough = middle
        else:
            fails = middle
    return enough


def run(interpreter: Any, inputs: Arrays, samples: int, outputs: int) -> Arrays:
    """The outputs for the first `samples` inputs, which follow each other in one interpreter."""
    given: list[list[np.ndarray]] = [[] for _ in range(outputs)]
    for sample in range(samples):
        for index, values in enumerate(inputs):
            interpreter.set_input(values[sample], index)
        interpreter.invoke()
        for index, results in enumerate(given):
            results.append(interpreter.get_output(index))
    return [np.stack(results) for results in given]


def in_a_child(work: Callable[[], Arrays], path: Path, timeout_s: float) -> Attempt:
    """`work` in a forked process, which writes its arrays to `path`."""
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                signal.setitimer(signal.ITIMER_REAL, timeout_s)  # its signal ends the process
                save(path, work())
                status = 0
            except BaseException as error:
                os.write(2, f"\n{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return Attempt(load(path))
        printed.seek(0)
        words = condensed(printed.read().decode(errors="replace"))
    if status == -signal.SIGALRM:
        words = f"{words}; no answer within {timeout_s:g} s".lstrip("; ")
    elif status < 0:
        words = f"{words}; the interpreter crashed ({signal_name(-status)})".lstrip("; ")
    return Attempt(None, words)


def condensed(printed: str) -> str:
    """What the interpreter printed, in one line: each of its lines once, the first ones kept.

    Example:
        >>> condensed("Didn't find op\\n \\nRuntimeError: TFLM failed to allocate tensors\\n")
        "Didn't find op; RuntimeError: TFLM failed to allocate tensors"
    """
    lines = dict.fromkeys(filter(None, (printable(line).strip() for line in printed.splitlines())))
    text = "; ".join(lines)
    return text if len(text) <= WORDS_KEPT else text[:WORDS_KEPT] + " …"


def operation_in(words: str) -> str | None:
    """The operation that the interpreter names as the one it stops at.

    Example:
        >>> operation_in("Node DEQUANTIZE (number 0) failed to prepare with status 1")
        'DEQUANTIZE'
    """
    found = STOPPED_BY.search(words)
    return next(filter(None, found.groups())) if found else None


WORK: dict[str, Callable[..., dict[str, Any]]] = {"litert": litert, "tflm": tflm}

# --- Files -------------------------------------------------------------------------------------


def save(path: Path, arrays: Sequence[np.ndarray]) -> None:
    np.savez(path, *arrays)


def load(path: Path) -> Arrays:
    with np.load(path) as file:
        return [file[f"arr_{index}"] for index in range(len(file))]
