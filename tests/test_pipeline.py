"""From a Keras model to a file on disk: what is written, what is refused, what is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.compare.run import predict
from keras_bn.errors import (
    CalibrationError,
    ComparisonError,
    ConversionError,
    UnsupportedModelError,
)
from keras_bn.pipeline import convert_all
from tests.deployable import MODELS, image_model, images, lstm_model, token_model
from tests.random_weights import randomize

ROOT = Path(__file__).parents[1]


# The smallest SNR in dB that a mode may have on `image_model`: float32 rounds to 2⁻²⁴ a step,
# float16 weights to 2⁻¹¹ (66 dB); int8 has 256 steps of which activations use some, in two
# layers one after the other. A mistake in a scale or in the order of channels leaves under 10.
LEAST_SNR_DB = {"none": 100, "float16": 50, "dynamic": 100, "int8": 20, "int16x8": 30}


@pytest.fixture(scope="module")
def conversions(process, tmp_path_factory):
    """One model in every mode."""
    folder = tmp_path_factory.mktemp("modes")
    model = image_model()
    paths = {mode: folder / f"{mode}.tflite" for mode in LEAST_SNR_DB}
    return convert_all(model, paths, calibration=images(60), process=process), model


@pytest.mark.parametrize("index", range(5), ids=LEAST_SNR_DB)
def test_every_mode_is_close_to_the_model(index, conversions):
    conversion, model = conversions[0][index], conversions[1]
    mode = conversion.quantize
    assert conversion.path.stat().st_size == conversion.size_bytes
    # Both normalizations are folded into their convolutions, and the ReLUs go into them too.
    assert len(conversion.fold.folded) == 2
    core = {op: n for op, n in conversion.ops.items() if not op.endswith("QUANTIZE")}
    assert core == {"CONV_2D": 2, "MEAN": 1, "FULLY_CONNECTED": 1}
    assert not conversion.float_ops
    assert conversion.comparison.samples == 60
    assert conversion.comparison.snr_db > LEAST_SNR_DB[mode]
    # And by hand, against the original.
    expected = np.asarray(model(images(60)))
    actual = predict(conversion.path, images(60))["output_0"]
    noise = np.sum((expected - actual) ** 2)
    snr_db = 10 * np.log10(np.sum(expected.astype("float64") ** 2) / noise)
    assert snr_db == pytest.approx(conversion.comparison.snr_db, abs=0.5)


def test_modes_share_the_fold(conversions):
    assert len({id(conversion.fold) for conversion in conversions[0]}) == 1


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_passes_its_comparison(name, process, tmp_path):
    model = MODELS[name]()
    conversion = keras_bn.convert(model, tmp_path / "m.tflite", process=process)
    assert len(conversion.comparison.outputs) == len(model.outputs)
    assert conversion.comparison.relative_error < 1e-5  # float32 rounding over a few layers


def test_a_model_file_and_a_process_of_its_own(tmp_path):
    image_model().save(tmp_path / "m.keras")
    steps = []
    conversion = keras_bn.convert(
        tmp_path / "m.keras", str(tmp_path / "m.tflite"), progress=steps.append
    )
    assert conversion.comparison.relative_error < 1e-5
    assert [step.split()[0] for step in steps] == ["load", "fold", "export", "convert", "compare"]
    assert {path.name for path in tmp_path.iterdir()} == {"m.keras", "m.tflite"}


@pytest.mark.parametrize(
    ("mode", "io_dtype"), [("int8", "uint8"), ("int8", "int8"), ("int16x8", "int16")]
)
def test_integer_inputs_and_outputs_compare_in_real_units(mode, io_dtype, process, tmp_path):
    conversion = keras_bn.convert(
        image_model(),
        tmp_path / "m.tflite",
        quantize=mode,
        io_dtype=io_dtype,
        calibration={"image": images(40)},
        process=process,
    )
    assert "DEQUANTIZE" not in conversion.ops  # uint8 is requantized to int8, never to float
    assert not conversion.float_ops
    assert conversion.comparison.snr_db > LEAST_SNR_DB[mode]


def test_integer_tokens_in_int8(process, tmp_path):
    ids = np.random.default_rng(0).integers(0, 11, (40, 7))
    conversion = keras_bn.convert(
        token_model(), tmp_path / "m.tflite", quantize="int8", calibration=ids, process=process
    )
    assert conversion.comparison.snr_db > LEAST_SNR_DB["int8"]


def test_a_free_batch(process, tmp_path):
    path = tmp_path / "m.tflite"
    conversion = keras_bn.convert(
        image_model(), path, batch_size=None, data=images(50), process=process
    )
    assert conversion.comparison.samples == 50
    assert predict(path, images(33))["output_0"].shape == (33, 5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, process, tmp_path):
    conversion = keras_bn.convert(image_model(policy), tmp_path / "m.tflite", process=process)
    # The reference rounds to 2⁻¹¹ or 2⁻⁸ in every layer; the file does not.
    assert conversion.comparison.relative_error < 0.05
    assert set(conversion.ops) == {"CONV_2D", "MEAN", "FULLY_CONNECTED"}


def test_without_folding(process, tmp_path):
    x = keras.Input((6,))  # nothing before the normalization, so it stays an operation
    model = randomize(keras.Model(x, layers.Dense(2)(layers.BatchNormalization()(x))))
    folded = keras_bn.convert(model, tmp_path / "a.tflite", process=process)
    plain = keras_bn.convert(model, tmp_path / "b.tflite", fold=False, process=process)
    assert folded.ops == {"FULLY_CONNECTED": 1}
    assert plain.fold is None
    assert plain.ops["FULLY_CONNECTED"] == 1
    assert plain.comparison.relative_error < 1e-5


def test_unnamed_inputs_keep_the_originals_name(process, tmp_path):
    model = MODELS["sequential"]()
    keras_bn.convert(model, tmp_path / "m.tflite", process=process)
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_path=str(tmp_path / "m.tflite")).get_signature_list()
    assert signature["serving_default"]["inputs"] == [model.inputs[0].name]


# --- refusals: whatever was at the path stays ---------------------------------------------------


@pytest.fixture
def previous(tmp_path):
    """A file from an earlier run, which no failure may touch, alone in its folder."""
    folder = tmp_path / "results"
    folder.mkdir()
    path = folder / "m.tflite"
    path.write_bytes(b"previous")
    yield path
    assert path.read_bytes() == b"previous"
    assert list(folder.iterdir()) == [path]


def sine_model():
    x = keras.Input((6,))
    return randomize(keras.Model(x, layers.Dense(2)(keras.ops.sin(layers.Dense(4)(x)))))


def broken_model():
    model = image_model()
    kernel, bias = model.layers[-1].get_weights()
    bias[1] = np.nan
    model.layers[-1].set_weights([kernel, bias])
    return model


def logarithm_model():
    x = keras.Input((6,))
    return keras.Model(x, keras.ops.log(x))


REFUSED = {
    "float left in int8": (
        sine_model,
        {"quantize": "int8", "calibration": np.ones((9, 6))},
        ConversionError,
        r"SIN \(1\).*allow_float=True",
    ),
    "crash": (
        lstm_model,
        {"quantize": "int8", "calibration": np.ones((9, 5, 3))},
        ConversionError,
        "crashed",
    ),
    "NaN weights": (broken_model, {}, UnsupportedModelError, "NaN or infinite"),
    "NaN outputs": (logarithm_model, {}, ComparisonError, "finite outputs.*was not written"),
    "too far": (
        image_model,
        {"quantize": "int8", "calibration": images(20), "tolerance": 1e-4},
        ComparisonError,
        "within 0.0001.*'output_0' is 0.0.*was not written",
    ),
    "no calibration": (image_model, {"quantize": "int8"}, CalibrationError, "Pass calibration="),
    "wrong calibration": (
        image_model,
        {"quantize": "int8", "calibration": np.ones((9, 6))},
        CalibrationError,
        "'image'",
    ),
    "wrong data": (image_model, {"data": np.ones((9, 6))}, ComparisonError, "'image'"),
    "unknown mode": (image_model, {"quantize": "int4"}, ValueError, "'int4'"),
    "io dtype without mode": (image_model, {"io_dtype": "int8"}, ValueError, "'none'"),
    "recurrent form": (lstm_model, {"recurrent": "fused"}, ValueError, "not available"),
    "tolerance": (image_model, {"tolerance": -1.0}, ValueError, "received -1.0"),
    "no model": (lambda: 3, {}, TypeError, "received int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_previous_file(case, process, previous):
    make, options, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        keras_bn.convert(make(), previous, process=process, **options)


def test_float_operations_can_be_accepted(process, tmp_path):
    conversion = keras_bn.convert(
        sine_model(),
        tmp_path / "m.tflite",
        quantize="int8",
        calibration=np.random.default_rng(0).normal(size=(50, 6)),
        allow_float=True,
        process=process,
    )
    assert conversion.float_ops == {"SIN": 1}


def test_flex_operations_can_be_accepted(process, tmp_path):
    x = keras.Input((3, 3))
    model = keras.Model(x, keras.ops.cholesky(x))
    symmetric = np.tile(np.eye(3), (4, 1, 1))
    options = {"process": process, "data": symmetric, "fold": False}
    with pytest.raises(ConversionError, match="Cholesky"):
        keras_bn.convert(model, tmp_path / "m.tflite", **options)
    conversion = keras_bn.convert(model, tmp_path / "m.tflite", allow_flex=True, **options)
    assert conversion.ops == {"FlexCholesky": 1}
    assert conversion.comparison is None


@pytest.mark.parametrize(
    ("path", "error"),
    [("none/m.tflite", FileNotFoundError), ("", IsADirectoryError)],
    ids=["missing folder", "a folder"],
)
def test_paths_that_cannot_be_written_are_found_before_the_work(path, error, tmp_path):
    steps = []
    with pytest.raises(error):
        keras_bn.convert(image_model(), tmp_path / path, progress=steps.append)
    assert not steps


def test_failures_of_single_modes_can_be_collected(process, tmp_path):
    failures = {}
    paths = {mode: tmp_path / mode for mode in ("none", "int8", "dynamic")}
    done = convert_all(lstm_model(), paths, process=process, failures=failures)
    assert [conversion.quantize for conversion in done] == ["none", "dynamic"]
    assert list(failures) == ["int8"]
    assert isinstance(failures["int8"], CalibrationError)
    done = convert_all(
        lstm_model(), paths, process=process, failures=failures, calibration=np.ones((9, 5, 3))
    )
    assert isinstance(failures["int8"], ConversionError)  # the converter crashed,
    assert [conversion.quantize for conversion in done] == ["none", "dynamic"]  # and goes on
    assert {path.name for path in tmp_path.iterdir()} == {"none", "dynamic"}


# --- in a process of its own -------------------------------------------------------------------

# What TensorFlow prints while it is imported is between it and its importer.
SCRIPT = """
import sys
import keras
import keras_bn
print("imported", file=sys.stderr, flush=True)
keras_bn.convert(sys.argv[1], sys.argv[2], quantize=sys.argv[3], **{options})
"""


def started(options, *arguments, folder):
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(options=options), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def test_the_terminal_stays_quiet(tmp_path):
    lstm_model().save(tmp_path / "m.keras")
    with started(
        "{}", tmp_path / "m.keras", tmp_path / "m.tflite", "dynamic", folder=tmp_path
    ) as run:
        stdout, stderr = run.communicate()
    assert run.returncode == 0, stderr
    assert stdout == ""
    assert stderr.partition("imported\n")[2] == ""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_ctrl_c_leaves_nothing_behind_and_the_previous_file(previous, tmp_path):
    image_model().save(tmp_path / "m.keras")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = "{'progress': lambda step: print(step, flush=True)}"
    with started(options, tmp_path / "m.keras", previous, "none", folder=scratch) as run:
        for line in run.stdout:
            if line.startswith("convert"):
                break
        workers = children_of(run.pid)
        assert len(workers) == 1
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in stderr
    assert not list(scratch.iterdir())
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def children_of(pid):
    """Processes whose parent is `pid`: the fields after the name are the state and the parent."""
    stats = [path.read_text().rpartition(")") for path in Path("/proc").glob("[0-9]*/stat")]
    return [int(start.split()[0]) for start, _, rest in stats if int(rest.split()[1]) == pid]


def test_an_input_that_nothing_reads_cannot_be_quantized(tmp_path, process):
    used, unused = keras.Input((4,), name="used"), keras.Input((4,), name="unused")
    model = keras.Model([used, unused], layers.Dense(3)(used))
    samples = {"used": np.ones((20, 4), "float32"), "unused": np.ones((20, 4), "float32")}
    with pytest.raises(ConversionError, match="1 of 3 stayed float32"):
        keras_bn.convert(
            model,
            tmp_path / "m.tflite",
            quantize="int8",
            io_dtype="int8",
            calibration=samples,
            process=process,
        )
    assert not (tmp_path / "m.tflite").exists()


class Block(layers.Layer):
    def __init__(self, filters, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(filters, 3, use_bias=False, name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, inputs, training=None):
        return keras.ops.relu(self.norm(self.conv(inputs), training=training))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = Block(4, name="first"), Block(6, name="second")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs, training=None):
        x = self.second(self.first(inputs, training=training), training=training)
        return self.head(keras.ops.mean(x, axis=(1, 2)))


@pytest.mark.parametrize("fold", [True, False])
def test_a_subclassed_model(fold, process, tmp_path):
    model = Subclassed()
    model(np.zeros((1, 8, 8, 3), "float32"))
    randomize(model)
    conversion = keras_bn.convert(model, tmp_path / "m.tflite", fold=fold, process=process)
    assert conversion.comparison.max_abs_error < 1e-4
    if fold:
        assert conversion.ops == {"CONV_2D": 2, "MEAN": 1, "FULLY_CONNECTED": 1}
        assert [record.layer for record in conversion.fold.folded] == ["first/norm", "second/norm"]
    # The file is checked against a traced twin, and here against the model itself.
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    (output,) = predict(tmp_path / "m.tflite", x).values()
    np.testing.assert_allclose(output, model.predict(x, verbose=0), atol=1e-5)
