"""The worker process: what it converts, how it refuses, and that it never outlives its owner."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from keras_bn.convert.export import export
from keras_bn.convert.flatbuffer import read_contents
from keras_bn.convert.process import ConverterProcess
from keras_bn.errors import ConversionError
from keras_bn.samples import random_samples
from tests.deployable import MODELS, image_model, images, lstm_model, two_by_two_model

MODES = ("none", "float16", "dynamic", "int8", "int16x8")


def converted(process, model, folder, *, batch_size=1, **request):
    process.submit(export(model, folder, batch_size=batch_size), **request)
    return process.result()


def signature_of(tflite):
    return Interpreter(model_content=tflite).get_signature_list()["serving_default"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_its_dtypes(mode, process, tmp_path):
    tflite = converted(
        process, image_model(), tmp_path, quantize=mode, calibration={"image": images(20)}
    )
    contents = read_contents(tflite)
    expected = {
        "none": {"float32"},
        "float16": {"float16", "float32"},
        "dynamic": {"float32"},  # LiteRT leaves weights of fewer than 1024 elements alone
        "int8": {"int8", "int32"},
        "int16x8": {"int16", "int8"},
    }[mode]
    assert expected <= set(contents.dtypes)
    assert contents.ops["CONV_2D"] == 2
    assert bool(contents.float_ops) == (mode not in ("int8", "int16x8"))


def test_dynamic_stores_large_weights_in_int8(process, tmp_path):
    x = keras.Input((64,))
    tflite = converted(process, keras.Model(x, layers.Dense(64)(x)), tmp_path, quantize="dynamic")
    assert read_contents(tflite).dtypes["int8"] == 1
    assert len(tflite) < 64 * 64 * 4 / 2


@pytest.mark.parametrize(
    ("mode", "io_dtype"), [("int8", "int8"), ("int8", "uint8"), ("int16x8", "int16")]
)
def test_inputs_and_outputs_can_be_integers(mode, io_dtype, process, tmp_path):
    tflite = converted(
        process,
        image_model(),
        tmp_path,
        quantize=mode,
        io_dtype=io_dtype,
        calibration={"image": images(20)},
    )
    interpreter = Interpreter(model_content=tflite)
    for detail in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        assert np.dtype(detail["dtype"]) == io_dtype
        assert detail["quantization"][0] > 0


@pytest.mark.parametrize("name", MODELS)
def test_signatures_survive(name, process, tmp_path):
    model = MODELS[name]()
    exported = export(model, tmp_path)
    process.submit(exported, quantize="none")
    signature = signature_of(process.result())
    assert sorted(signature["inputs"]) == sorted(spec.name for spec in exported.inputs)
    assert sorted(signature["outputs"]) == sorted(exported.outputs)


@pytest.mark.parametrize(("batch_size", "first"), [(1, 1), (3, 3), (None, -1)])
def test_batch_sizes(batch_size, first, process, tmp_path):
    tflite = converted(process, image_model(), tmp_path, batch_size=batch_size, quantize="none")
    (detail,) = Interpreter(model_content=tflite).get_input_details()
    assert detail["shape_signature"][0] == first
    if batch_size:
        assert "SHAPE" not in read_contents(tflite).ops


def test_calibration_reaches_the_input_it_is_for(process, tmp_path):
    """Two inputs of one shape, in the reverse of their names' order, a thousand times apart."""
    small, large = np.random.default_rng(0).uniform(-1, 1, (2, 30, 6)).astype("float32")
    for names in (("right", "left"), ("left", "right")):
        calibration = dict(zip(names, (small, 1000 * large), strict=True))
        folder = tmp_path / names[0]
        folder.mkdir()
        tflite = converted(
            process,
            two_by_two_model(),
            folder,
            quantize="int8",
            io_dtype="int8",
            calibration=calibration,
        )
        runner = Interpreter(model_content=tflite).get_signature_runner()
        details = runner.get_input_details()
        for name, samples in calibration.items():
            # int8 spreads 255 steps over the range seen; the range is not symmetric to the last.
            scale = details[name]["quantization"][0]
            assert scale == pytest.approx(np.ptp(samples) / 255, rel=0.05)


def test_missing_operations_are_listed(process, tmp_path):
    x = keras.Input((3, 3))
    model = keras.Model(x, [keras.ops.cholesky(x), keras.ops.inv(x)])
    exported = export(model, tmp_path)
    process.submit(exported, quantize="none")
    with pytest.raises(ConversionError, match=r"Cholesky.*MatrixInverse.*allow_flex=True"):
        process.result()
    process.submit(exported, quantize="none", allow_flex=True)
    assert set(read_contents(process.result()).ops) == {"FlexCholesky", "FlexMatrixInverse"}


def test_a_free_batch_of_a_loop_is_explained(process, tmp_path):
    process.submit(export(lstm_model(), tmp_path, batch_size=None), quantize="none")
    with pytest.raises(ConversionError, match="try batch_size=1"):
        process.result()


def test_a_crash_of_the_converter_is_an_error_and_the_next_conversion_works(tmp_path):
    """TensorFlow 2.21 dies calibrating a While loop."""
    model = lstm_model()
    exported = export(model, tmp_path)
    with ConverterProcess() as process:
        process.submit(exported, quantize="int8", calibration=random_samples(model, 4))
        with pytest.raises(ConversionError, match=r"SIGSEGV.*try quantize='dynamic'") as error:
            process.result()
        assert "calibrator.py" in str(error.value)  # where it happened
        process.submit(exported, quantize="none")
        assert read_contents(process.result()).ops["WHILE"] == 1


def test_a_killed_worker_is_an_error(tmp_path):
    exported = export(image_model(), tmp_path)
    with ConverterProcess() as process:
        process.submit(exported, quantize="none")
        process._worker.kill()
        with pytest.raises(ConversionError, match="SIGKILL"):
            process.result()


def test_an_interrupted_conversion_does_not_answer_the_next(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with ConverterProcess() as process:
        process.submit(export(image_model(), tmp_path / "a"), quantize="none")
        # as if Ctrl-C had come here, and the caller had gone on
        process.submit(export(lstm_model(), tmp_path / "b"), quantize="none")
        assert "WHILE" in read_contents(process.result()).ops


def test_nothing_is_left_behind():
    with ConverterProcess() as process:
        worker, folder = process._worker, process.folder
        assert folder.is_dir()
    assert worker.returncode == -signal.SIGKILL
    assert not folder.exists()


OWNER = """
import sys, time
from keras_bn.convert.process import ConverterProcess
with ConverterProcess() as process:
    print(process._worker.pid, process.folder, flush=True)
    time.sleep(60)
"""


def is_running(pid):
    """Whether there is such a process, and not just its remains waiting for a parent."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_worker_dies_with_its_owner(number):
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
    )
    with owner:
        pid, folder = owner.stdout.readline().split()
        assert is_running(pid)
        owner.send_signal(number)
        owner.wait(20)
        for _ in range(200):  # it may be importing TensorFlow, with Python's lock held
            if not is_running(pid) and not Path(folder).exists():
                break
            time.sleep(0.1)
        running = is_running(pid)
        if running:
            os.kill(int(pid), signal.SIGKILL)
        assert not running
        assert not Path(folder).exists()


def test_a_full_scratch_folder_is_an_operating_system_error(process, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_output", Path("/nowhere/output.tflite"))
    process.submit(export(image_model(), tmp_path), quantize="none")
    with pytest.raises(OSError, match="nowhere"):
        process.result()
