"""What an Android phone is, and in what state: asked by small scripts in its own shell.

The names and units are those of `runner.py`, which tells the same of computers with Python.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from typing import Any

from keras_bn.bench.child import printable
from keras_bn.bench.devices import shell as shells
from keras_bn.bench.devices.shell import Shell
from keras_bn.errors import DeviceError

# What a zone tells beyond these is a sensor that is switched off, or not a temperature.
COLDEST_C, HOTTEST_C = -40.0, 150.0

PROPERTIES = (
    "ro.product.manufacturer ro.product.model ro.product.cpu.abilist ro.product.cpu.abi "
    "ro.build.version.release ro.soc.manufacturer ro.soc.model ro.board.platform"
)
# What a user may not read is left out, as SELinux has it on many phones.
FACTS = f"""exec 2>/dev/null
for name in {PROPERTIES}; do echo "$name=$(getprop $name)"; done
echo "kernel=$(uname -sr)"
echo "cpus=$(nproc)"
sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/memory_kb=\\1/p' /proc/meminfo
sed -n 's/^Hardware[^:]*: */hardware=/p' /proc/cpuinfo
true"""
# Builtins alone: a phone has dozens of zones, and starting a program for each takes a second.
CONDITIONS = """exec 2>/dev/null
read -r load others </proc/loadavg && echo "load $load"
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
read -r value <$cpu/cpufreq/scaling_governor && echo "governor $value"
read -r value <$cpu/cpufreq/scaling_cur_freq && echo "khz $value"
done
for zone in /sys/class/thermal/thermal_zone*; do
kind=; read -r kind <$zone/type
read -r value <$zone/temp && echo "zone ${zone##*/} $value $kind"
done
true"""


def facts(shell: Shell, timeout_s: float) -> dict[str, Any]:
    """What does not change: system, abis, board, cpu, cpus, memory_bytes.

    Raises:
        DeviceError: the device is out of reach, or is not an Android device.
    """
    text = shells.run(shell, FACTS, timeout_s=timeout_s, doing="asking what it is")
    told: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        told.setdefault(name, printable(value.strip()))

    def first(*names: str) -> str:
        return next(filter(None, (told.get(name, "") for name in names)), "")

    def joined(*names: str) -> str:
        return " ".join(filter(None, (told.get(name, "") for name in names)))

    abis = first("ro.product.cpu.abilist", "ro.product.cpu.abi")
    if not abis:
        raise DeviceError(
            f"{shell.name} does not tell which programs it runs (ro.product.cpu.abilist): it is "
            "not an Android device. A benchmark_model is for those; Linux boards are measured "
            "with Python."
        )
    release = told.get("ro.build.version.release", "")
    system = f"Android {release}" if release else "Android"
    return {
        "system": f"{system} ({told['kernel']})" if told.get("kernel") else system,
        "abis": abis,
        "board": joined("ro.product.manufacturer", "ro.product.model") or None,
        "cpu": joined("ro.soc.manufacturer", "ro.soc.model")
        or first("hardware", "ro.board.platform")
        or abis.partition(",")[0],
        "cpus": max(1, _whole(told.get("cpus")) or 1),
        "memory_bytes": 1024 * (_whole(told.get("memory_kb")) or 0) or None,
    }


def conditions(shell: Shell, timeout_s: float) -> dict[str, Any]:
    """What may change, in the runner's fields; None or empty where the device does not tell."""
    text = shells.run(shell, CONDITIONS, timeout_s=timeout_s, doing="asking for its temperature")
    load: float | None = None
    governors: set[str] = set()
    mhz: list[float] = []
    zones: dict[str, float] = {}
    for line in map(printable, text.splitlines()):
        match line.split(maxsplit=3):
            case ["load", value] if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
                load = float(value)
            case ["governor", value]:
                governors.add(value)
            case ["khz", value] if (khz := _whole(value)) is not None:
                mhz.append(khz / 1000)
            case ["zone", zone, value, *kind] if re.fullmatch(r"-?\d{1,9}", value):
                zones[f"{zone} ({' '.join(kind) or 'unknown'})"] = int(value) / 1000
    return {
        "load_average": load,
        "governor": ", ".join(sorted(governors)) or None,
        "frequency_mhz": round(statistics.fmean(mhz), 1) if mhz else None,
        "temperature_c": _hottest(zones),
        "temperature_by_zone_c": zones,
    }


def _hottest(zones: Mapping[str, float]) -> float | None:
    """Of the CPU's zones, if any is called so: a phone tells of its battery and modem as well."""
    plausible = {name: value for name, value in zones.items() if COLDEST_C < value < HOTTEST_C}
    of_cpu = [value for name, value in plausible.items() if "cpu" in name.lower()]
    return max(of_cpu or plausible.values(), default=None)


def _whole(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"\d{1,15}", value) else None
