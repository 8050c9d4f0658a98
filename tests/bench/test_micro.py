"""TensorFlow Lite Micro: real models in its interpreter, and a stand-in that crashes and hangs."""

import importlib.util
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_bn.bench.micro import deviation, examine
from keras_bn.bench.micro_worker import condensed, operation_in, smallest
from keras_bn.errors import DeviceError
from tests.bench.test_host import eventually_none_running, running

needs_tflite_micro = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None,
    reason="tflite-micro is not installed: pip install --pre tflite-micro (Linux on x86-64)",
)


@pytest.fixture(scope="module")
def converted(process, tmp_path_factory):
    """Files of `keras_bn.convert`: two inputs and outputs in float32 and int8, and a 3-D one."""
    import keras
    from keras import layers

    from keras_bn.pipeline import convert, convert_all
    from tests.random_weights import randomize

    rng = np.random.default_rng(0)
    image, context = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="context")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    x = layers.Concatenate()([x, layers.Dense(3, activation="tanh")(context)])
    outputs = [layers.Dense(3)(x), layers.Dense(2, activation="softmax")(x)]
    model = keras.Model([image, context], outputs)
    solid = keras.Sequential([keras.Input((3, 3, 3, 1)), layers.Conv3D(2, 2)])
    randomize(model)
    randomize(solid)
    folder = tmp_path_factory.mktemp("micro")
    paths = {name: folder / f"{name}.tflite" for name in ("none", "int8", "solid")}
    convert_all(
        model,
        {name: paths[name] for name in ("none", "int8")},
        io_dtype="int8",
        calibration={
            "image": rng.normal(size=(20, 8, 8, 3)).astype("float32"),
            "context": rng.normal(size=(20, 4)).astype("float32"),
        },
        process=process,
    )
    convert(solid, paths["solid"], process=process)
    return paths


# A process of its own for each size: the oracle shares nothing with `examine`.
RUNS_IN = """
import sys
from tflite_micro import runtime
interpreter = runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))
interpreter.invoke()
"""


def runs_in(path, arena_bytes) -> bool:
    command = [sys.executable, "-c", RUNS_IN, path, str(arena_bytes)]
    return subprocess.run(command, capture_output=True).returncode == 0


@needs_tflite_micro
def test_it_tells_what_runs_in_how_much_memory_and_what_does_not(converted):
    told = []
    floats, int8, solid = examine(
        converted.values(), progress=lambda done, total, what: told.append((done, total))
    )

    assert [r.model for r in (floats, int8, solid)] == [str(p) for p in converted.values()]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert floats.runs and int8.runs and not solid.runs

    assert solid.stopped_by == "CONV_3D"
    assert "Didn't find op for builtin opcode 'CONV_3D'" in solid.reason
    assert (solid.arena_bytes, solid.outputs, solid.snr_db) == (None, (), None)
    assert solid.ops == {"CONV_3D": 1}

    assert (floats.reason, floats.stopped_by) == (None, None)
    assert floats.ops["CONV_2D"] == 1 and floats.ops["FULLY_CONNECTED"] == 3
    assert floats.size_bytes == converted["none"].stat().st_size
    assert [each.dtype for each in floats.outputs] == ["float32", "float32"]
    # Two interpreters add a few dozen terms in different orders: 24 bits, less some of them.
    assert floats.snr_db > 110 and 0 < floats.max_abs_error < 1e-5
    assert [each.max_steps for each in floats.outputs] == [None, None]

    assert [each.dtype for each in int8.outputs] == ["int8", "int8"]
    # TFLM's reference kernels round where LiteRT's do, but for the last step here and there.
    assert all(each.max_steps <= 2 for each in int8.outputs)

    for result in (floats, int8):
        assert result.arena_bytes % 16 == 0
        assert runs_in(result.model, result.arena_bytes)
        assert not runs_in(result.model, result.arena_bytes - 16)


@needs_tflite_micro
def test_a_state_is_kept_from_one_input_to_the_next(tmp_path):
    import tensorflow as tf

    class Sum(tf.Module):
        def __init__(self):
            self.total = tf.Variable(tf.zeros((1, 3)))

        @tf.function(input_signature=[tf.TensorSpec((1, 3))])
        def add(self, x):
            return self.total.assign_add(x)

    module = Sum()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.add.get_concrete_function()], module
    )
    converter.experimental_enable_resource_variables = True
    path = tmp_path / "sum.tflite"
    path.write_bytes(converter.convert())
    [result] = examine(path, samples=5)

    assert result.runs and result.ops["ASSIGN_VARIABLE"] == 2
    assert (result.max_abs_error, result.snr_db, result.samples) == (0.0, math.inf, 5)


# --- A stand-in --------------------------------------------------------------------------------

STAND_IN = """
import os, sys, time
import numpy as np

__version__ = "of a test"


class runtime:
    class Interpreter:
        @classmethod
        def from_bytes(cls, model, arena_size):
            print("Speaking to stderr.", file=sys.stderr, flush=True)
            behaviour = os.environ["STAND_IN"]
            if behaviour == "crashes" or arena_size < 5000:
                os.abort()
            if behaviour == "hangs":
                time.sleep(60)
            return cls()

        def set_input(self, value, index):
            assert (value.shape, index) == ((1, 64), 0)

        def invoke(self):
            if os.environ["STAND_IN"] == "refuses":
                raise RuntimeError("Node RELU (number 3) failed to invoke with status 1")

        def get_output(self, index):
            return np.zeros((1, 64 if os.environ["STAND_IN"] != "shrinks" else 32), np.float32)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A tflite_micro whose arenas hold from 5000 bytes on, and whose outputs are zeros."""
    (tmp_path / "tflite_micro.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda behaviour: monkeypatch.setenv("STAND_IN", behaviour)


def test_the_smallest_arena_is_found_though_smaller_ones_crash(models, stand_in):
    stand_in("runs")
    [result] = examine(models.small)
    assert result.arena_bytes == 5008  # the first multiple of 16 from 5000 on
    assert result.snr_db == 0.0  # the difference is all there is
    assert result.max_abs_error > 0.1
    assert result.environment["tflm"] == "tflite-micro of a test"


@pytest.mark.parametrize(
    "behaviour, timeout_s, reason, stopped_by",
    [
        ("crashes", 60, "Speaking to stderr.; the interpreter crashed (SIGABRT)", None),
        ("hangs", 2, "Speaking to stderr.; no answer within 2 s", None),
        (
            "refuses",
            60,
            "Speaking to stderr.; RuntimeError: Node RELU (number 3) failed to invoke with "
            "status 1",
            "RELU",
        ),
        ("shrinks", 60, "its outputs have shapes [(1, 32)], LiteRT's [(1, 64)]", None),
    ],
)
def test_failures_are_reasons(models, stand_in, behaviour, timeout_s, reason, stopped_by):
    stand_in(behaviour)
    start = time.monotonic()
    [result] = examine(models.small, samples=1, timeout_s=timeout_s)
    assert (result.runs, result.reason, result.stopped_by) == (False, reason, stopped_by)
    assert (result.arena_bytes, result.outputs, result.samples) == (None, (), 0)
    assert time.monotonic() - start < 50  # the stand-in would sleep for 60 s


# --- Errors ------------------------------------------------------------------------------------


def test_without_the_package_the_command_that_installs_it_is_told(models, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"not installed.* -m pip install --pre tflite-micro \("):
        examine(models.small)


def test_a_file_that_litert_does_not_run_is_a_device_error_with_the_others_results(
    models, tmp_path, stand_in
):
    stand_in("runs")
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3 and nothing else")
    with pytest.raises(DeviceError, match=r"LiteRT does not run .*broken\.tflite: ") as caught:
        examine([path, models.small])
    [result] = caught.value.results
    assert (result.model, result.runs) == (str(models.small), True)


@pytest.mark.parametrize(
    "arguments, words",
    [({"samples": 0}, "samples must be at least 1"), ({"timeout_s": 0}, "timeout_s must be posi")],
    ids=str,
)
def test_arguments_out_of_range_are_named(models, arguments, words):
    with pytest.raises(ValueError, match=words):
        examine(models.small, **arguments)


# --- Parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 16, 17, 1024, 1025, 123_457, 2**28 - 16, 2**28])
def test_the_smallest_size_is_exact_and_few_are_tried(least):
    tried = []
    found = smallest(lambda size: tried.append(size) or size >= least)
    assert found == -(-least // 16) * 16
    assert all(size % 16 == 0 for size in tried)
    assert len(tried) <= 18 + 23  # doublings from 2¹⁰ to 2²⁸, halvings from 2²⁷ to 2⁴


def test_deviation_is_in_the_outputs_unit_and_in_steps():
    reference, output = np.int8([[-128, 0, 127]]), np.int8([[-128, 3, 126]])
    found = deviation(reference, output, name="y", scale=0.5, zero_point=-128)
    assert (found.name, found.dtype, found.max_steps, found.max_abs_error) == ("y", "int8", 3, 1.5)
    # real values 0, 64 and 127.5; differences 0, 1.5 and 0.5
    assert found.snr_db == pytest.approx(10 * np.log10((64**2 + 127.5**2) / (1.5**2 + 0.5**2)))


@pytest.mark.parametrize(
    "reference, output, error, snr_db",
    [
        (np.float32([1, np.nan, np.inf]), np.float32([1, np.nan, np.inf]), 0.0, math.inf),
        (np.float32([1, 1]), np.float32([1, np.nan]), math.inf, -math.inf),
        (np.float32([1, np.inf]), np.float32([1, 2]), math.inf, -math.inf),
        (np.float32([0, 0]), np.float32([0, 0]), 0.0, math.inf),
        (np.float32([0, 0]), np.float32([0, 1]), 1.0, -math.inf),
        (np.array([True, False]), np.array([True, True]), 1.0, 0.0),
        (np.int64([5]), np.int64([2]), 3.0, 10 * math.log10(25 / 9)),
        (np.zeros((1, 0), np.float32), np.zeros((1, 0), np.float32), 0.0, math.inf),
    ],
    ids=["not finite", "NaN", "infinite", "zeros", "zero", "bool", "int64", "empty"],
)
def test_deviation_of_special_outputs(reference, output, error, snr_db):
    found = deviation(reference, output)
    assert (found.max_abs_error, found.max_steps) == (error, None)
    assert found.snr_db == pytest.approx(snr_db)


@pytest.mark.parametrize(
    "words, operation",
    [
        ("Didn't find op for builtin opcode 'CONV_3D'; Failed to get …", "CONV_3D"),
        ("Failed to get registration from op code CUSTOM", "CUSTOM"),
        ("x.cc:42 input was not true.; Node DEQUANTIZE (number 0) failed to prepare", "DEQUANTIZE"),
        ("Failed to resize buffer. Requested: 10, available 2, missing: 8", None),
        ("", None),
    ],
)
def test_the_operation_is_found_in_the_interpreters_words(words, operation):
    assert operation_in(words) == operation


def test_words_become_one_line_that_a_terminal_can_show():
    assert condensed("one\n \none\ntwo\x1b[31m\n") == "one; two\N{REPLACEMENT CHARACTER}[31m"
    assert len(condensed("x" * 5000)) == 1002


EXAMINE = "import sys; from keras_bn.bench.micro import examine; examine(sys.argv[1])"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_nothing_outlives_its_caller(models, tmp_path, stand_in, end):
    """A caller that is killed cannot clean up: what it started has to notice."""
    stand_in("hangs")
    path = tmp_path / "hangs.tflite"
    path.write_bytes(models.small.read_bytes())
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "TMPDIR": f"{tmp_path}/temporary"}
    caller = subprocess.Popen(
        [sys.executable, "-c", EXAMINE, path], env=environment, stderr=subprocess.DEVNULL
    )
    while len(running(path)) < 3:  # the caller, TFLM's process, and the try in its child
        assert caller.poll() is None
        time.sleep(0.02)
    caller.send_signal(end)
    assert caller.wait(timeout=30)
    assert eventually_none_running(path)
    assert list((tmp_path / "temporary").iterdir()) == []
