"""Reading a Keras model from a file, with words for everything that can be wrong with it."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import keras
import numpy as np

import keras_bn.graph.always_training
import keras_bn.layers  # noqa: F401 - these two register the layers that a file may name
from keras_bn.errors import UnsupportedModelError

SUFFIXES = (".keras", ".h5", ".hdf5")


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load a Keras model for inference from a `.keras` or `.h5` file.

    Custom layers have to be registered before the call, with
    `@keras.saving.register_keras_serializable`, or by importing the module that does so.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it cannot be read.
        UnsupportedModelError: the file is not a Keras model, is damaged, or names layers that
            are not known here.

    Example:
        >>> import keras, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        ...     model.save(f"{folder}/model.keras")
        ...     load_model(f"{folder}/model.keras").output_shape
        (None, 2)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir() or path.suffix.lower() not in SUFFIXES:
        kind = "a folder" if path.is_dir() else f"a file with the suffix '{path.suffix}'"
        raise UnsupportedModelError(
            f"expected a Keras model ({', '.join(SUFFIXES)}), received {kind}: {path}; save the "
            "model with model.save('model.keras')"
        )
    path.open("rb").close()  # an unreadable file is a PermissionError, not a damaged model
    if path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path):
        raise UnsupportedModelError(
            f"{path} is not a Keras model, or it was cut short: a .keras file is a zip archive, "
            f"and this one ({path.stat().st_size} bytes) is not; save or copy it again"
        )
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise UnsupportedModelError(f"{path}: {_explain(error)}") from error


def require_finite_weights(model: keras.Model) -> None:
    """Refuse a model whose weights hold NaN or infinity.

    Raises:
        UnsupportedModelError: names the first such weight.
    """
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        values = np.asarray(keras.ops.convert_to_numpy(weight), np.float32)
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise UnsupportedModelError(
                f"{bad} of {values.size} values of '{weight.path}' are NaN or infinite; the model "
                "is damaged or its training diverged: train it again, with a smaller learning "
                "rate or with gradient clipping, or go back to an earlier checkpoint"
            )


def _explain(error: Exception) -> str:
    """What an exception of Keras's loader means, and what to try."""
    message = str(error)
    unknown = re.findall(
        r"(?:Could not locate (?:class|function)|Unknown layer:) '([^']+)'", message
    )
    if unknown:
        names = ", ".join(f"'{name}'" for name in dict.fromkeys(unknown))
        return (
            f"the model uses {names}, which is not known here; import the module that defines it "
            "(--import MODULE on the command line) and register the class with "
            "@keras.saving.register_keras_serializable"
        )
    if "Lambda" in message and "safe_mode" in message:
        return (
            "the model holds a Lambda layer, which is Python code that loading would run; replace "
            "it by a registered layer or by keras.ops, or, if you trust the file, load it in "
            "Python with keras.models.load_model(path, safe_mode=False) and pass the model itself"
        )
    return (
        f"the file is damaged or not a Keras model ({type(error).__name__}: "
        f"{message.splitlines()[0] if message else 'no message'}); save or copy it again"
    )
