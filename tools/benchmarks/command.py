"""The command line that every benchmark has, and the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

PACKAGES = ("tensorflow", "jax", "torch", "keras", "numpy")


def main(run: Callable[[bool], dict[str, Any]], table: Callable[[dict[str, Any]], Table]) -> None:
    """Run one benchmark by the process's arguments: [--quick] [--json FILE] [--markdown FILE]."""

    @click.command()
    @click.option("--quick", is_flag=True, help="Fewer models, shapes and rounds.")
    @click.option("--json", "path", type=click.Path(path_type=Path), help="Write figures there.")
    @click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there.")
    def command(quick: bool, path: Path | None, markdown: Path | None) -> None:
        for file in filter(None, (path, markdown)):
            file.parent.mkdir(parents=True, exist_ok=True)  # not found out at the end of an hour
        document = run(quick)
        if path:
            path.write_text(json.dumps(document, indent=2) + "\n")
        if markdown:
            markdown.write_text(as_markdown(table(document), document["machine"]))
        Console().print(table(document))

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    command()


def as_markdown(table: Table, machine: dict[str, Any]) -> str:
    """A page of the table, its caption and the machine."""
    rows = [
        [str(column.header) for column in table.columns],
        ["---:" if column.justify == "right" else "---" for column in table.columns],
        *zip(*(column.cells for column in table.columns), strict=True),
    ]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    measured = "Measured on " + ", ".join(f"{name} {value}" for name, value in machine.items())
    texts = [*str(table.caption or "").split("\n\n"), f"{measured}."]
    parts = [f"# {table.title}", "\n".join(lines), *(textwrap.fill(text, 100) for text in texts)]
    return "\n\n".join(filter(None, parts)) + "\n"


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES if find_spec(package)},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
