"""A computer reached by the system's `ssh` client: "ssh://[user@]host[:port]".

The user's configuration, agent and known hosts hold; `host` may be an alias of the configuration.
Host keys are checked as the user has it. Nothing is asked: what works here is what works without
a question in a terminal.
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from typing import Any

from keras_bn.bench.devices import description, shell
from keras_bn.bench.devices.description import Device
from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError

PREFIX = "ssh://"
# Words of letters, digits and "_.+-" that do not begin with a dash: no option of ssh, and nothing
# that a shell, or an expansion in the user's configuration, takes for more than a word.
WORD = r"[^\W][\w.+-]*"
ADDRESS = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?"
TARGET = re.compile(rf"(?:({WORD}(?:@{WORD})*)@)?(?:({WORD})|\[({ADDRESS})\])(?::(\d{{1,5}}))?/?")

CONNECT_TIMEOUT_S = 15
# A connection that is silent three times in a row is taken for lost.
ALIVE_INTERVAL_S = 15
OPTIONS = (
    "-T",  # no terminal: bytes pass as they are
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"),
    *("-o", f"ServerAliveInterval={ALIVE_INTERVAL_S}"),
    *("-o", "RemoteCommand=none"),  # some aliases start a terminal multiplexer
)


@dataclass(frozen=True)
class Ssh:
    """The way to one computer.

    Attributes:
        name: "ssh://…", as the user gave it.
        host: Name, alias or address.
        user: None for the user's configuration to tell.
        port: Likewise.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None

    folder = '"${XDG_CACHE_HOME:-$HOME/.cache}/keras-bn"'

    @classmethod
    def parse(cls, name: str) -> Ssh:
        """The device of that name.

        Raises:
            ValueError: it is not "ssh://[user@]host[:port]".

        Example:
            >>> Ssh.parse("ssh://pi@[fe80::1%eth0]:2222").port
            2222
        """
        found = TARGET.fullmatch(name[len(PREFIX) :]) if name.startswith(PREFIX) else None
        if found is None:
            raise ValueError(
                f"Expected a device such as ssh://user@host, ssh://host:2222, "
                f"ssh://user@[fe80::1%eth0] or ssh://ALIAS of ~/.ssh/config, received {name!r}."
            )
        user, host, address, port = found.groups()
        if port is not None and not 1 <= int(port) <= 65535:
            raise ValueError(f"Expected a port from 1 to 65535, received {port} in {name!r}.")
        return cls(name, host or address, user, int(port) if port else None)

    @property
    def options(self) -> list[str]:
        """What of the name is an option of ssh."""
        user = [] if self.user is None else ["-l", self.user]
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*user, *port]

    @property
    def advice(self) -> str:
        return (
            "This has to work in a terminal, without a question, first: "
            f"{' '.join(['ssh', *self.options, self.host, 'true'])}"
        )

    def command(self, script: str) -> list[str]:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise DeviceError(
                "ssh is not installed, or not on the PATH. Debian and Ubuntu: sudo apt install "
                "openssh-client"
            )
        # The user's login shell may be another than a POSIX one.
        remote = f"exec sh -c {shlex.quote(script)}"
        return [ssh, *OPTIONS, *self.options, "--", self.host, remote]


def run(name: str, request: Request) -> dict[str, Any]:
    """Measure on the device of that name.

    Raises:
        DeviceError: it is out of reach, has no Python that will do, or the run failed.
    """
    device = Ssh.parse(name)
    python = shell.find_python(device, request.python, timeout_s=request.timeout_s)
    return shell.measure(device, request, python)


def describe(name: str, python: str | None, *, timeout_s: float) -> Device:
    """What the device of that name is.

    Raises:
        DeviceError: it is out of reach.
    """
    return description.describe(Ssh.parse(name), python, timeout_s=timeout_s)
