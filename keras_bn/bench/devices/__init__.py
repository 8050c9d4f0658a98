"""Where models are measured: one file a kind of device.

Each has `run(request) -> dict`, which runs `runner.py` there and returns the document that the
runner printed, or raises `DeviceError` with what the device said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_bn.bench.devices import host
from keras_bn.bench.request import Request

DEVICES = {"host": host.run}


def resolve(device: str) -> Callable[[Request], dict[str, Any]]:
    """The function that measures on `device`.

    Raises:
        ValueError: no such device in this version.

    Example:
        >>> resolve("host") is host.run
        True
    """
    if device in DEVICES:
        return DEVICES[device]
    raise ValueError(
        f"No device {device!r} in this version of keras-bn, which measures on: "
        f"{', '.join(map(repr, DEVICES))}. To measure on a Linux board, copy keras_bn/bench/"
        "runner.py and the models there and run it: it needs numpy and ai-edge-litert only."
    )
