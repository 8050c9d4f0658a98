"""The command as a user runs it: a process, its exit code and what it printed."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

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
