"""A stand-in for an Android device, which the real `adb` client talks to over TCP.

It speaks the device's side of adb's protocol (AOSP packages/modules/adb: docs/dev/protocol.md,
shell_protocol.h) as adbd does (daemon/shell_service.cpp): standard input and output of a command
are one socket pair, so that the command ends for the client only when nobody holds them any more;
a client that goes away means SIGHUP for the command, and the end of its input, and no more.

The device's files lie in a folder of this machine. Absolute paths in commands that lead to
/data/local/tmp, /sys and /proc are sent there; all else is this machine's, with the folder `bin` in
front of its programs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.stand_in import processes_with

CNXN, OPEN, OKAY, WRTE, CLSE, AUTH = (
    int.from_bytes(name, "little")
    for name in (b"CNXN", b"OPEN", b"OKAY", b"WRTE", b"CLSE", b"AUTH")
)
VERSION = 0x01000001  # whose packets carry no checksum
MAX_DATA = 256 * 1024
TOKEN = 1
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
MOVED = re.compile(r"(?<![\w./])/(?=(?:data/local/tmp|sys|proc)\b)")

GETPROP = """#!/bin/sh
cat "$STAND_IN/properties/$1" 2>/dev/null || echo
"""
# Once there is a file `full` only a little can still be written; the words are the system's own.
DD = """#!/bin/sh
if [ -e "$STAND_IN/full" ]; then
    {dd} "$@" bs=64 count=1
    exec {dd} "$@" of=/dev/full
fi
exec {dd} "$@"
"""


class Device:
    """One device, listening on a port of this machine while its context is open.

    Attributes:
        folder: Where its files lie.
        serial: What adb calls it once it is connected.
        authorized: Whether it accepts this machine's key.
        features: What it says that it can do.
        commands: The commands that it was given, in order.
        received_bytes: How much input all of them together were sent.
        gone_after_bytes: It goes away when a command has been sent so much input; None for never.
        gone_during: It goes away a little after a command that holds this text began.
    """

    def __init__(self, folder: Path, **properties: str) -> None:
        self.folder = folder
        self.authorized = True
        self.features = "shell_v2,cmd,stat_v2"
        self.commands: list[str] = []
        self.received_bytes = 0
        self.gone_after_bytes: int | None = None
        self.gone_during: str | None = None
        self.tmp = folder / "data" / "local" / "tmp"
        for each in (self.tmp, folder / "bin", folder / "properties", folder / "sys"):
            each.mkdir(parents=True)
        self.set_properties(**properties)
        self.program("getprop", GETPROP)
        self.program("dd", DD.format(dd=shutil.which("dd")))
        self.program("nproc", "#!/bin/sh\necho 8\n")
        self._connections: list[Connection] = []

    def program(self, name: str, text: str) -> None:
        """Put a program in front of this machine's."""
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def set_properties(self, **properties: str) -> None:
        """What getprop says; "__" in a name stands for a dot."""
        for name, value in properties.items():
            (self.folder / "properties" / name.replace("__", ".")).write_text(value + "\n")

    def file(self, path: str, text: str) -> None:
        """A file of the device, e.g. "/sys/class/thermal/thermal_zone0/temp"."""
        here = self.folder / path.lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_text(text)

    def __enter__(self) -> Device:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._accepting.join()
        self.go()
        for connection in self._connections:
            connection.join()
        for process in self.processes():  # a test that failed may have left some
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._connections.append(Connection(self, client))

    def go(self) -> None:
        """The cable is pulled: every connection ends, whatever runs on it."""
        for connection in self._connections:
            connection.close()

    def processes(self) -> list[int]:
        """Those that its commands started and that still run."""
        return processes_with(f"STAND_IN={self.folder}")

    def is_idle(self, within_s: float = 5.0) -> bool:
        """Whether nothing runs on it any more, or soon."""
        deadline = time.monotonic() + within_s
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:/usr/bin:/bin"
        return {"PATH": path, "HOME": "/", "STAND_IN": str(self.folder)}


class Connection:
    """One transport: packets of 24 bytes and their data, for any number of streams."""

    def __init__(self, device: Device, client: socket.socket) -> None:
        self.device = device
        self.client = client
        self.streams: dict[int, Stream] = {}
        self.sending = threading.Lock()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), 0, command ^ 0xFFFFFFFF)
        with self.sending, contextlib.suppress(OSError):
            self.client.sendall(head + data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self.thread.join()

    def _serve(self) -> None:
        number = 0
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, first, second, size, _, _ = struct.unpack("<6I", self._read(24))
                data = self._read(size)
                if command == CNXN and self.device.authorized:
                    banner = f"device::ro.product.model=Stand_In;features={self.device.features}"
                    self.send(CNXN, VERSION, MAX_DATA, banner.encode())
                elif command in (CNXN, AUTH):
                    self.send(AUTH, TOKEN, 0, bytes(20))
                elif command == OPEN:
                    number += 1
                    self._open(number, first, data.rstrip(b"\0").decode())
                elif stream := self.streams.get(second):
                    if command == WRTE:
                        stream.received.put(data)
                    elif command == OKAY:
                        stream.may_send.release()
                    elif command == CLSE:
                        stream.hang_up()
        self.client.close()
        for stream in list(self.streams.values()):
            stream.hang_up()
        for stream in list(self.streams.values()):
            stream.join()

    def _open(self, number: int, peer: int, service: str) -> None:
        kind, _, command = service.partition(":")
        if not kind.startswith("shell,v2") or "raw" not in kind:
            self.send(CLSE, 0, peer)
            return
        self.device.commands.append(command)
        self.send(OKAY, number, peer)
        self.streams[number] = Stream(self, number, peer, command)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (more := self.client.recv(min(size - len(data), 65536))):
                raise EOFError
            data += more
        return data


class Stream:
    """One command with the shell protocol: frames of a byte, four bytes of length, and data."""

    def __init__(self, connection: Connection, number: int, peer: int, command: str) -> None:
        self.connection = connection
        self.number = number
        self.peer = peer
        self.received: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.may_send = threading.Semaphore(1)
        self.gone = False
        device = connection.device
        ours, theirs = socket.socketpair()
        errors, their_errors = socket.socketpair()
        self.pipe, self.errors = ours, errors
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", MOVED.sub(str(device.folder) + "/", command)],
            stdin=theirs,
            stdout=theirs,
            stderr=their_errors,
            env=device.environment(),
            start_new_session=True,
        )
        theirs.close()
        their_errors.close()
        if device.gone_during is not None and device.gone_during in command:
            threading.Timer(0.5, device.go).start()
        self.threads = [
            threading.Thread(target=target, args=arguments, daemon=True)
            for target, *arguments in ((self._input,), (self._output,))
        ]
        for thread in self.threads:
            thread.start()

    def hang_up(self) -> None:
        """The client went away."""
        self.gone = True
        self.may_send.release()
        self.received.put(None)
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None:
                os.kill(self.process.pid, signal.SIGHUP)
        for pipe in (self.pipe, self.errors):
            with contextlib.suppress(OSError):
                pipe.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        for thread in self.threads:
            thread.join()

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        data = b""
        while (more := self.received.get()) is not None:
            data += more
            while len(data) >= 5:
                kind, size = struct.unpack("<BI", data[:5])
                if len(data) < 5 + size:
                    break
                yield kind, data[5 : 5 + size]
                data = data[5 + size :]
            # Only now may the client send more: what a command does not read comes to a halt.
            self.connection.send(OKAY, self.number, self.peer)

    def _input(self) -> None:
        device = self.connection.device
        taken = 0
        for kind, data in self._frames():
            with contextlib.suppress(OSError):
                if kind == STDIN:
                    taken += len(data)
                    device.received_bytes += len(data)
                    self.pipe.sendall(data)
                elif kind == CLOSE_STDIN:
                    self.pipe.shutdown(socket.SHUT_WR)
            if device.gone_after_bytes is not None and taken >= device.gone_after_bytes:
                device.go()

    def _output(self) -> None:
        """Both outputs until both are closed, then the exit status."""
        reading = threading.Thread(target=self._pass, args=(self.errors, STDERR), daemon=True)
        reading.start()
        self._pass(self.pipe, STDOUT)
        reading.join()
        status = self.process.wait()
        self._send(EXIT, bytes([status if status >= 0 else 0x80 | -status]))
        self.connection.streams.pop(self.number, None)
        self.connection.send(CLSE, self.number, self.peer)
        self.received.put(None)
        self.pipe.close()
        self.errors.close()

    def _pass(self, pipe: socket.socket, kind: int) -> None:
        with contextlib.suppress(OSError):
            while data := pipe.recv(65536):
                self._send(kind, data)

    def _send(self, kind: int, data: bytes) -> None:
        """One frame, when the client has taken the one before."""
        self.may_send.acquire()
        if self.gone:
            self.may_send.release()
        else:
            self.connection.send(
                WRTE, self.number, self.peer, struct.pack("<BI", kind, len(data)) + data
            )
