"""The population's statistics, measured in one pass over data.

Moving averages lag behind the weights and remember the last few hundred batches. Inference
wants the mean and variance of each channel over the data, under the final weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Literal

import keras
import numpy as np
from keras.ops import convert_to_numpy
from rich.console import Console
from rich.progress import track

from keras_bn.errors import CalibrationError, UnsupportedModelError
from keras_bn.training import passes, processes
from keras_bn.training.batches import input_batches

Array = np.ndarray


def update_bn(
    model: keras.Model,
    data: Any,
    *,
    steps: int | None = None,
    method: Literal["pooled", "average"] = "pooled",
    batch_size: int = 32,
    verbose: bool | None = None,
) -> keras.Model:
    """Set the moving statistics of every batch normalization to the population's, in place.

    One pass over `data` in which the batch normalizations normalize by the batch, as in
    training, while everything else (dropout, noise) is in inference; no gradient is taken and
    no other weight moves. What stays in inference while training does so here: frozen layers
    (`trainable=False`), and calls with `training=False` in the code of a subclassed model. (In a
    Functional model Keras overrides that argument by the model's own.)

    - `method="pooled"`: the exact mean and variance of all elements that were seen, merged in
      float64 by Chan's formula. With n elements so far and m in the next batch,
      δ = mean_B − mean, N = n + m:

          mean ← mean + δ·m/N        M₂ ← M₂ + m·σ²_B + δ²·n·m/N        variance = M₂/N

      times N/(N − 1) where the layer is `unbiased` (Keras's own layers are not).
    - `method="average"`: Algorithm 2 of the paper, the average over batches of μ_B and of σ²_B,
      each with Bessel's factor where the layer is `unbiased`.

    Args:
        model: Any model whose batch normalizations are Keras's or this package's: Sequential,
            Functional, nested or subclassed.
        data: An array, a dict or (for a model of several inputs) list of arrays, a tuple (x, y),
            a tf.data.Dataset, a keras.utils.PyDataset, a PyTorch DataLoader, or an iterable or
            sequence of batches x, (x,) or (x, y). Targets are ignored. The batches matter as
            they do in training, so shuffle data that are sorted.
        steps: Batches to take at most; all of them if None. Data that end earlier are fine.
        method: "pooled" or "average".
        batch_size: Samples in a batch of arrays.
        verbose: Whether to show progress on stderr; None shows it on a terminal.

    Returns:
        `model`.

    Raises:
        CalibrationError: `data` are empty, or lead to statistics that are not finite. The model
            is then unchanged, as it is when `data` raise.
        UnsupportedModelError: no batch normalization was reached by calling the model.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> _ = update_bn(model, np.array([[1.0], [2.0], [3.0], [4.0]], "float32"))
    >>> [float(statistic[0]) for statistic in model.layers[0].non_trainable_weights]
    [2.5, 1.25]

    Reference:
        Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167, Algorithm 2.
        Chan, Golub and LeVeque, 1979, Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances.
    """
    if method not in _ESTIMATES:
        raise ValueError(f"`method` must be one of {', '.join(_ESTIMATES)}. Received: {method!r}")
    if steps is not None and steps < 1:
        raise ValueError(f"`steps` must be positive, or None for all. Received: steps={steps}")
    batches, total = processes.in_every_process(
        lambda: input_batches(model, processes.own_share(data), batch_size, steps)
    )
    batches = processes.over_devices(batches)
    first = next(batches, None)
    if first is None:
        raise CalibrationError(
            f"expected data to measure the statistics of '{model.name}' on, received none: "
            "check that the data set is not empty, or already used up"
        )
    passes.build(model, first)
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built and layer.trainable
    ]
    if not layers:
        return model
    sizes = passes.channels(layers)
    # Elements that have no variance yet, for each channel: one, where its layer is unbiased.
    too_few = np.repeat([float(getattr(layer, "unbiased", False)) for layer in layers], sizes)
    estimate = _ESTIMATES[method](too_few)
    progress = track(
        chain([first], batches),
        "Measuring statistics",
        total,
        console=Console(stderr=True),
        disable=not (sys.stderr.isatty() if verbose is None else verbose),
    )
    found = estimate.found(passes.final_state(model, layers, estimate, progress))
    if not found.batches.any():
        raise UnsupportedModelError(
            f"calling '{model.name}' reached none of its batch normalizations "
            f"({', '.join(layer.name for layer in layers)}) outside inference: they are called "
            "with training=False, or all that reaches them is masked"
        )
    found_by_layer = found.split(layers)
    # All of them before any of them moves.
    for layer, one in zip(layers, found_by_layer, strict=True):
        if not (np.isfinite(one.mean).all() and np.isfinite(one.variance).all()):
            raise CalibrationError(
                f"the statistics of layer '{layer.name}' are not finite: expected data without "
                "NaN and infinity, and weights that do not overflow on them"
            )
    for layer, one in zip(layers, found_by_layer, strict=True):
        _assign(layer, one)
    return model


@dataclass(frozen=True)
class _Found:
    """A population's statistics, per channel, and in which channels each could be estimated."""

    mean: Array
    variance: Array
    mean_known: Array
    variance_known: Array
    batches: Array  # calls that had something to measure

    def split(self, layers: Sequence[Any]) -> list[_Found]:
        """What was found for each layer, in the shape of its statistics."""
        ends = np.cumsum(passes.channels(layers))[:-1]
        parts = [np.split(getattr(self, field.name), ends) for field in fields(self)]
        return [
            _Found(*(part.reshape(layer.moving_mean.shape) for part in own))
            for layer, *own in zip(layers, *parts, strict=True)
        ]


@dataclass(frozen=True)
class _Pooled:
    """Mean and variance of all elements of all batches, merged by Chan's formula."""

    too_few: Array  # elements that have no variance yet, per channel
    parts = 4  # batches, count, mean, sum of squared deviations

    def of(self, moments: Any, xp: Any) -> Any:
        mean, variance, count = xp.unstack(moments)
        return xp.stack([xp.minimum(count, 1), count, mean, count * variance])

    def merged(self, one: Any, other: Any, xp: Any) -> Any:
        batches, count, mean, squares = xp.unstack(one)
        more_batches, more_count, more_mean, more_squares = xp.unstack(other)
        total = count + more_count
        share = more_count / xp.maximum(total, 1)
        delta = more_mean - mean
        return xp.stack([
            batches + more_batches,
            total,
            mean + delta * share,
            squares + more_squares + delta * delta * count * share,
        ])  # fmt: skip

    def found(self, state: Array) -> _Found:
        batches, count, mean, squares = state
        variance = squares / np.maximum(count - self.too_few, 1)
        return _Found(mean, variance, count > 0, count > self.too_few, batches)


@dataclass(frozen=True)
class _Average:
    """The average over batches of each batch's estimates, every batch weighing the same."""

    too_few: Array
    parts = 4  # number and sum of means, number and sum of variances

    def of(self, moments: Any, xp: Any) -> Any:
        mean, variance, count = xp.unstack(moments)
        has_mean = xp.minimum(count, 1)
        has_variance = xp.clip(count - self.too_few, 0, 1)
        unbiased = variance * count / xp.maximum(count - self.too_few, 1)
        return xp.stack([has_mean, mean * has_mean, has_variance, unbiased * has_variance])

    def merged(self, one: Any, other: Any, xp: Any) -> Any:
        return one + other

    def found(self, state: Array) -> _Found:
        means, mean, variances, variance = state
        return _Found(
            mean / np.maximum(means, 1),
            variance / np.maximum(variances, 1),
            means > 0,
            variances > 0,
            means,
        )


_ESTIMATES: dict[str, Any] = {"pooled": _Pooled, "average": _Average}


def _assign(layer: Any, found: _Found) -> None:
    mean = _where_known(found.mean, found.mean_known, layer.moving_mean)
    variance = _where_known(found.variance, found.variance_known, layer.moving_variance)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    if getattr(layer, "renorm", False):
        layer.moving_stddev.assign(np.sqrt(variance + layer.epsilon))
    if getattr(layer, "num_batches_tracked", None) is not None:
        counter = layer.num_batches_tracked  # a scalar, or one for each of several channel axes
        counter.assign(np.full(counter.shape, int(found.batches.max())))


def _where_known(value: Array, known: Array, statistic: Any) -> Array:
    """`value` where it is `known`, and elsewhere what the `statistic` is."""
    if known.all():
        return value  # unread, since other processes may hold parts of the statistic
    return np.where(known, value, convert_to_numpy(statistic))
