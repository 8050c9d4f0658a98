"""keras_bn.fold beside keras.models.clone_model on the same model: time and memory.

A fold copies the whole model, reads and changes its weights and runs both models;
clone_model builds the same layers and leaves their weights at random. They take turns in one
run, also with a fold that does not run the models, and the ratios of the medians are what to
trust. Memory is the growth of the peak resident set of a fresh process that does one of them once.

    python -m tools.benchmarks.fold_time [--quick] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.memory import forget_peak, peak_rss_bytes
from tools.benchmarks.timing import in_child, medians_ms

if TYPE_CHECKING:
    import keras

MODELS = (
    "MobileNetV2",
    "ResNet50",
    "EfficientNetB0",
    "InceptionV3",
    "DenseNet121",
    "NASNetMobile",
)
QUICK_MODELS = ("MobileNetV2",)
SIZE = 96  # pixels
USUAL_SIZE = 224
ROUNDS = 7


def run(quick: bool) -> dict[str, Any]:
    """Measure every model; the JSON document."""
    return {
        "benchmark": "fold_time",
        "quick": quick,
        "machine": machine(),
        "models": [
            _measure(name, 3 if quick else ROUNDS) for name in (QUICK_MODELS if quick else MODELS)
        ],
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="keras_bn.fold beside keras.models.clone_model")
    result.add_column("model")
    for heading in (
        "clone s",
        "fold s",
        "fold / clone",
        "unverified fold / clone",
        "clone MB",
        "fold MB",
        "folded",
        "kept",
    ):
        result.add_column(heading, justify="right")
    for row in document["models"]:
        result.add_row(
            row["model"],
            f"{row['clone_s']:.2f}",
            f"{row['fold_s']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['unverified_ratio']:.2f}",
            f"{row['clone_peak_bytes'] / 1e6:.0f}",
            f"{row['fold_peak_bytes'] / 1e6:.0f}",
            str(row["folded"]),
            str(row["kept"]),
        )
    return result


def application(name: str, size: int | None = None, **options: Any) -> keras.Model:
    """A model of keras.applications for images of `size` pixels a side, or of its own size."""
    import keras

    make = getattr(keras.applications, name)
    shape = None if size is None else (size, size, 3)
    model = make(weights=None, input_shape=shape, **options)
    if None in model.input_shape[1:]:  # it takes any size
        return application(name, USUAL_SIZE, **options)
    return model


def times(model: keras.Model, rounds: int) -> dict[str, float]:
    """Median seconds of a clone, a fold, and a fold without verification, and their ratios."""
    import keras

    import keras_bn

    medians = medians_ms(
        {
            "clone": lambda: keras.models.clone_model(model),
            "fold": lambda: keras_bn.fold(model),
            "unverified": lambda: keras_bn.fold(model, verify=False),
        },
        rounds=rounds,
        warm_ups=1,
    )
    return {
        **{f"{name}_s": median / 1000 for name, median in medians.items()},
        "ratio": medians["fold"] / medians["clone"],
        "unverified_ratio": medians["unverified"] / medians["clone"],
    }


def peaks(name: str, size: int | None = None) -> dict[str, int]:
    """Growth of the peak resident set in bytes, each in a process of its own."""
    return {
        f"{what}_peak_bytes": in_child(f"fold_time:print_peak({name!r}, {size}, {what!r})")
        for what in ("clone", "fold")
    }


def print_peak(name: str, size: int | None, what: str) -> None:
    """Print the growth of the peak of this process by one fold or clone, as JSON."""
    import keras

    import keras_bn

    # What runs once and stays, such as TensorFlow's thread pools, belongs to neither.
    small = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    keras_bn.fold(small)
    keras.models.clone_model(small)
    model = application(name, size)
    model(keras.ops.zeros((2, *model.input_shape[1:])))
    forget_peak()
    before = peak_rss_bytes()
    result = keras_bn.fold(model) if what == "fold" else keras.models.clone_model(model)
    json.dump(peak_rss_bytes() - before, sys.stdout)
    del result


def _measure(name: str, rounds: int) -> dict[str, Any]:
    import keras_bn

    model = application(name, SIZE)
    result = keras_bn.fold(model)
    return {
        "model": name,
        "rounds": rounds,
        **times(model, rounds),
        **peaks(name, SIZE),
        "folded": len(result.folded),
        "kept": len(result.kept),
    }


if __name__ == "__main__":
    main(run, table)
