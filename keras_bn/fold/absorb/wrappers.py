"""TimeDistributed: the layer inside it takes the affine in, which must be that of every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import layers

from keras_bn.fold.absorb import convolutions, einsum, embedding, normalization, recurrent
from keras_bn.fold.absorb.rule import (
    Absorb,
    Arrays,
    Change,
    Reading,
    first_argument,
    from_inside,
    from_outside,
    only_argument,
    rebuilt_around,
    refusing_inside,
    require_plain_weights,
)
from keras_bn.fold.affine import Affine, Refused


def _rule_inside(layer: Any) -> Absorb:
    """The rule for the layer inside `layer`, another TimeDistributed perhaps."""
    inner = layer.layer
    rule = next((rule for rule in _INSIDE + RULES if type(inner) in rule.layers), None)
    if rule is None:
        raise Refused(f"'{inner.name}' ({type(inner).__name__}) takes no scale and shift in")
    return rule


def _of_a_step(affine: Affine) -> Affine:
    """The affine without its axis of time steps."""
    if not affine.constant_along([0]):
        raise Refused("its scale and shift vary from step to step, the weights do not")
    return affine.map(lambda array: array[0])


def _read(layer: Any) -> Arrays:
    return from_outside("layer", _rule_inside(layer).read(layer.layer))


def _backward(layer: Any, affine: Affine) -> Change:
    with refusing_inside(layer):
        rule = _rule_inside(layer)
        require_plain_weights(layer)
        if rule.backward is None:
            raise Refused(f"'{layer.layer.name}' takes no scale and shift in behind it")
        if rule.zeroed_by_mask and affine.shifts:
            raise Refused(f"'{layer.layer.name}' may give zeros at masked steps, without a shift")
        return _of_the_wrapper(rule.backward(layer.layer, _of_a_step(affine)))


def _forward(layer: Any, affine: Affine, reading: Reading) -> Change:
    only_argument(layer, reading)
    with refusing_inside(layer):
        rule = _rule_inside(layer)
        require_plain_weights(layer)
        if rule.forward is None:
            raise Refused(f"'{layer.layer.name}' takes no scale and shift in before it")
        argument = (first_argument(layer.layer),)
        step = Reading(argument, reading.shape[1:], argument)
        return _of_the_wrapper(rule.forward(layer.layer, _of_a_step(affine), step))


def _of_the_wrapper(change: Change) -> Change:
    return lambda weights: from_outside("layer", change(from_inside("layer", weights)))


def _gains(layer: Any) -> Mapping[str, Any]:
    return rebuilt_around(layer, "layer", _rule_inside(layer).gains(layer.layer))


_INSIDE = (
    *convolutions.RULES,
    *einsum.RULES,
    *embedding.RULES,
    *normalization.RULES,
    *recurrent.RULES,
)

# BN(TimeDistributed(Conv)(x)) -> TimeDistributed(Conv)(x), and in front likewise
RULES = (Absorb((layers.TimeDistributed,), _read, _backward, _forward, _gains),)
