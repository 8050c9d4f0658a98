"""What a device is, as far as it tells without anything being sent there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras_bn.bench.child import printable
from keras_bn.bench.devices.shell import NoPythonError, Shell, find_python, run

# In the runner's words: these are the facts that a benchmark reports of its machine. Tools that are
# missing leave their line empty.
FACTS = """echo "system=$(uname -sr)"
echo "architecture=$(uname -m)"
echo "cpus=$(nproc || getconf _NPROCESSORS_ONLN)"
echo "memory_kb=$(while read -r name value unit; do
[ "$name" = MemTotal: ] && echo "$value"; done </proc/meminfo)"
echo "memory_bytes=$(sysctl -n hw.memsize)"
echo "board=$(cat /proc/device-tree/model)"
for key in "model name" Hardware Model; do
echo "cpu=$(grep -m 1 "^$key[^a-z]*:" /proc/cpuinfo | cut -d : -f 2-)"
done
echo "cpu=$(sysctl -n machdep.cpu.brand_string)"
"""


@dataclass(frozen=True)
class Device:
    """One device. What it does not tell is None.

    Attributes:
        device: Its name for `benchmark`: "host", "ssh://…" or "adb:…".
        system: Operating system and release.
        architecture: e.g. "aarch64".
        board: Model of the board, phone or computer.
        cpu, cpus: Model and number of its CPUs.
        memory_bytes: Its memory.
        runtime: What would measure there, e.g. "ai_edge_litert 2.3.0, Python 3.11.2 in /usr/bin".
        problem: Why it cannot be measured on, or what is still needed; None if nothing is.
    """

    device: str
    system: str | None = None
    architecture: str | None = None
    board: str | None = None
    cpu: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    runtime: str | None = None
    problem: str | None = None


def describe(shell: Shell, python: str | None, *, timeout_s: float) -> Device:
    """The Linux or macOS computer behind `shell`.

    Raises:
        DeviceError: it is out of reach.
    """
    text = run(shell, f"({FACTS}) 2>/dev/null", timeout_s=timeout_s, doing="asking what it is")
    told: dict[str, str] = {}
    for line in text.replace("\0", "").splitlines():
        name, _, value = printable(line).partition("=")
        if value.strip():
            told.setdefault(name, value.strip())
    found: dict[str, Any] = {
        name: told.get(name) for name in ("system", "architecture", "board", "cpu")
    }
    memory_kb = _whole(told.get("memory_kb"))
    found["memory_bytes"] = (
        _whole(told.get("memory_bytes")) if memory_kb is None else 1024 * memory_kb
    )
    found["cpus"] = _whole(told.get("cpus"))
    try:
        usable = find_python(shell, python, timeout_s=timeout_s)
    except NoPythonError as error:
        return Device(shell.name, **found, problem=str(error))
    return Device(shell.name, **found, runtime=str(usable))


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) <= 18 else None
