"""An Android device, by the system's `adb`: "adb:SERIAL", or "adb" for the only one there is.

The client is the `adb` of the PATH; its server, keys and environment variables (ANDROID_SERIAL and
others) hold as they do for the user. Nothing here speaks adb's protocol, or starts or stops a
server other than as the client does by itself.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_bn.bench.child import follow, printable
from keras_bn.bench.devices import android, benchmark_model, shell
from keras_bn.bench.devices.description import Device
from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError

PREFIX = "adb"
# The client starts its server when there is none, which takes a second or two.
CLIENT_TIMEOUT_S = 20.0
# A serial number, HOST:PORT, or a name that was found in the local network; never an option.
SERIAL = re.compile(r"[A-Za-z0-9._\[][A-Za-z0-9._:%@()\[\]-]{0,127}")
# The shell's exit status, its standard error, and binary standard input: Android 7.
NEEDED_FEATURE = "shell_v2"

STATES = {
    "unauthorized": "unlock it and allow USB debugging in the dialog that it shows; if it shows "
    "none, tap Developer options > Revoke USB debugging authorizations and plug it in again",
    "authorizing": "unlock it and allow USB debugging in the dialog that it shows",
    "offline": "plug it in again, or `adb reconnect offline`, or `adb connect HOST:PORT` for one "
    "in the network",
    "no permissions": "this user may not use the USB device: on Debian and Ubuntu, "
    "sudo apt install android-sdk-platform-tools-common, then log in again with the group plugdev",
    "recovery": "it is in recovery mode; restart it",
    "sideload": "it is in recovery mode; restart it",
    "bootloader": "it is in its bootloader; restart it",
}

INSTALL = (
    "adb is not installed, or not on the PATH. Debian and Ubuntu: sudo apt install adb; macOS: "
    "brew install --cask android-platform-tools; elsewhere: "
    "https://developer.android.com/tools/releases/platform-tools"
)

NO_PYTHON = (
    "Android has no Python of its own. There are two ways:\n"
    "- Pass a benchmark_model for the device: --benchmark-binary (benchmark_binary=). Build it "
    "from the sources of LiteRT, github.com/google-ai-edge/LiteRT, with the Android NDK, as "
    "https://ai.google.dev/edge/litert/models/measurement says:\n"
    "    bazel build -c opt --config=android_arm64 //tflite/tools/benchmark:benchmark_model\n"
    "- Install Termux on the device, and there OpenSSH and a Python with numpy and an interpreter; "
    "start sshd and measure on ssh://DEVICE:8022."
)


@dataclass(frozen=True)
class Attached:
    """A device that adb knows of.

    Attributes:
        serial: Its serial number, or HOST:PORT.
        state: "device" if it can be used; otherwise "unauthorized", "offline", ...
        model: Its model, where adb tells; "" otherwise.
    """

    serial: str
    state: str
    model: str

    @classmethod
    def parse(cls, line: str) -> Attached:
        """One line of `adb devices -l`.

        Example:
            >>> Attached.parse("0a388e93   device usb:1-1 product:panther model:Pixel_7")
            Attached(serial='0a388e93', state='device', model='Pixel 7')
        """
        serial, *words = printable(line).split()
        # The only state of two words; what follows explains it.
        state = "no permissions" if words[:2] == ["no", "permissions"] else " ".join(words[:1])
        described = dict(word.partition(":")[::2] for word in words[1:])
        return cls(serial, state or "unknown", described.get("model", "").replace("_", " "))

    def __str__(self) -> str:
        advice = STATES.get(self.state)
        model = f" ({self.model})" if self.model else ""
        return f"{self.serial}{model}: {self.state}" + (f"; {advice}" if advice else "")


@dataclass(frozen=True)
class Adb:
    """The way to one Android device, a `shell.Shell`."""

    serial: str
    folder: str = "/data/local/tmp/keras-bn"
    advice: str = "See `adb devices`: its state has to be `device`."

    @property
    def name(self) -> str:
        return f"adb:{self.serial}"

    def command(self, script: str) -> list[str]:
        # -T: no terminal, which would turn Ctrl-C and line ends in data into something else.
        return [_client(), "-s", self.serial, "shell", "-T", script]


def run(name: str, request: Request) -> dict[str, Any]:
    """Measure on the device of that name, by `benchmark_model` if the request has one.

    Raises:
        ValueError: `request.benchmark_binary` is not a program.
        DeviceError: adb is missing, there is no such device or it cannot be used, or the run
            failed.
    """
    device = find(parse(name))
    if request.benchmark_binary is not None:
        return benchmark_model.measure(device, request)
    try:
        python = shell.find_python(device, request.python, timeout_s=request.timeout_s)
    except shell.NoPythonError as error:
        raise DeviceError(f"{error}\n{NO_PYTHON}") from None
    return shell.measure(device, request, python)


def describe(name: str, python: str | None, *, timeout_s: float) -> Device:
    """What the device of that name is.

    Raises:
        DeviceError: adb is missing, or there is no such device or it cannot be used.
    """
    device = find(parse(name))
    facts = android.facts(device, timeout_s)
    abi = facts.pop("abis").partition(",")[0]
    try:
        runtime = str(shell.find_python(device, python, timeout_s=timeout_s))
    except shell.NoPythonError:
        runtime = f"a benchmark_model for {abi} (--benchmark-binary)"
    return Device(device.name, architecture=abi, runtime=runtime, **facts)


def parse(name: str) -> str | None:
    """The serial number in a device's name; None for the only device there is.

    Raises:
        ValueError: it is neither "adb" nor "adb:SERIAL".

    Example:
        >>> parse("adb:192.168.0.7:5555")
        '192.168.0.7:5555'
    """
    serial = None if name == PREFIX else name.removeprefix(f"{PREFIX}:")
    if serial is not None and (serial == name or not SERIAL.fullmatch(serial)):
        raise ValueError(
            f"Expected adb, or adb:SERIAL with a serial number or HOST:PORT as `adb devices` "
            f"lists them, received {name!r}."
        )
    return serial


def find(serial: str | None) -> Adb:
    """The device with this serial number, or $ANDROID_SERIAL's, or the only one that can be used.

    Raises:
        DeviceError: adb is missing, or there is not one such device.
    """
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    known = attached()
    usable = [each for each in known if each.state == "device"]
    wanted = usable if serial is None else [each for each in usable if each.serial == serial]
    if len(wanted) != 1:
        raise DeviceError(_not_one(serial, known, usable))
    device = Adb(wanted[0].serial)
    features = _run("-s", device.serial, "features").split()
    if NEEDED_FEATURE not in features:
        raise DeviceError(
            f"{device.name} does not tell exit statuses ({NEEDED_FEATURE} is not among its "
            "features): Android 7 or newer is needed."
        )
    return device


def attached() -> list[Attached]:
    """The devices that adb knows of, in whatever state.

    Raises:
        DeviceError: adb is missing, or does not answer.
    """
    _, _, table = _run("devices", "-l").partition("List of devices attached")
    return [Attached.parse(line) for line in table.splitlines() if line.strip()]


def _not_one(serial: str | None, known: Sequence[Attached], usable: Sequence[Attached]) -> str:
    there = "".join(f"\n  {each}" for each in known)
    if serial is None and usable:
        which = " or ".join(f"adb:{each.serial}" for each in usable)
        return f"Several Android devices are there; say which one you mean: {which}.{there}"
    if not there:
        return (
            "adb sees no device. Plug one in, with Developer options > USB debugging switched on, "
            "or `adb connect HOST:PORT` one in the network."
        )
    if serial is None:
        return f"No Android device can be used. adb sees:{there}"
    for each in known:
        if each.serial == serial:
            return f"The Android device cannot be used: {each}."
    return f"The Android device {serial} is not there. adb sees:{there}"


def _client() -> str:
    found = shutil.which("adb")
    if found is None:
        raise DeviceError(INSTALL)
    return found


def _run(*arguments: str) -> str:
    """What the client prints for `arguments`.

    Raises:
        DeviceError: it is missing, fails, or does not answer in time.
    """
    ended = follow([_client(), *arguments], name="adb", timeout_s=CLIENT_TIMEOUT_S)
    if ended.status:
        raise DeviceError(f"`adb {arguments[-1]}` failed.{ended.printed}")
    return ended.stdout.decode(errors="replace")
