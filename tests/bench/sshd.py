"""A computer to be reached by the system's `ssh`: a real server on loopback, by asyncssh.

It accepts one key, runs commands with this machine's /bin/sh in a home folder of its own, as
OpenSSH's sshd does: when a connection ends, the pipes of its commands close, and nothing is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh

from tests.bench.stand_in import environment, idle, program

# The user's configuration, as the tests want it; the client reads it in place of ~/.ssh/config.
CONFIG = """
Host board raspberrypi.local
  HostName 127.0.0.1
  Port {port}
  User pi
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  {more}
"""


class Computer:
    """One computer, reachable while its context is open.

    Attributes:
        home: The home folder on it; `bin` in it is in front of its PATH.
        commands: The commands that it was given, in order.
        received_bytes: How much input all of them together were sent.
        noise: A command of its shell's startup files, which run before every other.
        gone_after_bytes: Connections break when a command has been sent so much input.
        gone_during: Connections break a little after a command that holds this text began.
    """

    user = "pi"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        (self.home / "bin").mkdir(parents=True)
        self.commands: list[str] = []
        self.received_bytes = 0
        self.noise = ""
        self.gone_after_bytes: int | None = None
        self.gone_during: str | None = None
        self.connections: set[asyncssh.SSHServerConnection] = set()

    def __enter__(self) -> Computer:
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        (self.folder / "key").touch(mode=0o600)
        self.key.write_private_key(self.folder / "key")
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.acceptors: list[asyncssh.SSHAcceptor] = []
        self.port = self.listen_on("127.0.0.1")
        self.know(self.host_key)
        self.configure("")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._do(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def close(self) -> None:
        """It is switched off: connections end, and no new ones are accepted."""
        for acceptor in self.acceptors:
            self.loop.call_soon_threadsafe(acceptor.close)
        self.go()

    def go(self) -> None:
        """Every connection breaks."""
        self._do(self._abort())

    def listen_on(self, address: str) -> int:
        """Accept connections at `address` as well; the port."""
        self.acceptors.append(self._do(self._listen(address)))
        return self.acceptors[-1].get_port()

    def know(self, *keys: asyncssh.SSHKey, port: int | None = None) -> None:
        """The host keys that the client knows of it."""
        port = port or self.port
        names = "".join(
            f"[127.0.0.1]:{port},[::1]:{port} {key.export_public_key().decode()}" for key in keys
        )
        (self.folder / "known_hosts").write_text(names)

    def configure(self, more: str) -> None:
        """The user's configuration, with `more` options for every host."""
        (self.folder / "config").write_text(
            CONFIG.format(port=self.port, folder=self.folder, more=more)
        )

    @property
    def cache(self) -> Path:
        """Where keras-bn keeps its files."""
        return self.home / ".cache" / "keras-bn"

    def is_idle(self) -> bool:
        """Whether nothing that its commands started runs on it any more, or soon."""
        return idle(self.home)

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=30)

    async def _listen(self, address: str) -> asyncssh.SSHAcceptor:
        computer = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, connection):
                self.connection = connection
                computer.connections.add(connection)

            def connection_lost(self, error):
                computer.connections.discard(self.connection)

        return await asyncssh.listen(
            address,
            0,
            server_factory=Server,
            server_host_keys=[self.host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(
                self.key.export_public_key().decode()
            ),
            process_factory=self._run,
            encoding=None,
        )

    async def _abort(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    async def _end_tasks(self) -> None:
        for acceptor in self.acceptors:
            await acceptor.wait_closed()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        _, late = await asyncio.wait(tasks, timeout=5) if tasks else (None, set())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, process: asyncssh.SSHServerProcess) -> None:
        """One command, between the pipes of a process and the channel of a connection."""
        command = process.command or ""
        self.commands.append(command)
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            f"{self.noise}\n{command}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env=environment(self.home),
            start_new_session=True,
        )
        if self.gone_during is not None and self.gone_during in command:
            self.loop.call_later(0.5, lambda: asyncio.ensure_future(self._abort()))
        feeding = asyncio.ensure_future(self._feed(process.stdin, child.stdin))
        await asyncio.gather(
            self._pass(child.stdout, process.stdout), self._pass(child.stderr, process.stderr)
        )
        status = await child.wait()
        feeding.cancel()
        with contextlib.suppress(OSError, asyncssh.Error):
            process.exit(status if status >= 0 else 128 - status)

    async def _feed(self, source, sink) -> None:
        taken = 0
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await source.read(65536):
                taken += len(data)
                self.received_bytes += len(data)
                sink.write(data)
                await sink.drain()
                if self.gone_after_bytes is not None and taken >= self.gone_after_bytes:
                    await self._abort()
                    break  # what was received already is lost with the connection
        sink.close()

    async def _pass(self, source, sink) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        # What the command writes after its connection is gone meets a closed pipe.
        source._transport.close()


@contextlib.contextmanager
def reachable(folder: Path, monkeypatch) -> Iterator[Computer]:
    """A computer that `ssh` on the PATH reaches as "board" and "raspberrypi.local"."""
    # ssh looks for its configuration in the home folder of the account, whatever HOME says.
    program(
        folder / "client" / "ssh",
        f"""
        #!/bin/sh
        exec {shutil.which("ssh")} -F {folder}/config "$@"
        """,
    )
    monkeypatch.setenv("PATH", f"{folder / 'client'}{os.pathsep}{os.environ['PATH']}")
    with Computer(folder) as computer:
        yield computer
