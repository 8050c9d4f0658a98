"""The runner's own parts: order, inputs, what it reads of the machine, what it needs."""

import ast
import io
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from keras_bn.bench import runner

SOURCE = Path(runner.__file__).read_text()


def test_its_syntax_is_that_of_python_3_7():
    assert ast.parse(SOURCE, feature_version=(3, 7)).body


def test_it_needs_the_standard_library_numpy_and_an_interpreter_only():
    imported = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    allowed = {"numpy", "ai_edge_litert", "tflite_runtime"}
    assert imported - sys.stdlib_module_names == allowed


# --- Rounds ------------------------------------------------------------------------------------


def run_rounds(monkeypatch, cells: int, runs: int, seed: int = 0):
    """The cells in the order they were invoked, each turn being settled by one invoke."""
    monkeypatch.setattr(runner, "SETTLE_NS", 0)
    invoked = []
    interpreters = [SimpleNamespace(invoke=lambda cell=cell: invoked.append(cell))
                    for cell in range(cells)]  # fmt: skip
    progress = runner.Progress(cells * runs)
    samples_ns, preempted = runner.rounds(
        interpreters,
        SimpleNamespace(runs=runs, seed=seed),
        progress,
        runner.Cooling(0.0, None, progress),
    )
    assert progress.done == cells * runs
    return invoked, samples_ns, preempted


def test_every_round_invokes_every_cell_untimed_and_then_timed(monkeypatch):
    invoked, samples_ns, preempted = run_rounds(monkeypatch, cells=3, runs=20)

    assert [len(samples) for samples in samples_ns] == [20, 20, 20]
    assert all(0 <= count <= 20 for count in preempted)
    assert all(sample > 0 for samples in samples_ns for sample in samples)
    assert invoked[0::2] == invoked[1::2]
    turns = invoked[::2]
    for start in range(0, 60, 3):
        assert sorted(turns[start : start + 3]) == [0, 1, 2]


def test_no_cell_always_follows_the_same_one(monkeypatch):
    invoked, _, _ = run_rounds(monkeypatch, cells=4, runs=200)
    follows = Counter(itertools.pairwise(invoked[::2]))

    # 12 ordered pairs of different cells share most of 799 steps evenly: some 60 each.
    pairs = [follows[a, b] for a, b in itertools.permutations(range(4), 2)]
    assert min(pairs) > 30
    assert max(pairs) < 100


def test_the_order_is_that_of_the_seed(monkeypatch):
    first, again, other = (run_rounds(monkeypatch, 4, 10, seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_settling_invokes_until_the_time_is_up(monkeypatch):
    monkeypatch.setattr(runner.time, "perf_counter_ns", iter(range(0, 10**9, 300_000)).__next__)
    invoked = []
    progress = SimpleNamespace(step=lambda what: None)
    runner.rounds(
        [SimpleNamespace(invoke=lambda: invoked.append(0))],
        SimpleNamespace(runs=1, seed=0),
        progress,
        SimpleNamespace(wait=lambda: None),
    )
    # A clock that moves 0.3 ms a reading: 1 ms is over at the fourth reading after the first.
    assert len(invoked) == 4 + 1


# --- Inputs ------------------------------------------------------------------------------------


def filled(dtype, shape=(2, 300), seed=0):
    tensors = {}
    detail = {"index": 3, "name": "x", "shape": np.array(shape), "dtype": dtype}
    interpreter = SimpleNamespace(
        get_input_details=lambda: [detail], set_tensor=tensors.__setitem__
    )
    [described] = runner.fill_inputs(interpreter, "m.tflite", seed)
    assert described["shape"] == list(shape)
    assert described["dtype"] == np.dtype(dtype).name
    return tensors[3]


@pytest.mark.parametrize(
    "dtype, low, high",
    [
        (np.float32, -6.0, 6.0),
        (np.float16, -6.0, 6.0),
        (np.float64, -6.0, 6.0),
        (np.int8, -128, 127),
        (np.uint8, 0, 255),
        (np.int16, -32768, 32767),
        (np.int32, 0, 1),
        (np.int64, 0, 1),
        (np.uint32, 0, 1),
        (np.bool_, 0, 1),
    ],
)
def test_inputs_are_random_within_what_their_type_can_mean(dtype, low, high):
    value = filled(dtype)

    assert value.dtype == dtype
    assert value.shape == (2, 300)
    assert low <= value.min() < value.max() <= high
    if np.dtype(dtype).itemsize == 1 and np.dtype(dtype).kind in "iu":
        assert int(value.max()) - int(value.min()) > 240  # all of the range, not a corner of it


def test_inputs_are_those_of_the_seed():
    assert np.array_equal(filled(np.float32), filled(np.float32))
    assert not np.array_equal(filled(np.float32), filled(np.float32, seed=1))


def test_text_inputs_are_refused():
    with pytest.raises(runner.RunError, match=r"x of m\.tflite holds \|S.*numbers and booleans"):
        filled(np.dtype("S"))


# --- Profile -----------------------------------------------------------------------------------


def test_the_middle_half_of_the_invokes_makes_the_mean():
    times_us = [2, 900, 3, 0, 4, 3, 70, 0]  # in order 0 0 2 3 3 4 70 900
    found = runner.means([[("CONV_2D", time), ("ADD", 9)] for time in times_us])
    assert found == [
        {"name": "CONV_2D:0", "kind": "CONV_2D", "mean_ms": 0.003, "share": 0.25, "calls": 1},
        {"name": "ADD:1", "kind": "ADD", "mean_ms": 0.009, "share": 0.75, "calls": 1},
    ]


@pytest.mark.parametrize(
    "invokes, words",
    [
        ([[("ADD", 9)], [("MUL", 9)]], "differ from one invoke to the next"),
        ([[("ADD", 9)], [("ADD", 9), ("ADD", 9)]], "differ from one invoke to the next"),
        ([[("ADD", 1), ("MUL", 0)]] * 4, "less than the profiler's step of 1 µs on average"),
    ],
    ids=["kinds", "number", "short"],
)
def test_times_that_mean_nothing_are_no_profile(invokes, words):
    with pytest.raises(runner.RunError, match=words):
        runner.means(invokes)


def test_a_runtime_whose_structures_are_not_known_has_no_profile(monkeypatch):
    monkeypatch.setattr(runner, "runtime", lambda: "tflite_runtime 2.14.0")
    options = runner.parse(["--profile-alone", "--", "m.tflite"])
    with pytest.raises(runner.RunError, match=r"with ai_edge_litert 2\.\d\.x; this is tflite_r"):
        runner.profile(options)


def test_without_a_profile_the_rest_holds(monkeypatch):
    def crash(*arguments):
        raise runner.RunError("m.tflite crashed the interpreter (SIGILL)", "m.tflite")

    monkeypatch.setattr(runner, "run_alone", crash)
    assert runner.run_profile(None, "m.tflite", 1) == {
        "profile": [],
        "profile_problem": "m.tflite crashed the interpreter (SIGILL)",
    }


# --- The machine -------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A Raspberry Pi's /sys and /proc, as far as they are read."""
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1800000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-500\n",
        "sys/class/thermal/thermal_zone2/type": "unplugged\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2\n",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\n",
        "proc/self/status": "Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t    1024 kB\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(runner, "SYS", tmp_path / "sys")
    monkeypatch.setattr(runner, "PROC", tmp_path / "proc")
    return tmp_path


def test_a_board_tells_its_state(board):
    state = runner.conditions()
    assert state["governor"] == "ondemand"
    assert state["frequency_mhz"] == 1200.0
    assert state["temperature_c"] == 48.312
    assert state["temperature_by_zone_c"] == {
        "thermal_zone0 (cpu-thermal)": 48.312,
        "thermal_zone1 (gpu-thermal)": -0.5,
    }
    assert (state["throttle_events"], state["firmware_throttling"]) == (5, 0x50005)
    assert runner.machine()["board"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert runner.machine()["cpu"] == "BCM2835"
    assert (runner.rss_bytes("VmHWM"), runner.rss_bytes("VmRSS")) == (2048 * 1024, 1024 * 1024)


def test_a_machine_that_tells_nothing_is_measured_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SYS", tmp_path)
    monkeypatch.setattr(runner, "PROC", tmp_path)
    state = runner.conditions()
    assert state.pop("load_average") >= 0
    assert state == {
        "governor": None,
        "frequency_mhz": None,
        "temperature_c": None,
        "temperature_by_zone_c": {},
        "throttle_events": None,
        "firmware_throttling": None,
    }
    assert runner.machine()["cpu"]


def test_cooling_waits_until_the_board_is_cool_again(board, monkeypatch):
    temperature = board / "sys/class/thermal/thermal_zone0/temp"
    readings = iter(["60000", "55000", "50000"])
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        temperature.write_text(next(readings))

    monkeypatch.setattr(runner.time, "sleep", sleep)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    temperature.write_text("65000")
    cooling = runner.Cooling(60.0, 48.312, runner.Progress(1))
    cooling.wait()

    assert pauses == [0.5, 0.5, 0.5]
    assert cooling.waited_s == 1.5
    told = [json.loads(line.partition(" ")[2]) for line in sys.stderr.getvalue().splitlines()]
    assert [line["what"] for line in told] == [
        f"cooling down from {temperature} °C" for temperature in (65, 60, 55)
    ]


def test_cooling_stops_at_its_limit(board, monkeypatch):
    pauses = []
    monkeypatch.setattr(runner.time, "sleep", pauses.append)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    cooling = runner.Cooling(1.2, 20.0, runner.Progress(1))
    cooling.wait()
    cooling.wait()
    assert pauses == pytest.approx([0.5, 0.5, 0.2])


def test_cooling_needs_a_thermometer(board, monkeypatch):
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: pytest.fail("waited"))
    cooling = runner.Cooling(60.0, None, runner.Progress(1))
    cooling.wait()
    assert cooling.waited_s == 0.0


def test_a_timer_has_a_resolution():
    assert 1 <= runner.timer_resolution_ns() < 1e9
