"""Every benchmark, one after the other: `make bench`, or python -m tools.benchmarks [--quick]."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

BENCHMARKS = (
    "batch_norm_step",
    "batch_norm_limits",
    "training_memory",
    "recurrent_step",
    "update_bn",
    "monitor",
    "fold_time",
    "fold_graphs",
    "fold_streams",
    "fold_layer_norm",
    "fold_zoo",
    "conversion",
)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer models, shapes and rounds.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("benchmarks.json"),
    show_default=True,
    help="All figures.",
)
def main(quick: bool, output: Path) -> None:
    """Run every benchmark in a process of its own, print its table, keep all figures."""
    documents = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in BENCHMARKS:
            path = Path(folder, f"{name}.json")
            arguments = ["--json", str(path), *(["--quick"] if quick else [])]
            subprocess.run(
                [sys.executable, "-m", f"tools.benchmarks.{name}", *arguments],
                check=True,
            )
            documents[name] = json.loads(path.read_text())
    output.write_text(json.dumps(documents, indent=2) + "\n")
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
