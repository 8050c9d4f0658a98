"""What affines pass through: operations that leave channels alone, under a condition.

Each rule says which affines on an operation's inputs go with which affines on its outputs:
op(affine₁(x₁), affine₂(x₂), …) = affine(op(x₁, x₂, …)) for all inputs. Where several assignments
hold, as in front of an addition, whose inputs may share a shift in any way, a rule gives them in
the order in which they are to be tried.
"""

from __future__ import annotations

from typing import Any

from keras import layers
from keras.src.ops import numpy as operators

from keras_bn.fold.affine import Refused
from keras_bn.fold.transmit import (
    blocks,
    elementwise,
    joins,
    merges,
    places,
    products,
    slices,
    windows,
    wrappers,
)
from keras_bn.fold.transmit.elementwise import NOTHING
from keras_bn.fold.transmit.rule import Assignment, Call, Transmit
from keras_bn.fold.transmit.slices import SLICES
from keras_bn.graph.view import Node, Tensor, first_argument

__all__ = ["NOTHING", "RULES", "SLICES", "Assignment", "Call", "Transmit", "rule_for", "tensors_of"]

RULES = (
    *elementwise.RULES,
    *places.RULES,
    *slices.RULES,
    *joins.RULES,
    *blocks.RULES,
    *windows.RULES,
    *merges.RULES,
    *products.RULES,
)


_BY_CLASS = {kind: rule for rule in RULES for kind in rule.operations}

_OF_TWO = (
    operators.Add,
    operators.Append,
    operators.Matmul,
    operators.Maximum,
    operators.Minimum,
    operators.Multiply,
    operators.Subtract,
)
"""What takes tensors in two arguments, and nothing else."""


def rule_for(operation: Any) -> Transmit | None:
    """The rule that covers `operation`, or None: unknown operations stop every affine."""
    if type(operation) is layers.TimeDistributed:
        inside = rule_for(operation.layer)
        return inside and wrappers.at_every_step(inside)
    if type(operation) in wrappers.PIPELINE:
        rules = [rule_for(layer) for layer in operation.layers]
        known = [rule for rule in rules if rule is not None]
        return wrappers.one_after_the_other(known) if len(known) == len(rules) else None
    return _BY_CLASS.get(type(operation))


def tensors_of(node: Node, masked: frozenset[Tensor]) -> tuple[Tensor, ...]:
    """The inputs of the call at `node` that the affines of an assignment stand for.

    Raises:
        Refused: the call does more than its operation's inference on them.
    """
    if node.training and not isinstance(
        node.operation, (*elementwise.AUGMENTATION, *windows.ON_IMAGES, *wrappers.PIPELINE)
    ):
        raise Refused(f"'{node.path}' is called with training=True")
    if isinstance(node.operation, layers.Multiply) and not masked.isdisjoint(node.inputs):
        raise Refused(f"'{node.path}' multiplies under a mask")
    of_two = isinstance(node.operation, _OF_TWO)
    if node.constants and not isinstance(node.operation, merges.WITH_CONSTANTS):
        data = node.constants if of_two else {first_argument(node.operation)}
        if not node.constants.keys().isdisjoint(data):
            raise Refused(f"'{node.path}' combines it with a constant")
    if of_two:
        return node.tensors
    masks = node.others.get("mask", ()) if _goes_by_masks(node.operation) else ()
    if len(node.side_inputs) > len(masks):
        raise Refused(f"'{node.path}' is called with further tensors")
    return node.inputs


def _goes_by_masks(operation: Any) -> bool:
    """Whether a mask leaves to `operation` what its rule says."""
    if type(operation) is layers.TimeDistributed:
        return not operation.layer._call_has_mask_arg
    return isinstance(operation, layers.GlobalAveragePooling1D)  # of fewer elements
