"""This machine: `runner.py` in a child process, so that a crashing model crashes only that."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from keras_bn.bench import document
from keras_bn.bench.child import follow, progress_lines
from keras_bn.bench.devices import description
from keras_bn.bench.devices.description import Device
from keras_bn.bench.request import Request

RUNNER = Path(__file__).parents[1] / "runner.py"


def run(request: Request) -> dict[str, Any]:
    """Measure on this machine.

    Raises:
        DeviceError: the run failed, crashed the interpreter, or was silent for
            `request.timeout_s` seconds.
    """
    # The runner ends when the pipe to its standard input closes, which happens however this
    # process dies.
    ended = follow(
        [sys.executable, str(RUNNER), *request.arguments(request.models)],
        name="The benchmark process",
        timeout_s=request.timeout_s,
        on_line=progress_lines(request.progress),
        advice=" " + request.silence_advice,
    )
    return document.read(
        ended.stdout,
        status=ended.status,
        printed=ended.printed,
        request=request,
        names=request.models,
    )


def describe(*, timeout_s: float) -> Device:
    """What this machine is.

    Raises:
        DeviceError: it does not answer.
    """
    return description.describe(_Sh(), sys.executable, timeout_s=timeout_s)


class _Sh:
    """The shell of this machine, where nothing is ever sent to."""

    name = "host"
    folder = "/nonexistent"
    advice = "Is there a POSIX shell, sh, on the PATH?"

    def command(self, script: str) -> list[str]:
        return ["sh", "-c", script]
