"""Where affines come from: the layers that are nothing but a scale and a shift."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_bn.errors import UnsupportedModelError
from keras_bn.fold.affine import Affine, Refused
from keras_bn.layers import BatchNormalization

_CALLS = (keras.layers.BatchNormalization.call, BatchNormalization.call)


def is_batch_norm(layer: Any) -> bool:
    """Whether `layer` normalises batches, and does it as Keras's layer or ours does."""
    return isinstance(layer, keras.layers.BatchNormalization) and type(layer).call in _CALLS


def batch_norm_affine(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """BN(x) = γ·(x − μ)/√(σ² + ε) + β as (scale, shift), float64 arrays in and out."""
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def read_batch_norm(layer: Any) -> dict[str, np.ndarray]:
    """γ, β and the moving statistics in float64; ones and zeros for a missing γ or β.

    Raises:
        UnsupportedModelError: a value is not finite, or a variance is negative.
    """
    weights = {
        name: np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
        if (variable := getattr(layer, name)) is not None
    }
    for name, value in weights.items():
        if not np.all(np.isfinite(value)):
            raise UnsupportedModelError(
                f"{name} of '{layer.name}' holds NaN or infinity; the model is damaged or its "
                "training diverged. Train it again, or replace the statistics with "
                "keras_bn.update_bn(model, data)"
            )
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    if np.any(variance + layer.epsilon <= 0):
        raise UnsupportedModelError(
            f"moving_variance + epsilon of '{layer.name}' is not positive, which no variance can "
            "be. Replace the statistics with keras_bn.update_bn(model, data)"
        )
    return {
        "gamma": weights.get("gamma", np.ones_like(mean)),
        "beta": weights.get("beta", np.zeros_like(mean)),
        "moving_mean": mean,
        "moving_variance": variance,
    }


def affine_of(layer: Any, weights: dict[str, np.ndarray], rank: int) -> Affine:
    """The affine that the batch normalization `layer` applies in inference to rank-`rank` tensors.

    `weights` is what `read_batch_norm` gives, or what absorbing made of it.

    Raises:
        Refused: it normalises over the batch axis, whose elements have statistics of their own.
    """
    scale, shift = batch_norm_affine(
        weights["gamma"],
        weights["beta"],
        weights["moving_mean"],
        weights["moving_variance"],
        layer.epsilon,
    )
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = sorted(axis % rank for axis in axes)
    if 0 in axes:
        raise Refused("its channel axis is the batch axis")
    lengths = iter(scale.shape if scale.ndim == len(axes) else [scale.size])
    shape = [next(lengths) if axis in axes else 1 for axis in range(1, rank)]
    return Affine(scale.reshape(shape), shift.reshape(shape))
