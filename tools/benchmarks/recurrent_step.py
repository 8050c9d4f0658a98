"""Training steps of layer-normalised recurrent layers beside textbook cells in Keras's loop.

The textbook cell writes the formula down: both products, mean and variance at every step. Each
pair runs in one process, step by step in turn; ratios of medians are what to trust. Keras's layer
without normalization runs along, to show what the normalization costs.

    python -m tools.benchmarks.recurrent_step [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.table import Table

import keras_bn
from tools.benchmarks.command import machine, main
from tools.benchmarks.timing import medians_ms

BATCH, TIME, UNITS = 32, 64, 256
FEATURES = (256, 64)
EPSILON = 1e-3
SECONDS = 25.0  # for each row


def run(quick: bool) -> dict[str, Any]:
    """Measure every network; the JSON document."""
    rows = [
        {"network": network, "variant": variant, "features": features, "mode": mode}
        | _measure(network, variant, features, mode == "XLA", 6.0 if quick else SECONDS)
        for network in TEXTBOOK
        for variant in ("gate", "paper")
        for features in FEATURES[: 1 if quick else None]
        for mode in ("graph", "XLA")
    ]
    return {
        "benchmark": "recurrent_step",
        "quick": quick,
        "machine": machine(),
        "sizes": {"batch": BATCH, "time": TIME, "units": UNITS},
        "layers": rows,
        "geometric_means": {
            mode: statistics.geometric_mean(row["ratio"] for row in rows if row["mode"] == mode)
            for mode in ("graph", "XLA")
        },
    }


def table(document: dict[str, Any]) -> Table:
    """The document's figures for people."""
    result = Table(title=f"Training step, batch {BATCH}, {TIME} steps, {UNITS} units")
    for heading in ("network", "variant", "features", "compiled as"):
        result.add_column(heading)
    for heading in ("textbook ms", "keras_bn ms", "times faster", "Keras without, ms"):
        result.add_column(heading, justify="right")
    for row in document["layers"]:
        result.add_row(
            row["network"],
            row["variant"],
            str(row["features"]),
            row["mode"],
            f"{row['textbook_ms']:.0f}",
            f"{row['keras_bn_ms']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['plain_ms']:.0f}",
        )
    for mode, mean in document["geometric_means"].items():
        result.add_row("geometric mean", "", "", mode, "", "", f"{mean:.2f}", "", style="bold")
    return result


def _measure(
    network: str, variant: str, features: int, jit_compile: bool, seconds: float
) -> dict[str, float]:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(BATCH, TIME, features)), tf.float32)
    cell = TEXTBOOK[network](UNITS, variant)
    # Keras's own layers leave their loop for a call of cuDNN where there is one; not here.
    options = {} if network == "SimpleRNN" else {"use_cudnn": False}
    layers = {
        "textbook": keras.layers.RNN(cell, return_sequences=True),
        "keras_bn": getattr(keras_bn.layers, f"LayerNorm{network}")(
            UNITS, variant=variant, return_sequences=True
        ),
        "plain": getattr(keras.layers, network)(UNITS, return_sequences=True, **options),
    }

    def step_of(layer: keras.Layer) -> Callable[[], Any]:
        layer.build((None, TIME, features))

        @tf.function(jit_compile=jit_compile, autograph=False)
        def step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x, training=True) ** 2)
            return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

        return lambda: step(x)[0].numpy()

    medians = medians_ms({n: step_of(layer) for n, layer in layers.items()}, seconds=seconds)
    return {f"{name}_ms": median for name, median in medians.items()} | {
        "ratio": medians["textbook"] / medians["keras_bn"]
    }


class _Textbook(keras.layers.Layer):
    """The formulas as they stand, each gate or product normalized by itself."""

    gates: int

    def __init__(self, units: int, variant: str) -> None:
        super().__init__()
        self.units, self.variant = units, variant
        self.state_size = self.output_size = units

    def build(self, input_shape: Any) -> None:
        columns = self.gates * self.units
        self.kernel = self.add_weight((input_shape[-1], columns))
        self.recurrent_kernel = self.add_weight((self.units, columns), "orthogonal")
        self.bias = self.add_weight((columns,), "zeros")
        self.gammas = [self.add_weight((columns,), "ones") for _ in range(2)]

    def normalized(self, z: Any, gamma: Any, size: int) -> Any:
        each = ops.reshape(z, (-1, z.shape[-1] // size, size))
        mean = ops.mean(each, -1, keepdims=True)
        variance = ops.mean(ops.square(each - mean), -1, keepdims=True)
        scaled = (each - mean) * ops.rsqrt(variance + EPSILON)
        return ops.reshape(scaled, (-1, z.shape[-1])) * gamma

    def pre_activations(self, x: Any, h: Any) -> Any:
        from_input, from_state = ops.matmul(x, self.kernel), ops.matmul(h, self.recurrent_kernel)
        one, other = self.gammas
        if self.variant == "gate":
            return self.normalized(from_input + from_state, one, self.units) + self.bias
        size = self.gates * self.units
        from_input = self.normalized(from_input, one, size)
        return from_input + self.normalized(from_state, other, size) + self.bias


class _TextbookLSTM(_Textbook):
    gates = 4

    def __init__(self, units: int, variant: str) -> None:
        super().__init__(units, variant)
        self.state_size = [units, units]

    def call(self, x: Any, states: Any) -> Any:
        h, c = states
        i, f, g, o = ops.split(self.pre_activations(x, h), 4, axis=-1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
        read = c if self.variant == "gate" else self.normalized(c, 1.0, self.units)
        h = ops.sigmoid(o) * ops.tanh(read)
        return h, [h, c]


class _TextbookGRU(_Textbook):
    gates = 3

    def call(self, x: Any, states: Any) -> Any:
        h = states[0]
        x_gates, x_new = ops.split(ops.matmul(x, self.kernel), [2 * self.units], axis=-1)
        products = ops.matmul(h, self.recurrent_kernel)
        h_gates, h_new = ops.split(products, [2 * self.units], axis=-1)
        one, one_new = ops.split(self.gammas[0], [2 * self.units])
        other, other_new = ops.split(self.gammas[1], [2 * self.units])
        bias, bias_new = ops.split(self.bias, [2 * self.units])
        if self.variant == "gate":
            gates = self.normalized(x_gates + h_gates, one, self.units)
            update, reset = ops.split(ops.sigmoid(gates + bias), 2, axis=-1)
            new = self.normalized(x_new + reset * h_new, one_new, self.units)
        else:
            size = 2 * self.units
            gates = self.normalized(x_gates, one, size) + self.normalized(h_gates, other, size)
            update, reset = ops.split(ops.sigmoid(gates + bias), 2, axis=-1)
            new = reset * self.normalized(h_new, other_new, self.units)
            new = self.normalized(x_new, one_new, self.units) + new
        h = update * h + (1 - update) * ops.tanh(new + bias_new)
        return h, [h]


class _TextbookSimpleRNN(_Textbook):
    gates = 1

    def call(self, x: Any, states: Any) -> Any:
        h = ops.tanh(self.pre_activations(x, states[0]))
        return h, [h]


TEXTBOOK = {"LSTM": _TextbookLSTM, "GRU": _TextbookGRU, "SimpleRNN": _TextbookSimpleRNN}


if __name__ == "__main__":
    main(run, table)
