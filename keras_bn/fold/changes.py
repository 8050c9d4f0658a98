"""What a plan comes to for the model: which calls go, and what layers become."""

from __future__ import annotations

from functools import partial
from typing import Any

from keras_bn.fold import absorb
from keras_bn.fold.affine import Affine, Refused
from keras_bn.fold.centring import Centring, centring
from keras_bn.fold.leftover import end_leftover, is_depthwise, leftover
from keras_bn.fold.masks import is_masked
from keras_bn.fold.move import Landing, check_call
from keras_bn.fold.state import Copy, State, taken_in
from keras_bn.graph.rebuild import Changes
from keras_bn.graph.view import Site

# In others, normalizations choose for themselves what they compute in.
_FULL = ("float32", "float64")


def changes(before: dict[Site, Affine], state: State, one_operation: bool) -> Changes:
    """What the plan comes to for the model."""
    centrings = _centrings(state) if one_operation else {}
    absorbed = dict(state.absorbed)
    for linear, centred in centrings.values():
        known = taken_in(absorbed, linear)
        absorbed[id(linear)] = known.then(centred.change)
    weights: dict[int, Any] = dict(absorbed)
    config = {key: taken.rule.gains(taken.layer) for key, taken in absorbed.items()}
    replaced: dict[int, Any] = {}
    for site, affine in state.affines.items():
        changed = affine is not before[site]
        if site in state.removed or site in state.copies:
            continue
        if not (changed or (one_operation and site in state.composable)):
            continue
        (node,) = state.view.at(site)
        shape = state.view.shapes[node.tensor][1:]
        if site in state.ends:
            rest = end_leftover(node, affine)
        elif changed or is_depthwise(affine, shape):
            dtype = state.view.dtypes[node.outputs[0]]
            rest = leftover(node, affine, state.met[site], shape, dtype, one_operation)
        else:
            continue
        weights[id(node.operation)] = rest.weights
        if rest.layer is None:
            config[id(node.operation)] = rest.config
        else:
            replaced[id(node.operation)] = rest.layer
    for site, copy in state.copies.items():
        (node,) = state.view.at(site)
        replaced[id(node.operation)] = copy.layer
        weights[id(node.operation)] = copy.absorbed
    for key, (_, centred) in centrings.items():
        replaced[key] = centred.stand_in
        weights[key] = partial(dict, centred.weights)
    redirected = {site: copy.original.site for site, copy in state.copies.items()}
    return Changes(state.removed, weights, config, replaced, redirected)


def copies(state: State) -> dict[Site, Copy]:
    """For what is left of each affine behind a layer that others read too, a copy of that layer."""
    view, copies = state.view, {}
    for site in state.composable - state.removed:
        (node,) = view.at(site)
        original = view.producer(node.tensor)
        rule = None if original is None else absorb.rule_for(original.operation)
        if original is None or rule is None or rule.backward is None:
            continue
        shared = len(view.readers(node.tensor)) > 1 or node.tensor in view.outputs
        if not shared or original.side_inputs or original.site.owner != site.owner:
            continue
        try:
            check_call(original, Landing(view, frozenset(), frozenset(), frozenset(), False))
            change = rule.backward(original.operation, state.affines[site])
        except Refused:
            continue
        known = taken_in(state.absorbed, original.operation)
        copies[site] = Copy(original, known.then(change))
    return copies


def _centrings(state: State) -> dict[int, tuple[Any, Centring]]:
    """By its id, each layer normalization whose mean the layer in front takes, and that layer."""
    found = {}
    landing = Landing(state.view, state.composable, state.ends, state.kept, may_invert=False)
    for site in state.ends:
        (node,) = state.view.at(site)
        linear = state.view.producer(node.tensor)
        try:
            if linear is None or not state.view.is_only_call(linear):
                raise Refused("no layer of its own stands in front")
            if state.view.readers(node.tensor) != [node] or node.tensor in state.view.outputs:
                raise Refused("something else reads what it normalises")
            if is_masked(state.view, node) or state.view.dtypes[node.outputs[0]] not in _FULL:
                raise Refused("a root mean square normalization treats it otherwise")
            check_call(linear, landing)
            check_call(node, landing)
            centred = centring(linear.operation, node.operation, state.affines[site])
        except Refused:
            continue
        found[id(node.operation)] = (linear.operation, centred)
    return found
