"""Every command on a good model."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from tests.cli.conftest import keras_bn, quiet_by_itself


def document(run):
    """The one JSON document on standard output; nothing else may be there."""
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="session")
def converted(folder):
    """Two files made by `convert`, and what it printed."""
    runs = [
        keras_bn("convert", folder / "model.keras", "-o", folder / "float32.tflite", "--json"),
        keras_bn(
            "convert",
            folder / "model.keras",
            "-o",
            folder / "int8.tflite",
            "--quantize",
            "int8",
            "--calibration",
            folder / "calibration.npz",
        ),
    ]
    return folder, *runs


@pytest.mark.parametrize(
    "command", ["", "fold", "convert", "compare", "devices", "bench", "report", "run", "demo"]
)
def test_help_explains_every_command(command):
    run = keras_bn(*command.split(), "--help")
    assert run.returncode == 0
    assert run.stdout.startswith("Usage:")
    assert run.stderr == ""


def test_fold_writes_a_model_that_loads(folder, tmp_path, keras_bn_here):
    run = keras_bn_here("fold", folder / "model.keras", "-o", tmp_path / "folded.keras", "--json")
    result = document(run)
    assert [each["layer"] for each in result["fold"]["folded"]] == ["folds"]
    assert [each["layer"] for each in result["fold"]["kept"]] == ["stays"]
    assert "6 parameters" not in run.stdout
    original = keras.models.load_model(folder / "model.keras")
    folded = keras.models.load_model(tmp_path / "folded.keras")
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    np.testing.assert_allclose(folded(x), original(x), rtol=1e-4, atol=1e-6)  # float32 rounding


def test_fold_keeps_what_it_is_told_to(folder, tmp_path, keras_bn_here):
    run = keras_bn_here(
        "fold", folder / "model.keras", "-o", tmp_path / "f.keras", "--keep", "folds", "--json"
    )
    assert {r["layer"]: r["reason"] for r in document(run)["fold"]["kept"]}["folds"] == (
        "asked to be kept"
    )


def test_convert_checks_and_counts(converted):
    folder, as_json, as_text = converted
    (conversion,) = document(as_json)["conversions"]
    assert conversion["ops"]["CONV_2D"] == 1
    assert conversion["comparison"]["snr_db"] > 100  # float32 rounding is 24 bits, 144 dB
    assert conversion["size_bytes"] == (folder / "float32.tflite").stat().st_size
    assert as_text.returncode == 0, as_text.stderr
    assert "1 of 2 batch normalizations folded" in as_text.stdout
    assert "int8.tflite" in as_text.stdout
    assert as_text.stderr == ""


def test_compare_exits_by_what_was_asked(converted, keras_bn_here):
    folder, *_ = converted
    names = folder / "model.keras", folder / "int8.tflite"
    data = "--data", folder / "calibration.npz"
    good = keras_bn_here("compare", *names, *data, "--min-snr", "15", "--json")
    assert document(good)["comparison"]["samples"] == 40
    short = keras_bn_here("compare", *names, *data, "--min-snr", "90", "--tolerance", "0", "--json")
    assert short.returncode == 1
    assert len(json.loads(short.stdout)["falls_short"]) == 2
    assert "falls short: the SNR" in short.stderr


def test_bench_then_report(converted, tmp_path, keras_bn_here):
    folder, *_ = converted
    files = folder / "float32.tflite", folder / "int8.tflite"
    options = "--runs", "12", "--warmup", "1", "--threads", "1,2"
    run = keras_bn_here("bench", *files, *options, "-o", tmp_path / "results.json", "--json")
    measured = document(run)
    assert measured == json.loads((tmp_path / "results.json").read_text())
    assert len(measured["benchmarks"]) == 4
    assert all(len(b["latency_ms"]["samples"]) == 12 for b in measured["benchmarks"])
    formats = (("report.html", "<!doctype html>"), ("report.md", "#"), ("report.csv", "model,"))
    for name, start in formats:
        drawn = keras_bn_here("report", tmp_path / "results.json", "-o", tmp_path / name)
        assert drawn.returncode == 0, drawn.stderr
        assert (tmp_path / name).read_text().lower().startswith(start)


def test_run_goes_the_whole_road(folder, tmp_path):
    out = tmp_path / "new" / "results"
    run = keras_bn(
        "run",
        folder / "model.keras",
        "-o",
        out,
        "--calibration",
        folder / "calibration.npz",
        "--evaluation",
        folder / "evaluation.npz",
        "--runs",
        "10",
        "--modes",
        "none,float16,dynamic,int8,int16x8",
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((out / "results.json").read_text())
    assert [c["quantize"] for c in results["conversions"]] == [
        "none",
        "float16",
        "dynamic",
        "int8",
        "int16x8",
    ]
    # The labels are the model's own classes.
    assert results["model"]["accuracy"] == 1.0
    assert results["conversions"][0]["accuracy"] == 1.0
    assert "accuracy of the Keras model: 100.0" in run.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "model-dynamic.tflite",
        "model-float16.tflite",
        "model-float32.tflite",
        "model-int16x8.tflite",
        "model-int8.tflite",
        "report.html",
        "results.json",
    ]
    assert run.stderr == ""


def test_run_goes_on_after_a_mode_that_fails(folder, tmp_path, keras_bn_here):
    run = keras_bn_here(
        "run", folder / "model.keras", "-o", tmp_path, "--modes", "none,int8", "--runs", "5"
    )
    assert run.returncode == 1
    assert "not converted to int8" in run.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [c["quantize"] for c in results["conversions"]] == ["none"]


def test_demo_trains_and_reports(tmp_path):
    run = keras_bn("demo", "-o", tmp_path, "--epochs", "2", "--runs", "10")
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["conversions"]) == 4
    assert results["model"]["accuracy"] > 0.5  # chance is 0.1; the full run reaches 0.99
    # The seventh stands between a sum and a ReLU, which no scale below zero passes.
    assert len(results["fold"]["folded"]) + len(results["fold"]["kept"]) == 7
    assert len(results["fold"]["folded"]) >= 6
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert zipfile.is_zipfile(tmp_path / "digits.keras")
    assert run.stderr == ""


def test_the_script_is_the_same_command(folder, tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "tools/fold_and_convert.py",
            folder / "model.keras",
            "-o",
            tmp_path / "out.tflite",
            "--quantize",
            "int8",
            "--calibration",
            folder / "calibration.npz",
        ],
        capture_output=True,
        text=True,
        env=quiet_by_itself(),
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out.tflite").read_bytes()[4:8] == b"TFL3"
