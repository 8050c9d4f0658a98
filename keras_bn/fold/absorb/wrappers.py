"""Wrappers: the layer inside takes the affine in, which must be that of every step."""

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


def rule_inside(layer: Any) -> Absorb | None:
    """The rule for the layer inside `layer`, another wrapper perhaps."""
    inner = layer.layer
    rule = next((rule for rule in _INSIDE + RULES if type(inner) in rule.layers), None)
    return None if rule in RULES and rule_inside(inner) is None else rule


def _rule_inside(layer: Any) -> Absorb:
    rule = rule_inside(layer)
    assert rule is not None  # else none covers `layer`
    return rule


def _read(layer: Any) -> Arrays:
    return from_outside("layer", _rule_inside(layer).read(layer.layer))


def _wrapper_rule(wrapper: type, steps: int) -> Absorb:
    """The rule for layers of the class `wrapper`, which call a layer for `steps` axes each."""

    def inside(affine: Affine) -> Affine:
        if not affine.constant_along(range(steps)):
            raise Refused("its scale and shift vary from step to step, the weights do not")
        return affine.map(lambda array: array[(0,) * steps])

    def backward(layer: Any, affine: Affine) -> Change:
        with refusing_inside(layer):
            rule = _rule_inside(layer)
            require_plain_weights(layer)
            if rule.backward is None:
                raise Refused(f"'{layer.layer.name}' takes no scale and shift in behind it")
            return _of_the_wrapper(rule.backward(layer.layer, inside(affine)))

    def forward(layer: Any, affine: Affine, reading: Reading) -> Change:
        only_argument(layer, reading)
        with refusing_inside(layer):
            rule = _rule_inside(layer)
            require_plain_weights(layer)
            if rule.forward is None:
                raise Refused(f"'{layer.layer.name}' takes no scale and shift in before it")
            argument = (first_argument(layer.layer),)
            step = Reading(argument, reading.shape[steps:], argument)
            return _of_the_wrapper(rule.forward(layer.layer, inside(affine), step))

    return Absorb((wrapper,), _read, backward, forward, _gains, _zeroed_by_mask)


def _of_the_wrapper(change: Change) -> Change:
    return lambda weights: from_outside("layer", change(from_inside("layer", weights)))


def _gains(layer: Any) -> Mapping[str, Any]:
    return rebuilt_around(layer, "layer", _rule_inside(layer).gains(layer.layer))


def _zeroed_by_mask(layer: Any) -> bool:
    return _rule_inside(layer).zeroed_by_mask(layer.layer)


_INSIDE = (
    *convolutions.RULES,
    *einsum.RULES,
    *embedding.RULES,
    *normalization.RULES,
    *recurrent.RULES,
)

RULES = (
    # BN(TimeDistributed(Conv)(x)) -> TimeDistributed(Conv)(x), and in front likewise
    _wrapper_rule(layers.TimeDistributed, steps=1),
    # BN(SpectralNormalization(Conv)(x)): in inference nothing but the layer inside is called
    _wrapper_rule(layers.SpectralNormalization, steps=0),
)
