"""Attention with projections: queries, keys and values are products with kernels, the output too.

An affine in front goes into the projections of those roles that its tensor has; one behind goes
into the output's. Scores are products of projected queries and keys, and any projection with a
bias takes any scale and shift of the features in, so both are exact whatever the mask.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_bn.fold.absorb import einsum
from keras_bn.fold.absorb.rule import (
    Absorb,
    Arrays,
    Change,
    Reading,
    from_inside,
    from_outside,
    refusing_inside,
    require_plain_weights,
    with_bias,
)
from keras_bn.fold.affine import Affine, Refused

# What projects each argument of the call; the gate, where there is one, is made of the query.
_PROJECTIONS = {
    "query": ("_query_dense", "_gate_dense"),
    "key": ("_key_dense",),
    "value": ("_value_dense",),
}
_OUTPUT = "_output_dense"


def _has(layer: Any, projection: str) -> bool:
    return getattr(layer, projection, None) is not None


def _read(layer: Any) -> Arrays:
    projections = [name for names in _PROJECTIONS.values() for name in names]
    return {
        path: value
        for name in (*projections, _OUTPUT)
        if _has(layer, name)
        for path, value in from_outside(name, einsum.read(getattr(layer, name))).items()
    }


def _backward(layer: Any, affine: Affine) -> Change:
    with refusing_inside(layer):
        require_plain_weights(layer)
        return _inside({_OUTPUT: einsum.backward(getattr(layer, _OUTPUT), affine)})


def _forward(layer: Any, affine: Affine, reading: Reading) -> Change:
    roles = set(reading.arguments)
    if "value" in roles and "key" not in reading.given:
        roles.add("key")
    for role in roles - _PROJECTIONS.keys():
        raise Refused(f"'{layer.name}' reads it as `{role}`")
    names = [name for role in sorted(roles) for name in _PROJECTIONS[role] if _has(layer, name)]
    with refusing_inside(layer):
        require_plain_weights(layer)
        return _inside(
            {name: einsum.forward(getattr(layer, name), affine, reading.shape) for name in names}
        )


def _inside(changes: dict[str, Change]) -> Change:
    """The change of the whole layer's weights out of those of its projections."""

    def change(weights: Arrays) -> Arrays:
        new = dict(weights)
        for name, change_part in changes.items():
            new |= from_outside(name, change_part(from_inside(name, weights)))
        return new

    return change


# BN(MHA(q, v)) -> MHA(q, v), MHA(BN(x), BN(x)) -> MHA(x, x); a layer without biases gains them all
RULES = (
    Absorb(
        (layers.MultiHeadAttention, layers.GroupQueryAttention),
        _read,
        _backward,
        _forward,
        with_bias,
    ),
)
