"""Networks whose normalizations stand in streams: what stays in the file, and what it costs.

ResNetV2 and DenseNet normalize a tensor that other layers read as well, which no converter folds.
For each network, with random weights, as it is trained (positive gammas) and with gammas of both
signs: LiteRT operations that scale or shift, and latency, of TensorFlow's converter and of
keras_bn with and without changed streams (`rebase`). The files take turns on one thread; ratios of
medians are what to trust.

Changed streams have other ranges, which int8 might feel: three small ResNetV2s, trained on
scikit-learn's digits, are converted to int8 from the same calibration, and their outputs compared
with the float model's on held-out digits.

    python -m tools.benchmarks.fold_streams [--quick] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.lite import invoke, stock
from tools.benchmarks.timing import medians_ms

if TYPE_CHECKING:
    import keras

MODELS = ("ResNet50V2", "DenseNet121")
SIDE = 96
SECONDS = 20.0  # for each network
# The stock file's first, which the others are measured by.
WAYS = {"stock": None, "rebase=False": False, "rebase=True": True}
SCALING = ("MUL", "ADD", "SUB", "DEPTHWISE_CONV_2D")
DIGITS_SEEDS = (0, 1, 2)


def run(quick: bool) -> dict[str, Any]:
    """Measure every network; the JSON document."""
    models = MODELS[:1] if quick else MODELS
    seeds = DIGITS_SEEDS[:1] if quick else DIGITS_SEEDS
    return {
        "benchmark": "fold_streams",
        "quick": quick,
        "machine": machine(),
        "networks": [
            row
            for name in models
            for signs in ("positive", "both")
            for row in _measure(name, signs, SECONDS / 4 if quick else SECONDS)
        ],
        "digits": [row for seed in seeds for row in _digits(seed)],
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="Normalizations in streams")
    for heading in ("network", "gammas", "file"):
        result.add_column(heading)
    for heading in ("folded", "stay", "scale or shift", "operations", "time / stock", "SNR dB"):
        result.add_column(heading, justify="right")
    for row in document["networks"] + document["digits"]:
        result.add_row(
            row["network"],
            row["gammas"],
            row["file"],
            *(str(row.get(name, "-")) for name in ("folded", "kept", "scaling", "operations")),
            f"{row['ratio']:.2f}" if "ratio" in row else "-",
            f"{row['snr_db']:.1f}" if "snr_db" in row else "-",
        )
    return result


def _measure(name: str, signs: str, seconds: float) -> list[dict[str, Any]]:
    import keras

    import keras_bn
    from keras_bn.convert.flatbuffer import read_contents
    from tests.random_weights import randomize

    model = randomize(
        getattr(keras.applications, name)(
            weights=None, input_shape=(SIDE, SIDE, 3), classifier_activation=None
        )
    )
    if signs == "positive":
        _make_positive(model)
    rows, steps = [], {}
    for way, rebase in WAYS.items():
        row: dict[str, Any] = {"network": name, "gammas": signs, "file": way}
        folded = model
        if rebase is not None:
            result = keras_bn.fold(model, rebase=rebase, one_operation=True)
            folded = result.model
            row |= {"folded": len(result.folded), "kept": len(result.kept)}
        content = stock(folded)
        operations: Counter[str] = read_contents(content).ops
        row["operations"] = operations.total()
        row["scaling"] = sum(operations[operation] for operation in SCALING)
        rows.append(row)
        steps[way] = invoke(content)
    medians = medians_ms(steps, seconds=seconds)
    return [
        row | {"median_ms": medians[row["file"]], "ratio": medians[row["file"]] / medians["stock"]}
        for row in rows
    ]


def _make_positive(model: keras.Model) -> None:
    import keras

    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None:
            layer.gamma.assign(keras.ops.abs(layer.gamma))


def _digits(seed: int) -> list[dict[str, Any]]:
    import keras
    from sklearn.datasets import load_digits

    import keras_bn

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = (digits.images[order, :, :, None] / 16).astype("float32")
    labels, trained = digits.target[order], slice(0, 1200)
    keras.utils.set_random_seed(seed)
    model = _resnet_v2()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    model.fit(images[trained], labels[trained], batch_size=64, epochs=6, verbose=0)
    keras_bn.update_bn(model, images[trained])
    rows = []
    for way, rebase in WAYS.items():
        row: dict[str, Any] = {"network": f"digits {seed}, int8", "gammas": "trained", "file": way}
        folded = model
        if rebase is not None:
            result = keras_bn.fold(model, rebase=rebase, one_operation=True)
            folded = result.model
            row |= {"folded": len(result.folded), "kept": len(result.kept)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "digits.tflite")
            conversion = keras_bn.convert(
                folded, path, quantize="int8", calibration=images[:200], fold=False
            )
            comparison = keras_bn.compare(model, path, images[1200:])
        row["operations"] = conversion.ops.total()
        row["scaling"] = sum(conversion.ops[operation] for operation in SCALING)
        row["snr_db"] = comparison.snr_db
        rows.append(row)
    return rows


def _resnet_v2(blocks: int = 4, filters: int = 16) -> keras.Model:
    """Pre-activation residual blocks: normalization, ReLU and convolution twice, then the sum."""
    import keras
    from keras import layers

    def normalized(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization()(x))

    def convolved(x: Any) -> Any:
        return layers.Conv2D(filters, 3, padding="same")(x)

    image = keras.Input((8, 8, 1))
    x = convolved(image)
    for _ in range(blocks):
        x = layers.Add()([x, convolved(normalized(convolved(normalized(x))))])
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(normalized(x))))


if __name__ == "__main__":
    main(run, table)
