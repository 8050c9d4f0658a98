"""Bad input: a clear message, the right exit code, no traceback, nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from tests.cli.conftest import keras_bn, quiet_by_itself

LAYER = """
import keras

@keras.saving.register_keras_serializable("user")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""


@pytest.fixture(scope="module")
def bad(folder, tmp_path_factory):
    """A folder of files that something is wrong with."""
    path = tmp_path_factory.mktemp("bad")
    whole = (folder / "model.keras").read_bytes()
    (path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (path / "text.keras").write_text("not a model")
    (path / "text.tflite").write_text("not a model")
    (path / "user_layers.py").write_text(LAYER)
    namespace = {}
    exec(LAYER, namespace)
    custom = keras.Sequential([keras.Input((3,)), namespace["Doubled"](), layers.Dense(2)])
    custom.save(path / "custom.keras")
    nan = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="sick")])
    nan.get_layer("sick").bias.assign([np.nan, 0.0])
    nan.save(path / "nan.keras")
    np.savez(path / "shape.npz", image=np.zeros((5, 4, 4, 3), "float32"))
    np.savez(path / "empty.npz", image=np.zeros((0, 8, 8, 3), "float32"))
    np.savez(path / "nothing.npz")
    np.savez(path / "nan.npz", image=np.full((5, 8, 8, 3), np.nan, "float32"))
    (path / "results.json").write_text('{"format": "something else"}')
    return path


INT8 = ("--quantize", "int8", "--calibration")

CASES = {
    "no-such-model": (["convert", "{bad}/none.keras", "-o", "{out}"], 2, "no such file"),
    "not-a-model": (["convert", "{bad}/text.keras", "-o", "{out}"], 2, "not a Keras model"),
    "wrong-suffix": (
        ["convert", "{bad}/user_layers.py", "-o", "{out}"],
        2,
        "expected a Keras model",
    ),
    "cut-short": (["convert", "{bad}/cut.keras", "-o", "{out}"], 2, "cut short"),
    "no-such-import": (
        ["fold", "{bad}/custom.keras", "-o", "{bad}/f.keras", "--import", "nowhere"],
        2,
        "--import nowhere failed",
    ),
    "nan-weights": (["convert", "{bad}/nan.keras", "-o", "{out}"], 2, "sick/bias"),
    "no-calibration": (
        ["convert", "{good}", "-o", "{out}", "--quantize", "int8"],
        2,
        "calibration",
    ),
    "calibration-shape": (
        ["convert", "{good}", "-o", "{out}", *INT8, "{bad}/shape.npz"],
        2,
        "(5, 4, 4, 3)",
    ),
    "calibration-empty": (
        ["convert", "{good}", "-o", "{out}", *INT8, "{bad}/empty.npz"],
        2,
        "empty",
    ),
    "calibration-nothing": (
        ["convert", "{good}", "-o", "{out}", *INT8, "{bad}/nothing.npz"],
        2,
        "image",
    ),
    "calibration-nan": (["convert", "{good}", "-o", "{out}", *INT8, "{bad}/nan.npz"], 2, "finite"),
    "calibration-missing": (
        ["convert", "{good}", "-o", "{out}", *INT8, "{bad}/absent.npz"],
        2,
        "absent.npz",
    ),
    "no-such-folder": (["convert", "{good}", "-o", "{bad}/no/out.tflite"], 2, "no such folder"),
    "output-is-a-folder": (["convert", "{good}", "-o", "{bad}"], 2, "this is a folder"),
    "output-is-a-file": (["run", "{good}", "-o", "{bad}/cut.keras"], 2, "this is a file"),
    "run-without-a-file-to-measure": (
        ["run", "{good}", "-o", "{bad}", "--modes", "int8"],
        2,
        "Expected calibration data",
    ),
    "too-tight": (["convert", "{good}", "-o", "{out}", "--tolerance", "1e-12"], 1, "within 1e-12"),
    "bad-mode": (["convert", "{good}", "-o", "{out}", "--quantize", "int4"], 2, "int4"),
    "bench-no-file": (["bench", "{bad}/none.tflite"], 2, "none.tflite"),
    "bench-not-tflite": (["bench", "{bad}/text.tflite"], 2, "text.tflite"),
    "bench-device": (["bench", "{bad}/text.tflite", "--device", "moon"], 2, "moon"),
    "compare-not-tflite": (["compare", "{good}", "{bad}/text.tflite"], 2, "text.tflite"),
    "report-not-results": (
        ["report", "{bad}/results.json", "-o", "{bad}/r.html"],
        2,
        "results.json",
    ),
    "report-format": (
        ["report", "{bad}/results.json", "-o", "{bad}/r.pdf"],
        2,
        ".html, .md or .csv",
    ),
    "keep-unknown": (
        ["fold", "{good}", "-o", "{bad}/f.keras", "--keep", "nothing"],
        2,
        "it has folds, stays",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, bad, folder, keras_bn_here):
    arguments, code, words = CASES[case]
    previous = bad / f"{case}.tflite"
    previous.write_bytes(b"previous")
    files = {"bad": bad, "good": folder / "model.keras", "out": previous}
    before = sorted(bad.iterdir())
    run = keras_bn_here(*(argument.format(**files) for argument in arguments))
    assert words in " ".join(run.stderr.split())
    assert run.returncode == code
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert previous.read_bytes() == b"previous"
    assert sorted(bad.iterdir()) == before


def test_custom_layers_are_known_by_an_import(bad, tmp_path):
    command = "convert", bad / "custom.keras", "-o", tmp_path / "out.tflite"
    run = keras_bn(*command)
    assert run.returncode == 2
    assert (
        "'Doubled', which is not known here; import the module that defines it (--import MODULE"
    ) in " ".join(run.stderr.split())
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert names(tmp_path) == []
    run = keras_bn(*command, "--import", bad / "user_layers.py")
    assert run.returncode == 0, run.stderr


def test_a_full_disk_leaves_the_previous_file(folder, tmp_path):
    resource = pytest.importorskip("resource")  # a file-size limit stands for the disk
    output = tmp_path / "out.tflite"
    output.write_bytes(b"previous")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    run = keras_bn("convert", folder / "model.keras", "-o", output, preexec_fn=limit)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "File too large" in run.stderr
    assert output.read_bytes() == b"previous"
    assert names(tmp_path) == ["out.tflite"]


def test_output_that_nobody_can_take_is_told(folder):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    command = [sys.executable, "-m", "keras_bn", "fold", folder / "model.keras", "--explain"]
    with full.open("w") as output:
        run = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr == "keras-bn: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    "arguments",
    [["convert", "{good}", "-o", "{out}"], ["bench", "{lite}", "--runs", "1000000"]],
    ids=["convert", "bench"],
)
def test_interrupt_ends_everything(arguments, folder, tmp_path):
    out, lite = tmp_path / "out.tflite", tmp_path / "model.tflite"
    out.write_bytes(b"previous")
    assert keras_bn("convert", folder / "model.keras", "-o", lite).returncode == 0
    files = {"good": folder / "model.keras", "out": out, "lite": lite}
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_bn", *(a.format(**files) for a in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=quiet_by_itself() | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(process.pid)
    assert workers
    for worker in workers:  # so that the command cannot come to its end before the interrupt
        os.kill(worker, signal.SIGSTOP)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert out.read_bytes() == b"previous"
    assert names(tmp_path) == ["model.tflite", "out.tflite"]
    time.sleep(0.2)
    assert not any(alive(worker) for worker in workers)


@pytest.mark.parametrize(
    "code",
    [
        # CPython would end by SIGINT, whatever the exit code is.
        "exec('raise KeyboardInterrupt')",
        # As modules in C do.
        "try: raise KeyboardInterrupt\nexcept BaseException as error: raise ImportError from error",
    ],
    ids=["exec", "import"],
)
def test_an_interrupt_within_an_import(code, folder, tmp_path):
    layers = tmp_path / "layers.py"
    layers.write_text(code)
    run = keras_bn("fold", folder / "model.keras", "--explain", "--import", layers)
    assert (run.returncode, run.stderr.strip()) == (130, "interrupted")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def children(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
