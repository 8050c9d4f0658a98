"""Quiet TensorFlow on the CPU, the same on every machine, and tests of certain backends alone."""

import os
import signal

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


@pytest.fixture(scope="session")
def process():
    """One converter for all tests of a run: importing TensorFlow there takes seconds."""
    from keras_bn.convert.process import ConverterProcess

    with ConverterProcess() as process:
        yield process
