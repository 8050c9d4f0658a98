"""A device that is reached through a shell: what ssh and adb share.

Commands travel as one POSIX-sh script each and use what coreutils, BusyBox and Android's toybox
have in common. Files are kept on the device under the SHA-256 of their content, in one folder: a
second run sends nothing, and no name of this machine is ever part of a remote command.

What comes back is data. It is limited in size, its control characters are taken out, and the
runner's document is checked field by field.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from keras_bn.bench import document
from keras_bn.bench.child import (
    ANSWER_BYTES,
    follow,
    printable,
    progress_lines,
    quoted,
    signal_name,
)
from keras_bn.bench.request import Progress, Request
from keras_bn.errors import DeviceError

RUNNER = Path(__file__).parents[1] / "runner.py"

# Everything between these lines is the script's own: a login script may print as well, and a
# connection that breaks off ends without the second.
BEGIN, END = "@keras-bn begin", "@keras-bn end"
# The seek of `dd` counts in these.
BLOCK_BYTES = 65536
# Files on the device that no run has used for so long are removed by the next one.
UNUSED_DAYS = 30
# What one sample may take in the runner's document.
SAMPLE_BYTES = 24
OLDEST_PYTHON = (3, 7)
# Of the wheels on the registry: ai-edge-litert (x86-64 and 64-bit ARM) begins with the one,
# tflite-runtime for 32-bit ARM ends before the other.
FIRST_OF_LITERT = (3, 9)
FIRST_WITHOUT_32_BIT = (3, 12)
# Raspberry Pi OS refuses pip outside of virtual environments, and its documentation makes them in
# ~/.env; the others are what the tutorials of venv, of pip and of editors make.
PYTHONS = ("python3", "python", "~/.venv/bin/python", "~/venv/bin/python", "~/.env/bin/python",
           "~/env/bin/python")  # fmt: skip


class Shell(Protocol):
    """The way to one device.

    Attributes:
        name: As the user gave it: "ssh://pi@board", "adb:SERIAL".
        folder: The folder for files on the device, as a word of sh: it may hold variables.
        advice: What to try when the device cannot be reached, one sentence.
    """

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def advice(self) -> str: ...

    def command(self, script: str) -> list[str]:
        """The local program, with arguments, that runs the POSIX-sh `script` on the device."""


@dataclass(frozen=True)
class Python:
    """A Python on the device that can run `runner.py`.

    Attributes:
        path: Of the interpreter, on the device.
        version: e.g. "3.11.2".
        runtime: "ai_edge_litert" or "tflite_runtime", with its version where it has one.
    """

    path: str
    version: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.runtime}, Python {self.version} ({printable(self.path)})"


class NoPythonError(DeviceError):
    """The device has no Python that can run `runner.py`; the message says how to get one."""


@dataclass(frozen=True)
class Answer:
    """What a script left.

    Attributes:
        status: Exit status of the script on the device, 128 + n for signal n.
        stdout: What it printed.
        lines: The last lines of its standard error, and of the local client's.
    """

    status: int
    stdout: str
    lines: tuple[str, ...]


# --- Scripts -----------------------------------------------------------------------------------


def run(
    shell: Shell,
    script: str,
    *,
    timeout_s: float,
    stdin: Iterable[bytes] | None = None,
    doing: str = "a command",
) -> str:
    """Run `script` on the device and return what it printed.

    Args:
        shell: The way to the device.
        script: POSIX sh. It is killed, with all it started, when the connection ends.
        timeout_s: It is given up after so long a silence.
        stdin: What to send to its standard input; it then has to end by itself when that ends.
        doing: What messages call it.

    Raises:
        DeviceError: the device is out of reach, the script failed, or the connection broke.
    """
    answer = start(shell, script, timeout_s=timeout_s, stdin=stdin)
    if answer.status:
        raise DeviceError(
            f"{shell.name}: {doing} failed with {_end(answer.status)}.{quoted(answer.lines)}"
        )
    return answer.stdout


def start(
    shell: Shell,
    script: str,
    *,
    timeout_s: float,
    stdin: Iterable[bytes] | None = None,
    on_line: Callable[[str], bool] = lambda line: False,
    silence_advice: str = "",
    answer_bytes: int = ANSWER_BYTES,
) -> Answer:
    """Run `script` on the device to its end, whatever its exit status.

    Raises:
        DeviceError: the device is out of reach, silent for too long, or the connection broke.
    """
    ended = follow(
        shell.command(framed(script if stdin is not None else guarded(script))),
        name=shell.name,
        timeout_s=timeout_s,
        stdin=stdin,
        on_line=on_line,
        advice=silence_advice and " " + silence_advice,
        answer_bytes=answer_bytes,
    )
    text = ended.stdout.decode(errors="replace").replace("\r\n", "\n")
    _, begun, text = f"\n{text}".partition(f"\n{BEGIN}\n")
    if not begun:
        raise DeviceError(f"{shell.name} cannot be reached.{ended.printed}\n{shell.advice}")
    text, _, status = text.rpartition(f"\n{END} ")
    if _status(status) < 0:
        raise DeviceError(f"The connection to {shell.name} was lost.{ended.printed}")
    return Answer(_status(status), text, ended.lines)


def framed(script: str) -> str:
    """`script` between the lines that tell its output, and its exit status, from all else."""
    return f"echo; echo '{BEGIN}'\n(\n{script}\n)\nstatus=$?\necho; echo '{END}' $status"


def guarded(script: str) -> str:
    """`script`, killed with all it started when standard input closes, that is with the connection.

    Its group is killed where `setsid` gives it one, which is everywhere but on macOS.
    """
    return f"""exec 3<&0
$(command -v setsid) sh -c {shlex.quote(script)} <&3 3<&- &
child=$!
(while read -r line; do :; done; kill -9 -$child; kill -9 $child) <&3 3<&- >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait $child
status=$?
kill -9 $watcher 2>/dev/null
exit $status"""


def _status(text: str) -> int:
    """An exit status as sh prints it; -1 for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,3}\s*", text) else -1


def _end(status: int) -> str:
    return signal_name(status - 128) if status > 128 else f"exit status {status}"


# --- Python ------------------------------------------------------------------------------------

# The syntax of Python 2, which old devices call python. What is known is printed before anything
# is loaded that could crash.
PROBE = """
import json, os, platform, struct, sys
def tell(**facts):
    print(json.dumps(facts))
    sys.stdout.flush()
base = getattr(sys, "base_prefix", sys.prefix)
stdlib = os.path.dirname(os.__file__)
tell(
    path=sys.executable,
    version=list(sys.version_info[:3]),
    machine=platform.machine(),
    bits=8 * struct.calcsize("P"),
    managed=base == sys.prefix and os.path.exists(os.path.join(stdlib, "EXTERNALLY-MANAGED")),
)
failed = []
def load(name):
    try:
        return __import__(name, fromlist=["x"])
    except Exception as error:
        failed.append(name + ": " + str(error))
usable = load("numpy") is not None
for name in ("ai_edge_litert", "tflite_runtime"):
    if load(name + ".interpreter") is not None:
        runtime = name + " " + str(getattr(sys.modules[name], "__version__", ""))
        break
else:
    usable = False
if not usable or sys.version_info < OLDEST:
    tell(failed=failed)
    sys.exit(3)
tell(runtime=runtime.strip())
""".replace("OLDEST", repr(OLDEST_PYTHON))


def find_python(shell: Shell, wanted: str | None, *, timeout_s: float) -> Python:
    """The first Python on the device that has numpy and an interpreter of `.tflite` files.

    Args:
        shell: The way to the device.
        wanted: The path or name of the one to take; None for the first of PYTHONS that will do.
        timeout_s: It is given up after so long a silence.

    Raises:
        NoPythonError: there is none; the message holds the one command that makes one.
        DeviceError: the device is out of reach.
    """
    candidates = PYTHONS if wanted is None else (wanted,)
    script = f"""for candidate in {" ".join(map(_word, candidates))}; do
found=$(command -v "$candidate") || continue
echo; echo "@python $found"
"$found" -c {shlex.quote(PROBE)} </dev/null 2>&1
status=$?
echo; echo "@status $status"
[ $status = 0 ] && break
done
true"""
    text = run(shell, script, timeout_s=timeout_s, doing="looking for Python")
    probes = [_Probe.read(part) for part in f"\n{text}".split("\n@python ")[1:]]
    for probe in probes:
        if probe.status == 0 and probe.runtime:
            return Python(probe.path, _dotted(probe.version), probe.runtime)
    raise NoPythonError(_no_python(shell, wanted, probes))


@dataclass(frozen=True)
class _Probe:
    """What one Python said of itself, None where it did not."""

    path: str
    status: int
    version: tuple[int, ...]
    is_32_bit_arm: bool
    managed: bool
    runtime: str | None
    failed: tuple[str, ...]
    lines: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> _Probe:
        path, _, text = text.partition("\n")
        text, _, status = text.rpartition("\n@status ")
        facts: dict[str, Any] = {}
        others = []
        for line in map(printable, text.splitlines()):
            try:
                facts |= json.loads(line)
            except (ValueError, TypeError, RecursionError):
                others.append(line)
        version, failed = _list(facts.get("version"), int), _list(facts.get("failed"), str)
        runtime, machine = facts.get("runtime"), str(facts.get("machine"))
        return cls(
            path=path,
            status=_status(status),
            version=version,
            # A 64-bit kernel under a 32-bit system calls itself aarch64.
            is_32_bit_arm=facts.get("bits") == 32 and machine.startswith(("arm", "aarch64")),
            managed=facts.get("managed") is True,
            runtime=printable(runtime) if isinstance(runtime, str) else None,
            failed=tuple(map(printable, failed)),
            lines=tuple(line for line in others if line),
        )

    @property
    def name(self) -> str:
        return f"Python {_dotted(self.version)}"

    def why_not(self) -> str:
        if self.version and self.version < OLDEST_PYTHON:
            return f"{self.name}, and at least {_dotted(OLDEST_PYTHON)} is needed"
        if self.failed:
            return f"{self.name}: {'; '.join(self.failed)}"
        return ": ".join([_end(self.status), *self.lines[-3:]])

    def remedy(self) -> str:
        """The command that gives this Python what it lacks, if there is one."""
        if self.is_32_bit_arm and self.version >= FIRST_WITHOUT_32_BIT:
            return (
                f"No package has an interpreter for {self.name} on 32-bit ARM: use Python 3.9 to "
                "3.11 there, or a 64-bit system."
            )
        # ai-edge-litert has no wheels for 32-bit ARM, and tflite-runtime's were built for NumPy 1.
        old = self.is_32_bit_arm or self.version < FIRST_OF_LITERT
        packages = "tflite-runtime 'numpy<2'" if old else "ai-edge-litert"
        python = shlex.quote(self.path)
        command = (
            f"{python} -m venv ~/.venv && ~/.venv/bin/pip install {packages}"
            if self.managed
            else f"{python} -m pip install {packages}"
        )
        return f"To get one, run on the device:\n  {printable(command)}"


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _list(value: Any, kind: type) -> tuple[Any, ...]:
    """`value` if it is a list of `kind` only, else nothing."""
    right = isinstance(value, list) and all(type(each) is kind for each in value)
    return tuple(value) if right else ()


def _no_python(shell: Shell, wanted: str | None, probes: Sequence[_Probe]) -> str:
    """Why no Python will do, and the command to run there."""
    if not probes:
        looked = f"no {wanted}" if wanted else f"no Python ({', '.join(PYTHONS)})"
        return f"{shell.name} has {looked}. Name one, as it is called there: --python (python=)."
    found = "".join(f"\n  {printable(probe.path)}: {probe.why_not()}" for probe in probes)
    message = f"{shell.name} has no Python with numpy and ai_edge_litert or tflite_runtime:{found}"
    able = [probe for probe in probes if probe.failed and probe.version >= OLDEST_PYTHON]
    if not able:
        return message
    # A virtual environment takes packages as it is.
    return f"{message}\n{min(able, key=lambda probe: probe.managed).remedy()}"


def _word(path: str) -> str:
    """`path` as a word of sh; a leading ~/ is the home folder on the device."""
    if path.startswith("~/"):
        return '"$HOME"/' + shlex.quote(path[2:])
    return shlex.quote(path)


# --- Files -------------------------------------------------------------------------------------

# macOS has the latter.
SHA256 = """sha256() {
if command -v sha256sum >/dev/null; then sha256sum <$1; else shasum -a 256 <$1; fi; }"""


@dataclass(frozen=True)
class File:
    """A file of this machine, and what it is called on the device."""

    path: str
    name: str
    size_bytes: int

    @classmethod
    def read(cls, path: str) -> File:
        with open(path, "rb") as file:  # noqa: PTH123 (file_digest is Python 3.11's)
            sha256, size_bytes = hashlib.sha256(), 0
            while chunk := file.read(BLOCK_BYTES):
                sha256.update(chunk)
                size_bytes += len(chunk)
        return cls(path, sha256.hexdigest(), size_bytes)

    def chunks(self, start: int, sent: Callable[[int], None]) -> Iterator[bytes]:
        """The content from `start` on; `sent` is told how far it got."""
        with open(self.path, "rb") as file:  # noqa: PTH123
            file.seek(start)
            while chunk := file.read(BLOCK_BYTES):
                yield chunk
                sent(file.tell())


def upload(
    shell: Shell,
    paths: Iterable[str],
    *,
    timeout_s: float,
    progress: Progress | None = None,
) -> dict[str, str]:
    """See that the files at `paths` are on the device, whole, in the folder `shell.folder`.

    A file is called by the SHA-256 of its content; until it is whole and its hash was checked on
    the device, `.part` is appended. What an interrupted transfer left is continued. Several
    transfers of one file at once do no harm: they write the same bytes at the same places.

    Args:
        shell: The way to the device.
        paths: Of this machine.
        timeout_s: A transfer is given up when it stood still for so long.
        progress: Called with (kB done, kB in all, what is being done).

    Returns:
        The names in the folder, by path.

    Raises:
        DeviceError: the device is out of reach, full, or the connection broke.
        OSError: a file cannot be read.
    """
    files = {path: File.read(path) for path in paths}
    there = _sizes(shell, {file.name for file in files.values()}, timeout_s)
    missing = {file.name: file for file in files.values() if there[file.name] is not None}
    total = sum(file.size_bytes for file in missing.values())
    done = 0
    for file in missing.values():

        def sent(size_bytes: int, file: File = file, done: int = done) -> None:
            if progress is not None:
                progress(
                    (done + size_bytes) // 1000,
                    total // 1000,
                    f"sending {Path(file.path).name} (kB)",
                )

        _send(shell, file, there[file.name] or 0, timeout_s, sent)
        done += file.size_bytes
    return {path: file.name for path, file in files.items()}


def _sizes(shell: Shell, names: set[str], timeout_s: float) -> dict[str, int | None]:
    """How many bytes of each file an interrupted transfer left; None for those that are whole.

    Makes the folder, and removes from it what has long been unused. Files are read every time: a
    board that loses its power may keep the name of a file and not its content.
    """
    script = f"""umask 077
mkdir -p {shell.folder} && cd {shell.folder} || exit
{SHA256}
for name in {" ".join(sorted(names))}; do
if [ -f $name ]; then
case $(sha256 $name) in $name*) touch $name; echo $name whole; continue ;; esac
rm -f $name
fi
if [ -f $name.part ]; then echo $name $(wc -c <$name.part); else echo $name 0; fi
done
find . -type f -name '{"[0-9a-f]" * 64}*' -mtime +{UNUSED_DAYS} -exec rm -f {{}} ';' || true"""
    text = run(shell, script, timeout_s=timeout_s, doing="looking into its folder")
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        name, _, size = line.partition(" ")
        if name in names and re.fullmatch(r"whole|\s*[0-9]{1,18}", size):
            found[name] = None if size == "whole" else int(size)
    if found.keys() != names:
        raise DeviceError(f"{shell.name} did not tell which files it has: {printable(text)!r}")
    return found


def _send(
    shell: Shell, file: File, there: int, timeout_s: float, sent: Callable[[int], None]
) -> None:
    """Send what the device lacks of `file`; once more from the start if that was not the file."""
    for start_block in (min(there, file.size_bytes) // BLOCK_BYTES, 0):
        part = f"{file.name}.part"
        script = f"""umask 077
cd {shell.folder} || exit
{SHA256}
dd of={part} bs={BLOCK_BYTES} seek={start_block} conv=notrunc status=none || {{
status=$?; rm -f {part}; exit $status; }}
end_if_whole() {{
if [ -f {file.name} ]; then rm -f {part}; echo whole; exit; fi; }}
end_if_whole
size=$(wc -c <{part})
if [ $size -lt {file.size_bytes} ]; then echo cut short at $size bytes; exit; fi
sum=$(sha256 {part})
case $sum in {file.name}*) mv {part} {file.name} ;; esac
end_if_whole
rm -f {part}; echo other $sum"""
        answer = run(
            shell,
            script,
            timeout_s=timeout_s,
            stdin=file.chunks(start_block * BLOCK_BYTES, sent),
            doing=f"receiving {file.path}",
        ).strip()
        if answer == "whole":
            return
    raise DeviceError(
        f"{shell.name} did not receive {file.path} as it was sent: {printable(answer)}. Was the "
        "file changed meanwhile? Otherwise look at the device's memory card."
    )


# --- Measuring ---------------------------------------------------------------------------------


def measure(shell: Shell, request: Request, python: Python) -> dict[str, Any]:
    """Run `runner.py` on the device and return the document that it printed.

    Raises:
        DeviceError: the device is out of reach or full, the connection broke, or the run failed,
            crashed the interpreter, was silent for `request.timeout_s`, or made no sense.
    """
    runner = str(RUNNER)
    names = upload(
        shell,
        [runner, *request.models],
        timeout_s=request.timeout_s,
        progress=request.progress,
    )
    models = [names[path] for path in request.models]
    command = shlex.join([python.path, names[runner], *request.arguments(models)])
    local = dict(zip(models, request.models, strict=True))

    def translated(text: str) -> str:
        return re.sub("[0-9a-f]{64}", lambda match: local.get(match[0], match[0]), text)

    def report(done: int, total: int, what: str) -> None:
        if request.progress is not None:
            request.progress(done, total, translated(what))

    try:
        answer = start(
            shell,
            f"cd {shell.folder} && exec {command}",
            timeout_s=request.timeout_s,
            on_line=progress_lines(report),
            silence_advice=request.silence_advice,
            answer_bytes=ANSWER_BYTES + SAMPLE_BYTES * request.samples,
        )
        found = document.read(
            answer.stdout,
            status=128 - answer.status if answer.status > 128 else answer.status,
            printed=quoted(answer.lines),
            request=request,
            names=models,
            where=f" on {shell.name}",
        )
    except DeviceError as error:  # the user knows the models by their own names
        raise DeviceError(translated(str(error))) from None
    for path, file in zip(request.models, found["models"], strict=True):
        if file["sha256"] != names[path]:
            raise DeviceError(
                f"{shell.name} measured another file in place of {path}: SHA-256 "
                f"{file['sha256']}, expected {names[path]}. Its copy is damaged or was changed; "
                f"remove {shell.folder} there."
            )
    return found
