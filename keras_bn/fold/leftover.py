"""What stands where a part of an affine is left: the layer that takes the fewest operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_bn.fold import absorb
from keras_bn.fold.absorb.normalization import affine_end
from keras_bn.fold.affine import Affine, Array, Shape
from keras_bn.fold.sources import Met, gamma_beta, read_batch_norm, spread
from keras_bn.graph.view import Node
from keras_bn.layers import BatchNormalization


@dataclass(frozen=True)
class Leftover:
    """How an operation comes to do what is left of it.

    Attributes:
        layer: Makes the layer that stands in for the operation; None: its own layer stays.
        weights: Gives the layer's weights, by name.
        config: Constructor arguments of the operation's own layer that differ.
    """

    layer: Callable[[], keras.Layer] | None
    weights: Callable[[], dict[str, Array]]
    config: Mapping[str, Any] = field(default_factory=dict)


def leftover(
    node: Node, affine: Affine, met: Met, shape: Shape, dtype: str, one_operation: bool
) -> Leftover:
    """What `node` becomes when `affine` is left of what it did to tensors of `shape` and `dtype`.

    By now it meets `met`.

    A shift alone is one addition, which LiteRT runs together with a ReLU behind it, and a scale
    alone one multiplication. A batch normalization of which both are left stays one, unless
    `one_operation` asks for what `is_depthwise` tells of.
    """
    layer = node.operation
    policy = getattr(layer, "dtype_policy", dtype)  # operators have none
    if one_operation and is_depthwise(affine, shape):
        return _depthwise(policy, affine, shape[-1])
    whole = affine.scales and affine.shifts
    if whole and isinstance(layer, layers.BatchNormalization) and _fits(layer, affine.scale):
        config = {"center": True, "scale": True}
        return Leftover(None, lambda: _batch_norm_weights(layer, affine, met.mean), config)
    if affine.scales and _misplaced(affine.scale):
        return _batch_normalization(policy, affine)
    # Arrays, since Keras reads lists as float32 even where the layer computes in float64.
    scale: Any = affine.scale if affine.scales else 1.0
    shift: Any = affine.shift if affine.shifts else 0.0
    return Leftover(lambda: layers.Rescaling(scale, shift, dtype=policy), dict)


def _misplaced(scale: Array) -> bool:
    """Whether a Rescaling would take `scale` for one of channels in front of an image.

    Where images have their channels first, Keras appends axes to what has fewer than three.
    """
    return (
        keras.config.image_data_format() == "channels_first" and scale.size > 1 and scale.ndim < 3
    )


def is_depthwise(affine: Affine, shape: Shape) -> bool:
    """Whether `affine` is what a depthwise convolution of one tap does to images of `shape`.

    LiteRT runs that as one operation, with a ReLU behind it included, instead of a multiplication
    and an addition. Alone, either of those is faster.
    """
    per_channel = len(shape) == 3 and shape[-1] is not None and affine.shape[:2] == (1, 1)
    return per_channel and affine.scales and affine.shifts


def _depthwise(policy: Any, affine: Affine, channels: Any) -> Leftover:
    def weights() -> dict[str, Array]:
        scale, shift = (
            np.broadcast_to(array.reshape(-1), channels) for array in (affine.scale, affine.shift)
        )
        return {"kernel": scale.reshape(1, 1, -1, 1), "bias": shift}

    return Leftover(
        lambda: layers.DepthwiseConv2D(1, data_format="channels_last", dtype=policy), weights
    )


def _batch_normalization(policy: Any, affine: Affine) -> Leftover:
    """One of mean 0 and variance 1, over the axes that `affine` varies along."""
    axes = [axis + 1 for axis, length in enumerate(affine.shape) if length != 1]
    layer = BatchNormalization(axis=axes, center=affine.shifts, dtype=policy)
    scale, shift = affine.scale.squeeze(), affine.shift.squeeze()
    zero, one = np.zeros_like(scale), np.ones_like(scale)
    gamma, beta = gamma_beta(scale, shift, zero, one, layer.epsilon)
    weights = {"gamma": gamma, "moving_mean": zero, "moving_variance": one}
    if affine.shifts:
        weights["beta"] = beta
    return Leftover(lambda: type(layer).from_config(layer.get_config()), lambda: weights)


def _fits(layer: Any, array: Array) -> bool:
    """Whether `array` varies along no other axes than the batch normalization `layer`."""
    own = spread(layer, np.empty(layer.moving_mean.shape), array.ndim).shape
    return all(length in (1, size) for length, size in zip(array.shape, own, strict=True))


def _batch_norm_weights(layer: Any, affine: Affine, mean: Array) -> dict[str, Array]:
    """The gamma, beta and moving mean with which `layer` is `affine`, on values of mean `mean`.

    What s·(x − μ) + β rounds is least where μ is the mean of what comes in. That of what came in
    once, in other units perhaps, would be large beside it and leave a β that cancels it.
    """
    weights = read_batch_norm(layer)
    variance = weights["moving_variance"]
    own = spread(layer, variance, len(affine.shape)).shape
    scale, shift = (
        np.broadcast_to(array, own).reshape(variance.shape)
        for array in (affine.scale, affine.shift)
    )
    if not _fits(layer, mean):  # which is of values that are multiplied by zero
        mean = np.zeros_like(mean, shape=own)
    mean = np.broadcast_to(mean, own).reshape(variance.shape)
    with np.errstate(over="ignore"):
        stored = np.float32(mean)
    mean = np.where(np.isfinite(stored), stored, 0.0)
    gamma, beta = gamma_beta(scale, shift, mean, variance, layer.epsilon)
    return {"gamma": gamma, "beta": beta, "moving_mean": mean}


def end_leftover(node: Node, affine: Affine) -> Leftover:
    """What the normalization called at `node` becomes when `affine` is left of its own."""
    layer = node.operation
    if affine.is_identity:
        end = affine_end(layer, len(affine.shape))
        assert end is not None
        return Leftover(None, lambda: end.weights, end.config)
    rule = absorb.rule_for(layer)
    assert rule is not None and rule.backward is not None
    change = rule.backward(layer, affine)
    config, needed = rule.gains(layer), set(rule.read(layer))
    if needed == {"gamma", "beta"}:  # to multiply by 1 or to add 0 would be an operation as well
        config = {"scale": affine.scales, "center": affine.shifts}
        needed = {name for name, has in zip(("gamma", "beta"), config.values(), strict=True) if has}

    def weights() -> dict[str, Array]:
        shapes = {name: value.shape for name, value in rule.read(layer).items()}
        one = {name: np.full(shape, float(name != "beta")) for name, shape in shapes.items()}
        return {name: value for name, value in change(one).items() if name in needed}

    return Leftover(None, weights, config)
