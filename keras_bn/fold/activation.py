"""Activations that an affine passes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_bn.fold.affine import Affine, Refused

# f(s·x) = s·f(x) for every s ≥ 0, and f(0) = 0.
_HOMOGENEOUS = (keras.activations.relu, keras.activations.leaky_relu)


def through_activation(activation: Any, affine: Affine, where: str) -> Affine:
    """The affine that does before `activation` what `affine` does after it, or the reverse.

    Args:
        activation: A function of one tensor, or None.
        where: Where the activation stands, for the reason.

    Raises:
        Refused: the activation is neither linear nor lets this affine pass.
    """
    if activation in (None, keras.activations.linear):
        return affine
    name = getattr(activation, "__name__", type(activation).__name__)
    if activation not in _HOMOGENEOUS:
        raise Refused(f"the activation {name} {where} stands between them")
    return through_homogeneous(affine, f"the activation {name} {where}")


def through_homogeneous(affine: Affine, what: str) -> Affine:
    """`affine` itself, where it is a scale that is nowhere negative.

    Raises:
        Refused: it shifts, or a scale is negative.
    """
    if np.any(affine.scale < 0):
        raise Refused(f"{what} lets no negative scale pass")
    if affine.shifts:
        raise Refused(f"{what} lets no shift pass")
    return affine
