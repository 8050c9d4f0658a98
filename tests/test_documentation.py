"""What the documentation shows is run: docstrings, the README's example, the examples."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_bn

ROOT = Path(keras_bn.__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(keras_bn.__path__, "keras_bn.")
    if not module.name.endswith(("__main__", "bench.runner"))
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_the_documented_functions_have_examples():
    for function in (
        keras_bn.layers.BatchNormalization,
        keras_bn.layers.LayerNormalization,
        keras_bn.update_bn,
        keras_bn.replace_batch_norm,
        keras_bn.benchmark,
        keras_bn.fold.__wrapped__,
        keras_bn.convert.__wrapped__,
        keras_bn.compare.__wrapped__,
    ):
        assert ">>>" in function.__doc__, function


def test_the_readmes_python_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    run_python("-c", "\n".join(blocks), cwd=tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    assert run_python(example, cwd=tmp_path).stdout


def run_python(*arguments, cwd):
    run = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run
