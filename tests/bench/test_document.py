"""The runner's document as a device might send it: right, wrong, or meant to do harm."""

import copy
import json
import re
from dataclasses import replace

import pytest

from keras_bn.bench import document, result
from keras_bn.bench.api import benchmark
from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError
from keras_bn.report import results
from tests.bench.stand_in import model

MODELS = ("a b.tflite", "c.tflite")
REQUEST = Request(
    models=MODELS,
    threads=(1, 2),
    runs=3,
    warmup=1,
    xnnpack=True,
    affinity=None,
    cooldown_s=0.0,
    seed=0,
    timeout_s=1.0,
    progress=None,
)
NAMES = ("ab" * 32, "cd" * 32)
CONDITIONS = {
    "load_average": 0.5,
    "governor": "ondemand",
    "frequency_mhz": 1500.0,
    "temperature_c": 48.3,
    "temperature_by_zone_c": {"thermal_zone0 (cpu)": 48.3},
    "throttle_events": None,
    "firmware_throttling": 0x50000,
}
GOOD = {
    "schema": 1,
    "environment": {
        "system": "Linux 6.1",
        "architecture": "aarch64",
        "board": "Raspberry Pi 4",
        "cpu": "Cortex-A72",
        "cpus": 4,
        "memory_bytes": 4_000_000_000,
        "python": "3.11.2",
        "numpy": "2.2.6",
        "interpreter": "ai_edge_litert 2.3.0",
        "xnnpack": True,
        "affinity": [0, 1],
        "warmup": 1,
        "seed": 0,
        "timer_resolution_ns": 52,
        "cooldown_limit_s": 0.0,
        "cooldown_waited_s": 0.0,
        "before": CONDITIONS,
        "after": CONDITIONS,
    },
    "models": [{"model": name, "sha256": name, "size_bytes": 10} for name in NAMES],
    "measurements": [
        {
            "model": name,
            "threads": threads,
            "samples_ns": [1000, 1100, 1200],
            "preempted": 0,
            "init_ns": 5000,
            "first_invoke_ns": 4000,
            "peak_rss_bytes": 50_000_000,
            "runtime_rss_bytes": 40_000_000,
            "inputs": [{"name": "x", "dtype": "int8", "shape": [1, 4], "shape_signature": [-1, 4]}],
        }
        for name in NAMES
        for threads in REQUEST.threads
    ],
}


def read(text, status=0):
    if not isinstance(text, str):
        text = json.dumps(text)
    return document.read(
        text, status=status, printed="", request=REQUEST, names=NAMES, where=" on it"
    )


def test_a_good_one_is_told_in_the_users_names():
    found = read(GOOD)
    assert [file["model"] for file in found["models"]] == list(MODELS)
    assert [(m["model"], m["threads"]) for m in found["measurements"]] == [
        (model, threads) for model in MODELS for threads in (1, 2)
    ]
    assert found["environment"] == GOOD["environment"]
    assert found["measurements"][0]["inputs"] == GOOD["measurements"][0]["inputs"]


def test_fields_of_a_newer_runner_are_left_out():
    newer = copy.deepcopy(GOOD)
    newer["environment"]["more"] = {"deep": [[[["nested"]]]]}
    newer["measurements"][0]["more"] = 1
    assert read(newer) == read(GOOD)


def test_a_profile_is_read_where_it_was_asked_for():
    operation = {"name": "y:0", "kind": "ADD\x1b", "mean_ms": 0.5, "share": 1.0, "calls": 1}
    profiled = copy.deepcopy(GOOD)
    for each in profiled["measurements"]:
        each |= {"profile": [operation], "profile_problem": None}
    text, request = json.dumps(profiled), replace(REQUEST, profile=True)
    options = {"status": 0, "printed": "", "names": NAMES}
    found = document.read(text, request=request, **options)["measurements"][0]
    assert found["profile"] == [operation | {"kind": "ADD\N{REPLACEMENT CHARACTER}"}]
    assert found["profile_problem"] is None
    assert "profile" not in document.read(text, request=REQUEST, **options)["measurements"][0]
    for wrong in ({"share": 2}, {"mean_ms": "1"}, {"more": 1}):
        operation |= wrong
        with pytest.raises(DeviceError, match=r"profile\[0\]"):
            document.read(json.dumps(profiled), request=request, **options)


def leaves(value, path=()):
    """The place of every value in a document."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, (*path, key))


def replaced(path, value):
    changed = copy.deepcopy(GOOD)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


PLACES = [path for path in leaves(GOOD) if path and path[:2] != ("measurements", 2)]
HOSTILE = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    float("inf"),
    float("nan"),
    "",
    "1",
    "\x1b]0;title\x07\u202e[red]{{7*7}}<script>",
    [],
    [[]],
    {},
    {"": None},
    {"\x1b[2J": "\0"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for name in MODELS:
        model(path / name)
    return path


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_whatever_stands_anywhere_is_refused_or_harmless(path, folder, monkeypatch):
    """No other error than DeviceError, and what passes makes a results.json."""
    monkeypatch.chdir(folder)
    for value in HOSTILE:
        text = json.dumps(replaced(path, value))
        monkeypatch.setattr(
            "keras_bn.bench.devices.resolve",
            lambda device, text=text: lambda request: read(text),
        )
        try:
            measured = benchmark(MODELS, device="ssh://it", threads=REQUEST.threads, runs=3)
        except DeviceError as error:
            assert "\x1b" not in str(error) and "\0" not in str(error)
            continue
        written = results.document(title="T", environment={}, benchmarks=measured)
        assert not re.search("\\\\u001b|\\\\u0000|\\\\u202e", json.dumps(written))
        assert all(result.from_json(result.to_json(each)) == each for each in measured)


@pytest.mark.parametrize(
    "path", [path for path in PLACES if type(path[-1]) is str and "thermal" not in path[-1]]
)
def test_a_missing_field_is_named(path):
    changed = copy.deepcopy(GOOD)
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(DeviceError, match=rf"on it is not as expected: .*'{path[-1]}' is missing"):
        read(changed)


@pytest.mark.parametrize(
    "path, value, words",
    [
        (("schema",), 2, "result.schema: expected 1, received 2"),
        (("models",), GOOD["models"][:1], "result.models: expected a list of at least 2"),
        (("models",), GOOD["models"][::-1], f"expected '{NAMES[0]}'"),
        (("measurements",), GOOD["measurements"] * 2, "result.measurements: expected a list"),
        (("measurements", 1, "threads"), 4, "threads: expected 2, received 4"),
        (("measurements", 3, "model"), "other", r"measurements\[3\].model: expected"),
        (("measurements", 0, "samples_ns"), [1000, 1100], "samples_ns: expected a list of at le"),
        (("measurements", 0, "samples_ns", 1), 0, r"samples_ns\[1\]: expected a whole number fr"),
        (("measurements", 0, "preempted"), 4, "preempted: expected a whole number from 0 to 3"),
        (("models", 0, "sha256"), "AB" * 32, "64 hexadecimal digits"),
    ],
)
def test_an_answer_to_another_request_is_refused(path, value, words):
    with pytest.raises(DeviceError, match=words):
        read(replaced(path, value))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, "\ud800", "nul"])
def test_what_is_no_json_is_no_result(text):
    with pytest.raises(DeviceError, match="on it ended with status 3 and no result"):
        read(text, status=3)


@pytest.mark.parametrize("value", [None, 1, "text", [], [1]])
def test_what_is_no_document_is_refused(value):
    with pytest.raises(DeviceError, match="expected an object"):
        read(json.dumps(value))


@pytest.mark.parametrize(
    "error, words",
    [
        ({"message": "out of ideas", "model": None}, "The benchmark on it failed: out of ideas."),
        ({"message": "a\x1b[2Jb"}, "failed: a�[2Jb"),
        ({"message": 3}, "error.message: expected a text, received 3"),
        ({}, "'message' is missing"),
        ("text", "error: expected an object"),
        (None, "error: expected an object"),
    ],
)
def test_the_runners_errors(error, words):
    with pytest.raises(DeviceError, match=re.escape(words)):
        read({"schema": 1, "error": error}, status=1)


def test_a_killed_runner():
    with pytest.raises(DeviceError, match="process on it was killed by SIGILL"):
        read(GOOD, status=-4)
