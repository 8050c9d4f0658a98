"""A Python with an interpreter of `.tflite` files that loads in no time and does as it is told."""

import contextlib
import os
import shlex
import sys
import textwrap
import time
from pathlib import Path

# Runs after which nothing may be left. Fifty take ten seconds and show no more than ten do.
REPEATED = int(os.environ.get("KERAS_BN_REPEATED_RUNS", "10"))

NUMPY = """
__version__ = "1.0"
class random:
    class RandomState:
        def __init__(self, seed): pass
def diff(values):
    return [after - before for before, after in zip(values, values[1:])]
"""

# `EVENT` is replaced by what happens in `allocate_tensors` and `invoke`.
INTERPRETER = """
import ctypes, os, signal, sys, time
from enum import Enum
OpResolverType = Enum("OpResolverType", "AUTO BUILTIN_WITHOUT_DEFAULT_DELEGATES")
class Interpreter:
    def __init__(self, model_path, num_threads, experimental_op_resolver_type):
        self.content = open(model_path, "rb").read()
        probe = "--probe" in sys.argv
        ON_LOAD
    def allocate_tensors(self):
        pass
    def get_input_details(self):
        return []
    def invoke(self):
        probe = "--probe" in sys.argv
        ON_INVOKE
"""


def install_python(
    home: Path,
    *,
    on_import: str = "pass",
    on_load: str = "pass",
    on_invoke: str = "pass",
    path: str = "bin/python3",
    package: str = "ai_edge_litert",
    numpy: bool = True,
) -> Path:
    """Make `home`/`path` a Python with NumPy and an interpreter; statements tell what they do."""
    python = home / path
    site = python.with_name(f"{python.name}-site")
    (site / package).mkdir(parents=True, exist_ok=True)
    (site / package / "__init__.py").write_text("__version__ = '2.9'\n")
    text = INTERPRETER.replace("ON_LOAD", on_load).replace("ON_INVOKE", on_invoke)
    (site / package / "interpreter.py").write_text(f"import os, signal\n{on_import}\n{text}")
    if numpy:
        (site / "numpy.py").write_text(NUMPY)
    return program(
        python,
        f"""
        #!/bin/sh
        PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={shlex.quote(str(site))}
        export PYTHONDONTWRITEBYTECODE PYTHONPATH
        exec {shlex.quote(os.path.realpath(sys.executable))} -S "$@"
        """,
    )


def environment(home: Path) -> dict[str, str]:
    """What commands find on a computer whose home folder is `home`."""
    return {"HOME": str(home), "PATH": f"{home / 'bin'}:/usr/bin:/bin"}


def running(home: Path) -> list[int]:
    """Processes that have `home` for their home folder."""
    return processes_with(f"HOME={home}")


def processes_with(setting: str) -> list[int]:
    """Processes that have `setting`, NAME=value, in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if setting.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def idle(home: Path, within_s: float = 5.0) -> bool:
    """Whether no such process runs any more, or soon."""
    deadline = time.monotonic() + within_s
    while running(home):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def program(path: Path, text: str) -> Path:
    """A program of that text at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip())
    path.chmod(0o755)
    return path


def model(path: Path, *, kilobytes: int = 1) -> Path:
    """A file that passes for a `.tflite` model; its content is that of its name and size."""
    content = (path.name.encode() + b"|") * (1000 * kilobytes // (len(path.name.encode()) + 1) + 1)
    path.write_bytes(b"\x1c\0\0\0TFL3" + content[: 1000 * kilobytes])
    return path
