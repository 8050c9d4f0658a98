"""Normalizations that end in an affine of their own, γ·x̂ + β.

What follows them goes into γ and β, whatever x̂ is normalised over, along the axes that these
have. In front nothing is absorbed: the normalization takes most of an affine out again, but not
exactly, since ε is added to a variance of another scale.

γ and β may also leave, into what follows the layer: `affine_end` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import layers

from keras_bn.fold.absorb import algebra
from keras_bn.fold.absorb.rule import Absorb, Arrays, Change, array, nothing
from keras_bn.fold.affine import Affine, Array, Refused
from keras_bn.layers import InstanceNormalization, LayerNormalization

# --- γ and β along some axes --------------------------------------------------------------------


def _axes(layer: Any) -> list[int]:
    """The axes of γ and β, in their order, among those of the input, batch axis included."""
    return [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)


def _lengths(layer: Any) -> tuple[int, ...]:
    """The shape of γ and β, of which the layer may have neither."""
    for variable in (layer.gamma, layer.beta):
        if variable is not None:
            return tuple(variable.shape)
    input_shape = layer.get_build_config()["input_shape"]
    return tuple(input_shape[axis] for axis in _axes(layer))


def _among(layer: Any, rank: int) -> tuple[int, ...]:
    """The shape of γ and β among the `rank` axes behind the batch axis.

    Keras reshapes them to it, row-major, also where `axis` names the axes in another order.
    """
    shape = [1] * (rank + 1)
    for axis, length in zip(_axes(layer), _lengths(layer), strict=True):
        shape[axis] = length
    if shape[0] != 1:
        raise Refused(f"'{layer.name}' has weights along the batch axis")
    return tuple(shape[1:])


def _fitted(layer: Any, affine: Affine, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The scale and shift spelled out over `shape`, that of the layer's weights.

    Raises:
        Refused: they vary along an axis where `shape` is 1.
    """
    affine = affine.compact()
    for axis, length in enumerate(shape):
        if affine.shape[axis] not in (1, length):
            raise Refused(f"it varies along axis {axis + 1}, where '{layer.name}' has no weights")
    affine = affine.full(shape)
    return affine.scale, affine.shift


def _has_beta(layer: Any) -> bool:
    return not getattr(layer, "rms_scaling", False)


def _read(layer: Any) -> Arrays:
    lengths = _lengths(layer)
    gamma = np.ones(lengths) if layer.gamma is None else array(layer.gamma)
    beta = np.zeros(lengths) if layer.beta is None else array(layer.beta)
    return {"gamma": gamma, "beta": beta} if _has_beta(layer) else {"gamma": gamma}


def _backward(layer: Any, affine: Affine) -> Change:
    if affine.shifts and not _has_beta(layer):
        raise Refused(f"'{layer.name}' has no beta for the shift")
    s, t = (
        part.reshape(_lengths(layer))
        for part in _fitted(layer, affine, _among(layer, len(affine.shape)))
    )

    def change(weights: Arrays) -> Arrays:
        beta = weights.get("beta", np.zeros(()))
        gamma, beta = algebra.normalization_backward(weights["gamma"], beta, s, t)
        return {"gamma": gamma, "beta": beta} if "beta" in weights else {"gamma": gamma}

    return change


def _gains(layer: Any) -> Mapping[str, Any]:
    return {"center": True, "scale": True}


# --- a scale alone, on the last axes ------------------------------------------------------------


def _read_rms(layer: Any) -> Arrays:
    return {"scale": array(layer.scale)}


def _backward_rms(layer: Any, affine: Affine) -> Change:
    if affine.shifts:
        raise Refused(f"'{layer.name}' has no weight for the shift")
    s, _ = _fitted(layer, affine, _last_axes(layer, len(affine.shape)))
    return lambda weights: {"scale": weights["scale"] * s.reshape(layer.scale.shape)}


def _last_axes(layer: Any, rank: int) -> tuple[int, ...]:
    shape = tuple(layer.scale.shape)  # multiplied as it is, so broadcast to the last axes
    if len(shape) > rank:
        raise Refused(f"'{layer.name}' has weights along the batch axis")
    return (1,) * (rank - len(shape)) + shape


# BN(LayerNormalization(x)) -> LayerNormalization(x); UnitNormalization has no weights
_LAYER_NORM = Absorb((layers.LayerNormalization,), _read, _backward, None, _gains)
_MASKED_LAYER_NORM = Absorb(
    (LayerNormalization,), _read, _backward, None, _gains, zeroed_by_mask=lambda layer: True
)
_GROUP_NORM = Absorb(
    (layers.GroupNormalization, InstanceNormalization), _read, _backward, None, _gains
)
_RMS_NORM = Absorb((layers.RMSNormalization,), _read_rms, _backward_rms, None, nothing)

RULES = (_LAYER_NORM, _MASKED_LAYER_NORM, _GROUP_NORM, _RMS_NORM)


# --- taking γ and β off -------------------------------------------------------------------------


@dataclass(frozen=True)
class AffineEnd:
    """The affine that a normalization ends in, and how to build the layer without it.

    Attributes:
        affine: γ and β, on the layer's output.
        config: Constructor arguments with which the layer has none.
        weights: The values of weights that it has nevertheless.
        zeroed_by_mask: Whether the layer gives zeros where its call's mask is False, not β. With a
            mask the affine may leave the layer only if it does not shift.
    """

    affine: Affine
    config: Mapping[str, Any]
    weights: Arrays
    zeroed_by_mask: bool


def affine_end(layer: Any, rank: int) -> AffineEnd | None:
    """The affine at the end of `layer`, a layer, group, instance or RMS normalization.

    Args:
        layer: A built layer.
        rank: The number of axes behind the batch axis of the tensor that it is called on.

    Returns:
        None for any other layer.

    Raises:
        Refused: the layer normalises over the batch axis.
    """
    rule = next((rule for rule in RULES if type(layer) in rule.layers), None)
    if rule is None:
        return None
    zeros = rule.zeroed_by_mask(layer)
    if rule is _RMS_NORM:
        scale = array(layer.scale)
        affine = Affine(scale.reshape(_last_axes(layer, rank)), np.zeros((1,) * rank))
        return AffineEnd(affine, {}, {"scale": np.ones_like(scale)}, zeros)
    shape, weights = _among(layer, rank), _read(layer)
    gamma = weights["gamma"].reshape(shape)
    if not _has_beta(layer):  # and γ whatever the configuration says
        affine = Affine(gamma, np.zeros((1,) * rank))
        return AffineEnd(affine, {}, {"gamma": np.ones_like(weights["gamma"])}, zeros)
    return AffineEnd(
        Affine(gamma, weights["beta"].reshape(shape)),
        {"center": False, "scale": False},
        {},
        zeros,
    )
