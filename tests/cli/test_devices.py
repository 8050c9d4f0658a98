"""Devices on the command line: what is listed, measured, reported and told of failures."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import keras_bn
from tests.bench.sshd import reachable
from tests.bench.stand_in import install_python, model

pytestmark = pytest.mark.skipif(
    shutil.which("ssh") is None, reason="ssh is not installed: apt install openssh-client"
)

OUT_OF_REACH = "ssh://127.0.0.1:1"


@pytest.fixture
def board(tmp_path, monkeypatch):
    folder = tmp_path / "board"
    folder.mkdir()
    with reachable(folder, monkeypatch) as computer:
        install_python(computer.home)
        yield computer


def test_devices_are_listed(board, keras_bn_here):
    run = keras_bn_here("devices", "host", "ssh://board", "--json")
    assert (run.returncode, run.stderr.count("problem")) == (0, 0), run.stderr
    host, there = json.loads(run.stdout)["devices"]
    assert (host["device"], there["device"]) == ("host", "ssh://board")
    assert host["system"] == there["system"]
    assert there["runtime"].endswith(f"({board.home}/bin/python3)")
    assert "ai_edge_litert 2.9" in run.stderr


def test_a_device_that_cannot_be_measured_on_is_told_of(board, keras_bn_here):
    run = keras_bn_here("devices", "ssh://board", OUT_OF_REACH)
    assert run.returncode == 3
    assert "Connection refused" in run.stdout
    assert run.stderr == f"keras-bn: {OUT_OF_REACH} cannot be measured on (see above)\n"


def test_without_names_this_machine_is_listed(tmp_path, monkeypatch, keras_bn_here):
    """And what adb sees; here it is not installed."""
    for tool in ("sh", "uname", "cat", "nproc", "grep", "cut"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tmp_path))
    run = keras_bn_here("devices", "--json")
    assert run.returncode == 0, run.stderr
    host, adb = json.loads(run.stdout)["devices"]
    assert host["problem"] is None
    assert "adb is not installed" in adb["problem"]


def test_a_device_that_fails_keeps_the_results_of_the_others(board, tmp_path, keras_bn_here):
    file = model(tmp_path / "[red]a model;.tflite")
    options = "--runs", "8", "--warmup", "1", "--timeout", "20"
    devices = "--device", OUT_OF_REACH, "--device", "ssh://board"
    output = tmp_path / "results.json"
    run = keras_bn_here("bench", file, *options, *devices, "-o", output, "--json")
    assert run.returncode == 3
    written = json.loads(output.read_text())
    assert written == json.loads(run.stdout)
    assert [each["device"] for each in written["benchmarks"]] == ["ssh://board"]
    assert written["benchmarks"][0]["model"] == str(file)
    assert "Latency on ssh://board" in run.stderr
    assert "[red]a model;" in run.stderr  # names are not taken for markup
    assert "Connection refused" in run.stderr
    assert "Traceback" not in run.stderr
    drawn = keras_bn_here("report", output, "-o", tmp_path / "report.html")
    assert drawn.returncode == 0, drawn.stderr


def test_no_result_at_all_writes_nothing(board, tmp_path, keras_bn_here):
    file, output = model(tmp_path / "model.tflite"), tmp_path / "results.json"
    run = keras_bn_here("bench", file, "--device", OUT_OF_REACH, "-o", output, "--json")
    assert (run.returncode, run.stdout) == (3, "")
    assert f"keras-bn: {OUT_OF_REACH} cannot be reached." in run.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--device", "ssh://-oProxyCommand=touch pwned"], "Expected a device such as ssh://"),
        (["--python", "python3"], "is for other devices than the host"),
        (["--benchmark-binary", "b", "--device", "ssh://board"], "is for Android devices"),
        (["--device", "host", "--device", "host"], "several different ones"),
    ],
)
def test_bad_usage(tmp_path, arguments, words, keras_bn_here):
    run = keras_bn_here("bench", model(tmp_path / "model.tflite"), *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert words in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


PAGE = Path(keras_bn.__file__).parents[1] / "docs" / "raspberry-pi.md"
COMMANDS = re.findall(r"^\$ (.*)$", PAGE.read_text(), re.MULTILINE)


def test_the_commands_of_the_page(board, tmp_path, monkeypatch, keras_bn_here):
    """In their order, as they stand there, on a board that is called so."""
    monkeypatch.chdir(tmp_path)
    install_python(tmp_path, path="here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "here-site"))  # what measures on the host
    for name in ("float32.tflite", "int8.tflite"):
        model(tmp_path / name)
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program == "keras-bn":
            run = keras_bn_here(*arguments)
        else:
            run = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, (command, run.stderr)
    assert len(COMMANDS) == 7
    both = json.loads((tmp_path / "both.json").read_text())
    assert [(each["device"], each["name"]) for each in both["benchmarks"]] == [
        (device, name)
        for device in ("host", "ssh://pi@raspberrypi.local")
        for name in ("float32", "int8")
    ]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert not board.cache.exists()
