"""The population's statistics, measured in one pass over data.

Moving averages lag behind the weights and remember the last few hundred batches. Inference
wants the mean and variance of each channel over the data, under the final weights.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from typing import Any, Literal

import keras
import numpy as np
from keras import tree
from keras.ops import convert_to_numpy
from rich.console import Console
from rich.progress import track

from keras_bn.errors import CalibrationError, UnsupportedModelError
from keras_bn.layers import BatchNormalization
from keras_bn.layers.moments import Moments
from keras_bn.training.replace import like

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
            a tf.data.Dataset, a keras.utils.PyDataset, or an iterable of batches x, (x,) or
            (x, y). Targets are ignored. The batches matter as they do in training, so shuffle
            data that are sorted.
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
    batches, total = _batches(model, data, batch_size)
    if steps is not None:
        batches, total = islice(batches, steps), min(steps, total or steps)
    elif total == math.inf:
        raise ValueError("`data` never end: give `steps`")

    try:
        first = next(batches)
    except StopIteration:
        raise CalibrationError(
            f"expected data to measure the statistics of '{model.name}' on, received none: "
            "check that the data set is not empty, or already used up"
        ) from None
    if not all(layer.built for layer in model._flatten_layers()):
        model(first, training=False)

    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not layers:
        return model
    estimates = [_ESTIMATES[method](getattr(layer, "unbiased", False)) for layer in layers]
    show = sys.stderr.isatty() if verbose is None else verbose
    progress = track(
        chain([first], batches),
        "Measuring statistics",
        total,
        console=Console(stderr=True),
        disable=not show,
    )
    with _Collector(layers) as collector:
        step = _compiled(lambda x: collector.moments_in(model, x))
        for x in progress:
            for index, batch in step(x):
                moments = (convert_to_numpy(part) for part in batch)
                estimates[int(index)].add(*(part.astype("float64") for part in moments))
    if not any(estimate.batches for estimate in estimates):
        raise UnsupportedModelError(
            f"calling '{model.name}' reached none of its batch normalizations "
            f"({', '.join(layer.name for layer in layers)}) outside inference: they are called "
            "with training=False, or from a tf.function of the model's own"
        )
    # All of them before any of them moves.
    for layer, estimate in zip(layers, estimates, strict=True):
        if not (np.isfinite(estimate.mean).all() and np.isfinite(estimate.variance).all()):
            raise CalibrationError(
                f"the statistics of layer '{layer.name}' are not finite: expected data without "
                "NaN and infinity, and weights that do not overflow on them"
            )
    for layer, estimate in zip(layers, estimates, strict=True):
        _assign(layer, estimate)
    return model


class _Pooled:
    """Mean and variance of all elements of all batches, merged by Chan's formula."""

    def __init__(self, unbiased: bool) -> None:
        self.too_few = 1 if unbiased else 0  # elements that have no variance yet
        self.batches = 0
        self.count: Any = 0.0
        self.mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, mean: Array, variance: Array, count: Array) -> None:
        total = self.count + count
        share = count / np.maximum(total, 1)
        delta = mean - self.mean
        self._squares = self._squares + count * variance + delta**2 * self.count * share
        self.mean = self.mean + delta * share
        self.count = total
        self.batches += 1

    @property
    def variance(self) -> Any:
        return self._squares / np.maximum(self.count - self.too_few, 1)

    @property
    def known(self) -> tuple[Any, Any]:
        """In which channels the mean, and the variance, could be estimated."""
        return self.count > 0, self.count > self.too_few


class _Average:
    """The average over batches of each batch's estimates, every batch weighing the same."""

    def __init__(self, unbiased: bool) -> None:
        self.too_few = 1 if unbiased else 0
        self.batches = 0
        self._means: Any = (0.0, 0)  # sum, number of batches in it
        self._variances: Any = (0.0, 0)

    def add(self, mean: Array, variance: Array, count: Array) -> None:
        has_mean, has_variance = count > 0, count > self.too_few
        estimate = variance * count / np.maximum(count - self.too_few, 1)
        self._means = self._means[0] + mean * has_mean, self._means[1] + has_mean
        self._variances = (
            self._variances[0] + estimate * has_variance,
            self._variances[1] + has_variance,
        )
        self.batches += 1

    @property
    def mean(self) -> Any:
        return self._means[0] / np.maximum(self._means[1], 1)

    @property
    def variance(self) -> Any:
        return self._variances[0] / np.maximum(self._variances[1], 1)

    @property
    def known(self) -> tuple[Any, Any]:
        """In which channels the mean, and the variance, could be estimated."""
        return self._means[1] > 0, self._variances[1] > 0


_ESTIMATES: dict[str, Any] = {"pooled": _Pooled, "average": _Average}


class _Collector:
    """While open, the layers normalize by the batch and hand over its moments."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._collected: list[tuple[int, Moments]] = []

    def __enter__(self) -> _Collector:
        calls = [self._collecting(index, layer) for index, layer in enumerate(self._layers)]
        for layer, call in zip(self._layers, calls, strict=True):
            layer.call = call  # on this object, in front of the method of its class
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            del layer.call

    def moments_in(self, model: keras.Model, x: Any) -> list[tuple[int, Moments]]:
        """Call `model`; the moments at each call of each layer, with the layer's number."""
        self._collected = []
        # 0 asks everything for inference, and is not the False that a model's code passes to a
        # layer which is to infer whatever the model does.
        model(x, training=0)
        return self._collected

    def _collecting(self, index: int, layer: Any) -> Callable[..., Any]:
        inference = layer.call
        ours = _ours(layer)

        def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            if training is False:
                return inference(inputs, training=False, mask=mask)
            outputs, batch = ours.normalize_batch(inputs, mask)
            self._collected.append((index, batch))
            return outputs

        return call


def _ours(layer: Any) -> BatchNormalization:
    """`layer` itself, or for Keras's a layer of ours that computes the same."""
    if isinstance(layer, BatchNormalization):
        return layer
    if type(layer).call is not keras.layers.BatchNormalization.call:
        raise UnsupportedModelError(
            f"layer '{layer.name}' of class {type(layer).__name__} computes in its own way what "
            "keras.layers.BatchNormalization does; only that one and this package's are known"
        )
    twin = like(layer, unbiased=False)
    shape: list[int | None] = [None] * layer.input_spec.ndim
    for axis, size in layer.input_spec.axes.items():
        shape[axis] = size
    twin.build(shape)
    for weight in twin.weights:
        weight.assign(getattr(layer, weight.name))
    return twin


def _assign(layer: Any, estimate: Any) -> None:
    mean_known, variance_known = estimate.known
    mean = np.where(mean_known, estimate.mean, convert_to_numpy(layer.moving_mean))
    variance = np.where(variance_known, estimate.variance, convert_to_numpy(layer.moving_variance))
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    if getattr(layer, "renorm", False):
        layer.moving_stddev.assign(np.sqrt(variance + layer.epsilon))
    if getattr(layer, "num_batches_tracked", None) is not None:
        layer.num_batches_tracked.assign(estimate.batches)


def _compiled(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if keras.backend.backend() != "tensorflow":
        return step
    import tensorflow as tf

    return tf.function(step, reduce_retracing=True, autograph=False)


def _batches(model: keras.Model, data: Any, batch_size: int) -> tuple[Iterator[Any], Any]:
    """The inputs of each batch, and how many batches there are if that is known."""
    several_inputs = len(getattr(model, "inputs", None) or ()) > 1
    if isinstance(data, tuple):
        data = data[0]
    if _is_array(data) or isinstance(data, dict) or (isinstance(data, list) and several_inputs):
        arrays = tree.map_structure(np.asarray, data)
        sizes = {len(array) for array in tree.flatten(arrays)}
        if len(sizes) != 1:
            raise ValueError(f"`data` must have one number of samples. Received: {sorted(sizes)}")
        slices = [slice(start, start + batch_size) for start in range(0, sizes.pop(), batch_size)]
        return (_samples(arrays, part) for part in slices), len(slices)
    if isinstance(data, keras.utils.PyDataset):
        total = data.num_batches
        numbers = count() if total is None else range(total)
        return (_inputs(data[number]) for number in numbers), total
    if not isinstance(data, Iterable):
        raise TypeError(
            "`data` must be an array, a dict of arrays, a tuple (x, y), a tf.data.Dataset, a "
            f"PyDataset or an iterable of batches. Received: {type(data).__name__}"
        )
    return (_inputs(batch) for batch in data), _length(data)


def _inputs(batch: Any) -> Any:
    """x of a batch that may be x, (x,), (x, y) or (x, y, sample_weight)."""
    return batch[0] if isinstance(batch, tuple) else batch


def _samples(arrays: Any, part: slice) -> Any:
    return tree.map_structure(lambda array: array[part], arrays)


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape") and hasattr(data, "dtype")


def _length(data: Any) -> Any:
    """Batches in an iterable: a number, infinity, or None where nobody knows."""
    if hasattr(data, "cardinality"):  # tf.data.Dataset: −1 is infinite, −2 unknown
        cardinality = int(data.cardinality())
        return {-1: math.inf, -2: None}.get(cardinality, cardinality)
    return len(data) if hasattr(data, "__len__") else None
