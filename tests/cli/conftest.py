"""The command as a user runs it: a process, its exit code and what it printed."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from keras_bn.__main__ import run as run_command
from keras_bn.cli import cli
from tests.random_weights import randomize


def quiet_by_itself() -> dict[str, str]:
    """The environment as it is now; chatter must stay away without help from it."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def keras_bn(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "keras_bn", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=quiet_by_itself(),
        **options,
    )


@pytest.fixture
def keras_bn_here(capfd, monkeypatch):
    """`keras_bn` without a process of its own, which takes seconds to import TensorFlow.

    What only a process shows is for `keras_bn`: the libraries' chatter, and what they know of a
    user's layers.
    """

    def run(*arguments) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["keras-bn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are no errors to a user either
            run_command(cli)
        printed, errors = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, printed, errors)

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A model with one normalization that folds and one that stays, and data for it."""
    path = tmp_path_factory.mktemp("cli")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(6, 3, name="conv"),
            layers.BatchNormalization(name="folds"),
            layers.ReLU(),
            layers.BatchNormalization(name="stays"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    randomize(model)
    model.save(path / "model.keras")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 8, 8, 3)).astype("float32")
    np.savez(path / "calibration.npz", image=images[:40])
    labels = np.argmax(model(images[40:]), -1)
    np.savez(path / "evaluation.npz", image=images[40:], labels=labels)
    return path
