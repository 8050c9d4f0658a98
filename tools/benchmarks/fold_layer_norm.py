"""Layer normalizations: what folding their gamma, beta and centring gains in a LiteRT file.

Gamma and beta go into what follows a layer normalization, and where that leaves fewer operations,
the subtraction of the mean goes into the Dense before it. For each network, with random weights,
TensorFlow's converter makes a file of the original and one of the folded model. The files take
turns on one thread; ratios of medians are what to trust.

    python -m tools.benchmarks.fold_layer_norm [--quick] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from tools.benchmarks.command import machine, main
from tools.benchmarks.fold_time import application
from tools.benchmarks.lite import invoke, stock
from tools.benchmarks.timing import medians_ms

if TYPE_CHECKING:
    import keras

TOKENS, WIDTH, HEADS, BLOCKS = 64, 128, 4, 4
SECONDS = 20.0  # for each network
NETWORKS = {
    "transformer, normalized first": lambda: _transformer(first=True),
    "transformer, normalized last": lambda: _transformer(first=False),
    "perceptron": lambda: _perceptron(),
    "ConvNeXtTiny, 96 x 96": lambda: application("ConvNeXtTiny", 96, classifier_activation=None),
}


def run(quick: bool) -> dict[str, Any]:
    """Measure every network; the JSON document."""
    names = list(NETWORKS)[: 2 if quick else None]
    return {
        "benchmark": "fold_layer_norm",
        "quick": quick,
        "machine": machine(),
        "networks": [_measure(name, SECONDS / 4 if quick else SECONDS) for name in names],
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title="Folding layer normalizations")
    result.add_column("network")
    for heading in ("operations", "folded", "ms", "folded", "time folded / not", "off by"):
        result.add_column(heading, justify="right")
    for row in document["networks"]:
        result.add_row(
            row["network"],
            *(str(row[way]["operations"]) for way in ("stock", "folded")),
            *(f"{row[way]['median_ms']:.3f}" for way in ("stock", "folded")),
            f"{row['ratio']:.2f}",
            f"{row['max_abs_error']:.1e}",
        )
    return result


def _measure(name: str, seconds: float) -> dict[str, Any]:
    import keras_bn
    from keras_bn.convert.flatbuffer import read_contents
    from tests.random_weights import randomize

    model = randomize(NETWORKS[name]())
    result = keras_bn.fold(model, one_operation=True)
    contents = {"stock": stock(model), "folded": stock(result.model)}
    medians = medians_ms({way: invoke(file) for way, file in contents.items()}, seconds=seconds)
    files = {
        way: {"operations": read_contents(file).ops.total(), "median_ms": medians[way]}
        for way, file in contents.items()
    }
    return {
        "network": name,
        **files,
        "ratio": medians["folded"] / medians["stock"],
        "max_abs_error": result.max_abs_error,
    }


def _transformer(first: bool) -> keras.Model:
    """An encoder with the layer normalization before or after each of its parts."""
    import keras
    from keras import layers

    def attention(x: Any) -> Any:
        return layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(x, x)

    def feed_forward(x: Any) -> Any:
        return layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, activation="relu")(x))

    tokens = keras.Input((TOKENS, WIDTH))
    x = tokens
    for part in (attention, feed_forward) * BLOCKS:
        if first:
            x = layers.Add()([x, part(layers.LayerNormalization()(x))])
        else:
            x = layers.LayerNormalization()(layers.Add()([x, part(x)]))
    return keras.Model(tokens, layers.Dense(10)(layers.LayerNormalization()(x)))


def _perceptron() -> keras.Model:
    """Dense, layer normalization and ReLU, again and again."""
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((WIDTH,))])
    for _ in range(BLOCKS):
        for layer in (layers.Dense(2 * WIDTH), layers.LayerNormalization(), layers.ReLU()):
            model.add(layer)
    model.add(layers.Dense(10))
    return model


if __name__ == "__main__":
    main(run, table)
