"""Deciding where every affine goes, without touching the model.

Each batch normalization is an affine, and so are a Rescaling, a Normalization and a constant that
something is multiplied by or added to. Each is tried in the ways of `ROUTES`, first those that
change nothing but the layers around it: back through the graph until layers absorb it, or
forward. Then its scale and its shift part ways, and what else reads a tensor that is stored
otherwise makes good for it. What absorbs must absorb at every call: a shared layer folds only if
all its calls meet the same affine, and then all those normalizations go together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from keras_bn.fold import absorb
from keras_bn.fold.absorb import normalization
from keras_bn.fold.absorb.normalization import affine_end
from keras_bn.fold.account import account, enclosed
from keras_bn.fold.affine import Affine, Array, Refused, Shape
from keras_bn.fold.changes import changes, copies
from keras_bn.fold.masks import require_mask_stays
from keras_bn.fold.move import (
    Absorption,
    Landing,
    Move,
    gives_zeros,
    require_one_dtype,
)
from keras_bn.fold.result import FoldedLayer, KeptLayer
from keras_bn.fold.sources import (
    Met,
    Source,
    is_affine,
    is_batch_norm,
    path_of,
    source_of,
    unknown,
    unwrapped,
)
from keras_bn.fold.spelled_out import spelled_out
from keras_bn.fold.state import Moved, State, Step, taken_in
from keras_bn.graph.rebuild import Changes
from keras_bn.graph.view import Node, Site, View

# An affine on a tensor that others read too is undone for them. A shift that is this many times
# larger than the tensor's usual values would cost them that much of float32's precision: 16 leaves
# 20 of its 24 bits.
_LARGEST_SHIFT = 16.0


@dataclass(frozen=True)
class FoldPlan:
    """What to change in the model, and the account of every normalization in it.

    Attributes:
        changes: What to change.
        folded, kept: What became of the batch normalizations.
        others: What became of everything else that scales or shifts.
        moved: The paths of all those of which something moved, in the order of the moves.
    """

    changes: Changes
    folded: list[FoldedLayer]
    kept: list[KeptLayer]
    others: list[FoldedLayer | KeptLayer]
    moved: list[str]


class Route(NamedTuple):
    """A way for an affine to go, and whether others may have to make good for it."""

    steps: tuple[Step, ...]
    may_invert: bool
    partial: bool = False


ROUTES = (
    (
        Route((Step("all", "backward"),), may_invert=False),
        Route((Step("all", "forward"),), may_invert=False),
    ),
    (
        Route((Step("scale", "forward"), Step("shift", "backward")), may_invert=True),
        Route((Step("scale", "backward"), Step("shift", "forward")), may_invert=True),
        Route((Step("all", "backward"),), may_invert=True),
        Route((Step("all", "forward"),), may_invert=True),
    ),
    (
        # An addition is left, then a multiplication.
        Route((Step("scale", "forward"),), may_invert=True, partial=True),
        Route((Step("scale", "backward"),), may_invert=True, partial=True),
        Route((Step("shift", "backward"),), may_invert=True, partial=True),
        Route((Step("shift", "forward"),), may_invert=True, partial=True),
    ),
)


# These take s·x + t as s·(x + t/s).
_DIVIDING = (Step("scale", "forward"), Step("shift", "backward"))


def take(affine: Affine, step: Step) -> tuple[Affine, Affine]:
    """What leaves of `affine` by `step`, and what is left of it.

    s·x + t is s·(x + t/s), so that the scale or the shift may go first or last.
    """
    one, zero = np.ones_like(affine.scale), np.zeros_like(affine.shift)
    scale, shift = Affine(affine.scale, zero), Affine(one, affine.shift)
    if step.part == "all":
        return affine, Affine(one, zero)
    if step in (Step("scale", "backward"), Step("shift", "forward")):
        return (scale, shift) if step.part == "scale" else (shift, scale)
    if not affine.shifts:  # nothing to divide
        return (scale, shift) if step.part == "scale" else (shift, scale)
    before = Affine(one, -affine.inverse().shift)
    return (scale, before) if step.part == "scale" else (before, scale)


def plan(
    view: View,
    *,
    keep: Collection[str] = (),
    rebase: bool = True,
    one_operation: bool = False,
    duplicate: bool = False,
    closed: Mapping[int, str] = MappingProxyType({}),
) -> FoldPlan:
    """Decide for every affine in `view` whether and where it folds.

    Args:
        view: The model's calls.
        keep: Names or paths ("backbone/bn") of normalizations to leave alone.
        rebase: Whether a tensor that several layers read may be stored otherwise than the
            original computes it, which those layers then make good for.
        one_operation: Whether what stays takes the fewest operations in a converted model: one for
            an image's scale and shift, and for a layer normalization none that subtracts a mean
            which the layer in front can do without.
        duplicate: Whether a normalization may fold into a copy of the layer in front of it, where
            others read that layer too.
        closed: By id, the layers made of others that `view` does not see into, and why.

    Raises:
        ValueError: `keep` names something that is not a normalization of this model.
        UnsupportedModelError: a normalization's statistics are not finite.
    """
    calls = [node for node in view.nodes if is_affine(node.operation) or _is_end(view, node)]
    _check_keep(keep, calls)
    asked = [node for node in calls if not _names(node).isdisjoint(keep)]
    sources, reasons = _sources(view, calls)
    for site, activation in spelled_out(view).items():
        reasons[site] = f"it is part of {activation}, which LiteRT runs as one operation"
        sources.pop(site, None)
    for node in asked:
        reasons[node.site] = "asked to be kept"
        sources.pop(node.site, None)
    calls_of = {node.site: node for node in calls}
    affines = {site: source.affine for site, source in sources.items()}
    state = State(
        view,
        affines,
        _met(view, calls_of, sources),
        frozenset(
            node.site
            for node in calls
            if node.site in affines and not _is_end(view, node) and view.is_only_call(node)
        ),
        frozenset(node.site for node in calls if node.site in affines and _is_end(view, node)),
        frozenset(id(node.operation) for node in asked),
    )
    level = 0
    refused: set[Refusal] = set()
    while level < len(ROUTES):
        before = state
        for site in before.affines:
            if site not in state.removed and site not in state.bare:
                after = _try(state, site, ROUTES[level], reasons, rebase, refused)
                if after is not state:
                    refused = set()  # what moves may clear the way for another
                state = after
        level = 0 if state is not before else level + 1
    if duplicate:
        state = replace(state, copies=copies(state))
    sites = [site for moved in state.moved for site in sorted(moved.sites)]
    return FoldPlan(
        changes(affines, state, one_operation),
        *account(calls, state, reasons, [*enclosed(view, closed)]),
        list(dict.fromkeys(path_of(calls_of[site]) for site in [*sites, *state.copies])),
    )


def _is_end(view: View, node: Node) -> bool:
    """Whether `node` is the only call of a layer that normalises something and scales it then."""
    return absorb.rule_for(node.operation) in normalization.RULES and view.is_only_call(node)


def _names(node: Node) -> set[str]:
    """The names by which `keep` may ask for what is called at `node`."""
    layer = node.operation
    return {layer.name, node.path, unwrapped(layer).name, path_of(node)}


def _check_keep(keep: Collection[str], calls: list[Node]) -> None:
    if isinstance(keep, str):
        raise TypeError(f"keep takes a collection of layer names, received the string {keep!r}")
    unknown = sorted(set(keep).difference(*map(_names, calls)))
    if unknown:
        layers = {path_of(node) for node in calls if is_batch_norm(node.operation)}
        raise ValueError(
            f"keep names {', '.join(map(repr, unknown))}, which is no batch normalization of this "
            f"model; it has {', '.join(sorted(layers)) or 'none'}"
        )


def _sources(view: View, calls: list[Node]) -> tuple[dict[Site, Source], dict[Site, str]]:
    """What each of `calls` does, and why it has to stay where it has to."""
    sources: dict[Site, Source] = {}
    reasons: dict[Site, str] = {}
    for node in calls:
        try:
            if node.site.owner in view.closed:
                raise Refused(
                    "the model around it is also called on inputs of another rank or structure, "
                    "or with further tensors"
                )
            if node.training:
                raise Refused("it is called with training=True and normalises every batch anew")
            shape = view.shapes[node.outputs[0]][1:]
            end = affine_end(node.operation, len(shape))
            if end is not None:
                sources[node.site] = Source(end.affine, unknown(len(shape)))
                continue
            source = source_of(node, shape)
            if source is None:
                continue
            require_one_dtype(view, node)
            passes_masks = getattr(node.operation, "supports_masking", False)
            if node.tensor in view.masked and not passes_masks:
                raise Refused("it ends a mask, which would reach what follows it")
            require_mask_stays(view, node)
            if _stretches(source.affine, view.shapes[node.tensor][1:]):
                raise Refused("it stretches its input")
            sources[node.site] = source
        except Refused as refusal:
            reasons[node.site] = str(refusal)
    return sources, reasons


def _met(
    view: View, calls_of: Mapping[Site, Node], sources: Mapping[Site, Source]
) -> dict[Site, Met]:
    """What each affine meets: what it knows itself or what the one right in front of it gives."""
    known: dict[Site, Met] = {}
    for site, source in sources.items():
        known[site] = source.met
        before = view.producer(calls_of[site].tensor)
        if before is not None and before.site in known:
            given = known[before.site].stored_as(sources[before.site].affine)
            known[site] = source.met.or_smaller(given)
    return known


def _stretches(affine: Affine, shape: Shape) -> bool:
    """Whether the affine has more elements along some axis than a tensor of `shape`."""
    return len(shape) != len(affine.shape) or any(
        length != 1 and size == 1 for length, size in zip(affine.shape, shape, strict=True)
    )


# --- finding a way ------------------------------------------------------------------------------


Refusal = tuple[Site, Step, bool]
"""A first step that was refused in the plan as it is, and whether others might make good for it."""


def _try(
    state: State,
    site: Site,
    routes: tuple[Route, ...],
    reasons: dict[Site, str],
    rebase: bool,
    refused: set[Refusal],
) -> State:
    """The plan in which the affine at `site` took the first of `routes` that it can take.

    Where it can take none the plan is what it was, and `reasons` says why. What is in `refused` is
    not tried again, nor a scale and shift together where the scale by itself is; it is added to.
    """
    affine = state.affines[site]
    (node, *_) = state.view.at(site)
    undoable = _undoable(affine, state.met[site].magnitude)
    refusals = []
    for route in routes:
        apart = len(route.steps) > 1 or route.partial
        if apart and not (state.view.is_only_call(node) and affine.scales and affine.shifts):
            continue
        if site in state.ends and any(step.direction == "backward" for step in route.steps):
            continue
        if apart and not undoable and any(step in _DIVIDING for step in route.steps):
            continue
        may_invert = route.may_invert and rebase and undoable
        if route.may_invert and not (may_invert or apart):
            continue  # the same as without
        first, *others = route.steps
        alone = first._replace(part="scale") if first.part == "all" else first
        if not refused.isdisjoint({(site, step, may_invert) for step in (first, alone)}):
            continue
        try:
            followed = _move(state, site, first, may_invert)
        except Refused as refusal:
            refused.add((site, first, may_invert))
            refusals.append(f"{first.direction}: {refusal}")
            continue
        try:
            for step in others:
                followed = _move(followed, site, step, may_invert)
            if followed.operations < state.operations:
                return followed
            raise Refused("it would only change places with another")
        except Refused as refusal:
            refusals.append(f"{first.direction}: {refusal}")
    if routes is ROUTES[0] and refusals:
        reasons[site] = "; ".join(refusals)
    return state


def _undoable(affine: Affine, magnitude: Array) -> bool:
    """Whether what reads the tensor beside the affine may be made to undo it."""
    try:
        shift = np.abs(affine.inverse().shift)
    except Refused:
        return False
    return bool(np.all(shift <= _LARGEST_SHIFT * magnitude))


def _move(state: State, site: Site, step: Step, may_invert: bool) -> State:
    """The plan in which the affine at `site`, and those that must go along, took `step`."""
    landing = Landing(state.view, state.composable, state.ends, state.kept, may_invert)
    sites = {site}
    while True:
        move = _sent(state, landing, sites, step)
        missing = _calls_left_out(state, move)
        if not missing:
            return _apply(state, move, step)
        call = missing[0]
        partners = _partners(state, landing, call, step, sites)
        if partners is None:
            raise Refused(
                f"'{call.path}' is shared by {len(state.view.calls(call.operation))} calls, and no "
                "equal normalization can join it at every one of them"
            )
        sites |= partners


def _sent(state: State, landing: Landing, sites: set[Site], step: Step) -> Move:
    move = Move(landing, frozenset(sites))
    for site in sites:
        leaving, _ = take(state.affines[site], step)
        for node in state.view.at(site):
            if site in state.ends and leaving.shifts and gives_zeros(state.view, node):
                raise Refused(f"'{node.path}' gives zeros, not its beta, where its mask is False")
            move.send(node, leaving, step.direction)
    return move


# --- shared layers ------------------------------------------------------------------------------


def _by_call(move: Move) -> dict[int, dict[int, list[Absorption]]]:
    """What each call takes in by `move`: by the id of its layer, then of its node."""
    taken: dict[int, dict[int, list[Absorption]]] = {}
    for absorption in move.absorptions:
        calls = taken.setdefault(id(absorption.node.operation), {})
        calls.setdefault(id(absorption.node), []).append(absorption)
    return taken


def _calls_left_out(state: State, move: Move) -> list[Node]:
    """Calls of absorbing layers that absorb nothing yet; refuses calls that disagree."""
    missing = []
    for calls in _by_call(move).values():
        first, *others = calls.values()
        for other in others:
            same = len(first) == len(other) and all(map(Absorption.equals, first, other))
            if not (same and _same_change(state, first, other)):
                raise Refused(
                    f"'{first[0].node.operation.name}' is shared, and its calls meet different "
                    "normalizations"
                )
        missing += [
            call for call in state.view.calls(first[0].node.operation) if id(call) not in calls
        ]
    return missing


def _same_change(state: State, first: list[Absorption], other: list[Absorption]) -> bool:
    """Whether the layer's weights become the same at two calls that take the same affines in.

    They do not where the calls read the tensor in other roles, or sum the shift over more steps.
    """
    if [absorption.reading for absorption in first] == [absorption.reading for absorption in other]:
        return True
    now = taken_in(state.absorbed, first[0].node.operation)
    weights, others = (
        replace(now, changes=(*now.changes, *(a.change for a in taken if a.change is not None)))()
        for taken in (first, other)
    )
    return all(np.array_equal(value, others[name]) for name, value in weights.items())


def _partners(
    state: State, landing: Landing, call: Node, step: Step, sites: set[Site]
) -> set[Site] | None:
    """Another normalization whose affine ends in `call`."""
    for site in state.affines:
        if site in sites or site in state.removed:
            continue
        try:
            move = _sent(state, landing, {site}, step)
        except Refused:
            continue
        if any(absorption.node is call for absorption in move.absorptions):
            return {site}
    return None


# --- carrying it out on the plan ----------------------------------------------------------------


def _apply(state: State, move: Move, step: Step) -> State:
    affines, met = dict(state.affines), dict(state.met)
    gone = set()
    for site in move.sources:
        leaving, affines[site] = take(affines[site], step)
        if step.direction == "backward":
            met[site] = met[site].stored_as(leaving)
        if affines[site].is_identity and site not in state.ends:
            gone.add(site)
    absorbed = dict(state.absorbed)
    for calls in _by_call(move).values():
        # A shared layer is asked at every call, since its padding depends on its input, and
        # takes the affine in once: its calls all meet the same.
        for absorption in next(iter(calls.values())):
            node, affine = absorption.node, absorption.affine
            if absorption.change is not None:
                known = taken_in(absorbed, node.operation)
                absorbed[id(node.operation)] = known.then(absorption.change)
            elif absorption.direction == "backward":
                affines[node.site] = affine.after(affines[node.site])
            else:
                affines[node.site] = affines[node.site].after(affine)
                met[node.site] = met[node.site].stored_under(affine)
    return replace(
        state,
        view=state.view.without(gone),
        affines=affines,
        met=met,
        removed=state.removed | gone,
        absorbed=absorbed,
        moved=(*state.moved, Moved(move.sources, step, tuple(move.absorptions))),
    )
