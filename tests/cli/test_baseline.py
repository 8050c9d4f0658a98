"""Baselines and microcontrollers on the command line, with results that stand for measured ones."""

import importlib.util
import json
import math
import re
import shlex
from pathlib import Path

import pytest

from keras_bn.bench import api, micro
from keras_bn.bench.result import MicrocontrollerResult, OutputDeviation
from keras_bn.errors import DeviceError
from tests.report.example import measurement


@pytest.fixture
def bench_here(keras_bn_here, monkeypatch, tmp_path):
    """`keras-bn bench …` in `tmp_path`, which measures `results`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, results, tried=None, asked=None):
        def benchmark(paths, **options):
            if asked is not None:
                asked.append(options)
            if isinstance(results, Exception):
                raise results
            return results

        monkeypatch.setattr(api, "benchmark", benchmark)

        def examine(paths, **options):
            if isinstance(tried, Exception):
                raise tried
            return tried

        monkeypatch.setattr(micro, "examine", examine)
        if tried is not None:
            monkeypatch.setattr(micro, "require_package", lambda: None)
        return keras_bn_here("bench", *arguments)

    return run


@pytest.fixture
def bench(bench_here):
    """`keras-bn bench a.tflite …`, where a.tflite takes `median` milliseconds."""

    def run(*arguments, median=2.0, results=None, **options):
        found = [measurement("a.tflite", median, repeats=5)] if results is None else results
        return bench_here("a.tflite", *arguments, results=found, **options)

    return run


LIMIT = ("--against", "base.json", "--fail-if-slower", "5%")


def test_what_is_as_fast_as_the_baseline_passes(bench):
    saved = bench("--save", "base.json")
    assert (saved.returncode, saved.stderr) == (0, "")
    assert "wrote base.json" in saved.stdout
    passed = bench(*LIMIT, median=2.01)
    assert (passed.returncode, passed.stderr) == (0, "")
    assert "within the limit" in passed.stdout


def test_what_is_slower_exits_1_with_the_table_and_the_baseline_stays(bench, tmp_path):
    bench("--save", "base.json")
    baseline = (tmp_path / "base.json").read_bytes()
    slower = bench(*LIMIT, "--save", "base.json", "-o", "now.json", median=2.4)
    assert slower.returncode == 1
    assert "slower" in slower.stdout and "1.20" in slower.stdout
    assert "a on host, 1 thread became slower: 1.20" in slower.stderr
    assert (tmp_path / "base.json").read_bytes() == baseline
    assert (tmp_path / "now.json").exists()


def test_json_holds_the_comparison(bench):
    bench("--save", "base.json")
    run = bench(*LIMIT, "--json", median=2.4)
    against = json.loads(run.stdout)["against"]
    assert (run.returncode, against["limit"]) == (1, 0.05)
    [change] = against["changes"]
    assert (change["name"], change["verdict"]) == ("a", "slower")
    assert change["ratio"] == pytest.approx(1.2, rel=1e-6)  # the same samples, scaled


def test_without_a_limit_slower_is_told_and_passes(bench):
    bench("--save", "base.json")
    run = bench("--against", "base.json", median=2.4)
    assert (run.returncode, run.stderr) == (0, "")
    assert "slower" in run.stdout


def test_doubt_passes_with_advice(bench):
    few = [measurement("a.tflite", 2.0, runs=3)]
    bench("--save", "base.json", results=few)
    run = bench(*LIMIT, median=9.0)
    assert run.returncode == 0
    assert "inconclusive" in run.stdout and "raise --repeat" in run.stdout


def test_a_baseline_is_measured_in_five_runs_and_other_results_in_one(bench):
    asked = []
    bench("--save", "base.json", asked=asked)
    bench("--against", "base.json", asked=asked)
    bench("-o", "results.json", asked=asked)
    bench("--against", "base.json", "--repeat", "3", asked=asked)
    assert [each["repeats"] for each in asked] == [5, 5, 1, 3]


@pytest.mark.parametrize(
    "results, words",
    [
        ([measurement("a.tflite", environment={"cpu": "other"})], "cannot be compared"),
        ([measurement("b.tflite")], "Nothing to compare"),
    ],
    ids=["another CPU", "another model"],
)
def test_what_cannot_be_compared_exits_1(bench, results, words):
    bench("--save", "base.json")
    run = bench(*LIMIT, results=results)
    assert run.returncode == 1
    assert words in run.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--fail-if-slower", "5%"], "needs --against"),
        (["--against", "base.json", "--fail-if-slower", "0.05"], "a percentage such as 5%"),
        (["--against", "absent.json"], "absent.json"),
        (["--against", "text.json"], "text.json cannot be read"),
        (["--save", "no/folder.json"], "no such folder: no"),
        (["--device", "tflm", "--save", "base.json"], "tflm has none"),
    ],
    ids=str,
)
def test_wrong_usage_is_told_before_anything_is_measured(bench, tmp_path, arguments, words):
    (tmp_path / "text.json").write_text("text")
    run = bench(*arguments, results=AssertionError("measured"))
    assert run.returncode == 2
    assert words in run.stderr


# --- Microcontrollers --------------------------------------------------------------------------

RUNS = MicrocontrollerResult(
    "a.tflite",
    "ab" * 32,
    27_800,
    {"CONV_2D": 2},
    runs=True,
    arena_bytes=20_496,
    outputs=(OutputDeviation("y", "int8", 0.0, 0, math.inf),),
    samples=8,
)
STOPS = MicrocontrollerResult(
    "b.tflite",
    "cd" * 32,
    9_000,
    {"CONV_3D": 1},
    runs=False,
    reason="Didn't find op for builtin opcode 'CONV_3D'",
    stopped_by="CONV_3D",
)


def test_a_file_that_runs_passes(bench):
    run = bench("--device", "tflm", "--json", tried=[RUNS], results=AssertionError("measured"))
    assert run.returncode == 0
    [told] = json.loads(run.stdout)["microcontrollers"]
    assert (told["arena_bytes"], told["snr_db"], told["max_abs_error"]) == (20_496, "inf", 0.0)
    assert "20\u202f496" in run.stderr and "∞" in run.stderr


def test_a_file_that_does_not_run_exits_1_with_the_reason(bench, tmp_path):
    run = bench("--device", "tflm", "--device", "host", "-o", "r.json", tried=[RUNS, STOPS])
    assert run.returncode == 1
    assert "no: CONV_3D" in run.stdout
    assert "b.tflite does not run: Didn't find op for builtin opcode 'CONV_3D'" in run.stderr
    written = json.loads((tmp_path / "r.json").read_text())
    assert (len(written["benchmarks"]), len(written["microcontrollers"])) == (1, 2)


def test_a_device_that_fails_does_not_keep_the_microcontrollers_from_being_told(bench, tmp_path):
    failure = DeviceError("The board is gone.")
    run = bench(
        "--device", "host", "--device", "tflm", "-o", "r.json", tried=[RUNS], results=failure
    )
    assert run.returncode == 3
    assert "The board is gone." in run.stderr
    assert len(json.loads((tmp_path / "r.json").read_text())["microcontrollers"]) == 1


def test_of_several_failures_all_are_told(bench):
    gone, broken = DeviceError("The board is gone."), DeviceError("The interpreter broke.")
    run = bench("--device", "host", "--device", "tflm", results=gone, tried=broken)
    assert (run.returncode, run.stdout) == (3, "")
    assert "The board is gone." in run.stderr
    assert "The interpreter broke." in run.stderr


def test_without_the_package_nothing_is_measured(bench, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = bench("--device", "host", "--device", "tflm", results=AssertionError("measured"))
    assert run.returncode == 3
    assert "pip install --pre tflite-micro" in run.stderr


# --- The page ----------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "ci.md"


def test_the_commands_of_the_page_for_ci(bench_here, tmp_path):
    """In the order in which a reader runs them."""
    commands = re.findall(r"^\$ keras-bn bench (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)
        models = [word for word in words if word.endswith(".tflite")]
        run = bench_here(*words, results=[measurement(model) for model in models], tried=[RUNS])
        assert run.returncode == 0, f"{command}: {run.stderr}"
        assert "within the limit" in run.stdout or "--against" not in words
    assert {path.name for path in tmp_path.iterdir()} == {
        "baseline.json",
        "micro.json",
        "results.json",
    }
