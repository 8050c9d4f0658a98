"""Batch normalization: `keras.layers.BatchNormalization` with the statistics of the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import keras
from keras import ops

from keras_bn.layers import fused
from keras_bn.layers.moments import (
    Moments,
    Tensor,
    align_mask,
    computing_dtype,
    moments,
    own_replica,
    unbiased_variance,
)
from keras_bn.layers.replicas import sum_over_replicas


@keras.saving.register_keras_serializable(package="keras_bn")
class BatchNormalization(keras.layers.BatchNormalization):
    """Normalizes each channel over the batch, and remembers the population's statistics.

    In training the batch is normalized by its own mean and variance,

        y = γ·(x − μ_B)/√(σ²_B + ε) + β        μ_B = Σ x/m        σ²_B = Σ (x − μ_B)²/m

    over the m elements of each channel, and the moving statistics step towards the population's:

        moving_mean     ← momentum·moving_mean     + (1 − momentum)·μ_B
        moving_variance ← momentum·moving_variance + (1 − momentum)·σ²_B·m/(m − 1)

    In inference, or with `trainable=False`, the moving statistics take the place of the batch's.

    A drop-in for Keras's layer: the same arguments, and while the new options are off the same
    weights in the same order. What differs:

    - the moving variance estimates the population's (`unbiased`), as PyTorch's does;
    - `momentum=None` weighs every batch alike, and `debias` keeps the initial 0 and 1 out;
    - `axis` may be several, so that each time step of a sequence keeps its own statistics;
    - statistics are float32 at least, under every dtype policy;
    - an empty or fully masked batch moves no statistic, and nothing becomes NaN;
    - a training step is faster: one operation with its gradient written out (`fused`).

    Args:
        axis: The channel axis, or several. With `axis=(1, 2)` on (batch, time, features) every
            time step has its own statistics, which is what batch normalization within a
            recurrent network needs. The weights have the shape of these axes, in their order.
        momentum: A number in [0, 1]: how much of the moving statistics stays at each batch.
            None averages over all batches alike, which is the average in Algorithm 2 of the
            paper. None adds the counter weight `num_batches_tracked`, a scalar; with several
            channel axes one count for each channel, since sequences that end early leave the
            later time steps without elements.
        epsilon: Added to the variance, against division by zero. Positive.
        center: Whether to add β.
        scale: Whether to multiply by γ.
        beta_initializer, gamma_initializer: Initializers of β and γ.
        moving_mean_initializer, moving_variance_initializer: Initializers of the statistics.
        beta_regularizer, gamma_regularizer: Regularizers of β and γ.
        beta_constraint, gamma_constraint: Constraints on β and γ.
        synchronized: Whether the replicas of a tf.distribute strategy, or the processes of
            torch.distributed, normalize their joint batch rather than each its own. If not, each
            also keeps moving statistics of its own; tf.distribute reads and saves their mean. On
            JAX it makes no difference: a batch that keras.distribution spreads over devices is
            normalized as a whole.
        debias: Whether the n-th batch uses min(momentum, (n − 1)/n), so that the first ones
            replace the initial statistics instead of mixing with them. Adds
            `num_batches_tracked`.
        unbiased: Whether the moving variance accumulates σ²_B·m/(m − 1); if not, σ²_B, as in
            Keras. A batch with m = 1 then moves the mean alone. Training batches are normalized
            by the biased σ²_B either way.
        fused: None takes the one-operation path where it applies: TensorFlow (float32 or half
            precision) or PyTorch, one channel axis, no mask, not synchronized, no renorm. False
            never does; True raises where it does not apply.
        **kwargs: `name`, `dtype`, `trainable`, and `renorm`, `renorm_clipping` and
            `renorm_momentum` where the installed Keras has them.

    Call arguments:
        inputs: Tensor of rank 2 or more.
        training: Whether to normalize by the batch's statistics.
        mask: Boolean tensor, True where an element counts. Its shape is that of the inputs
            without the channel axis, or the first dimensions of that: (batch, time) on
            (batch, time, features), and on (batch, features, time) with `axis=1`. Masked
            elements stay out of the statistics; they are normalized like the others.

    Input shape:
        Any, with the channel axes known. The batch axis cannot be a channel axis.

    Output shape:
        That of the inputs.

    Example:

    >>> import numpy as np
    >>> layer = BatchNormalization(momentum=0.0)
    >>> batch = np.array([[1.0], [2.0], [3.0], [4.0]], "float32")
    >>> print(layer(batch, training=True).numpy().ravel().round(2))
    [-1.34 -0.45  0.45  1.34]
    >>> print(layer.moving_mean.numpy(), layer.moving_variance.numpy().round(2))
    [2.5] [1.67]

    Reference:
        Ioffe and Szegedy, 2015, Batch Normalization: Accelerating Deep Network Training by
        Reducing Internal Covariate Shift, https://arxiv.org/abs/1502.03167
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        *,
        synchronized: bool = False,
        debias: bool = False,
        unbiased: bool = True,
        fused: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            epsilon=_validated_epsilon(epsilon),
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            **kwargs,
        )
        self.synchronized = synchronized  # which Keras takes on TensorFlow only
        self.axis = _validated_axis(axis)
        self.momentum = _validated_momentum(momentum)
        self.debias = debias
        self.unbiased = unbiased
        self.fused = _validated_fused(fused)
        self.num_batches_tracked = None
        # Older Keras versions have no renorm at all.
        self.renorm = getattr(self, "renorm", False)
        self._channel_axes: tuple[int, ...] = ()

    def build(self, input_shape: Sequence[int | None]) -> None:
        channels = _channels(self.axis, input_shape)
        shape = tuple(channels.values())
        self._channel_axes = tuple(channels)
        self._reduction_axes = [axis for axis in range(len(input_shape)) if axis not in channels]
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes=channels)

        if self.scale:
            self.gamma = self.add_weight(
                shape=shape,
                name="gamma",
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                shape=shape,
                name="beta",
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )
        self.moving_mean = self._add_statistic("moving_mean", shape, self.moving_mean_initializer)
        self.moving_variance = self._add_statistic(
            "moving_variance", shape, self.moving_variance_initializer
        )
        if self.renorm:
            self.moving_stddev = self._add_statistic("moving_stddev", shape, self._initial_stddev)
            self.renorm_mean = self._add_statistic(
                "renorm_mean", shape, keras.initializers.get(self.moving_mean_initializer)
            )
            self.renorm_stddev = self._add_statistic("renorm_stddev", shape, self._initial_stddev)
        if self.momentum is None or self.debias:
            self.num_batches_tracked = _per_replica(
                shape=shape if len(shape) > 1 else (),
                name="num_batches_tracked",
                initializer=keras.initializers.Zeros(),
                dtype="int32",
                aggregation="only_first_replica",  # integers have no mean
            )

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if training and self.trainable:
            outputs, batch = self.normalize_batch(inputs, mask)
            self._track(batch)
            return outputs
        if mask is not None:
            align_mask(mask, inputs, self._channel_axes)  # refused here as it is in training
        inputs = ops.cast(inputs, computing_dtype(inputs.dtype))
        return self._normalized(
            inputs,
            ops.cast(self.moving_mean, inputs.dtype),
            ops.cast(self.moving_variance, inputs.dtype),
            *self._gamma_and_beta(inputs.dtype),
        )

    def normalize_batch(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Moments]:
        """What a training call returns, and the moments of the batch; no statistic moves."""
        if mask is not None:
            mask = align_mask(mask, inputs, self._channel_axes)
        obstacle = self._obstacle_to_fusing(inputs, mask)
        if obstacle is None and self.fused is not False:
            gamma, beta = self._gamma_and_beta(computing_dtype(inputs.dtype))
            axis = self._channel_axes[0]
            outputs, batch = fused.normalize(inputs, gamma, beta, axis, self.epsilon)
            return ops.cast(outputs, self.compute_dtype), batch
        if self.fused:
            raise ValueError(
                f"BatchNormalization {self.name!r} has fused=True, but the fused path does not "
                f"cover {obstacle}. Try fused=None, which takes it only where it applies."
            )
        inputs = ops.cast(inputs, computing_dtype(inputs.dtype))
        over_replicas = sum_over_replicas if self.synchronized else own_replica
        batch = moments(inputs, self._reduction_axes, mask, over_replicas)
        gamma, beta = self._gamma_and_beta(inputs.dtype)
        if self.renorm:
            r, d, *_ = self._renorm_correction_and_moments(batch.mean, batch.variance)
            gamma, beta = self._compose_transforms(r, d, gamma, beta, inputs.dtype)
        return self._normalized(inputs, batch.mean, batch.variance, gamma, beta), batch

    def _obstacle_to_fusing(self, inputs: Tensor, mask: Tensor | None) -> str | None:
        """What keeps this call from the fused path, in words; None when nothing does."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if not fused.available(dtype):
            return f"{dtype} inputs on the {keras.backend.backend()} backend"
        if len(self._channel_axes) > 1:
            return f"several channel axes (axis={self.axis})"
        if mask is not None:
            return "a mask"
        if self.synchronized:
            return "synchronized=True"
        if self.renorm:
            return "renorm=True"
        return None

    def _normalized(
        self,
        inputs: Tensor,
        mean: Tensor,
        variance: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
    ) -> Tensor:
        if len(self._channel_axes) == 1:
            outputs = ops.batch_normalization(
                inputs,
                mean,
                variance,
                axis=self.axis,
                offset=beta,
                scale=gamma,
                epsilon=self.epsilon,
            )
        else:
            shape = [
                inputs.shape[axis] if axis in self._channel_axes else 1
                for axis in range(len(inputs.shape))
            ]
            slope = ops.rsqrt(variance + self.epsilon)
            slope = slope if gamma is None else slope * gamma
            offset = -mean * slope if beta is None else beta - mean * slope
            outputs = inputs * ops.reshape(slope, shape) + ops.reshape(offset, shape)
        return ops.cast(outputs, self.compute_dtype)

    def _gamma_and_beta(self, dtype: str) -> tuple[Tensor | None, Tensor | None]:
        gamma = ops.cast(self.gamma, dtype) if self.scale else None
        beta = ops.cast(self.beta, dtype) if self.center else None
        return gamma, beta

    def _add_statistic(self, name: str, shape: tuple[int, ...], initializer: Any) -> Any:
        # A float16 average stops moving once its steps are below a thousandth of it, and
        # cannot hold a variance above 65504.
        return _per_replica(
            shape=shape,
            name=name,
            initializer=initializer,
            dtype=computing_dtype(self.variable_dtype),
            aggregation="mean",
        )

    def _initial_stddev(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        return ops.sqrt(self.moving_variance_initializer(shape, dtype=dtype))

    def _track(self, batch: Moments) -> None:
        """Move the statistics towards those of `batch`."""
        momentum = self._momentum_now()
        variance = unbiased_variance(batch) if self.unbiased else batch.variance
        has_mean, has_variance = batch.count > 0, batch.count > self._too_few
        _move(self.moving_mean, batch.mean, momentum, has_mean)
        if self.renorm:
            # Batch renormalization averages standard deviations. Those it corrects training
            # batches by are compared with σ_B, so Bessel's factor has no place in them.
            batch_stddev = ops.sqrt(batch.variance + self.epsilon)
            _move(self.renorm_mean, batch.mean, self.renorm_momentum, has_mean)
            _move(self.renorm_stddev, batch_stddev, self.renorm_momentum, has_mean)
            stddev = ops.sqrt(variance + self.epsilon)
            _move(self.moving_stddev, stddev, momentum, has_variance)
            variance = ops.relu(ops.square(self.moving_stddev) - self.epsilon)
            momentum = 0.0
        _move(self.moving_variance, variance, momentum, has_variance)
        self._count_batch(batch)

    @property
    def _too_few(self) -> int:
        """Elements from which no variance can be had: one has none about its own mean."""
        return 1 if self.unbiased else 0

    def _momentum_now(self) -> Any:
        """The share of the moving statistics that the coming batch leaves."""
        if self.num_batches_tracked is None:
            return self.momentum
        earlier = ops.cast(self.num_batches_tracked, self.moving_mean.dtype)
        all_alike = earlier / (earlier + 1)
        if self.momentum is None:
            return all_alike
        return ops.minimum(all_alike, self.momentum * ops.ones_like(all_alike))

    def _count_batch(self, batch: Moments) -> None:
        if self.num_batches_tracked is None:
            return
        # Until one batch had a variance, the moving variance is its initial value, which must
        # not be averaged into the first.
        earlier = ops.convert_to_tensor(self.num_batches_tracked)
        counts = (batch.count > 0) & ((earlier > 0) | (batch.count > self._too_few))
        if len(earlier.shape) == 0:
            counts = ops.any(counts)
        self.num_batches_tracked.assign(earlier + ops.cast(counts, "int32"))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "debias": self.debias,
            "unbiased": self.unbiased,
            "fused": self.fused,
        }


def _per_replica(**options: Any) -> Any:
    """A weight for `build` that each replica moves by itself and that reads as their aggregate.

    `Layer.add_weight` cannot ask for that. Its weights also diverge between replicas when they
    are moved, but read and save as the first replica's alone. Nothing is sent between the
    replicas while they train, so layers may be called inside loops and compiled functions.
    """
    return keras.Variable(**options, trainable=False, autocast=False, synchronization="on_read")


def _move(statistic: Any, value: Tensor, momentum: Any, where: Tensor | bool) -> None:
    """statistic ← momentum·statistic + (1 − momentum)·value, in the channels where `where`."""
    # Numbers stay numbers: of those that Keras's operations and variables are given they make
    # tensors, which PyTorch would send to a GPU one by one, waiting for it each time.
    known = isinstance(where, bool)
    share = (1 - momentum) * (float(where) if known else ops.cast(where, statistic.dtype))
    before = ops.convert_to_tensor(statistic)
    value = ops.cast(value, statistic.dtype)
    statistic.assign(before * (1 - share) + value * share)


def _validated_axis(axis: Any) -> int | list[int]:
    several = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    if not several or not all(_is_integer(one) for one in several):
        raise TypeError(f"`axis` must be an integer or several. Received: axis={axis!r}")
    several = [int(one) for one in several]
    if 0 in several:
        raise ValueError(
            "`axis` must not be the batch axis, 0: the statistics are taken over it. "
            f"Received: axis={axis!r}"
        )
    return several[0] if len(several) == 1 else several


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _validated_momentum(momentum: Any) -> float | None:
    if momentum is None:
        return None
    if not isinstance(momentum, Real) or isinstance(momentum, bool):
        raise TypeError(f"`momentum` must be a number or None. Received: momentum={momentum!r}")
    if not 0 <= float(momentum) <= 1:
        raise ValueError(
            "`momentum` must be in [0, 1], or None to average over all batches alike. "
            f"Received: momentum={momentum!r}"
        )
    return float(momentum)


def _validated_epsilon(epsilon: Any) -> float:
    if not isinstance(epsilon, Real) or isinstance(epsilon, bool):
        raise TypeError(f"`epsilon` must be a number. Received: epsilon={epsilon!r}")
    if not 0 < float(epsilon) < math.inf:
        raise ValueError(f"`epsilon` must be positive and finite. Received: epsilon={epsilon!r}")
    return float(epsilon)


def _validated_fused(fused: Any) -> bool | None:
    if fused is not None and not isinstance(fused, bool):
        raise TypeError(f"`fused` must be None, True or False. Received: fused={fused!r}")
    return fused


def _channels(axis: int | list[int], input_shape: Sequence[int | None]) -> dict[int, int]:
    """The channel axes of inputs of `input_shape`, counted from the front, and their sizes."""
    rank = len(input_shape)
    several = axis if isinstance(axis, list) else [axis]
    for one in several:
        if not -rank <= one < rank:
            raise ValueError(
                f"Axis {one} is out of bounds for inputs of shape {tuple(input_shape)}. "
                f"Received: axis={axis}"
            )
    counted = sorted(one % rank for one in several)
    if counted[0] == 0:
        raise ValueError(
            f"`axis` must not be the batch axis, which {-rank} is for inputs of shape "
            f"{tuple(input_shape)}. Received: axis={axis}"
        )
    if len(set(counted)) < len(counted):
        raise ValueError(
            f"`axis` must not name an axis twice. Received: axis={axis} for inputs of shape "
            f"{tuple(input_shape)}"
        )
    channels: dict[int, int] = {}
    for one in counted:
        size = input_shape[one]
        if size is None:
            raise ValueError(
                f"The size of channel axis {one} must be known when the layer is built, since "
                f"its weights have it. Received: input_shape={tuple(input_shape)}, axis={axis}"
            )
        channels[one] = size
    return channels
