"""Instance normalization: each channel of each sample by its own mean and variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bn.layers.moments import Tensor, computing_dtype, standardized


@keras.saving.register_keras_serializable(package="keras_bn")
class InstanceNormalization(keras.layers.GroupNormalization):
    """Normalizes every channel of every sample over its positions.

        y = γ·(x − μ)/√(σ² + ε) + β        μ, σ²: mean and variance over the spatial axes

    Nothing depends on the batch, so training and inference are the same computation. It is
    group normalization with as many groups as channels, under its own name.

    Args:
        axis: The channel axis.
        epsilon: Added to the variance. Positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        beta_initializer, gamma_initializer: Initializers of β and γ.
        beta_regularizer, gamma_regularizer: Regularizers of β and γ.
        beta_constraint, gamma_constraint: Constraints on β and γ.
        **kwargs: `name`, `dtype` and `trainable`.

    Call arguments:
        inputs: Tensor of rank 3 or more.

    Input shape:
        (batch, positions…, channels), or with the channels at `axis`. (batch, features) is
        refused: one value has no variance, and every output would be β.

    Output shape:
        That of the inputs.

    Example:

    >>> import numpy as np
    >>> image = np.array([[[1.0, 10.0], [3.0, 30.0]]], "float32")  # one row, two channels
    >>> print(InstanceNormalization(epsilon=1e-9)(image).numpy())
    [[[-1. -1.]
      [ 1.  1.]]]

    Reference:
        Ulyanov, Vedaldi and Lempitsky, 2016, Instance Normalization: The Missing Ingredient for
        Fast Stylization, https://arxiv.org/abs/1607.08022
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(axis, int):
            raise TypeError(f"`axis` must be an integer. Received: axis={axis!r}")
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon!r}")
        super().__init__(
            groups=-1,
            axis=axis,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            **kwargs,
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        rank = len(input_shape)
        if rank < 3:
            raise ValueError(
                "Instance normalization needs positions to normalize over: inputs of rank 3 or "
                f"more. Received: input_shape={tuple(input_shape)}. For (batch, features) use "
                "LayerNormalization or BatchNormalization"
            )
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise ValueError(
                "`axis` must be an axis of the inputs other than the batch axis. Received: "
                f"axis={self.axis} for inputs of shape {tuple(input_shape)}"
            )
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        # Keras takes the variance for E[x²] − E[x]² on some backends, which loses its digits to
        # a large mean, and computes float64 in float32.
        rank = len(inputs.shape)
        channel = self.axis % rank
        x = ops.cast(inputs, computing_dtype(inputs.dtype))
        positions = [axis for axis in range(1, rank) if axis != channel]
        outputs = standardized(x, positions, self.epsilon)
        shape = [inputs.shape[axis] if axis == channel else 1 for axis in range(rank)]
        if self.scale:
            outputs = outputs * ops.reshape(ops.cast(self.gamma, x.dtype), shape)
        if self.center:
            outputs = outputs + ops.reshape(ops.cast(self.beta, x.dtype), shape)
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["groups"]  # always the channels
        return config
