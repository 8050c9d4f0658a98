"""Where models are measured: one file a kind of device.

Each has `run`, which runs `runner.py` there (on Android also LiteRT's benchmark_model) and returns
the document that it printed, or raises `DeviceError` with what the device said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from keras_bn.bench.devices import adb, host, ssh
from keras_bn.bench.devices.description import Device
from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError

# Listing devices is not measuring: one that does not answer soon is told of as that.
ANSWER_WITHIN_S = 30.0


def resolve(device: str) -> Callable[[Request], dict[str, Any]]:
    """The function that measures on `device`.

    Raises:
        ValueError: there is no such kind of device, or its name is not well-formed.

    Example:
        >>> resolve("host") is host.run
        True
    """
    if device == "host":
        return host.run
    if device.startswith(ssh.PREFIX):
        ssh.Ssh.parse(device)
        return partial(ssh.run, device)
    if device == adb.PREFIX or device.startswith(f"{adb.PREFIX}:"):
        adb.parse(device)
        return partial(adb.run, device)
    if device == "tflm":
        raise ValueError(
            "Nothing is timed on TensorFlow Lite Micro: keras_bn.bench.micro.examine(paths) tells "
            "whether it runs a model, and in how much memory."
        )
    raise ValueError(
        f"Expected a device: host, ssh://user@host, adb or adb:SERIAL; received {device!r}. "
        "`keras-bn devices` lists what is there."
    )


def discover(devices: Iterable[str] = (), *, python: str | None = None) -> list[Device]:
    """What each of `devices` is; without any, the host and every Android device that adb sees.

    Args:
        devices: As for `benchmark`.
        python: The Python to look for on devices other than the host.

    Raises:
        ValueError: there is no such kind of device, or its name is not well-formed.
    """
    names = list(devices)
    for name in names:
        resolve(name)
    if not names:
        try:
            names = ["host", *(f"{adb.PREFIX}:{each.serial}" for each in adb.attached())]
        except DeviceError as error:
            return [_described("host", None), Device(adb.PREFIX, problem=str(error))]
    return [_described(name, python) for name in names]


def _described(name: str, python: str | None) -> Device:
    try:
        if name == "host":
            return host.describe(timeout_s=ANSWER_WITHIN_S)
        module = ssh if name.startswith(ssh.PREFIX) else adb
        return module.describe(name, python, timeout_s=ANSWER_WITHIN_S)
    except DeviceError as error:
        return Device(name, problem=str(error))
