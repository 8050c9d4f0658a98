"""Models and their layers on the command line: options that several commands share."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from keras_bn.errors import UnsupportedModelError

if TYPE_CHECKING:
    import keras

MODES = ("none", "float16", "dynamic", "int8", "int16x8")


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL and --import."""
    function = click.option(
        "--import",
        "imports",
        multiple=True,
        metavar="MODULE",
        help="Python module or file that registers the model's custom layers; repeatable.",
    )(function)
    return click.argument("model", type=click.Path(path_type=None))(function)


def load(path: str, imports: Iterable[str]) -> keras.Model:
    """The model at `path`, after the modules that define its layers."""
    if not os.path.exists(path):  # noqa: PTH110 - before seconds of importing TensorFlow
        raise FileNotFoundError(f"no such file: {path}")
    import_modules(imports)
    from keras_bn.loading import load_model

    return load_model(path)


def import_modules(names: Iterable[str]) -> None:
    """Import modules by name, or by the path of a .py file, as `python -m` would find them.

    Raises:
        UnsupportedModelError: a module does not exist or fails when it is imported.
    """
    for name in names:
        folder, module = os.getcwd(), name  # noqa: PTH109
        if name.endswith(".py"):
            folder, module = os.path.split(os.path.abspath(name[:-3]))  # noqa: PTH100
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UnsupportedModelError(
                f"--import {name} failed ({type(error).__name__}: {error}); give a module's dotted "
                "name, found from the current folder, or the path of a .py file"
            ) from error
