"""Batch normalization of a training batch as one differentiable operation.

Left to automatic differentiation, a batch normalization reads and writes the batch a dozen
times a step. `fused_tensorflow` and `fused_torch` do it in fewer. On JAX, XLA fuses the plain
operations.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_bn.layers import fused_tensorflow, fused_torch
from keras_bn.layers.moments import Moments, Tensor

IMPLEMENTATIONS: dict[str, Any] = {"tensorflow": fused_tensorflow, "torch": fused_torch}


def available(dtype: str) -> bool:
    """Whether the backend has a fused path for inputs of `dtype`."""
    implementation = IMPLEMENTATIONS.get(keras.backend.backend())
    return implementation is not None and dtype in implementation.DTYPES


def normalize(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Moments]:
    """Normalize `x` by its own moments: y = γ·(x − mean)/√(variance + ε) + β.

    Args:
        x: Tensor of a dtype that is `available`.
        gamma, beta: Vectors in float32, or float64 with `x`; None for 1 and 0.
        axis: The channel axis, counted from the front.
        epsilon: Added to the variance.

    Returns:
        y in the dtype of `x`, and the moments of `x` in that of γ. Only y may be differentiated.
    """
    return IMPLEMENTATIONS[keras.backend.backend()].normalize(x, gamma, beta, axis, epsilon)
