"""The command `keras-bn`, also `python -m keras_bn`."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import traceback
from typing import NoReturn

import click

from keras_bn.cli import cli
from keras_bn.errors import ComparisonError, DeviceError

# Exit codes: 0 done, 1 the result falls short of what was asked, 2 bad usage or bad input,
# 3 a device failed; 130 is what a shell reports for a program ended by Ctrl-C.
FALLS_SHORT, BAD_INPUT, DEVICE_FAILED, INTERRUPTED = 1, 2, 3, 130


def main(command: click.Command = cli) -> NoReturn:
    """Run `command` on the process's arguments and end the process as `run` says.

    The process ends without the interpreter's own tidying, in which TensorFlow spends seconds,
    Ctrl-C would kill a command whose work is done, and an interrupt that once passed through
    `exec` (an import has many) would replace the exit code by a death by SIGINT.
    """
    try:
        run(command)
    except SystemExit as end:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        atexit._run_exitfuncs()  # temporary folders are removed there
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
                stream.flush()
        os._exit(int(end.code or 0))


def run(command: click.Command) -> NoReturn:
    """Run `command` on the process's arguments and exit; no traceback for a user's mistake.

    Raises:
        SystemExit: with one of the codes above.
    """
    try:
        sys.exit(command.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        if _comes_of_interrupt(error):
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        if "--verbose" in sys.argv:
            traceback.print_exc()
        click.echo(f"keras-bn: {explain(error)}", err=True)
        sys.exit(exit_code(error))


def exit_code(error: BaseException) -> int:
    """The exit code that `error` ends the command with."""
    if isinstance(error, ComparisonError):
        return FALLS_SHORT
    if isinstance(error, DeviceError):
        return DEVICE_FAILED
    return BAD_INPUT


def _comes_of_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: a module in C that it meets while it loads fails to load."""
    while error is not None and not isinstance(error, (click.Abort, KeyboardInterrupt)):
        error = error.__cause__ or error.__context__
    return error is not None


def explain(error: BaseException) -> str:
    """`error` in one message for the terminal."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error) or f"{type(error).__name__} (run with --verbose for the traceback)"


if __name__ == "__main__":
    main()
