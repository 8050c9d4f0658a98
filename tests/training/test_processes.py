"""Training and `update_bn` in two processes, against one process that has all the data."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn import update_bn
from tests.training import two_processes
from tests.training.two_processes import (
    BATCH,
    EPOCHS,
    LAYERS,
    SHARES,
    batches,
    to_train,
    to_update,
    trained,
    training_data,
    weights,
)

pytestmark = pytest.mark.skipif(
    find_spec("jax") is None, reason="several processes train on JAX, which is not installed"
)

# float32 sums of the same numbers in another order, over a few steps of training.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Arrays and errors of each process, and the folder they are in."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", two_processes.__name__]
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",  # of which there are as many as one likes
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    logs = [folder / "0.log", folder / "1.log"]
    running = []
    try:
        for process, log in enumerate(logs):
            arguments = [*command, str(process), str(port), str(folder)]
            with log.open("w") as output:
                running.append(
                    subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
                )
        # One that fails leaves the other waiting for it.
        end = time.monotonic() + 250
        while any(one.poll() is None for one in running) and time.monotonic() < end:
            if any(one.poll() for one in running):
                break
            time.sleep(0.1)
        codes = [one.poll() for one in running]
        texts = "\n".join(log.read_text() for log in logs)
        assert codes == [0, 0], f"exit codes {codes} (None: did not end)\n{texts}"
    finally:
        for one in running:
            one.kill()
            one.wait()
    arrays, errors = [], []
    for process in range(2):
        with np.load(folder / f"{process}.npz") as saved:
            arrays.append(dict(saved))
        errors.append(json.loads((folder / f"{process}.json").read_text()))
    return arrays, errors, folder


def part(results, name):
    """The weights that both processes have under `name`, by their paths."""
    (first, second), *_ = results
    keys = [key for key in first if key.startswith(f"{name}: ")]
    assert keys
    for key in keys:
        np.testing.assert_array_equal(first[key], second[key])
    return {key.removeprefix(f"{name}: "): first[key] for key in keys}


@pytest.fixture(scope="module")
def one_process():
    x, y, _ = training_data()
    return trained(x, y, BATCH)


def test_training_equals_that_of_one_process(results, one_process):
    got, expected = part(results, "trained"), weights(one_process)
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, **CLOSE, err_msg=path)


def test_the_loss_is_that_of_the_whole_data(results, one_process):
    x, y, _ = training_data()
    expected = one_process.evaluate(x, y, BATCH, verbose=0)
    for arrays in results[0]:
        np.testing.assert_allclose(arrays["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_are_those_of_whole_batches(results, name):
    x, _, mask = training_data()
    whole = [np.split(array, len(x) // BATCH) for array in (x.astype("float64"), mask)]
    options = LAYERS[name]
    unbiased, momentum = options.get("unbiased", True), options.get("momentum", 0.99)
    axes = 0 if "axis" in options else (0, 1)
    before, got = weights(to_train()), part(results, "trained")
    mean, variance = before[f"{name}/moving_mean"], before[f"{name}/moving_variance"]
    for number, (batch, kept) in enumerate(EPOCHS * list(zip(*whole, strict=True))):
        counts = np.broadcast_to(kept[..., None] if "masked" in name else 1, batch.shape)
        batch_mean = np.average(batch, axes, counts)
        squares = ((batch - batch_mean) ** 2 * counts).sum(axes)
        stays = number / (number + 1) if momentum is None else momentum
        stays = min(stays, number / (number + 1)) if options.get("debias") else stays
        mean = stays * mean + (1 - stays) * batch_mean
        variance = stays * variance + (1 - stays) * squares / (counts.sum(axes) - unbiased)
    np.testing.assert_allclose(got[f"{name}/moving_mean"], mean, **CLOSE)
    np.testing.assert_allclose(got[f"{name}/moving_variance"], variance, **CLOSE)


@pytest.mark.parametrize("name", [*SHARES, "average"])
def test_update_bn_equals_that_of_one_process(results, name):
    shares, method = (list(SHARES)[-1], name) if name == "average" else (name, "pooled")
    whole = [np.concatenate(both) for both in batches(shares)]
    expected = weights(update_bn(to_update(), whole, method=method))
    got = part(results, name)
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, **CLOSE, err_msg=path)


@pytest.mark.parametrize("name", SHARES)
def test_update_bn_measures_all_that_the_processes_bring(results, name):
    seen = [x.reshape(-1, 3) for both in batches(name) for x in both]
    check_first(part(results, name), np.concatenate(seen))


def test_update_bn_of_a_model_that_is_spread_over_the_processes(results):
    whole = [np.concatenate(both) for both in batches("halves")]
    expected, got = weights(update_bn(to_update(), whole)), part(results, "spread")
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, **CLOSE, err_msg=path)


def test_a_dataset_is_dealt_out_to_the_processes(results):
    check_first(part(results, "dealt out"), training_data()[0][:40].reshape(-1, 3))


def check_first(got, elements):
    """The first layer's statistics are those of the unmasked `elements`."""
    kept = elements[elements.any(1)].astype("float64")
    np.testing.assert_allclose(got["first/moving_mean"], kept.mean(0), **CLOSE)
    np.testing.assert_allclose(got["first/moving_variance"], kept.var(0, ddof=1), **CLOSE)


OF_THE_OTHER = ["CalibrationError", "the data of process 1 raised an error"]
ERRORS = {
    "raises at once": [OF_THE_OTHER, ["ZeroDivisionError", "division by zero"]],
    "raises later": [OF_THE_OTHER, ["OSError", "the disk is gone"]],
    "no data": [OF_THE_OTHER, ["TypeError", "Received: int"]],
    "other features": [
        ["CalibrationError", "This process brought float32 (8, 3, 3)"],
        ["CalibrationError", "This process brought float32 (8, 3, 5)"],
    ],
    "other dtype": [
        ["CalibrationError", "This process brought float32 (8, 3, 3)"],
        ["CalibrationError", "This process brought int32 (8, 3, 3)"],
    ],
    "not a number": [["CalibrationError", "'first' are not finite"]] * 2,
    "nothing at all": [["CalibrationError", "received none"]] * 2,
    "other samples for one copy": [["CalibrationError", "Received: 8, 9 samples"]] * 2,
    "an array to deal out": [["ValueError", "set its auto_shard_dataset=False"]] * 2,
}


@pytest.mark.parametrize("name", ERRORS)
def test_no_process_waits_for_one_that_fails(results, name):
    for errors, (kind, message) in zip(results[1], ERRORS[name], strict=True):
        assert errors[name][0] == kind
        assert message in errors[name][1]


def test_errors_leave_the_model_as_it_was(results):
    before = part(results, "average")
    after = part(results, "after errors")
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_the_first_process_saves_the_model_of_both(results):
    model = keras.models.load_model(results[2] / "model.keras")
    got = part(results, "dealt out")
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, got[path])


def test_the_example_of_many_machines(tmp_path):
    example = Path(keras_bn.__file__).parents[1] / "examples" / "07_many_machines.py"
    command = [sys.executable, str(example), "--quick", "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    distances = {
        name: (float(mean), float(variance))
        for name, mean, variance in re.findall(r"^(.*?) +(\S+e\S+) +(\S+e\S+)$", run.stdout, re.M)
    }
    # Rounding of float32 in one epoch, against statistics of other digits.
    assert max(distances["two machines, after training"]) < 1e-4
    assert max(distances["two machines, after update_bn"]) < 1e-4
    assert min(distances["machine 0's digits alone"]) > 1e-3
    assert min(distances["machine 1's digits alone"]) > 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["07_many_machines.png"]
