"""keras_bn.fold on thousands of random graphs: what folds, how exactly, and in which operations.

Each graph is folded in float64 with arbitrary statistics and no verification, where only an error
of the algebra shows, and every fourth once more in float32, verified, with the statistics of the
data, beside what rounding does to the original. Some are converted: the original, the folded model
and the same graph without normalizations, which is the fewest operations that folding can leave.

    python -m tools.benchmarks.fold_graphs [--quick] [--json FILE]
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.command import machine, main

if TYPE_CHECKING:
    import keras
    import numpy as np

    from keras_bn.convert.process import ConverterProcess

GRAPHS, QUICK_GRAPHS = 2000, 60
CONVERTED, QUICK_CONVERTED = 40, 3
FLOAT32_EVERY = 4
EXACT = 1e-9  # float64 rounds at 1e-16, and hardly any graph amplifies it as much as that
# A graph differs where its error is above that, and above this many times what its weights' last
# bits make, the largest of some draws: folding rounds weights once more and sums in another order.
AMPLIFIED = 10
DRAWS = 8
AFFINE = ("ADD", "SUB", "MUL", "DIV", "NEG")


def run(quick: bool) -> dict[str, Any]:
    """Fold and convert; the JSON document."""
    warnings.filterwarnings("ignore", message="Layer .* does not support masking")
    seeds = range(QUICK_GRAPHS if quick else GRAPHS)
    return {
        "benchmark": "fold_graphs",
        "quick": quick,
        "machine": machine(),
        "float64": _float64(seeds),
        "float32": _float32(seeds[::FLOAT32_EVERY]),
        "litert": _litert(seeds, QUICK_CONVERTED if quick else CONVERTED),
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="keras_bn.fold on random graphs")
    result.add_column("")
    result.add_column("", justify="right")
    exact, rounded, litert = document["float64"], document["float32"], document["litert"]
    for name in ("graphs", "normalizations", "folded", "partly", "kept"):
        result.add_row(name, str(exact[name]))
    result.add_row("largest error in float64", f"{exact['largest_error']:.1e}")
    result.add_row("seeds of graphs that differ", str(exact["differ"]))
    result.add_row("graphs in float32", str(rounded["graphs"]))
    for name in ("median", "percentile_99", "largest"):
        result.add_row(f"error beside the original's, {name}", f"{rounded[name]:.2f}")
    result.add_row("graphs converted", str(litert["graphs"]))
    for kind in ("operations", "affine_operations"):
        for what in ("original", "folded", "without_normalizations"):
            result.add_row(f"{kind}, {what}", str(litert[kind][what]))
    result.add_row("seeds of graphs with more operations", str(litert["more"]))
    return result


def _float64(seeds: range) -> dict[str, Any]:
    import keras_bn
    from tests.fold.random_graphs import build, data, random_graph, seeded

    counts: Counter[str] = Counter()
    errors, differ = [0.0], []
    for seed in seeds:
        graph = random_graph(seeded(seed))
        model, inputs = build(graph, "float64"), data(graph)
        result = keras_bn.fold(model, verify=False)
        partly = sum("; only " in record.reason for record in result.kept)
        counts["normalizations"] += len(result.folded) + len(result.kept)
        counts["folded"] += len(result.folded)
        counts["partly"] += partly
        counts["kept"] += len(result.kept) - partly
        expected = _outputs(model, inputs)
        if not _fits_float32(expected):
            continue
        errors.append(_error(expected, _outputs(result.model, inputs)))
        if not errors[-1] < EXACT and not (
            errors[-1] < AMPLIFIED * _amplified(model, inputs, expected)
        ):
            differ.append(seed)
    return {"graphs": len(seeds), **counts, "largest_error": max(errors), "differ": differ}


def _amplified(model: keras.Model, inputs: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """What becomes of the last bits of the weights, which folding rounds once more."""
    import numpy as np

    weights = model.get_weights()
    rng, errors = np.random.default_rng(0), []
    for _ in range(DRAWS):
        model.set_weights([w * (1 + 2.0**-52 * rng.uniform(-1, 1, w.shape)) for w in weights])
        errors.append(_error(expected, _outputs(model, inputs)))
    return max(errors)


def _float32(seeds: range) -> dict[str, Any]:
    """Errors of folded models over those of the originals and one rounding, 2⁻²⁴."""
    import keras
    import numpy as np

    import keras_bn
    from tests.fold.random_graphs import build, data, fit_statistics, random_graph, seeded

    ratios = []
    for seed in seeds:
        graph = random_graph(seeded(seed))
        exact, model, inputs = build(graph, "float64"), build(graph), data(graph)
        fit_statistics(exact, inputs)
        for wide, narrow in zip(exact.weights, model.weights, strict=True):
            narrow.assign(keras.ops.cast(wide, narrow.dtype))
            wide.assign(keras.ops.cast(narrow, wide.dtype))
        expected, original = _outputs(exact, inputs), _outputs(model, inputs)
        if _fits_float32(expected) and _fits_float32(original):
            folded = _outputs(keras_bn.fold(model).model, inputs)
            ratios.append(_error(expected, folded) / (_error(expected, original) + 2.0**-24))
    return {
        "graphs": len(ratios),
        "median": float(np.median(ratios)),
        "percentile_99": float(np.quantile(ratios, 0.99)),
        "largest": float(max(ratios)),
    }


def _litert(seeds: range, count: int) -> dict[str, Any]:
    """Operations of the first `count` graphs that have normalizations and can be converted."""
    import keras_bn
    from keras_bn.convert.process import ConverterProcess
    from keras_bn.errors import ConversionError
    from tests.fold.random_graphs import (
        batch_norms,
        build,
        random_graph,
        seeded,
        without_normalizations,
    )

    totals = {kind: Counter[str]() for kind in ("operations", "affine_operations")}
    converted, failed, more = 0, 0, []
    with ConverterProcess() as process:
        for seed in seeds:
            if converted == count:
                break
            graph = random_graph(seeded(seed))
            model = build(graph)
            if not list(batch_norms(model)):
                continue
            models = {
                "original": model,
                "folded": keras_bn.fold(model).model,
                "without_normalizations": build(without_normalizations(graph)),
            }
            try:
                ops = {name: _operations(each, process) for name, each in models.items()}
            except ConversionError:  # LiteRT does not have every operation
                failed += 1
                continue
            converted += 1
            for name, counted in ops.items():
                totals["operations"][name] += counted.total()
                totals["affine_operations"][name] += sum(counted[op] for op in AFFINE)
            if ops["folded"].total() > ops["original"].total():
                more.append(seed)
    return {"graphs": converted, "failed": failed, **totals, "more": more}


def _operations(model: keras.Model, process: ConverterProcess) -> Counter[str]:
    from keras_bn.convert.export import export
    from keras_bn.convert.flatbuffer import read_contents

    with tempfile.TemporaryDirectory(dir=process.folder) as folder:
        process.submit(export(model, Path(folder)), quantize="none")
        return read_contents(process.result()).ops


def _outputs(model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    import keras
    import numpy as np

    outputs = keras.tree.flatten(model(inputs, training=False))
    return [np.asarray(keras.ops.convert_to_numpy(output), np.float64) for output in outputs]


def _fits_float32(values: list[np.ndarray]) -> bool:
    import numpy as np

    return all(np.all(np.isfinite(value)) and np.max(np.abs(value)) < 1e30 for value in values)


def _error(reference: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """The largest difference in any output, relative to that output's largest value."""
    import numpy as np

    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(a), initial=1e-30))
        for a, b in zip(reference, outputs, strict=True)
    )


if __name__ == "__main__":
    main(run, table)
