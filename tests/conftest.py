"""Quiet TensorFlow on the CPU, the same on every machine, and tests of certain backends alone."""

import os
import signal
import subprocess
import sys
import warnings

import pytest

# A shell starts background jobs with Ctrl-C ignored, which every process that the tests start and
# interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# CUDA_VISIBLE_DEVICES=0 runs the tests on a GPU, where float32 is to be that, and not TF32.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "backend(*names, because): only for these Keras backends; skipped under any other.",
    )


def pytest_collection_modifyitems(items):
    running = os.environ["KERAS_BACKEND"]
    for item in items:
        for mark in item.iter_markers("backend"):
            if running not in mark.args:
                names, because = " and ".join(mark.args), mark.kwargs["because"]
                item.add_marker(pytest.mark.skip(reason=f"for {names} only: {because}"))


@pytest.fixture
def keras_bn_here(capfd, monkeypatch):
    """The command without a process of its own, which takes seconds to import TensorFlow.

    What only a process shows is for one: the libraries' chatter, and what they know of a user's
    layers.
    """
    from keras_bn.__main__ import run as run_command
    from keras_bn.cli import cli

    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # which the command sets, and leaves set
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")

    def run(*arguments) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["keras-bn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are no errors to a user either
            run_command(cli)
        printed, errors = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, printed, errors)

    return run


@pytest.fixture(scope="session")
def process():
    """One converter for all tests of a run: importing TensorFlow there takes seconds."""
    from keras_bn.convert.process import ConverterProcess

    with ConverterProcess() as process:
        yield process
