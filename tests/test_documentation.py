"""What the documentation shows is run: docstrings, the README's example, the examples."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib.image
import pytest

import keras_bn

ROOT = Path(keras_bn.__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(keras_bn.__path__, "keras_bn.")
    if not module.name.endswith(("__main__", "bench.runner"))
)
MANY_MACHINES = ROOT / "examples" / "07_many_machines.py"  # run by tests/training/test_processes.py
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {MANY_MACHINES})


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


# What each example says of its own table, in a setting that takes seconds. The margins are wide:
# other processors round otherwise, and train other weights.


def fold_convert_measure(rows):
    # 8 bits instead of 32; noise of a 256th of the range, against that of float32's rounding.
    assert rows["int8"]["size, kB"] < rows["none"]["size, kB"] / 2
    assert rows["none"]["SNR, dB"] > 100
    assert 20 < rows["int8"]["SNR, dB"] < 100


def short_training(rows):
    accuracy = {name: row["test set"] for name, row in rows.items()}
    assert accuracy["Keras's layer"] < 30
    assert accuracy["Keras's layer, then update_bn"] > 90
    for name in ("debias=True", "momentum=None"):
        assert accuracy[name] > accuracy["Keras's layer"] + 30


def batch_size_two(rows):
    for name, first, third in (("biased", 0.5, 1), ("unbiased", 1, 2), ("population", 1, 1)):
        # 100 batches of two, which is what a momentum of 0.99 looks back on, averaged over 128
        # channels of 64 correlated pixels.
        assert rows[name]["first ÷ true"] == pytest.approx(first, rel=0.2)
        assert rows[name]["third ÷ true"] == pytest.approx(third, rel=0.2)
    # What the early weights gave is averaged in.
    assert rows["cumulative"]["first ÷ true"] < 0.9


def many_devices(rows):
    # Rounding of float32 in one epoch of steps, against statistics of other samples.
    assert rows["two devices, synchronized"]["first epoch"] < 1e-4
    assert rows["two devices, each by itself"]["first epoch"] > 1e-2


def deep_sigmoid_network(rows):
    for start in ("Glorot", "poor start"):
        assert rows[f"with, {start}"]["1"] > rows[f"without, {start}"]["1"] + 30


def row_by_row(rows):
    plain = rows["LSTM"]["0.01"]
    assert rows["LayerNormLSTM"]["0.01"] > plain + 20
    for clipped in ("LSTM, clipnorm", "LSTM, clipvalue"):
        assert rows[clipped]["0.01"] == pytest.approx(plain, abs=5)


def sequence_statistics(rows):
    for name in ("statistics per step", "LayerNormLSTM"):
        assert rows[name]["rate 0.03"] > rows["LSTM"]["rate 0.03"] + 15
    alone = {name: row["batches of one"] for name, row in rows.items()}
    assert alone["statistics per step"] < 25
    assert alone["LayerNormLSTM"] > alone["statistics per step"] + 25


CLAIMS = {
    "01_fold_convert_measure": fold_convert_measure,
    "02_deep_sigmoid_network": deep_sigmoid_network,
    "03_short_training": short_training,
    "04_batch_size_two": batch_size_two,
    "05_row_by_row": row_by_row,
    "06_many_devices": many_devices,
    "08_sequence_statistics": sequence_statistics,
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    run = run_python(example, "--quick", "--output", tmp_path, cwd=tmp_path)
    figure = matplotlib.image.imread(tmp_path / f"{example.stem}.png")
    assert figure.std() > 0.05, "the figure is empty"
    assert [path.name for path in tmp_path.iterdir()] == [f"{example.stem}.png"]
    CLAIMS[example.stem](table(run.stdout))


@pytest.mark.skipif(find_spec("jax") is not None, reason="JAX is installed")
def test_many_machines_without_jax(tmp_path):
    command = [sys.executable, str(MANY_MACHINES), "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr and "pip install jax" in run.stderr


def table(text):
    """The numbers of the table in `text`, by row and column: its cells are two spaces apart."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    header, *rows = [cells for cells in lines if len(cells) > 1]
    columns = header[-(len(rows[0]) - 1) :]  # the column of names may have none itself
    return {
        name: {
            column: float(cell.split()[0])  # of "91.2 ± 0.4" the mean
            for column, cell in zip(columns, cells, strict=True)
        }
        for name, *cells in rows
    }


def run_python(*arguments, cwd):
    run = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run
