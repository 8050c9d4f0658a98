"""One child process, followed to its end: what it printed, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from keras_bn.bench.request import Progress
from keras_bn.errors import DeviceError

PROGRESS = "@progress "
# The end of what a child printed holds the reason it died; the rest is start-up chatter.
LINES_KEPT = 20
LINE_BYTES = 4096
READ_BYTES = 65536
# Far above what a run prints, far below what would hurt: a device can send anything.
ANSWER_BYTES = 64 * 2**20
# How often to look whether a child that closed its standard output has ended.
ENDED_EVERY_S = 0.2


@dataclass(frozen=True)
class Ended:
    """A child process that ended by itself.

    Attributes:
        status: Its exit status; below zero, the signal that killed it.
        stdout: All that it wrote to standard output.
        lines: The last lines of its standard error, without those that `on_line` took.
    """

    status: int
    stdout: bytes
    lines: tuple[str, ...]

    @property
    def printed(self) -> str:
        """Its last words, to be appended to a message."""
        return quoted(self.lines)


def follow(
    command: Sequence[str],
    *,
    name: str,
    timeout_s: float,
    stdin: Iterable[bytes] | None = None,
    on_line: Callable[[str], bool] = lambda line: False,
    advice: str = "",
    answer_bytes: int = ANSWER_BYTES,
) -> Ended:
    """Run `command` to its end in a process group of its own.

    However this function is left, also by Ctrl-C, no process of the group is.

    Args:
        command: Program and arguments.
        name: What messages call it, as the subject of a sentence.
        timeout_s: It is stopped when it neither read, printed nor ended for so long.
        stdin: What to send once the child has printed something, and then end: what it printed
            tells a device that was never reached from one that was lost on the way. None keeps
            standard input open, and silent, until the child ends: a child that watches it ends
            however this process dies.
        on_line: Called with each line of standard error; True keeps it out of the words that
            errors quote.
        advice: What to try when it was silent.
        answer_bytes: The most that it may write to standard output.

    Raises:
        DeviceError: it cannot be started, was silent for `timeout_s`, or wrote too much.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(f"Cannot run {command[0]}: {error.strerror}.") from None
    assert child.stdin and child.stdout and child.stderr  # all three are pipes
    answer = bytearray()
    lines: deque[str] = deque(maxlen=LINES_KEPT)
    try:
        for event, data in _events(child, stdin, timeout_s):
            if event == "silence":
                raise DeviceError(
                    f"{name} was silent for {timeout_s:g} s and was stopped.{advice}{quoted(lines)}"
                )
            if event == "answer":
                answer += data
                if len(answer) > answer_bytes:
                    raise DeviceError(
                        f"{name} sent more than {answer_bytes} bytes and was stopped."
                    )
            elif not on_line(line := printable(data)):
                lines.append(line)
        child.wait(timeout=timeout_s)
    except BaseException as error:  # Ctrl-C as well: nothing is left running
        # Until it has been waited for, the child's group exists under its number; macOS refuses
        # signals to a group of which only ended processes are left.
        if child.returncode is None:
            with contextlib.suppress(PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        if isinstance(error, subprocess.TimeoutExpired):
            raise DeviceError(
                f"{name} did not end within {timeout_s:g} s of its last output and was stopped."
            ) from None
        raise
    finally:
        child.wait()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        child.stderr.close()
    return Ended(child.returncode, bytes(answer), tuple(lines))


def progress_lines(progress: Progress | None) -> Callable[[str], bool]:
    """An `on_line` that reports the runner's lines of progress."""

    def on_line(line: str) -> bool:
        if not line.startswith(PROGRESS):
            return False
        try:
            step = json.loads(line[len(PROGRESS) :])
            done, total, what = int(step["done"]), int(step["total"]), str(step["what"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            # Cut short, or not the runner's.
            return False
        if progress is not None:
            progress(done, total, printable(what))
        return True

    return on_line


def signal_name(number: int) -> str:
    """ "SIGILL" for 4, and so on; numbers without a name stay numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def quoted(lines: Iterable[str]) -> str:
    """What was printed, to be appended to a message; nothing for nothing."""
    text = os.linesep.join(lines).strip()
    return f" It printed:\n{text}" if text else ""


def printable(text: bytes | str) -> str:
    """`text` without what would move a terminal's cursor, change its colours, or worse.

    Example:
        >>> printable(b"done \\x1b[31mred")
        'done �[31mred'
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return "".join(
        letter if letter.isprintable() or letter == "\t" else "\N{REPLACEMENT CHARACTER}"
        for letter in text.rstrip()
    )


def _events(
    child: subprocess.Popen[bytes], stdin: Iterable[bytes] | None, timeout_s: float
) -> Iterator[tuple[str, bytes]]:
    """("answer", bytes of stdout), ("line", of stderr), ("silence", b"") until both are closed."""
    assert child.stdin and child.stdout and child.stderr
    pending = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        outgoing = None if stdin is None else _Outgoing(child.stdin, iter(stdin))
        silent = True
        waited_s = 0.0
        while reading := {key.fileobj for key in selector.get_map().values()} - {child.stdin}:
            # A child's own child may keep standard error open after it: a shared ssh connection.
            step_s = timeout_s if child.stdout in reading else min(ENDED_EVERY_S, timeout_s)
            ready = selector.select(step_s)
            if not ready:
                if child.stdout not in reading and child.poll() is not None:
                    break
                waited_s += step_s
                if waited_s >= timeout_s:
                    yield "silence", b""
                continue
            waited_s = 0.0
            for key, _ in ready:
                if key.fileobj is child.stdin:
                    if outgoing is not None and not outgoing.send():
                        selector.unregister(child.stdin)
                        child.stdin.close()
                    continue
                data = os.read(key.fd, READ_BYTES)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    if silent and outgoing is not None:
                        selector.register(child.stdin, selectors.EVENT_WRITE)
                    silent = False
                    yield "answer", data
                else:
                    pending += data
                    *lines, pending = pending.split(b"\n")
                    if len(pending) > LINE_BYTES:
                        lines, pending = [*lines, pending], bytearray()
                    for line in lines:
                        yield "line", bytes(line[:LINE_BYTES])
    if pending:
        yield "line", bytes(pending)


class _Outgoing:
    """Chunks on their way into a pipe that takes a part of one at a time."""

    def __init__(self, pipe: IO[bytes], chunks: Iterator[bytes]) -> None:
        self.pipe = pipe
        self.chunks = chunks
        self.rest = memoryview(b"")
        os.set_blocking(pipe.fileno(), False)

    def send(self) -> bool:
        """Send what the pipe takes; False when all is sent or nobody reads it any more."""
        try:
            while not self.rest:
                self.rest = memoryview(next(self.chunks))
            self.rest = self.rest[os.write(self.pipe.fileno(), self.rest) :]
        except BlockingIOError:
            return True
        except (StopIteration, BrokenPipeError):
            return False
        return True
