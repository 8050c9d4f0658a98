"""The results document: built from results, checked when read."""

import json
import math
import re

import pytest

from keras_bn.report import results
from keras_bn.report.html import render_html
from keras_bn.report.markdown import render_markdown
from keras_bn.report.results import ModelSummary, document, load, save
from tests.report.example import (
    CREATED,
    FLOAT,
    FOLD,
    INT8,
    MICRO,
    PROFILE,
    REFUSED,
    conversion,
    measurement,
    whole,
)


def test_everything_passed_in_is_in_it():
    written = whole()

    assert (written["format"], written["version"]) == ("keras-bn results", 1)
    assert written["created"] == CREATED.isoformat()
    assert written["model"] == {
        "name": "digits.keras",
        "parameters": 14730,
        "layers": 22,
        "size_bytes": 186_167,
        "accuracy": 0.9781,
    }
    assert written["fold"]["folded"][0] == {
        "layer": "bn_1",
        "into": "conv_1",
        "rule": "into the convolution before",
    }
    assert written["fold"]["kept"] == [{"layer": "bn_3", "reason": FOLD.kept[0].reason}]
    assert written["fold"]["max_abs_error"] == 3.4e-7
    int8 = written["conversions"][1]
    assert (int8["name"], int8["file"], int8["quantize"]) == ("net-int8", str(INT8), "int8")
    assert (int8["ops"], int8["float_ops"]) == ({"CONV_2D": 6, "SOFTMAX": 1}, {"SOFTMAX": 1})
    assert (int8["accuracy"], int8["size_bytes"]) == (0.9742, 27_800)
    assert int8["comparison"]["snr_db"] == int8["comparison"]["outputs"][0]["snr_db"] == 30.25
    measured = written["benchmarks"][3]
    assert (measured["name"], measured["threads"]) == ("net-int8", 1)
    assert len(measured["latency_ms"]["samples"]) == 30
    assert [(s["name"], s["baseline_name"]) for s in written["speedups"]] == [
        ("net-int8", "net-float32")
    ] * 3


def test_every_part_is_optional():
    empty = document(title="", environment={})
    assert (empty["model"], empty["fold"]) == (None, None)
    assert empty["conversions"] == empty["benchmarks"] == empty["speedups"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", empty["created"])

    assert document(title="", environment={}, fold=FOLD)["fold"]["kept"]
    assert document(title="", environment={}, model=ModelSummary("m"))["model"]["layers"] is None
    bench = document(title="", environment={}, benchmarks=[measurement()])
    assert bench["benchmarks"][0]["name"] == "net-float32"


def test_files_with_the_same_name_are_told_apart(tmp_path):
    paths = [tmp_path / folder / "model.tflite" for folder in ("a", "b")]
    written = document(
        title="", environment={}, conversions=[conversion(paths[0])],
        benchmarks=[measurement(paths[1]), measurement(paths[0])],
    )  # fmt: skip
    assert written["conversions"][0]["name"] == "a/model"
    assert [each["name"] for each in written["benchmarks"]] == ["b/model", "a/model"]

    paths = [tmp_path / folder / "x" / "model.tflite" for folder in ("a", "b")]
    written = document(title="", environment={}, benchmarks=[measurement(path) for path in paths])
    assert [each["name"] for each in written["benchmarks"]] == [str(path) for path in paths]


def test_the_same_file_has_one_name_however_it_was_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative, absolute = FLOAT, tmp_path / FLOAT
    written = document(
        title="", environment={}, conversions=[conversion(relative)],
        benchmarks=[measurement(absolute)], accuracies={f"./{FLOAT}": 0.5},
    )  # fmt: skip
    assert written["benchmarks"][0]["name"] == written["conversions"][0]["name"] == "net-float32"
    assert written["conversions"][0]["accuracy"] == 0.5


def test_infinite_figures_are_written_by_name():
    exact = conversion(snr_db=math.inf)
    written = document(title="", environment={}, conversions=[exact])
    assert written["conversions"][0]["comparison"]["snr_db"] == "inf"
    assert json.loads(json.dumps(written, allow_nan=False)) == written


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"accuracies": {"other.tflite": 0.5}}, r"accuracies names \['.*other\.tflite'\]"),
        ({"accuracies": {FLOAT: 97.8}}, r"conversions\[0\]\.accuracy: expected a number from 0"),
        ({"model": ModelSummary("m", parameters=-1)}, r"model\.parameters: expected a whole"),
        ({"environment": {"n": 1}}, r"environment\.n: expected a text, received 1"),
    ],
    ids=["unknown file", "per cent", "negative", "number for text"],
)
def test_wrong_values_are_refused_when_it_is_built(changes, words):
    with pytest.raises(ValueError, match=words):
        whole(**changes)


def test_what_a_microcontrollers_interpreter_did_is_written():
    written = document(
        title="", environment={}, conversions=[conversion()], microcontrollers=[MICRO, REFUSED]
    )
    runs, refused = written["microcontrollers"]
    assert (runs["name"], runs["runs"], runs["arena_bytes"]) == ("net-int8", True, 20_480)
    assert (runs["max_abs_error"], runs["snr_db"]) == (0.0078, 41.5)  # the worst of the outputs
    assert [each["snr_db"] for each in runs["outputs"]] == [41.5, "inf"]
    assert refused["name"] == "net-float32"
    assert (refused["reason"], refused["snr_db"]) == ("Didn't find op for CUMSUM", None)


def test_a_profile_is_written_and_what_a_device_cannot_tell_is_null():
    told = measurement(
        device="adb:1", init_ms=None, first_invoke_ms=None, peak_rss_bytes=None, profile=PROFILE
    )
    (benchmark,) = document(title="", environment={}, benchmarks=[told])["benchmarks"]
    assert benchmark["profile"][0] == {
        "name": "conv",
        "kind": "CONV_2D",
        "mean_ms": 1.5,
        "share": 0.75,
        "calls": 1,
    }
    assert benchmark["init_ms"] is benchmark["first_invoke_ms"] is None
    assert benchmark["peak_rss_bytes"] is None


# --- Files -------------------------------------------------------------------------------------


def test_it_survives_a_file(tmp_path):
    path = tmp_path / "results.json"
    save(whole(), path)
    assert load(path) == whole()
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


def test_a_document_of_a_newer_version_with_more_fields_is_read(tmp_path):
    newer = whole()
    newer["new"] = newer["benchmarks"][0]["energy_mj"] = 1
    save(newer, tmp_path / "results.json")
    assert load(tmp_path / "results.json")["new"] == 1


def test_a_file_of_the_version_before_profiles_is_read(tmp_path):
    older = whole()
    del older["microcontrollers"]
    for benchmark in older["benchmarks"]:
        del benchmark["profile"]
    save(older, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == whole()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\x00", "decode|Expecting value|not valid"),
        (b"[1]", "not a results document"),
        (b"{}", '"format" must be'),
        (b'{"format": "keras-bn results", "version": 2}', "version is 2 .* reads version 1"),
        (b'{"format": "keras-bn results", "version": 1}', "field 'title' is missing"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["empty", "cut", "binary", "list", "other", "newer", "no fields", "NaN", "deep"],
)
def test_what_is_no_results_document_says_so(tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s)results\\.json cannot be read: .*({words})"):
        load(path)


def test_a_file_that_is_too_large_is_not_read_to_its_end(monkeypatch, tmp_path):
    path = tmp_path / "results.json"
    save(whole(), path)
    monkeypatch.setattr(results, "LARGEST_BYTES", path.stat().st_size)
    assert load(path) == whole()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"results\.json cannot be read: it has more than \d+ byt"):
        load(path)


def test_an_absent_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.json")


def leaves(value, place=()):
    """The place of every value in the document, containers included."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*place, key)
        if isinstance(inner, dict | list):
            yield from leaves(inner, (*place, key))


def small() -> dict:
    return document(
        title="Small",
        environment={"a": "b"},
        model=ModelSummary("m", 1, 1, 1, 0.5),
        conversions=[conversion(INT8, "int8")],
        benchmarks=[measurement(INT8, runs=2, profile=PROFILE[:1])],
        microcontrollers=[MICRO],
    )


@pytest.mark.parametrize("wrong", [{"an": -1}, True, 1e400], ids=["object", "bool", "1e400"])
def test_damage_at_any_place_is_found(tmp_path, wrong):
    """All but in a benchmark's environment, which may hold anything and is shown as it is.

    True is no damage where the value is true.
    """
    path = tmp_path / "results.json"
    accepted = set()
    for place in leaves(small()):
        damaged = small()
        parent = damaged
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = wrong
        path.write_text(json.dumps(damaged).replace("Infinity", "1e400"))
        try:
            loaded = load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} cannot be read: ")
        else:
            accepted.add(place)
            assert render_html(loaded)
            assert render_markdown(loaded)

    assert len(list(leaves(small()))) > 80
    environment = ("benchmarks", 0, "environment")
    right = {("microcontrollers", 0, "runs")} if wrong is True else set()
    assert {place for place in accepted if place[:3] != environment} == right
    assert (environment in accepted) == isinstance(wrong, dict)
