"""Layer normalization that is safe inside recurrent networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bn.layers.moments import Tensor, align_mask, computing_dtype, standardized, unmasked


@keras.saving.register_keras_serializable(package="keras_bn")
class LayerNormalization(keras.layers.LayerNormalization):
    """Normalizes each sample, and each time step of it, over its own features.

        y = γ·(x − μ)/√(σ² + ε) + β        μ, σ²: mean and variance over `axis`

    Nothing depends on the batch, the sequence's length or other time steps, so training and
    inference are the same computation.

    A drop-in for Keras's layer: the same arguments but the deprecated `rms_scaling`, the same
    weights. What differs:

    - masked steps give zeros, and pass back zeros, even where they hold NaN or infinity: the
      padding of a sequence reaches neither the loss nor any gradient;
    - features that are all alike give exactly β, however large they are;
    - the batch axis is refused;
    - half precision is computed in float32.

    Args:
        axis: The axis or axes to normalize over, usually the features.
        epsilon: Added to the variance. Positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        beta_initializer, gamma_initializer: Initializers of β and γ.
        beta_regularizer, gamma_regularizer: Regularizers of β and γ.
        beta_constraint, gamma_constraint: Constraints on β and γ.
        **kwargs: `name`, `dtype` and `trainable`.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        mask: Boolean tensor, True at the steps that count, of the shape of the inputs without
            `axis`, or the first dimensions of that. It is passed on to the next layer.

    Input shape:
        Any, with the normalized axes known.

    Output shape:
        That of the inputs.

    Example:

    >>> import numpy as np
    >>> steps = np.array([[[1.0, 2.0, 3.0], [np.nan, 0.0, 0.0]]], "float32")
    >>> print(LayerNormalization()(steps, mask=np.array([[True, False]])).numpy().round(2))
    [[[-1.22  0.    1.22]
      [ 0.    0.    0.  ]]]

    Reference:
        Ba, Kiros and Hinton, 2016, Layer Normalization, https://arxiv.org/abs/1607.06450
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
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
        if kwargs.get("rms_scaling"):
            raise ValueError(
                "`rms_scaling=True` is not supported: it divides by the standard deviation "
                "instead of the root mean square. Use keras.layers.RMSNormalization."
            )
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon!r}")
        super().__init__(
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
        axes = [self.axis] if isinstance(self.axis, int) else list(self.axis)
        for axis in axes:
            if not -rank <= axis < rank:
                raise ValueError(
                    f"Axis {axis} is out of bounds for inputs of shape {tuple(input_shape)}. "
                    f"Received: axis={self.axis}"
                )
            if axis % rank == 0:
                raise ValueError(
                    "`axis` must not be the batch axis: a sample would depend on the others of "
                    f"its batch. Received: axis={self.axis} for inputs of shape "
                    f"{tuple(input_shape)}"
                )
        super().build(input_shape)
        self._normalized_axes = tuple(sorted(axis % rank for axis in axes))

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        axes = self._normalized_axes
        x = ops.cast(inputs, computing_dtype(inputs.dtype))
        if mask is not None:
            mask = ops.cast(align_mask(mask, inputs, axes), "bool")
            x = unmasked(x, mask)  # before anything NaN could spread from, gradients included

        outputs = standardized(x, axes, self.epsilon)
        shape = [
            size if axis in axes else 1 for axis, size in enumerate(inputs.shape)
        ]  # of γ and β among the inputs
        if self.scale:
            outputs = outputs * ops.reshape(ops.cast(self.gamma, x.dtype), shape)
        if self.center:
            outputs = outputs + ops.reshape(ops.cast(self.beta, x.dtype), shape)
        if mask is not None:
            outputs = unmasked(outputs, mask)
        return ops.cast(outputs, self.compute_dtype)
