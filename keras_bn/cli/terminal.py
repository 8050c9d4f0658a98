"""What a command prints, and what it keeps from being printed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Report = Callable[[str], None]
Advance = Callable[[int, int, str], None]


class Terminal:
    """Standard output and error for one command, with everybody else's chatter kept off them.

    TensorFlow, Keras and their C++ libraries write where and when they like. While the terminal
    is open, the process's own streams lead nowhere (with `verbose`, to standard error), and the
    command prints through copies of them.

    Attributes:
        json: Whether standard output is for one JSON document, and tables go to standard error.
        verbose: Whether the libraries' chatter is let through to standard error.
    """

    def __init__(self, *, json: bool, verbose: bool) -> None:
        self.json = json
        self.verbose = verbose

    def __enter__(self) -> Terminal:
        from rich.console import Console

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if self.verbose else "3")
        os.environ["KERAS_BACKEND"] = "tensorflow"  # the one that LiteRT conversion starts from
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        self._out, self._err = (
            # What is printed holds file names and devices' words: no markup.
            Console(file=open(copy, "w", closefd=False), highlight=False, markup=False)  # noqa: SIM115
            for copy in self._saved
        )
        if self.verbose:
            os.dup2(2, 1)
        else:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            for chatter in (sys.stdout, sys.stderr):
                with contextlib.suppress(ValueError, OSError):
                    chatter.flush()
            for console in (self._err, self._out):
                with contextlib.suppress(BrokenPipeError):
                    console.file.flush()
        finally:
            for stream, saved in zip((1, 2), self._saved, strict=True):
                os.dup2(saved, stream)
                os.close(saved)

    @property
    def _tables(self) -> Console:
        return self._err if self.json else self._out

    def print(self, *renderables: RenderableType) -> None:
        """Show text or tables to a reader."""
        for renderable in renderables:
            self._tables.print(renderable)

    def emit(self, document: Mapping[str, Any]) -> None:
        """Write `document` to standard output if JSON was asked for."""
        if self.json:
            self._out.file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
            self._out.file.flush()

    @contextlib.contextmanager
    def steps(self) -> Iterator[Report]:
        """A spinner on standard error that names the step being done, if it is a terminal."""
        from rich.text import Text

        with self._err.status("starting") as status:
            yield lambda words: status.update(Text(words))

    @contextlib.contextmanager
    def bar(self, description: str) -> Iterator[Advance]:
        """A progress bar on standard error, if it is a terminal, called with (done, all, what)."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        what = TextColumn("{task.description}", markup=False)
        columns = what, BarColumn(), MofNCompleteColumn()
        quiet = not self._err.is_terminal
        with Progress(*columns, console=self._err, transient=True, disable=quiet) as progress:
            task = progress.add_task(description, total=None)

            def advance(done: int, total: int, what: str) -> None:
                progress.update(task, completed=done, total=total, description=what)

            yield advance


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--json and --verbose."""
    function = click.option(
        "--verbose", is_flag=True, help="Let TensorFlow's and Keras's messages through."
    )(function)
    return click.option(
        "--json", "as_json", is_flag=True, help="Write one JSON document to standard output."
    )(function)
