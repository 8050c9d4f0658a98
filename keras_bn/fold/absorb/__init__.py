"""Where affines end: layers that take one into their weights, before or after themselves.

`algebra` holds the arithmetic, as pure functions of float64 arrays; the other modules say, one
family of layers each, which layer uses which and under what condition.
"""

from __future__ import annotations

from typing import Any

from keras_bn.fold.absorb import (
    attention,
    convolutions,
    einsum,
    embedding,
    normalization,
    recurrent,
    wrappers,
)
from keras_bn.fold.absorb.rule import Absorb, Arrays, Change, Reading

__all__ = ["RULES", "TRAIN_OTHERWISE", "Absorb", "Arrays", "Change", "Reading", "rule_for"]

RULES = (
    *convolutions.RULES,
    *einsum.RULES,
    *attention.RULES,
    *embedding.RULES,
    *recurrent.RULES,
    *normalization.RULES,
    *wrappers.RULES,
)

_BY_CLASS = {kind: rule for rule in RULES for kind in rule.layers}

TRAIN_OTHERWISE = (*attention.RULES, *recurrent.RULES, *wrappers.RULES)
"""The rules for layers that compute something else when they are told to train."""


def rule_for(layer: Any) -> Absorb | None:
    """The rule that covers `layer`, or None; a wrapper needs one for the layer inside it."""
    rule = _BY_CLASS.get(type(layer))
    if rule in wrappers.RULES and wrappers.rule_inside(layer) is None:
        return None
    return rule
