"""What the monitor measured, in plain numbers and NumPy arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_bn.training.monitor.activations import NEAR, Activation
from keras_bn.training.monitor.probe import Reading

Array = np.ndarray

BINS = 120
"""Bins of a histogram: over 8 standard deviations, 0.07 of one each."""
DEVIATIONS = 4
"""Standard deviations to each side of the mean that the inner bins cover at most, so that one
outlier does not leave everything else in a single bin."""


@dataclass(frozen=True)
class Histogram:
    """The distribution of a tensor's finite values.

    The bins are equally wide, except that the first and the last reach out to the minimum and the
    maximum where these are more than 4 standard deviations from the mean.

    Attributes:
        counts: Elements in each bin.
        edges: The limits of the bins, one more than there are bins; the minimum comes first, the
            maximum last.
        mean, deviation: Mean and standard deviation.
        not_finite: Elements that are NaN or infinite, which stand in no bin.
    """

    counts: Array
    edges: Array
    mean: float
    deviation: float
    not_finite: int

    @property
    def minimum(self) -> float:
        return float(self.edges[0])

    @property
    def maximum(self) -> float:
        return float(self.edges[-1])

    def quantile(self, share: float) -> float:
        """The value below which `share` of the elements lie, interpolated within its bin."""
        total = self.counts.sum()
        if total == 0:
            return float("nan")
        cumulative = np.concatenate([[0], np.cumsum(self.counts)])
        # Empty bins make steps, at which the lower end of the next filled one is meant.
        return float(np.interp(share * total, cumulative, self.edges))


def histogram(values: Array, kept: Array | None = None) -> Histogram:
    """The histogram of `values`, of any shape, or of those that are `kept`.

    Example:

    >>> found = histogram(np.array([0.0, 1.0, 1.0, 2.0, np.nan]))
    >>> found.counts.sum(), found.not_finite, found.minimum, found.maximum
    (np.int64(4), 1, 0.0, 2.0)
    """
    values = values.ravel() if kept is None else values[kept]
    finite = np.isfinite(values)
    not_finite = int(values.size - np.count_nonzero(finite))
    if not_finite:
        values = values[finite]
    if values.size == 0:
        return Histogram(np.zeros(BINS, int), np.zeros(BINS + 1), np.nan, np.nan, not_finite)
    mean = float(values.mean(dtype="float64"))
    deviation = float(values.std(dtype="float64"))
    lowest, highest = float(values.min()), float(values.max())
    low = max(lowest, mean - DEVIATIONS * deviation)
    high = min(highest, mean + DEVIATIONS * deviation)
    edges = np.linspace(low, high, BINS + 1)
    places = (values - low) * (BINS / (high - low)) if high > low else np.zeros(values.shape)
    counts = np.bincount(np.clip(places, 0, BINS - 1).astype("int32"), minlength=BINS)
    edges[0], edges[-1] = lowest, highest
    return Histogram(counts, edges, mean, deviation, not_finite)


@dataclass(frozen=True)
class LayerMeasurement:
    """One call of a watched layer on the probe.

    Attributes:
        input: What the layer received.
        output: What it computed, before an activation function of its own.
        activation: What the activation right after it made of that (or, where none follows, the
            one right before it gave); None where there is neither.
        gradient_norm: √Σ(∂loss/∂output)² over all elements; None without a loss.
        dead: Share of the units whose ReLU gave its floor for all samples at all positions; such
            a unit passes no gradient (Lu et al., 2019, https://arxiv.org/abs/1903.06733).
        saturated: Share of the activation's elements within 1.5 % of its range of a bound, where
            the slope of sigmoid and tanh is below 6 % of its largest.
        distance: Of batch normalizations: the Hellinger distance between the normal distributions
            with the probe's statistics and with the moving ones, averaged over channels. 0 where
            they are equal, 1 where they do not overlap; m elements are by chance about 0.5/√m
            from their population.
    """

    input: Histogram
    output: Histogram
    activation: Histogram | None
    gradient_norm: float | None
    dead: float | None
    saturated: float | None
    distance: float | None

    def histograms(self) -> dict[str, Histogram]:
        found = {"input": self.input, "output": self.output, "activation": self.activation}
        return {tensor: one for tensor, one in found.items() if one is not None}


@dataclass(frozen=True)
class WeightMeasurement:
    """The trainable weights of one layer.

    Attributes:
        gradient_norm: √Σ(∂loss/∂weight)² over all of them; None where the loss does not depend
            on them.
        kernel_gradient_norm, kernel_norm: The same of its kernels (weights of two axes and more),
            and √Σ kernel². None of embeddings, and in front of a normalization, which takes out
            the kernel's scale.
    """

    gradient_norm: float | None
    kernel_gradient_norm: float | None
    kernel_norm: float | None


@dataclass(frozen=True)
class Measurement:
    """The probe's way through the model and back at one moment of training.

    Attributes:
        epoch: Epochs that were complete.
        batch: Batches that the monitor has seen the model trained on.
        loss: The loss on the probe; None where none could be computed.
        layers: The watched layers by name, in the order of their calls. A layer's second call is
            "name:2", and where names repeat in a model the layer's path takes their place.
        flow: √Σ(∂loss/∂output)² of every normalization, convolution, dense and recurrent layer,
            watched or not, except those right in front of a normalization.
        weights: Every layer with trainable weights of its own.
    """

    epoch: int
    batch: int
    loss: float | None
    layers: dict[str, LayerMeasurement]
    flow: dict[str, float]
    weights: dict[str, WeightMeasurement]

    def scalars(self) -> dict[str, float]:
        """All single numbers, by tags such as "batch_normalization/gradient_norm"."""
        found: dict[str, float] = {} if self.loss is None else {"loss": self.loss}
        for name, layer in self.layers.items():
            for measure in ("gradient_norm", "dead", "saturated", "distance"):
                value = getattr(layer, measure)
                if value is not None:
                    found[f"{name}/{measure}"] = value
            for tensor, one in layer.histograms().items():
                found[f"{name}/{tensor}_mean"] = one.mean
                found[f"{name}/{tensor}_deviation"] = one.deviation
        for name, weight in self.weights.items():
            if weight.gradient_norm is not None:
                found[f"{name}/weight_gradient_norm"] = weight.gradient_norm
        return found


def measurement(model: keras.Model, reading: Reading, epoch: int, batch: int) -> Measurement:
    """The numbers of a probe's `reading` of `model`."""
    names = [layer.name for layer in model._flatten_layers()]

    def name(layer: Any) -> str:
        return layer.name if names.count(layer.name) == 1 else layer.path

    layers = {}
    for key, (place, taken) in _numbered(name, [(one[0].layer, one) for one in reading.places]):
        activated = taken["activation"]
        layers[key] = LayerMeasurement(
            input=histogram(**taken["input"]),
            output=histogram(**taken["output"]),
            activation=None if activated is None else histogram(**activated),
            gradient_norm=taken["gradient_norm"],
            dead=None if taken["dead"] is None else float(taken["dead"]),
            saturated=_saturated(place.activation, activated),
            distance=_distance(place.layer, taken["moments"]),
        )
    return Measurement(
        epoch,
        batch,
        reading.loss,
        layers,
        {key: one for key, one in _numbered(name, reading.flow) if one is not None},
        {name(layer): WeightMeasurement(*norms) for layer, norms in reading.weights},
    )


def hellinger(mean: Array, variance: Array, other_mean: Array, other_variance: Array) -> Array:
    """The Hellinger distance between normal distributions, elementwise.

        H² = 1 − √(2σ₁σ₂/(σ₁² + σ₂²))·exp(−(μ₁ − μ₂)²/(4·(σ₁² + σ₂²)))

    0 between equals, near 1 where the two hardly overlap, and the same in every unit of
    measurement.

    Example:

    >>> print(hellinger(np.array([0.0, 0.0]), np.ones(2), np.array([0.0, 9.0]), np.ones(2)))
    [0.         0.99997997]

    Reference:
        Pardo, 2006, Statistical Inference Based on Divergence Measures.
    """
    total = variance + other_variance
    overlap = np.sqrt(2 * np.sqrt(variance * other_variance) / total)
    overlap = overlap * np.exp(-np.square(mean - other_mean) / (4 * total))
    return np.sqrt(np.maximum(1 - overlap, 0))


def _distance(layer: Any, moments: Sequence[Array] | None) -> float | None:
    if moments is None:
        return None
    # The layer divides by √(variance + ε), so ε is part of what it takes the deviation for.
    mean, variance, moving_mean, moving_variance = (one.astype("float64") for one in moments)
    epsilon = layer.epsilon
    return float(hellinger(mean, variance + epsilon, moving_mean, moving_variance + epsilon).mean())


def _saturated(activation: Activation | None, taken: Mapping[str, Array] | None) -> float | None:
    if activation is None or taken is None or not activation.bounds:
        return None
    values = taken["values"] if taken["kept"] is None else taken["values"][taken["kept"]]
    distances = [np.abs(values - bound) for bound in activation.bounds]
    near = np.min(distances, axis=0) < NEAR * activation.width
    return float(near.mean()) if near.size else None


def _numbered(
    name: Callable[[Any], str], pairs: Iterable[tuple[Any, Any]]
) -> Iterator[tuple[str, Any]]:
    """Each value with the name of its layer, and the number of the call from the second one on."""
    calls: Counter[str] = Counter()
    for layer, value in pairs:
        key = name(layer)
        calls[key] += 1
        yield key if calls[key] == 1 else f"{key}:{calls[key]}", value
