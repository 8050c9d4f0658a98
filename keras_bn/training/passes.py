"""One forward pass over batches on each backend, and what its batch normalizations saw.

- TensorFlow: a graph. Each call of a layer adds to a variable, which every replica of the model's
  tf.distribute strategy has its own of. So a layer may stand in a loop or in a tf.function of the
  model's, and nothing is read until the end.
- JAX: one compiled function of the weights and a batch, which a keras.distribution spreads over
  its devices and processes.
- PyTorch: the model as it is, without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
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
    """An estimate of a population's statistics that can be merged from those of its parts.

    A state is a float64 array (parts, *channels), all zero at first; `xp` is NumPy or keras.ops.
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


def final_states(
    model: keras.Model, layers: Sequence[Any], estimates: Sequence[Estimate], batches: Iterable[Any]
) -> list[Array]:
    """Call `model` on `batches`, with `layers` alone in training; the state of each estimate.

    No weight of the model has moved afterwards, whatever `batches` raise.
    """
    passes = {"tensorflow": _in_a_graph, "jax": _compiled, "torch": _eagerly}
    return passes[keras.backend.backend()](model, layers, estimates, batches)


def _in_a_graph(
    model: keras.Model, layers: Sequence[Any], estimates: Sequence[Estimate], batches: Iterable[Any]
) -> list[Array]:
    import tensorflow as tf

    strategy = model.distribute_strategy
    with strategy.scope():
        states = [
            tf.Variable(
                tf.zeros([estimate.parts, math.prod(layer.moving_mean.shape)], tf.float64),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for layer, estimate in zip(layers, estimates, strict=True)
        ]

    merged = {estimate: _merging(estimate) for estimate in set(estimates)}

    def record(index: int, batch: Moments) -> None:
        state = states[index]
        moments = tf.reshape(tf.cast(_stacked(batch), tf.float64), [3, -1])
        state.assign(merged[estimates[index]](state.read_value(), moments))

    with _unmoved(model), recording(layers, record) as training:

        def forward(x: Any) -> None:
            model(x, training=training)

        @tf.function(reduce_retracing=True, autograph=False)
        def step(x: Any) -> None:
            strategy.run(forward, args=(x,))

        for x in batches:
            step(_split(x, strategy))

    final = []
    for layer, estimate, state in zip(layers, estimates, states, strict=True):
        replicas = [value.numpy() for value in strategy.experimental_local_results(state)]
        # Synchronized replicas all saw the same moments, those of the whole batch.
        seen = replicas[:1] if layer.synchronized else replicas
        together = reduce(partial(estimate.merged, xp=np), seen)
        final.append(together.reshape(-1, *layer.moving_mean.shape))
    return final


def _merging(estimate: Estimate) -> Any:
    """A function of a state and a batch's moments: traced once, not once for each layer."""
    import tensorflow as tf

    state = tf.TensorSpec([estimate.parts, None], tf.float64)
    moments = tf.TensorSpec([3, None], tf.float64)

    @tf.function(input_signature=[state, moments], autograph=False)
    def merged(state: Any, moments: Any) -> Any:
        return estimate.merged(state, estimate.of(moments, ops), ops)

    return merged


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
    model: keras.Model, layers: Sequence[Any], estimates: Sequence[Estimate], batches: Iterable[Any]
) -> list[Array]:
    import jax

    states = _zeros(layers, estimates)
    recorded: list[list[Any]] = []

    def record(index: int, batch: Moments) -> None:
        recorded[index].append(_stacked(batch))

    def array(x: Any) -> Any:
        return x if isinstance(x, jax.Array) else _to_numpy(x)  # of which others may hold parts

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    with recording(layers, record) as training:

        def step(trainable: Any, others: Any, x: Any) -> tuple[list[list[Any]], Any]:
            recorded[:] = [[] for _ in layers]
            _, others = model.stateless_call(trainable, others, x, training=training)
            return recorded, others

        shardings = processes.result_shardings(others)
        step = jax.jit(step, out_shardings=shardings)
        for x in batches:
            calls, others = step(trainable, others, tree.map_structure(array, x))
            _add(states, estimates, jax.device_get(calls))
    return states


def _eagerly(
    model: keras.Model, layers: Sequence[Any], estimates: Sequence[Estimate], batches: Iterable[Any]
) -> list[Array]:
    import torch

    states = _zeros(layers, estimates)
    recorded: list[list[Any]] = []

    def record(index: int, batch: Moments) -> None:
        recorded[index].append(_stacked(batch))

    device = model.variables[0].value.device

    def tensor(x: Any) -> Any:
        return (x if torch.is_tensor(x) else ops.convert_to_tensor(_to_numpy(x))).to(device)

    with _unmoved(model), recording(layers, record) as training, torch.no_grad():
        for x in batches:
            recorded[:] = [[] for _ in layers]
            with keras.device(str(device)):
                model(tree.map_structure(tensor, x), training=training)
            _add(states, estimates, tree.map_structure(ops.convert_to_numpy, recorded))
    return states


def _stacked(batch: Moments) -> Any:
    """(mean, variance, count) of every channel in one tensor, to be moved as one."""
    count = ops.broadcast_to(ops.cast(batch.count, batch.mean.dtype), batch.mean.shape)
    return ops.stack([batch.mean, batch.variance, count])


def _zeros(layers: Sequence[Any], estimates: Sequence[Estimate]) -> list[Array]:
    return [
        np.zeros((estimate.parts, *layer.moving_mean.shape))
        for layer, estimate in zip(layers, estimates, strict=True)
    ]


def _add(states: list[Array], estimates: Sequence[Estimate], calls: list[list[Array]]) -> None:
    """Merge into `states` the stacked moments of each layer's calls."""
    for index, (estimate, moments) in enumerate(zip(estimates, calls, strict=True)):
        for one in moments:
            new = estimate.of(one.astype("float64"), np)
            states[index] = estimate.merged(states[index], new, np)


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
