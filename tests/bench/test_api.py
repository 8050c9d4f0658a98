"""Arguments, errors, JSON: what can be told without a run."""

import json
import subprocess
import sys

import pytest

import keras_bn
from keras_bn.bench import stats
from keras_bn.bench.api import benchmark, speedups
from keras_bn.bench.result import BenchmarkResult, Operation, from_json, to_json


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3 and nothing else")
    return path


def result(model: str, samples, threads=1, device="host") -> BenchmarkResult:
    return BenchmarkResult(
        model=model,
        sha256="ab",
        size_bytes=10,
        device=device,
        threads=threads,
        latency_ms=stats.summarize(samples),
        init_ms=0.5,
        first_invoke_ms=1.5,
        peak_rss_bytes=2048,
        environment={"cpu": "x", "before": {"load_average": 0.5}},
        warnings=("Too short.",),
        inputs=("x float32 [1]",),
        preempted=1,
        profile=(Operation("y", "CONV_2D", 0.5, 1.0, 1),),
    )


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"runs": 0}, ValueError, r"runs must be at least 1, received 0"),
        ({"runs": 2.0}, TypeError, r"runs must be whole numbers, received 2\.0"),
        ({"runs": True}, TypeError, r"runs .* received True"),
        ({"repeats": 0}, ValueError, r"repeats must be at least 1, received 0"),
        ({"warmup": -1}, ValueError, r"warmup must be at least 0, received -1"),
        ({"threads": 0}, ValueError, r"threads must be at least 1, received 0"),
        ({"threads": ()}, ValueError, r"threads must be one or several different"),
        ({"threads": (1, 1)}, ValueError, r"different numbers, received \(1, 1\)"),
        ({"threads": ("1",)}, TypeError, r"threads .* received '1'"),
        ({"affinity": [-1]}, ValueError, r"affinity must be at least 0"),
        ({"affinity": []}, ValueError, r"affinity must be one or several"),
        ({"timeout_s": 0}, ValueError, r"timeout_s must be positive and finite, received 0"),
        ({"timeout_s": float("inf")}, ValueError, r"timeout_s .* finite"),
        ({"timeout_s": float("nan")}, ValueError, r"timeout_s .* received nan"),
        ({"timeout_s": "9"}, TypeError, r"timeout_s must be a number of seconds"),
        ({"cooldown_s": -1}, ValueError, r"cooldown_s must be zero or positive"),
        ({"device": "moon"}, ValueError, r"host, ssh://.*received 'moon'.*keras-bn devices"),
        ({"device": "sshd://a"}, ValueError, r"received 'sshd://a'"),
        ({"device": "adbx"}, ValueError, r"received 'adbx'"),
        ({"device": "tflm"}, ValueError, r"examine\(paths\)"),
        ({"device": []}, ValueError, r"device must name one device, or several different ones"),
        ({"device": ["host", "host"]}, ValueError, r"different ones: \['host', 'host'\]"),
        ({"device": ["host", "moon"]}, ValueError, r"received 'moon'"),
        ({"python": "python3"}, ValueError, r"python='python3' is for other devices"),
        ({"python": "-c", "device": "ssh://a"}, ValueError, r"python must be the path"),
        ({"python": "", "device": "ssh://a"}, ValueError, r"python must be the path"),
        ({"benchmark_binary": "b"}, ValueError, r"benchmark_binary='b' is for Android .* host"),
        (
            {"benchmark_binary": "/no/such", "device": "adb"},
            FileNotFoundError,
            r"/no/such",
        ),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(model, arguments, error, words):
    with pytest.raises(error, match=words):
        benchmark(model, **arguments)


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.tflite"):
        benchmark(tmp_path / "absent.tflite")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a .keras file", b"TFL3TFL"], ids=repr)
def test_another_kind_of_file_is_refused_before_any_run(tmp_path, content):
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.keras is not a \.tflite file.*keras-bn convert"):
        benchmark(path)


def test_no_file_is_an_error():
    with pytest.raises(ValueError, match="paths names no file"):
        benchmark([])


def test_a_cpu_that_is_not_there_is_a_device_error(model):
    with pytest.raises(keras_bn.errors.DeviceError, match=r"cannot stay on CPUs \[99999\]"):
        benchmark(model, affinity=[99999])


def document(request):
    """What a device that takes a millisecond returns."""
    conditions = {"load_average": 0.0, "governor": None}
    environment = {"cpus": 8, "timer_resolution_ns": 50, "before": conditions, "after": conditions}
    measured = {
        "threads": 1,
        "samples_ns": [1_000_000] * request.runs,
        "init_ns": 1,
        "first_invoke_ns": 2,
        "peak_rss_bytes": None,
        "runtime_rss_bytes": None,
        "inputs": [],
        "preempted": None,
    }
    return {
        "environment": environment,
        "models": [{"model": m, "sha256": "ab", "size_bytes": 3} for m in request.models],
        "measurements": [{"model": m, **measured} for m in request.models],
    }


@pytest.fixture
def named_devices(monkeypatch):
    """Devices that are told what to do by their names."""

    def resolve(name):
        def measure(request):
            if request.progress:
                request.progress(1, 2, "measuring")
            if name.startswith("broken"):
                raise keras_bn.errors.DeviceError(f"{name} is out of reach")
            return document(request)

        return measure

    monkeypatch.setattr("keras_bn.bench.devices.resolve", resolve)


def test_repeats_are_separate_runs_of_which_the_samples_follow_each_other(model, monkeypatch):
    requests, steps = [], []

    def measure(request):
        number = len(requests) + 1
        requests.append(request)
        request.progress(3, 4, "measuring")
        answer = document(request)
        [measured] = answer["measurements"]
        measured |= {
            "samples_ns": [number * 1_000_000] * request.runs,
            "init_ns": number * 1_000_000,
            "peak_rss_bytes": [10, 30, 20][number - 1],
            "preempted": number,
            "profile": [{"name": "y", "kind": "ADD", "mean_ms": 1.0, "share": 1.0, "calls": 1}]
            if request.profile
            else [],
        }
        answer["environment"]["after"] = {"temperature_c": 40.0 + number}
        return answer

    monkeypatch.setattr("keras_bn.bench.devices.resolve", lambda name: measure)
    [result] = benchmark(
        model,
        runs=8,
        repeats=3,
        profile=True,
        seed=7,
        progress=lambda *step: steps.append(step),
    )
    assert result.latency_ms.samples == (1.0,) * 8 + (2.0,) * 8 + (3.0,) * 8
    assert result.repeats == 3
    assert (result.init_ms, result.peak_rss_bytes, result.preempted) == (2.0, 30, 6)
    assert result.environment["after"] == {"temperature_c": 43.0}
    assert len(result.profile) == 1
    assert [(r.seed, r.profile, r.runs) for r in requests] == [
        (7, True, 8),
        (8, False, 8),
        (9, False, 8),
    ]
    assert [step[:2] for step in steps] == [(3, 12), (7, 12), (11, 12)]


def test_several_devices_are_measured_one_after_the_other(model, named_devices):
    steps = []
    results = benchmark(
        model, device=["one", "two"], runs=8, progress=lambda *step: steps.append(step)
    )
    assert [(r.device, r.latency_ms.median, r.peak_rss_bytes) for r in results] == [
        ("one", 1.0, None),
        ("two", 1.0, None),
    ]
    assert steps == [(1, 2, "one: measuring"), (1, 2, "two: measuring")]


def test_a_device_that_fails_does_not_keep_the_others_from_being_measured(model, named_devices):
    with pytest.raises(keras_bn.errors.DeviceError) as caught:
        benchmark(model, device=["broken one", "two", "broken three"], runs=8)
    assert str(caught.value) == "broken one is out of reach\nbroken three is out of reach"
    assert [result.device for result in caught.value.results] == ["two"]


def test_results_survive_json():
    original = result("a.tflite", [1.0, 1.5, 1.25])
    assert from_json(json.loads(json.dumps(to_json(original)))) == original


def test_a_result_from_before_profiles_is_read():
    older = to_json(result("a.tflite", [1.0, 1.5, 1.25]))
    del older["profile"]
    assert from_json(older).profile == ()


def test_speedups_compare_within_a_device_and_thread_count():
    found = speedups(
        [
            result("a", [2.0, 2.0, 2.0], threads=1),
            result("a", [4.0, 4.0, 4.0], threads=2),
            result("b", [1.0, 1.0, 1.0], threads=1),
            result("b", [8.0, 8.0, 8.0], threads=2),
            result("b", [1.0, 1.0, 1.0], device="other"),
        ]
    )
    assert [(s.model, s.baseline, s.threads, s.ratio) for s in found] == [
        ("b", "a", 1, 2.0),
        ("b", "a", 2, 0.5),
    ]


def test_results_with_different_numbers_of_samples_are_compared_as_separate_runs():
    [found] = speedups([result("a", [2.0] * 9), result("b", [1.0] * 4)])
    assert (found.ratio, found.ci95) == (2.0, (2.0, 2.0))


def test_benchmarking_loads_no_framework():
    code = "import sys, keras_bn.bench.api; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"tensorflow", "keras", "ai_edge_litert", "matplotlib", "jinja2", "scipy"}


def test_the_package_offers_it():
    assert keras_bn.benchmark is benchmark
