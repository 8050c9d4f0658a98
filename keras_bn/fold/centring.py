"""The first half of a layer normalization, its centring, folded into the layer in front.

    LN(z) = γ·(z − mean z)/√(var z + ε) + β        z = Wx + b, mean and variance over z's features

The mean over the features is linear in W and b. With it taken out of them, z has mean 0, its
variance is its mean square, and LN is a root mean square normalization. In LiteRT, a dense layer,
the normalization and another dense layer are 13 operations as Keras has them, 11 once γ and β
have gone into the second (`affine_end`), and 7 with the centring in the first. A β that could not
go, as in front of most activations, is an addition of its own, and they are 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_bn.fold.absorb.rule import Arrays, Change
from keras_bn.fold.affine import Affine, Array, Refused
from keras_bn.layers import LayerNormalization

_LINEAR = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


def centred(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """The kernel and bias with which Wx + b comes out less its mean over the outputs.

    Args:
        kernel: (…, inputs, outputs).
        bias: (outputs,).
    """
    return kernel - np.mean(kernel, axis=-1, keepdims=True), bias - np.mean(bias)


@dataclass(frozen=True)
class Centring:
    """What becomes of a linear layer and the layer normalization that alone reads it.

    Attributes:
        change: The change of the linear layer's weights; it needs no array that it does not have.
        stand_in: Makes the root mean square normalization that takes the other's place, with an
            addition behind it where there is a β left.
        weights: The weights of that.
    """

    change: Change
    stand_in: Callable[[], keras.Layer]
    weights: Arrays


def centring(linear: Any, normalization: Any, end: Affine) -> Centring:
    """Let `linear` take the mean that `normalization`, which follows it, subtracts.

    Args:
        linear: A Dense layer, or a convolution with its channels last.
        normalization: A layer normalization over its outputs, called without a mask.
        end: What is left of its γ and β.

    Raises:
        Refused: the layers compute something else.
    """
    if type(linear) not in _LINEAR or getattr(linear, "groups", 1) > 1:
        raise Refused(f"'{linear.name}' ({type(linear).__name__}) does not mix all its inputs")
    if linear.activation is not keras.activations.linear:
        raise Refused(f"'{linear.name}' has an activation, behind which no mean is linear")
    if getattr(linear, "data_format", "channels_last") != "channels_last":
        raise Refused(f"'{linear.name}' does not have its channels last")
    if type(normalization) not in (layers.LayerNormalization, LayerNormalization):
        raise Refused(f"'{normalization.name}' is not a layer normalization")
    if normalization.rms_scaling:
        raise Refused(f"'{normalization.name}' subtracts no mean")
    rank = len(normalization.get_build_config()["input_shape"])
    if [axis % rank for axis in normalization.axis] != [rank - 1]:
        raise Refused(f"'{normalization.name}' normalises over other axes than the features")
    features = linear.kernel.shape[-1]

    def change(weights: Arrays) -> Arrays:
        kernel, bias = centred(weights["kernel"], weights.get("bias", np.zeros(features)))
        return {"kernel": kernel, "bias": bias} if "bias" in weights else {"kernel": kernel}

    policy = normalization.dtype_policy
    scale, shift = (
        np.broadcast_to(array.reshape(-1), features) for array in (end.scale, end.shift)
    )

    def divided() -> keras.Layer:
        return layers.RMSNormalization(epsilon=normalization.epsilon, dtype=policy)

    if not end.shifts:
        return Centring(change, divided, {"scale": scale})
    return Centring(
        change,
        lambda: keras.Sequential([divided(), layers.Rescaling(1.0, shift, dtype=policy)]),
        {"layers.0.scale": scale},
    )
