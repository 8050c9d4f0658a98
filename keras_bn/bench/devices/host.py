"""This machine: `runner.py` in a child process, so that a crashing model crashes only that."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO, Any

from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError

RUNNER = Path(__file__).parents[1] / "runner.py"
PROGRESS = "@progress "
# The end of what the child printed holds the reason it died; the rest is start-up chatter.
LINES_KEPT = 20


def run(request: Request) -> dict[str, Any]:
    """Measure on this machine.

    Raises:
        DeviceError: the run failed, crashed the interpreter, or was silent for
            `request.timeout_s` seconds.
    """
    command = [sys.executable, str(RUNNER), *request.arguments(request.models)]
    # A process group of its own, so that the runner and its probes can be killed as one. The
    # runner ends when the pipe to its standard input closes, which happens however this process
    # dies.
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin and child.stdout and child.stderr  # all three are pipes
    answer: list[bytes] = []
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    readers = [
        threading.Thread(target=_read_all, args=(child.stdout, answer), daemon=True),
        threading.Thread(target=_read_lines, args=(child.stderr, lines), daemon=True),
    ]
    try:
        for reader in readers:
            reader.start()
        printed = _follow(lines, request)
        child.wait(timeout=request.timeout_s)
    except BaseException as error:  # Ctrl-C as well: nothing is left running
        # Until it has been waited for, the child's group exists under its number; macOS refuses
        # signals to a group of which only ended processes are left.
        if child.returncode is None:
            with contextlib.suppress(PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        if isinstance(error, subprocess.TimeoutExpired):
            raise DeviceError(
                f"The benchmark process did not end within {request.timeout_s:g} s of its last "
                "output and was stopped."
            ) from None
        raise
    finally:
        child.wait()
        for reader in readers:
            reader.join()
        for pipe in (child.stdin, child.stdout, child.stderr):
            pipe.close()
    return _document(b"".join(answer), child.returncode, printed)


def _follow(lines: queue.SimpleQueue[str | None], request: Request) -> str:
    """Report progress until the child closes its standard error; return the end of the rest."""
    printed: deque[str] = deque(maxlen=LINES_KEPT)
    while True:
        try:
            line = lines.get(timeout=request.timeout_s)
        except queue.Empty:
            raise DeviceError(
                f"The benchmark was silent for {request.timeout_s:g} s and was stopped. A model "
                "that needs longer than that for one invoke needs a larger timeout_s; otherwise "
                f"one of {', '.join(request.models)} hangs.{_quoted(printed)}"
            ) from None
        if line is None:
            return _quoted(printed)
        if not line.startswith(PROGRESS):
            printed.append(line)
        elif request.progress is not None:
            step = json.loads(line[len(PROGRESS) :])
            request.progress(step["done"], step["total"], step["what"])


def _document(answer: bytes, status: int, printed: str) -> dict[str, Any]:
    if status < 0:
        raise DeviceError(
            f"The benchmark process was killed by {signal.Signals(-status).name}: the interpreter "
            f"crashed, or the system ran out of memory.{printed}"
        )
    try:
        document = json.loads(answer)
    except ValueError:
        raise DeviceError(
            f"The benchmark process ended with status {status} and no result.{printed}"
        ) from None
    if "error" in document:
        raise DeviceError(f"The benchmark failed: {document['error']['message']}.{printed}")
    return document


def _quoted(printed: deque[str]) -> str:
    return f" It printed:\n{os.linesep.join(printed)}" if printed else ""


def _read_all(stream: IO[bytes], into: list[bytes]) -> None:
    into.append(stream.read())


def _read_lines(stream: IO[bytes], into: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        into.put(line.decode(errors="replace").rstrip())
    into.put(None)
