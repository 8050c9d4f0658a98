"""One forward pass over batches on each backend, and what its batch normalizations saw.

- TensorFlow: a graph. Every batch adds to a variable, which every replica of the model's
  tf.distribute strategy has its own of, and nothing is read until the end.
- JAX: one compiled function of the weights and a batch, which a keras.distribution spreads over
  its devices and processes.
- PyTorch: the model as it is, without gradients.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from itertools import zip_longest
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops, tree

from keras_bn.layers.moments import Moments
from keras_bn.training import processes
from keras_bn.training.batches import rows
from keras_bn.training.recording import recording

Array = np.ndarray


class Estimate(Protocol):
    """An estimate of populations' statistics that can be merged from those of their parts.

    A state is a float64 array (parts, channels), all zero at first, with the channels of all
    layers side by side: merging one array takes no longer than merging one layer's. `xp` is NumPy
    or keras.ops.
    """

    parts: int

    def of(self, moments: Any, xp: Any) -> Any:
        """The state after one batch, whose `moments` are (mean, variance, count) × channels."""

    def merged(self, one: Any, other: Any, xp: Any) -> Any:
        """The state after all that led to `one` and to `other`."""


def build(model: keras.Model, inputs: Any) -> None:
    """Create the weights of layers that have none until the model is called."""
    if all(layer.built for layer in model._flatten_layers()):
        return

    def symbol(array: Any) -> Any:
        dtype = keras.backend.standardize_dtype(array.dtype)
        return keras.KerasTensor((None, *array.shape[1:]), dtype)

    tensorflow = keras.backend.backend() == "tensorflow"
    with model.distribute_strategy.scope() if tensorflow else nullcontext():
        model(tree.map_structure(symbol, inputs), training=False)


def final_state(
    model: keras.Model, layers: Sequence[Any], estimate: Estimate, batches: Iterable[Any]
) -> Array:
    """Call `model` on `batches`, with `layers` alone in training; the state of the estimate.

    No weight of the model has moved afterwards, whatever `batches` raise.
    """
    passes = {"tensorflow": _in_a_graph, "jax": _compiled, "torch": _eagerly}
    return passes[keras.backend.backend()](model, layers, estimate, batches)


def channels(layers: Sequence[Any]) -> list[int]:
    """How many channels each layer has in a state."""
    return [math.prod(layer.moving_mean.shape) for layer in layers]


def _in_a_graph(
    model: keras.Model, layers: Sequence[Any], estimate: Estimate, batches: Iterable[Any]
) -> Array:
    import tensorflow as tf

    strategy = model.distribute_strategy
    sizes = channels(layers)
    with strategy.scope():
        state = tf.Variable(
            tf.zeros([estimate.parts, sum(sizes)], tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def add(calls: list[list[Any]]) -> None:
        for moments in _side_by_side(calls, sizes):
            new = estimate.of(tf.cast(moments, tf.float64), ops)
            state.assign(estimate.merged(state.read_value(), new, ops))

    replica = threading.local()  # of which each traces the model in a thread of its own

    def record(index: int, batch: Moments) -> None:
        if tf.compat.v1.get_default_graph() is replica.graph:
            replica.calls[index].append(_stacked(batch))
        else:  # in a loop, branch or tf.function of the model's, which tensors do not leave
            add([[_stacked(batch)] if layer is layers[index] else [] for layer in layers])

    with _unmoved(model), recording(layers, record) as training:

        def forward(x: Any) -> None:
            replica.graph = tf.compat.v1.get_default_graph()
            replica.calls = [[] for _ in layers]
            model(x, training=training)
            add(replica.calls)

        @tf.function(reduce_retracing=True, autograph=False)
        def step(x: Any) -> None:
            strategy.run(forward, args=(x,))

        for x in batches:
            step(_split(x, strategy))

    first, *others = [value.numpy() for value in strategy.experimental_local_results(state)]
    # Synchronized replicas all saw the same moments, those of the whole batch.
    seen_once = np.repeat([bool(layer.synchronized) for layer in layers], sizes)
    others = [np.where(seen_once, 0.0, other) for other in others]
    return reduce(partial(estimate.merged, xp=np), others, first)


def _split(x: Any, strategy: Any) -> Any:
    """Each replica's share of the batch `x`, as `fit` deals them out."""
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    dealt = any(isinstance(part, tf.distribute.DistributedValues) for part in tree.flatten(x))
    if replicas == 1 or dealt:
        return x
    share = -(-len(tree.flatten(x)[0]) // replicas)
    return strategy.experimental_distribute_values_from_function(
        lambda context: rows(
            x,
            share * context.replica_id_in_sync_group,
            share * (context.replica_id_in_sync_group + 1),
        )
    )


def _compiled(
    model: keras.Model, layers: Sequence[Any], estimate: Estimate, batches: Iterable[Any]
) -> Array:
    import jax

    state = _zeros(layers, estimate)
    recorded: list[list[Any]] = []

    def record(index: int, batch: Moments) -> None:
        recorded[index].append(_stacked(batch))

    def array(x: Any) -> Any:
        return x if isinstance(x, jax.Array) else _to_numpy(x)  # of which others may hold parts

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    with recording(layers, record) as training:

        def step(trainable: Any, others: Any, x: Any) -> tuple[list[Any], Any]:
            recorded[:] = [[] for _ in layers]
            _, others = model.stateless_call(trainable, others, x, training=training)
            return list(_side_by_side(recorded, channels(layers))), others

        shardings = processes.result_shardings(others)
        step = jax.jit(step, out_shardings=shardings)
        for x in batches:
            calls, others = step(trainable, others, tree.map_structure(array, x))
            state = _with(state, estimate, calls)
    return state


def _eagerly(
    model: keras.Model, layers: Sequence[Any], estimate: Estimate, batches: Iterable[Any]
) -> Array:
    import torch

    state = _zeros(layers, estimate)
    recorded: list[list[Any]] = []

    def record(index: int, batch: Moments) -> None:
        recorded[index].append(_stacked(batch, torch))

    device = model.variables[0].value.device

    def tensor(x: Any) -> Any:
        return (x if torch.is_tensor(x) else ops.convert_to_tensor(_to_numpy(x))).to(device)

    with _unmoved(model), recording(layers, record) as training, torch.no_grad():
        for x in batches:
            recorded[:] = [[] for _ in layers]
            with keras.device(str(device)):
                model(tree.map_structure(tensor, x), training=training)
                calls = list(_side_by_side(recorded, channels(layers)))
            state = _with(state, estimate, calls)
    return state


def _stacked(batch: Moments, xp: Any = ops) -> Any:
    """(mean, variance, count) × channels in one tensor, to be moved as one.

    `xp` is keras.ops, or torch: outside a graph, Keras's functions look for symbolic tensors in
    the list they are given for longer than the layer computes.
    """
    count = xp.zeros_like(batch.mean) + batch.count
    return xp.reshape(xp.stack([batch.mean, batch.variance, count]), (3, -1))


def _side_by_side(calls: Sequence[Sequence[Any]], sizes: Sequence[int]) -> Iterator[Any]:
    """(mean, variance, count) × the channels of all layers: of their first calls, their second, …

    Args:
        calls: The stacked moments of each layer's calls. A layer that was called less often than
            another saw no element in the calls that it lacks.
        sizes: How many channels each layer has.
    """
    for together in zip_longest(*calls):
        parts = zip(together, sizes, strict=True)
        yield ops.concatenate(
            [ops.zeros((3, size)) if one is None else one for one, size in parts], 1
        )


def _zeros(layers: Sequence[Any], estimate: Estimate) -> Array:
    return np.zeros((estimate.parts, sum(channels(layers))))


def _with(state: Array, estimate: Estimate, calls: Sequence[Any]) -> Array:
    """The `state` after another batch, in whose `calls` the layers saw what these hold."""
    for moments in map(ops.convert_to_numpy, calls):
        state = estimate.merged(state, estimate.of(moments.astype("float64"), np), np)
    return state


def _to_numpy(x: Any) -> Any:
    return x if x is None else np.asarray(x)


@contextmanager
def _unmoved(model: keras.Model) -> Iterator[None]:
    """Puts back what moves in inference as well, such as the states of stateful layers."""
    before = [
        (variable, ops.convert_to_numpy(variable)) for variable in model.non_trainable_variables
    ]
    try:
        yield
    finally:
        for variable, value in before:
            # No other: what each replica has of a variable would become what they have together.
            if not np.array_equal(ops.convert_to_numpy(variable), value):
                variable.assign(value)
