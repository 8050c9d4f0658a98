"""The command line that every benchmark has, and the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table


def main(run: Callable[[bool], dict[str, Any]], table: Callable[[dict[str, Any]], Table]) -> None:
    """Run one benchmark by the process's arguments: [--quick] [--json FILE]."""

    @click.command()
    @click.option("--quick", is_flag=True, help="Fewer models, shapes and rounds.")
    @click.option("--json", "path", type=click.Path(path_type=Path), help="Write figures there.")
    def command(quick: bool, path: Path | None) -> None:
        document = run(quick)
        if path:
            path.write_text(json.dumps(document, indent=2) + "\n")
        Console().print(table(document))

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    command()


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("tensorflow", "keras", "numpy")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
