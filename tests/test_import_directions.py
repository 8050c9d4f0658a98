"""Data moves forward through the packages, and so do the imports."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_bn

# What each package may import of this project, besides itself. `_callable_module`, `checks`,
# `errors` and `files` serve all.
ALLOWED = {
    "layers": set(),
    "graph": set(),
    "training": {"layers", "graph"},
    "fold": {"graph", "layers"},
    "quantize": {"graph", "samples", "signature"},
    "convert": {"layers", "graph", "samples", "signature"},
    "compare": {"layers", "graph", "samples", "signature", "loading"},
    "bench": {"convert"},  # for what is in a file
    "report": set(),
}
FOR_ALL = {"_callable_module", "checks", "errors", "files"}
LIGHT = ("bench", "report")
"""Packages that load neither Keras nor TensorFlow."""

IMPORT_ALL = """
import importlib, json, pkgutil, sys
package = importlib.import_module("keras_bn." + sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(package: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_comes_before_it(package):
    modules = modules_after(package)
    ours = {name.split(".")[1] for name in modules if name.startswith("keras_bn.")}
    assert ours - FOR_ALL - {package} <= ALLOWED[package]
    if package in LIGHT:
        assert not {"keras", "tensorflow"} & set(modules)


def test_only_convert_touches_tensorflows_converter():
    root = Path(keras_bn.__file__).parent
    users = [
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if re.search(r"\b(tf|tensorflow)\.lite\b", path.read_text())
    ]
    assert set(users) == {"convert"}


def test_the_package_itself_and_help_load_nothing_heavy():
    check = (
        "import sys, keras_bn, keras_bn.cli;"
        "assert not {'keras', 'tensorflow', 'numpy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_runner_stands_alone():
    """It travels to devices that have nothing but NumPy and an interpreter."""
    source = (
        "import sys, pathlib, runpy, keras_bn.bench;"
        "path = pathlib.Path(keras_bn.bench.__file__).with_name('runner.py');"
        "runpy.run_path(str(path));"
        "ours = [m for m in sys.modules if m.startswith('keras_bn')];"
        "assert sorted(ours) == ['keras_bn', 'keras_bn._callable_module', 'keras_bn.bench', "
        "'keras_bn.errors'], ours"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


def test_public_names_resolve_in_any_order():
    check = (
        "import keras_bn.fold.plan, keras_bn.convert.result, keras_bn;"
        "assert all(map(callable, (keras_bn.fold, keras_bn.convert, keras_bn.compare)));"
        "from keras_bn import *;"
        "import inspect;"
        "assert list(inspect.signature(keras_bn.fold).parameters) == ['model', 'keep', 'rebase',"
        " 'one_operation', 'duplicate', 'verify'];"
        "assert inspect.signature(keras_bn.convert).parameters['quantize'].default == 'none'"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
