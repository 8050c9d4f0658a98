"""EinsumDense: a product of the input and a kernel along any axes, and a bias.

An axis of the kernel is summed over (it is the input's too), or new in the output, or the
input's and the output's alike. Along any of these a scale goes into the kernel. A shift goes into
the bias, which is extended to all axes that the kernel and the output share. What varies along
an axis that the input hands on, and that the kernel does not have, has no place: positions of a
sequence, say.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from keras import layers

from keras_bn.fold.absorb import algebra
from keras_bn.fold.absorb.algebra import Einsum
from keras_bn.fold.absorb.rule import (
    Absorb,
    Arrays,
    Change,
    Reading,
    array,
    before_activation,
    only_argument,
    require_added_along,
)
from keras_bn.fold.affine import Affine, Array, Refused, Shape, known


def axes_of(layer: Any) -> Einsum:
    """The axes of the layer's equation, those of an ellipsis spelled out."""
    terms = re.split(",|->", layer.equation)
    elided = layer.input_spec.ndim - len(terms[0].replace("...", ""))
    unused = [letter for letter in string.ascii_letters if letter not in layer.equation]
    ellipsis = "".join(unused[:elided])
    inputs, kernel, outputs = (term.replace("...", ellipsis) for term in terms)
    batch = inputs[0]
    if outputs[0] != batch or batch in kernel + (layer.bias_axes or ""):
        raise Refused(f"'{layer.name}' ({layer.equation}) does more than hand the batch axis on")
    if any(len(set(term)) < len(term) for term in (inputs, kernel, outputs)):
        raise Refused(f"'{layer.name}' ({layer.equation}) takes diagonals")
    return Einsum(inputs[1:], kernel, outputs[1:])


def _bias_axes(layer: Any, axes: Einsum) -> str:
    """The axes of the output that the bias varies along once it is extended."""
    own = layer.bias_axes or ""
    return "".join(axis for axis in axes.output if axis in axes.kernel or axis in own)


def _gains(layer: Any) -> Mapping[str, Any]:
    return {"bias_axes": _bias_axes(layer, axes_of(layer)) or None}


def read(layer: Any) -> Arrays:
    """The kernel, and the extended bias: from the first axis on that it varies along."""
    axes = axes_of(layer)
    weights = {"kernel": array(layer.kernel)}
    bias_axes = _bias_axes(layer, axes)
    if bias_axes:
        own = np.zeros(()) if layer.bias is None else array(layer.bias)
        own = own.reshape((1,) * (len(axes.output) - own.ndim) + own.shape)
        lengths = dict(zip(axes.output, own.shape, strict=True))
        lengths |= dict(zip(axes.kernel, layer.kernel.shape, strict=True))
        bias = np.broadcast_to(own, [lengths[a] if a in bias_axes else 1 for a in axes.output])
        weights["bias"] = bias.reshape(bias.shape[axes.output.index(bias_axes[0]) :])
    return weights


def backward(layer: Any, affine: Affine) -> Change:
    """The change of weights with which the layer gives affine(output)."""
    axes = axes_of(layer)
    _require_added_right(layer, axes, layer.get_build_config()["input_shape"][1:])
    affine = before_activation(layer, affine)
    s = _along(layer, "scale", affine.scale, axes.output, axes.kernel)
    t = _along(layer, "shift", affine.shift, axes.output, _shift_axes(layer, axes, affine))
    return lambda weights: _changed(
        weights, *algebra.einsum_backward(axes, weights["kernel"], _whole_bias(weights, axes), s, t)
    )


def forward(layer: Any, affine: Affine, shape: Shape) -> Change:
    """The change of weights with which the layer gives from x what it gave from affine(x).

    `shape` is that of the input without its batch axis.
    """
    axes = axes_of(layer)
    _require_added_right(layer, axes, shape)
    s = _along(layer, "scale", affine.scale, axes.input, axes.kernel)
    summed = [axis for axis in axes.input if axis not in axes.output]
    where = {*summed, *axes.kernel, *_shift_axes(layer, axes, affine)}
    t = _along(layer, "shift", affine.shift, axes.input, where)
    of_kernel = dict(zip(axes.kernel, layer.kernel.shape, strict=True))
    lengths = [
        of_kernel.get(axis, length if axis in summed else own)
        for axis, length, own in zip(axes.input, shape, t.shape, strict=True)
    ]
    if not affine.shifts:
        lengths = [length or 1 for length in lengths]  # zeros add up to zero over any length
    t = np.broadcast_to(t, known(lengths))
    return lambda weights: _changed(
        weights, *algebra.einsum_forward(axes, weights["kernel"], _whole_bias(weights, axes), s, t)
    )


def _require_added_right(layer: Any, axes: Einsum, shape: Shape) -> None:
    """Refuse a bias, as it is or once it is extended, that Keras adds along another axis."""
    lengths = dict(zip(axes.input, shape, strict=True))
    lengths |= zip(axes.kernel, layer.kernel.shape, strict=True)
    output = [lengths[axis] for axis in axes.output]
    for bias_axes in (layer.bias_axes or "", _bias_axes(layer, axes)):
        varying = [axes.output.index(axis) for axis in bias_axes if lengths[axis] != 1]
        if len(varying) == 1:
            require_added_along(layer, varying[0], output)


def _shift_axes(layer: Any, axes: Einsum, affine: Affine) -> str:
    """The axes of the output along which a shift has a place, in the bias."""
    bias_axes = _bias_axes(layer, axes)
    if affine.shifts and not bias_axes:
        raise Refused(f"'{layer.name}' ({layer.equation}) can have no bias, its output no feature")
    return bias_axes


def _along(layer: Any, what: str, values: Array, axes: str, allowed: Collection[str]) -> Array:
    """`values`, which have `axes`, with length 1 along those that are not `allowed`.

    Raises:
        Refused: they vary along one of those.
    """
    for position, axis in enumerate(axes):
        if axis not in allowed:
            first = values.take([0], position)
            if not np.array_equal(np.broadcast_to(first, values.shape), values):
                raise Refused(
                    f"the {what} varies along axis {position + 1}, along which '{layer.name}' "
                    f"({layer.equation}) has no weights"
                )
            values = first
    return values


def _whole_bias(weights: Arrays, axes: Einsum) -> Array:
    """The bias with all axes of the output."""
    bias = weights.get("bias", np.zeros(()))
    return bias.reshape((1,) * (len(axes.output) - bias.ndim) + bias.shape)


def _changed(weights: Arrays, kernel: Array, bias: Array) -> Arrays:
    if "bias" not in weights:  # and no shift was let in
        return {"kernel": kernel}
    return {"kernel": kernel, "bias": bias.reshape(weights["bias"].shape)}


def _in_front(layer: Any, affine: Affine, reading: Reading) -> Change:
    only_argument(layer, reading)
    return forward(layer, affine, reading.shape)


# BN(EinsumDense(x)) -> EinsumDense(x), EinsumDense(BN(x)) -> EinsumDense(x)
RULES = (Absorb((layers.EinsumDense,), read, backward, _in_front, _gains),)
