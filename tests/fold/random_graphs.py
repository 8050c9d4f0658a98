"""Random models out of every layer that folding knows, as data that can be printed and replayed.

`random_graph(pick)` makes every decision by picking from a sequence, simplest first. With
`following(decisions)`, numbers that Hypothesis draws, a failure shrinks to a small graph; with
`seeded(n)` it is the n-th of an endless series. What comes out is a `Graph`, whose repr is all
there is to a failure; `build` makes the Keras model, in the dtype that is asked for and always
with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops

import keras_bn

Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of several values, the first of which is the simplest."""

Options = dict[str, Any]

_VOCABULARY = 9  # of the embeddings
# 300 elements a sample keep a model of a dozen layers in the milliseconds.
_LARGEST = 300


@dataclass(frozen=True)
class Call:
    """One call of one operation.

    Attributes:
        what: The class of `keras.layers` or, after "keras_bn.", of `keras_bn.layers`; a key of
            `OPERATORS`; or a graph, called as a nested model.
        inputs: The tensors that it reads: inputs of the graph come first, then every call's output.
        options: The layer's constructor arguments, or the operator's constant.
        again: The number of an earlier call whose layer this one calls again.
    """

    what: str | Graph
    inputs: tuple[int, ...]
    options: Options = field(default_factory=dict)
    again: int | None = None


@dataclass(frozen=True)
class Graph:
    """A model as data.

    Attributes:
        inputs: Shapes without the batch axis; one that starts with None is of indices.
        calls: In the order in which they run.
        outputs: The tensors that are the model's outputs.
        weights: Seed of all weights and statistics.
    """

    inputs: tuple[tuple[int | None, ...], ...]
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]
    weights: int


def seeded(seed: int) -> Pick:
    """Picks at random, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return lambda options: options[rng.integers(len(options))]


decisions = st.lists(st.integers(0, 2519), min_size=60, max_size=120)
"""Hypothesis's strategy for `following`; 2520 is a multiple of every number up to ten."""


def following(decisions: Sequence[int]) -> Pick:
    """Picks what the numbers say, and the simplest once there are none left."""
    numbers = iter(decisions)
    return lambda options: options[next(numbers, 0) % len(options)]


# --- graphs to Keras models ----------------------------------------------------------------------

OPERATORS: dict[str, Callable[..., Any]] = {
    "x+y": lambda x, y: x + y,
    "x-y": lambda x, y: x - y,
    "x*y": lambda x, y: x * y,
    "ops.maximum": lambda x, y: ops.maximum(x, y),
    "ops.minimum": lambda x, y: ops.minimum(x, y),
    "ops.concatenate": lambda x, y: ops.concatenate([x, y], axis=-1),
    "x+c": lambda x, constant: x + constant,
    "c-x": lambda x, constant: ops.subtract(constant, x),
    "x-c": lambda x, constant: x - constant,
    "c*x": lambda x, constant: ops.multiply(constant, x),
    "x/c": lambda x, constant: x / constant,
    "-x": lambda x: -x,
    "ops.relu": lambda x: ops.relu(x),
    "ops.leaky_relu": lambda x: ops.leaky_relu(x, negative_slope=0.1),
    "ops.tanh": lambda x: ops.tanh(x),
    "ops.transpose": lambda x: ops.transpose(x, (0, *range(len(x.shape) - 1, 0, -1))),
    "ops.swapaxes": lambda x: ops.swapaxes(x, 1, -1),
    "ops.mean": lambda x: ops.mean(x, axis=1),
    "ops.max": lambda x: ops.max(x, axis=1, keepdims=True),
    "ops.expand_dims": lambda x: ops.expand_dims(x, 1),
    "ops.squeeze": lambda x: ops.squeeze(x, 1),
    "ops.sum": lambda x: ops.sum(x, axis=1),
    "ops.flip": lambda x: ops.flip(x, axis=-1),
    "ops.pad": lambda x: ops.pad(x, [[0, 0], *[[0, 0]] * (len(x.shape) - 2), [1, 0]]),
    "ops.pad, reflecting": lambda x: ops.pad(
        x, [[0, 0], [1, 1], *[[0, 0]] * (len(x.shape) - 2)], mode="reflect"
    ),
    "x[..., 1:]": lambda x: x[..., 1:],
    "x[..., :1]": lambda x: x[..., :1],
    "x[:, 0]": lambda x: x[:, 0],
    "x[:, ::2]": lambda x: x[:, ::2],
    "ops.stack": lambda x, y: ops.stack([x, y], axis=1),
    "ops.split, exchanged": lambda x: ops.concatenate(ops.split(x, [1], axis=-1)[::-1], axis=-1),
    "ops.split, gated": lambda x: _gated(*ops.split(x, 2, axis=-1)),
    "x@y": lambda x, y: ops.matmul(x, ops.swapaxes(y, 1, 2)),
}


def _gated(x: Any, gate: Any) -> Any:
    return x * ops.tanh(gate)


_TAKE_LISTS = ("Add", "Subtract", "Average", "Multiply", "Maximum", "Minimum", "Concatenate")


def build(graph: Graph, dtype: str = "float32") -> keras.Model:
    """The Keras model of `graph`, with its weights; float64 only where `dtype` says so."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = _model(graph, dtype, "model")
    finally:
        keras.config.set_dtype_policy(before)
    _assign(model, graph.weights)
    return model


def data(graph: Graph, samples: int = 3) -> list[np.ndarray]:
    """Inputs of the model, in float32 numbers."""
    rng = np.random.default_rng(graph.weights + 1)
    return [
        rng.integers(0, _VOCABULARY, (samples, *shape[1:])).astype("int32")
        if shape[0] is None
        else rng.normal(rng.normal(), rng.uniform(0.5, 2), (samples, *shape)).astype("float32")
        for shape in graph.inputs
    ]


def fit_statistics(model: keras.Model, inputs: list[np.ndarray]) -> None:
    """Give every batch normalization the mean and variance of what it meets, as training does.

    Constant channels, such as dead ones, get a variance of 1. With 0 they would multiply rounding
    by 1/√ε, of which the original shows nothing, since what is constant cancels exactly in it.
    """
    for layer in batch_norms(model):
        layer.momentum = 0.0
    model(inputs, training=True)
    for layer in batch_norms(model):
        variance = keras.ops.convert_to_numpy(layer.moving_variance)
        mean = keras.ops.convert_to_numpy(layer.moving_mean)
        layer.moving_variance.assign(np.where(variance < 1e-6 * (1 + mean**2), 1.0, variance))


def _model(graph: Graph, dtype: str, name: str) -> keras.Model:
    inputs = [_input(shape, dtype, f"i{n}") for n, shape in enumerate(graph.inputs)]
    tensors, made = list(inputs), {}
    for number, call in enumerate(graph.calls):
        tensors.append(_call(call, number, tensors, made, dtype))
    outputs = [tensors[number] for number in graph.outputs]
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=name)


def _input(shape: tuple[int | None, ...], dtype: str, name: str) -> Any:
    if shape[0] is None:
        return keras.Input(shape[1:], name=name, dtype="int32")
    return keras.Input(shape, name=name, dtype=dtype)


def _call(call: Call, number: int, tensors: list[Any], made: dict[int, Any], dtype: str) -> Any:
    read = [tensors[n] for n in call.inputs]
    if not _is_layer(call):
        options = dict(call.options)
        if isinstance(options.get("constant"), tuple):
            options["constant"] = np.asarray(options["constant"], dtype)
        return OPERATORS[call.what](*read, **options)
    if call.again is None:
        made[number] = _layer(call, f"n{number}", dtype)
    layer = made[number if call.again is None else call.again]
    if isinstance(call.what, Graph):
        return layer(read[0])
    if call.what in _TAKE_LISTS:
        return layer(read)
    return layer(*read)  # an attention's query and value


def _is_layer(call: Call) -> bool:
    return isinstance(call.what, Graph) or call.what not in OPERATORS


def _layer(call: Call, name: str, dtype: str) -> Any:
    if isinstance(call.what, Graph):
        return _model(call.what, dtype, name)
    options = dict(call.options)
    if isinstance(options.get("layer"), Call):  # of TimeDistributed
        options["layer"] = _layer(options["layer"], f"{name}_inside", dtype)
    library, _, kind = call.what.rpartition(".")
    return getattr(keras_bn.layers if library else layers, kind)(name=name, **options)


def _symbolic(call: Call, read: list[Any]) -> Any:
    """The symbolic output of a call, without making any weights where Keras can tell."""
    if isinstance(call.what, Graph):
        tensors = list(read)
        for inner in call.what.calls:
            tensors.append(_symbolic(inner, [tensors[number] for number in inner.inputs]))
        return tensors[call.what.outputs[0]]
    if not _is_layer(call):
        return _call(replace(call, inputs=tuple(range(len(read)))), 0, read, {}, "float32")
    layer = _layer(call, "layer", "float32")
    if call.what == "EinsumDense":  # which knows once it is built
        return layer(*read)
    shapes = [tuple(tensor.shape) for tensor in read]
    shape = layer.compute_output_shape(*([shapes] if call.what in _TAKE_LISTS else shapes))
    return keras.KerasTensor(shape)


# --- weights -------------------------------------------------------------------------------------


def _assign(model: keras.Model, seed: int) -> None:
    """Random weights, all of them float32 numbers."""
    rng = np.random.default_rng(seed)
    seen: set[int] = set()
    around = (keras.Model, layers.TimeDistributed)
    inner = [layer for layer in model._flatten_layers() if not isinstance(layer, around)]
    for layer in inner:
        for variable in layer.weights:
            if id(variable) in seen or not keras.backend.is_float_dtype(variable.dtype):
                continue
            seen.add(id(variable))
            if variable.name == "moving_mean":
                # Up to 100 deviations, which are those of the layer's moving variance.
                deviation = 10.0 ** rng.uniform(-2, 2, variable.shape)
                mean = deviation * 10.0 ** rng.uniform(-1, 2) * rng.normal(size=variable.shape)
                variable.assign(mean.astype("float32"))
                layer.moving_variance.assign((deviation**2).astype("float32"))
                seen.add(id(layer.moving_variance))
            else:
                value = _random(rng, variable.name, tuple(variable.shape))
                variable.assign(value.astype("float32"))
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "gamma":
        gamma = rng.uniform(0.5, 1.5, shape)
        if rng.random() < 0.5:
            gamma *= rng.choice([-1.0, 1.0], shape)
        special = {
            "zero": np.zeros(shape),
            "tiny": 10.0 ** rng.uniform(-12, -6, shape) * rng.choice([-1.0, 1.0], shape),
            "huge": 10.0 ** rng.uniform(2, 4, shape),
        }[rng.choice(["zero", "tiny", "huge"])]
        return np.where(rng.random(shape) < rng.choice([0.0, 0.0, 0.3, 1.0]), special, gamma)
    if name == "variance":
        return 10.0 ** rng.uniform(-2, 2, shape)
    if name == "alpha":  # of PReLU, whose slope may be anything
        return rng.normal(0.0, 0.5, shape)
    if name in ("beta", "bias", "mean"):
        return rng.normal(0.0, 0.5, shape)
    return rng.normal(0.0, 1 / np.sqrt(max(1, np.prod(shape[:-1]))), shape)


# --- the layers ----------------------------------------------------------------------------------

_ACTIVATIONS = (None, None, None, "relu", "leaky_relu", "relu6", "tanh")


def _convolution(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    rank, channels = len(shape) - 1, shape[-1]
    kinds = ("Conv", "Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv")
    kind = pick(kinds if rank < 3 else kinds[:3])
    size = pick([n for n in (1, 2, 3) if n <= min(shape[:-1])])
    padding = pick(
        ("valid", "same", "causal") if (kind, rank) == ("Conv", 1) else ("valid", "same")
    )
    options = {
        "kernel_size": size,
        "padding": padding,
        "use_bias": pick((True, False)),
        "activation": pick(_ACTIVATIONS),
    }
    stretched = pick((None, None, "strides", "dilation_rate"))
    if stretched == "dilation_rate" and kind != "ConvTranspose" and 2 * size - 1 <= min(shape[:-1]):
        options["dilation_rate"] = 2  # no transposed ones on TensorFlow's CPU
    if stretched == "strides":
        options["strides"] = 2
    if kind != "DepthwiseConv":
        options["filters"] = pick((channels, channels, 2, 3, 4))
    if kind in ("DepthwiseConv", "SeparableConv"):
        options["depth_multiplier"] = pick((1, 1, 2))
    if kind == "Conv" and channels % 2 == 0 and options["filters"] % 2 == 0 and pick((0, 0, 0, 1)):
        options["groups"] = 2
    return f"Conv{rank}DTranspose" if kind == "ConvTranspose" else f"{kind}{rank}D", options


def _channels_first(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    """The layers that TensorFlow runs on channels-first images on a CPU."""
    kind = pick(
        (
            "DepthwiseConv2D",
            "SeparableConv2D",
            "MaxPooling2D",
            "AveragePooling2D",
            "GlobalAveragePooling2D",
            "GlobalMaxPooling2D",
            "Flatten",
            "UpSampling2D",
            "ZeroPadding2D",
        )[0 if min(shape[1:]) > 1 else 4 :]
    )
    options: Options = {"data_format": "channels_first"}
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        options["pool_size"] = 2
    if kind.endswith("Conv2D"):
        options |= {"kernel_size": 2, "padding": pick(("valid", "same"))}
        options |= {"activation": pick(_ACTIVATIONS)}
    if kind == "SeparableConv2D":
        options["filters"] = pick((shape[0], 3))
    return kind, options


def _dense(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    units = pick((shape[-1], shape[-1], 2, 3, 4))
    options = {"use_bias": pick((True, False)), "activation": pick(_ACTIVATIONS)}
    return "Dense", {"units": units, **options}


def _einsum(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    letters = "bcd"[: len(shape)]
    units = pick((shape[-1], 3))
    return "EinsumDense", {
        "equation": f"a{letters},{letters[-1]}e->a{letters[:-1]}e",
        "output_shape": (*shape[:-1], units),
        "bias_axes": pick((None, "e")),
        "activation": pick(_ACTIVATIONS),
    }


def _attention(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    return "MultiHeadAttention", {"num_heads": 2, "key_dim": 2, "use_bias": pick((True, False))}


def _recurrent(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    kind = pick(("LSTM", "GRU", "SimpleRNN", "keras_bn.LayerNormLSTM"))
    return kind, {"units": pick((shape[-1], 3)), "return_sequences": pick((True, False))}


def _time_distributed(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    inner = pick(
        (_dense, _batch_norm)
        if len(shape) == 2
        else (_dense, _convolution, _batch_norm, _pooling, _rectifier)[
            : 5 if len(shape) == 3 else 3
        ]
    )
    kind, options = inner(pick, shape[1:])
    return "TimeDistributed", {"layer": Call(kind, (), options)}


def _axis(pick: Pick, shape: tuple[int, ...]) -> int:
    return pick((-1,) * 5 + (() if len(shape) == 1 else (1,)))


def _batch_norm(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    kind = pick(("BatchNormalization", "BatchNormalization", "keras_bn.BatchNormalization"))
    options = {"axis": _axis(pick, shape), "epsilon": pick((1e-3, 1e-5))}
    options |= {"center": pick((True, True, False)), "scale": pick((True, True, False))}
    return kind, options


def _other_norm(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    kind = pick(("LayerNormalization", "keras_bn.LayerNormalization", "GroupNormalization"))
    options: Options = {"center": pick((True, False)), "scale": pick((True, False))}
    if kind == "GroupNormalization":  # groups of one element are zero, or a rounding error
        options["groups"] = pick((1, -1) if len(shape) > 1 else (1,))
    return kind, options


def _preprocessing(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    if pick((0, 1)):
        return "Normalization", {"invert": pick((False, False, True))}
    # Keras reads numbers as float32, also where it computes in float64: these are the same in both.
    scales = (0.5, -2.0, [0.25 + n for n in range(shape[-1])])
    return "Rescaling", {"scale": pick(scales), "offset": pick((0.0, -1.0))}


def _rectifier(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    return pick(
        (
            ("ReLU", {}),
            ("ReLU", {}),
            ("Activation", {"activation": "relu"}),
            ("LeakyReLU", {"negative_slope": 0.2}),
            ("PReLU", {}),
            ("PReLU", {"shared_axes": list(range(1, len(shape)))}),
            ("ReLU", {"negative_slope": 0.1}),
            ("ReLU", {"max_value": 6.0}),
            ("ReLU", {"threshold": 0.5}),
            ("Activation", {"activation": "tanh"}),
            ("Activation", {"activation": "linear"}),
        )
    )


def _nothing(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    return pick((("Dropout", {"rate": 0.3}), ("GaussianNoise", {"stddev": 0.2}), ("Identity", {})))


def _pooling(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    rank = len(shape) - 1
    kind = pick(("Average", "Max", "GlobalAverage", "GlobalMax"))
    if kind.startswith("Global"):
        return f"{kind}Pooling{rank}D", {"keepdims": pick((False, True))}
    size = pick([n for n in (2, 3) if n <= min(shape[:-1])] or [1])
    options: Options = {
        "pool_size": size,
        "strides": pick((None, 1, 2)),
        "padding": pick(("valid", "same")),
    }
    return f"{kind}Pooling{rank}D", options


def _geometry(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    rank = len(shape) - 1
    kind = pick(("ZeroPadding", "ZeroPadding", "Cropping", "UpSampling"))
    if kind == "Cropping" and min(shape[:-1]) < 3:
        kind = "UpSampling"
    options: Options = {}
    if kind == "UpSampling" and rank == 2:
        options["interpolation"] = pick(("nearest", "bilinear"))
    if kind == "ZeroPadding":
        options["padding"] = pick((1, (1, 0) if rank == 1 else ((1, 0),) * rank))
    return f"{kind}{rank}D", options


def _places(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    """What moves elements to other places, and axes with them."""
    kind = pick(("Flatten", "Reshape", "Permute"))
    if kind == "Permute":
        return kind, {
            "dims": pick((tuple(range(len(shape), 0, -1)), (2, 1, *range(3, len(shape) + 1))))
        }
    if kind == "Reshape":
        size = int(np.prod(shape))
        targets = [(-1,), (size // shape[-1], shape[-1]), (*shape[1:], shape[0])]
        targets += [(2, size // 4, 2)] if size % 4 == 0 else []
        return kind, {"target_shape": pick(targets)}
    return kind, {}


def _constant(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    constants = (2.0, -0.5, tuple(0.25 + 0.75 * n for n in range(shape[-1])))
    kind = pick(("x+c", "c*x", "x/c", "c-x", "x-c", "-x"))
    return kind, {} if kind == "-x" else {"constant": pick(constants)}


def _function(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    names = ["ops.relu", "ops.leaky_relu", "ops.tanh", "ops.transpose", "ops.expand_dims"]
    if len(shape) > 1:
        names += ["ops.swapaxes", "ops.mean", "ops.max"]
        names += ["ops.squeeze"] * (shape[0] == 1)
    return pick(names), {}


def _part(pick: Pick, shape: tuple[int, ...]) -> tuple[str, Options]:
    """Slices, padding and the like."""
    names = ["x[..., :1]", "ops.flip", "ops.pad"]
    if shape[-1] > 1:
        names += ["x[..., 1:]", "ops.split, exchanged"]
        names += ["ops.split, gated"] * (shape[-1] % 2 == 0)
    if len(shape) > 1:
        names += ["x[:, 0]", "x[:, ::2]", "ops.sum"]
        names += ["ops.pad, reflecting"] * (shape[0] > 1)
    return pick(names), {}


Family = Callable[[Pick, tuple[int, ...]], tuple[str, Options]]


def _families(shape: tuple[int, ...]) -> list[Family]:
    """What can be called on one tensor of `shape`; what matters more stands there more often."""
    rank = len(shape)
    families = [_batch_norm] * 4 + [_dense] * 2 + [_rectifier] * 2
    families += [_nothing, _constant, _preprocessing, _other_norm, _function, _part]
    if rank in (2, 3, 4):
        families += [_convolution] * 4 + [_geometry] + [_places]
    if rank in (2, 3):  # 3-D pooling has no float64 on TensorFlow's CPU
        families += [_pooling] * 2 + [_einsum]
    if rank == 2:
        families += [_recurrent]
    if rank in (2, 3):
        families += [_time_distributed]
    if rank == 3:
        families += [_channels_first]
    return families


# --- graphs --------------------------------------------------------------------------------------

_MERGES = (
    *("Add", "Concatenate", "x+y", "Subtract", "x-y", "Average", "Multiply", "x*y"),
    *("Maximum", "Minimum", "ops.maximum", "ops.minimum", "ops.concatenate", "ops.stack", "x@y"),
)

_INPUTS = ((5,), (6, 4), (6, 5, 4), (4, 4, 3, 2), (None, 6))


def random_graph(pick: Pick) -> Graph:
    """A graph of three to about fourteen calls."""
    shapes = [pick(_INPUTS)]
    if pick((0, 0, 0, 1)):
        shapes.append(shapes[0])
    maker = _Maker(pick, shapes)
    maker.grow(pick(range(2, 11)))
    return maker.finish(weights=pick(range(1000)))


class _Maker:
    """A graph that grows call by call; Keras's symbolic tensors tell what shapes there are."""

    def __init__(
        self, pick: Pick, inputs: Sequence[tuple[int | None, ...]], *, nested: bool = False
    ):
        self.pick = pick
        self.inputs = tuple(inputs)
        self.nested = nested
        self.tensors = [_input(shape, "float32", f"i{n}") for n, shape in enumerate(inputs)]
        self.calls: list[Call] = []
        for number, shape in enumerate(inputs):
            if shape[0] is None:
                masks = pick((False, True))
                options = {"input_dim": _VOCABULARY, "output_dim": 4, "mask_zero": masks}
                self.call("Embedding", (number,), options)

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self.tensors[tensor].shape[1:])

    def call(
        self,
        what: str | Graph,
        inputs: tuple[int, ...],
        options: Options | None = None,
        again: int | None = None,
    ) -> int:
        """Add a call; the number of its output."""
        call = Call(what, inputs, options or {}, again)
        self.calls.append(call)
        self.tensors.append(_symbolic(call, [self.tensors[number] for number in inputs]))
        return len(self.tensors) - 1

    def grow(self, steps: int) -> None:
        for _ in range(steps):
            pick = self.pick
            step = pick(
                [self.single] * 8
                + [self.merge] * 3
                + [self.residual, self.dense_block, self.halves]
                + [self.again, self.attention]
                + ([] if self.nested else [self.model])
            )
            step(pick([self.usable[-1]] * 3 + list(self.usable)))

    @property
    def usable(self) -> list[int]:
        """The tensors that hold no indices and are not too large to go on from."""
        return [
            number
            for number, tensor in enumerate(self.tensors)
            if tensor.dtype != "int32" and np.prod(self.shape(number)) <= _LARGEST
        ]

    # --- steps: each adds one call or a few, starting from one tensor ---

    def single(self, tensor: int) -> int:
        family = self.pick(_families(self.shape(tensor)))
        kind, options = family(self.pick, self.shape(tensor))
        return self.call(kind, (tensor,), options)

    def merge(self, tensor: int) -> int:
        shape = self.shape(tensor)
        same = [other for other in self.usable if self.shape(other) == shape]
        kind = self.pick(_MERGES)
        if kind in ("Concatenate", "ops.concatenate"):
            same = [other for other in self.usable if self.shape(other)[:-1] == shape[:-1]]
        if kind == "x@y" and len(shape) != 2:
            kind = "x*y"
        inputs = [tensor, self.pick(same)]
        if kind in ("Add", "Average", "Concatenate", "Multiply") and self.pick((0, 0, 1)):
            inputs.append(self.pick(same))
        options = {"axis": -1} if kind == "Concatenate" else {}
        return self.call(kind, tuple(inputs), options)

    def residual(self, tensor: int) -> int:
        """x + Conv(ReLU(BN(x))), or with the normalization last."""
        shape = self.shape(tensor)
        first = self.pick((True, False))
        x = self.normalized(tensor) if first else tensor
        x = self.same_shape(x, shape[-1])
        x = self.same_shape(self.normalized(x), shape[-1]) if self.pick((0, 1)) else x
        x = x if first else self.call(*_swap(_batch_norm(self.pick, shape), x))
        return self.call(self.pick(("Add", "x+y")), (tensor, x))

    def dense_block(self, tensor: int) -> int:
        """[x, Conv(ReLU(BN(x)))], twice."""
        for _ in range(2):
            x = self.same_shape(self.normalized(tensor), 2)
            tensor = self.call("Concatenate", (tensor, x), {"axis": -1})
        return tensor

    def halves(self, tensor: int) -> int:
        """The first channel and the others, each with a normalization, and then together."""
        if self.shape(tensor)[-1] == 1:
            return self.single(tensor)
        parts = [self.call(key, (tensor,)) for key in ("x[..., :1]", "x[..., 1:]")]
        parts = [self.normalized(part) for part in parts]
        return self.call("ops.concatenate", tuple(parts))

    def normalized(self, tensor: int) -> int:
        kind, options = _batch_norm(self.pick, self.shape(tensor))
        tensor = self.call(kind, (tensor,), options)
        return self.call("ReLU", (tensor,)) if self.pick((1, 1, 0)) else tensor

    def same_shape(self, tensor: int, channels: int) -> int:
        rank = len(self.shape(tensor)) - 1
        if rank in (1, 2, 3):
            options = {"filters": channels, "kernel_size": self.pick((1, 3)), "padding": "same"}
            return self.call(f"Conv{rank}D", (tensor,), options)
        return self.call("Dense", (tensor,), {"units": channels})

    def again(self, tensor: int) -> int:
        """Calls a layer again, on another tensor of the same shape, perhaps behind another one."""
        start = len(self.inputs)
        earlier = [
            (number, call)
            for number, call in enumerate(self.calls)
            if _is_layer(call)
            and all(self.shape(n) == self.shape(tensor) for n in call.inputs)
            and self.tensors[call.inputs[0]].dtype != "int32"
        ]
        if not earlier:
            return self.single(tensor)
        number, call = self.pick(earlier)
        first = number if call.again is None else call.again
        inputs = (tensor, *call.inputs[1:])
        output = self.call(call.what, inputs, call.options, first)
        behind = [n for n, c in enumerate(self.calls) if c.inputs == (start + number,)]
        if behind and self.pick((0, 1, 1)) and _is_layer(self.calls[behind[0]]):
            next_ = self.calls[behind[0]]
            first = behind[0] if next_.again is None else next_.again
            output = self.call(next_.what, (output,), next_.options, first)
        return output

    def attention(self, tensor: int) -> int:
        shape = self.shape(tensor)
        if len(shape) != 2:
            return self.single(tensor)
        same = [n for n in self.usable if len(self.shape(n)) == 2 and self.shape(n)[1] == shape[1]]
        kind, options = _attention(self.pick, shape)
        return self.call(kind, (tensor, self.pick([tensor, *same])), options)

    def model(self, tensor: int) -> int:
        """A nested model, called once or on another tensor as well."""
        shape = self.shape(tensor)
        inner = _Maker(self.pick, [shape], nested=True)
        inner.grow(self.pick((1, 2, 3, 4)))
        graph = inner.finish(weights=0, single=True)
        output = self.call(graph, (tensor,))
        others = [n for n in self.usable if n != output and self.shape(n) == shape]
        if others and self.pick((0, 1)):
            self.call(graph, (self.pick(others),), {}, len(self.calls) - 1)
        return output

    # --- the end ---

    def finish(self, *, weights: int, single: bool = False) -> Graph:
        """The graph: what nothing reads is an output, and perhaps something in the middle too."""
        read = {number for call in self.calls for number in call.inputs}
        start = len(self.inputs)
        ends = [n for n in range(start, len(self.tensors)) if n not in read]
        outputs = ends[-1:]
        if not single:
            outputs += [n for n in ends[:-1] if self.pick((1, 0))][:2]
            if self.pick((0, 0, 0, 1)):
                outputs.append(self.pick(range(start, len(self.tensors))))
        outputs += [self.call("Identity", (number,)) for number in self.unconnected(outputs)]
        return Graph(self.inputs, tuple(self.calls), tuple(dict.fromkeys(outputs)), weights)

    def unconnected(self, outputs: list[int]) -> list[int]:
        """The inputs that no output depends on, which not every Keras lets a model have."""
        start, seen, pending = len(self.inputs), set(), list(outputs)
        while pending:
            number = pending.pop()
            if number not in seen:
                seen.add(number)
                pending += self.calls[number - start].inputs if number >= start else ()
        return [number for number in range(start) if number not in seen]


def _swap(layer: tuple[str, Options], tensor: int) -> tuple[str, tuple[int, ...], Options]:
    kind, options = layer
    return kind, (tensor,), options


def without_normalizations(graph: Graph) -> Graph:
    """The same graph with an Identity for every batch normalization, and every bias there is."""

    def bare(call: Call) -> Call:
        if isinstance(call.what, Graph):
            return replace(call, what=without_normalizations(call.what))
        if call.what.endswith("BatchNormalization"):
            return replace(call, what="Identity", options={})
        if "use_bias" in call.options:
            return replace(call, options={**call.options, "use_bias": True})
        return call

    return replace(graph, calls=tuple(map(bare, graph.calls)))


def batch_norms(model: keras.Model) -> Iterator[keras.Layer]:
    """Every batch normalization in `model`, at any depth, once."""
    kinds = (layers.BatchNormalization, keras_bn.layers.BatchNormalization)
    seen: set[int] = set()
    for layer in model._flatten_layers():
        if isinstance(layer, kinds) and id(layer) not in seen:
            seen.add(id(layer))
            yield layer
