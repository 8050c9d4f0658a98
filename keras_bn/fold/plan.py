"""Deciding where every affine goes, without touching the model.

Each batch normalization is an affine, and so are a Rescaling, a Normalization and a constant that
something is multiplied by or added to. Each is tried in the ways of `ROUTES`, first those that
change nothing but the layers around it: back through the graph until layers absorb it, or
forward. Then its scale and its shift part ways, and what else reads a tensor that is stored
otherwise makes good for it. What absorbs must absorb at every call: a shared layer folds only if
all its calls meet the same affine, and then all those normalizations go together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.fold import absorb
from keras_bn.fold.absorb import normalization
from keras_bn.fold.absorb.normalization import affine_end
from keras_bn.fold.affine import Affine, Array, Refused, Shape
from keras_bn.fold.centring import Centring, centring
from keras_bn.fold.leftover import end_leftover, is_depthwise, leftover
from keras_bn.fold.move import (
    Absorption,
    Direction,
    Landing,
    Move,
    check_call,
    is_masked,
    require_one_dtype,
)
from keras_bn.fold.result import FoldedLayer, KeptLayer
from keras_bn.fold.sources import affine_of, is_affine, is_batch_norm, typical_magnitude
from keras_bn.graph.always_training import AlwaysTraining
from keras_bn.graph.rebuild import Changes
from keras_bn.graph.view import Node, Site, View

# An affine on a tensor that others read too is undone for them. A shift that is this many times
# larger than the tensor's usual values would cost them that much of float32's precision: 16 leaves
# 20 of its 24 bits.
_LARGEST_SHIFT = 16.0

# In others, normalizations choose for themselves what they compute in.
_FULL = ("float32", "float64")


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


class Step(NamedTuple):
    """What part of an affine leaves its place, and which way."""

    part: str  # "all", "scale" or "shift"
    direction: Direction


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


@dataclass(frozen=True)
class Absorbed:
    """A layer and what it takes in; calling it gives the layer's new weights, in float64."""

    layer: Any
    changes: tuple[absorb.Change, ...] = ()

    @property
    def rule(self) -> absorb.Absorb:
        rule = absorb.rule_for(self.layer)
        assert rule is not None
        return rule

    def then(self, change: absorb.Change) -> Absorbed:
        return replace(self, changes=(*self.changes, change))

    def __call__(self) -> absorb.Arrays:
        weights = self.rule.read(self.layer)
        for change in self.changes:
            weights = change(weights)
        return weights


@dataclass(frozen=True)
class Moved:
    """Normalizations of which something left together, and where it went."""

    sites: frozenset[Site]
    step: Step
    absorptions: tuple[Absorption, ...]


@dataclass(frozen=True)
class Copy:
    """A copy of the layer called at `original`, which absorbs one more affine than that."""

    original: Node
    absorbed: Absorbed

    def layer(self) -> keras.Layer:
        layer = self.absorbed.layer
        return type(layer).from_config({**layer.get_config(), **self.absorbed.rule.gains(layer)})


@dataclass(frozen=True)
class _State:
    """The plan so far.

    Attributes:
        view: What is left of the graph.
        affines: What each call that may go does by now.
        magnitudes: How large the values are that it meets.
        composable: The calls among them whose operation is called nowhere else, so that it can do
            anything else as well.
        ends: The calls of layers that normalise something else and end in an affine, gamma and
            beta. That can leave forward only.
        kept: Ids of operations to leave alone.
        removed: The calls that are gone.
        absorbed: What layers took in, by layer id.
        moved: How it came to that.
        copies: The calls in whose place copies of layers stand that absorbed what was left there.
    """

    view: View
    affines: dict[Site, Affine]
    magnitudes: dict[Site, Array]
    composable: frozenset[Site]
    ends: frozenset[Site]
    kept: frozenset[int]
    removed: frozenset[Site] = frozenset()
    absorbed: dict[int, Absorbed] = field(default_factory=dict)
    moved: tuple[Moved, ...] = ()
    copies: dict[Site, Copy] = field(default_factory=dict)

    @cached_property
    def bare(self) -> frozenset[Site]:
        """The ends of which nothing is left."""
        return frozenset(site for site in self.ends if self.affines[site].is_identity)

    @cached_property
    def operations(self) -> int:
        """How many additions, multiplications and calls of affines are left."""
        left = [self.affines[site] for site in self.affines if site not in self.removed]
        calls = len(left) - len(self.ends)
        return calls + sum(affine.scales + affine.shifts for affine in left)


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
    asked = [node for node in calls if node.operation.name in keep or node.path in keep]
    affines, reasons = _affines(view, calls)
    for node in asked:
        reasons[node.site] = "asked to be kept"
        affines.pop(node.site, None)
    calls_of = {node.site: node for node in calls}
    state = _State(
        view,
        affines,
        {site: typical_magnitude(calls_of[site], affine) for site, affine in affines.items()},
        frozenset(
            node.site
            for node in calls
            if node.site in affines and not _is_end(view, node) and _is_single(view, node)
        ),
        frozenset(node.site for node in calls if node.site in affines and _is_end(view, node)),
        frozenset(id(node.operation) for node in asked),
    )
    level = 0
    while level < len(ROUTES):
        before = state
        for site in before.affines:
            if site not in state.removed and site not in state.bare:
                state = _try(state, site, ROUTES[level], reasons, rebase)
        level = 0 if state is not before else level + 1  # what moves may clear the way for another
    if duplicate:
        state = replace(state, copies=_copies(state))
    sites = [site for moved in state.moved for site in sorted(moved.sites)]
    return FoldPlan(
        _changes(affines, state, one_operation),
        *_account(calls, state, reasons, [*_enclosed(view, closed)]),
        list(dict.fromkeys(calls_of[site].path for site in [*sites, *state.copies])),
    )


def _is_end(view: View, node: Node) -> bool:
    """Whether `node` is the only call of a layer that normalises something and scales it then."""
    return absorb.rule_for(node.operation) in normalization.RULES and _is_single(view, node)


def _is_single(view: View, node: Node) -> bool:
    """Whether the operation called at `node` is called nowhere else."""
    return len(view.calls[id(node.operation)]) == 1


def _check_keep(keep: Collection[str], calls: list[Node]) -> None:
    if isinstance(keep, str):
        raise TypeError(f"keep takes a collection of layer names, received the string {keep!r}")
    known = {name for node in calls for name in (node.operation.name, node.path)}
    unknown = sorted(set(keep) - known)
    if unknown:
        layers = {node.path for node in calls if is_batch_norm(node.operation)}
        raise ValueError(
            f"keep names {', '.join(map(repr, unknown))}, which is no batch normalization of this "
            f"model; it has {', '.join(sorted(layers)) or 'none'}"
        )


def _affines(view: View, calls: list[Node]) -> tuple[dict[Site, Affine], dict[Site, str]]:
    """What each of `calls` does, and why it has to stay where it has to."""
    affines: dict[Site, Affine] = {}
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
                affines[node.site] = end.affine
                continue
            affine = affine_of(node, shape)
            if affine is None:
                continue
            require_one_dtype(view, node)
            passes_masks = getattr(node.operation, "supports_masking", False)
            if node.tensor in view.masked and not passes_masks:
                raise Refused("it ends a mask, which would reach what follows it")
            if _stretches(affine, view.shapes[node.tensor][1:]):
                raise Refused("it stretches its input")
            affines[node.site] = affine
        except Refused as refusal:
            reasons[node.site] = str(refusal)
    return affines, reasons


def _stretches(affine: Affine, shape: Shape) -> bool:
    """Whether the affine has more elements along some axis than a tensor of `shape`."""
    return len(shape) != len(affine.shape) or any(
        length != 1 and size == 1 for length, size in zip(affine.shape, shape, strict=True)
    )


# --- finding a way ------------------------------------------------------------------------------


def _try(
    state: _State, site: Site, routes: tuple[Route, ...], reasons: dict[Site, str], rebase: bool
) -> _State:
    """The plan in which the affine at `site` took the first of `routes` that it can take.

    Where it can take none the plan is what it was, and `reasons` says why.
    """
    affine = state.affines[site]
    (node, *_) = state.view.at[site]
    refusals = []
    for route in routes:
        apart = len(route.steps) > 1 or route.partial
        if apart and not (_is_single(state.view, node) and affine.scales and affine.shifts):
            continue
        if site in state.ends and any(step.direction == "backward" for step in route.steps):
            continue
        undoable = _undoable(affine, state.magnitudes[site])
        if apart and not undoable and any(step in _DIVIDING for step in route.steps):
            continue
        may_invert = route.may_invert and rebase and undoable
        if route.may_invert and not (may_invert or apart):
            continue  # the same as without
        try:
            followed = _follow(state, site, route.steps, may_invert)
            if followed.operations < state.operations:
                return followed
            raise Refused("it would only change places with another")
        except Refused as refusal:
            refusals.append(f"{route.steps[0].direction}: {refusal}")
    if routes is ROUTES[0]:
        reasons[site] = "; ".join(refusals)
    return state


def _undoable(affine: Affine, magnitude: Array) -> bool:
    """Whether what reads the tensor beside the affine may be made to undo it."""
    try:
        shift = np.abs(affine.inverse().shift)
    except Refused:
        return False
    return bool(np.all(shift <= _LARGEST_SHIFT * magnitude))


def _follow(state: _State, site: Site, steps: tuple[Step, ...], may_invert: bool) -> _State:
    for step in steps:
        state = _move(state, site, step, may_invert)
    return state


def _move(state: _State, site: Site, step: Step, may_invert: bool) -> _State:
    """The plan in which the affine at `site`, and those that must go along, took `step`."""
    landing = Landing(state.view, state.composable, state.ends, state.kept, may_invert)
    sites = {site}
    while True:
        move = _sent(state, landing, sites, step)
        missing = _calls_left_out(state, move)
        if not missing:
            return _apply(state, move, step)
        partners = _partners(state, landing, missing[0], step, sites)
        if partners is None:
            raise Refused(
                f"'{missing[0].path}' is shared by {len(_calls(state.view, missing[0]))} calls, "
                "and no equal normalization can join it at every one of them"
            )
        sites |= partners


def _sent(state: _State, landing: Landing, sites: set[Site], step: Step) -> Move:
    move = Move(landing, frozenset(sites))
    for site in sites:
        leaving, _ = take(state.affines[site], step)
        for node in state.view.at[site]:
            if site in state.ends and leaving.shifts and _gives_zeros(state.view, node):
                raise Refused(f"'{node.path}' gives zeros, not its beta, where its mask is False")
            move.send(node, leaving, step.direction)
    return move


def _gives_zeros(view: View, node: Node) -> bool:
    """Whether the layer called at `node` gives zeros under a mask that this call has."""
    rule = absorb.rule_for(node.operation)
    return rule is not None and rule.zeroed_by_mask and is_masked(view, node)


# --- shared layers ------------------------------------------------------------------------------


def _calls(view: View, node: Node) -> list[Node]:
    return view.calls[id(node.operation)]


def _by_call(move: Move) -> dict[int, dict[int, list[Absorption]]]:
    """What each call takes in by `move`: by the id of its layer, then of its node."""
    taken: dict[int, dict[int, list[Absorption]]] = {}
    for absorption in move.absorptions:
        calls = taken.setdefault(id(absorption.node.operation), {})
        calls.setdefault(id(absorption.node), []).append(absorption)
    return taken


def _calls_left_out(state: _State, move: Move) -> list[Node]:
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
        missing += [call for call in _calls(state.view, first[0].node) if id(call) not in calls]
    return missing


def _same_change(state: _State, first: list[Absorption], other: list[Absorption]) -> bool:
    """Whether the layer's weights become the same at two calls that take the same affines in.

    They do not where the calls read the tensor in other roles, or sum the shift over more steps.
    """
    if [absorption.reading for absorption in first] == [absorption.reading for absorption in other]:
        return True
    now = state.absorbed.get(id(first[0].node.operation)) or Absorbed(first[0].node.operation)
    weights, others = (
        replace(now, changes=(*now.changes, *(a.change for a in taken if a.change is not None)))()
        for taken in (first, other)
    )
    return all(np.array_equal(value, others[name]) for name, value in weights.items())


def _partners(
    state: _State, landing: Landing, call: Node, step: Step, sites: set[Site]
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


def _apply(state: _State, move: Move, step: Step) -> _State:
    affines = dict(state.affines)
    gone = set()
    for site in move.sources:
        _, affines[site] = take(affines[site], step)
        if affines[site].is_identity and site not in state.ends:
            gone.add(site)
    absorbed = dict(state.absorbed)
    for calls in _by_call(move).values():
        # A shared layer is asked at every call, since its padding depends on its input, and
        # takes the affine in once: its calls all meet the same.
        for absorption in next(iter(calls.values())):
            node, affine = absorption.node, absorption.affine
            if absorption.change is not None:
                known = absorbed.get(id(node.operation)) or Absorbed(node.operation)
                absorbed[id(node.operation)] = known.then(absorption.change)
            elif absorption.direction == "backward":
                affines[node.site] = affine.after(affines[node.site])
            else:
                affines[node.site] = affines[node.site].after(affine)
    return replace(
        state,
        view=state.view.without(frozenset(gone)) if gone else state.view,
        affines=affines,
        removed=state.removed | gone,
        absorbed=absorbed,
        moved=(*state.moved, Moved(move.sources, step, tuple(move.absorptions))),
    )


def _changes(before: dict[Site, Affine], state: _State, one_operation: bool) -> Changes:
    """What the plan comes to for the model."""
    centrings = _centrings(state) if one_operation else {}
    absorbed = dict(state.absorbed)
    for linear, centred in centrings.values():
        known = absorbed.get(id(linear)) or Absorbed(linear)
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
        (node,) = state.view.at[site]
        shape = state.view.shapes[node.tensor][1:]
        if site in state.ends:
            rest = end_leftover(node, affine)
        elif changed or is_depthwise(affine, shape):
            dtype = state.view.dtypes[node.outputs[0]]
            rest = leftover(node, affine, shape, dtype, one_operation)
        else:
            continue
        weights[id(node.operation)] = rest.weights
        if rest.layer is None:
            config[id(node.operation)] = rest.config
        else:
            replaced[id(node.operation)] = rest.layer
    for site, copy in state.copies.items():
        (node,) = state.view.at[site]
        replaced[id(node.operation)] = copy.layer
        weights[id(node.operation)] = copy.absorbed
    for key, (_, centred) in centrings.items():
        replaced[key] = centred.stand_in
        weights[key] = partial(dict, centred.weights)
    redirected = {site: copy.original.site for site, copy in state.copies.items()}
    return Changes(state.removed, weights, config, replaced, redirected)


def _copies(state: _State) -> dict[Site, Copy]:
    """For what is left of each affine behind a layer that others read too, a copy of that layer."""
    view, copies = state.view, {}
    for site in state.composable - state.removed:
        (node,) = view.at[site]
        original = view.producers.get(node.tensor)
        rule = None if original is None else absorb.rule_for(original.operation)
        if original is None or rule is None or rule.backward is None:
            continue
        shared = len(view.consumers[node.tensor]) > 1 or node.tensor in view.outputs
        if not shared or original.side_inputs or original.site.owner != site.owner:
            continue
        try:
            check_call(original, Landing(view, frozenset(), frozenset(), frozenset(), False))
            change = rule.backward(original.operation, state.affines[site])
        except Refused:
            continue
        known = state.absorbed.get(id(original.operation)) or Absorbed(original.operation)
        copies[site] = Copy(original, known.then(change))
    return copies


def _centrings(state: _State) -> dict[int, tuple[Any, Centring]]:
    """By its id, each layer normalization whose mean the layer in front takes, and that layer."""
    found = {}
    landing = Landing(state.view, state.composable, state.ends, state.kept, may_invert=False)
    for site in state.ends:
        (node,) = state.view.at[site]
        linear = state.view.producers.get(node.tensor)
        try:
            if linear is None or not _is_single(state.view, linear):
                raise Refused("no layer of its own stands in front")
            if state.view.consumers[node.tensor] != [node] or node.tensor in state.view.outputs:
                raise Refused("something else reads what it normalises")
            if is_masked(state.view, node) or state.view.dtypes[node.outputs[0]] not in (
                "float32",
                "float64",
            ):
                raise Refused("a root mean square normalization treats it otherwise")
            check_call(linear, landing)
            check_call(node, landing)
            centred = centring(linear.operation, node.operation, state.affines[site])
        except Refused:
            continue
        found[id(node.operation)] = (linear.operation, centred)
    return found


# --- the account --------------------------------------------------------------------------------


def _account(
    calls: list[Node], state: _State, reasons: dict[Site, str], enclosed: list[KeptLayer]
) -> tuple[list[FoldedLayer], list[KeptLayer], list[FoldedLayer | KeptLayer]]:
    """One record for each layer, however many calls and paths it has."""
    folded: list[FoldedLayer] = []
    kept: list[KeptLayer] = []
    others: list[FoldedLayer | KeptLayer] = []
    for nodes in _by_layer(calls):
        record = _record(nodes, state, reasons)
        if record is None:
            continue
        if not is_batch_norm(nodes[0].operation):
            others.append(record)
        elif isinstance(record, FoldedLayer):
            folded.append(record)
        else:
            kept.append(record)
    return folded, kept + enclosed, others


def _record(
    nodes: list[Node], state: _State, reasons: dict[Site, str]
) -> FoldedLayer | KeptLayer | None:
    """What became of an operation called at `nodes`; None where it turned out to be no affine."""
    path, sites = nodes[0].path, {node.site for node in nodes}
    taken = [moved for moved in state.moved if moved.sites & sites]
    if sites.isdisjoint(state.affines) and sites.isdisjoint(reasons):
        return None
    gone = sites & (state.removed | state.bare)
    copied = [state.copies[site].original for site in sites if site in state.copies]
    if copied:
        (original,) = copied
        kind = type(original.operation).__name__
        return FoldedLayer(path, original.path, f"backward into a copy of the {kind}")
    if gone == sites:
        return FoldedLayer(path, _into(taken), _rule(taken))
    stay = "; ".join(dict.fromkeys(reasons[node.site] for node in nodes if node.site not in gone))
    if gone:
        count = sum(node.site in gone for node in nodes)
        return KeptLayer(path, f"{stay} (folded at {count} of its {len(nodes)} calls)")
    parts = [moved for moved in taken if moved.step.part != "all"]
    only = "".join(f"; only {_way(moved)} ({_into([moved])})" for moved in parts)
    return KeptLayer(path, stay + only)


def _by_layer(nodes: list[Node]) -> list[list[Node]]:
    layers: dict[int, list[Node]] = {}
    for node in nodes:
        layers.setdefault(id(node.operation), []).append(node)
    return list(layers.values())


def _into(moves: list[Moved]) -> str:
    return ", ".join(
        dict.fromkeys(absorption.node.path for moved in moves for absorption in moved.absorptions)
    )


def _rule(moves: list[Moved]) -> str:
    return "; ".join(dict.fromkeys(map(_way, moves)))


def _way(moved: Moved) -> str:
    """One moved affine in words: "the scale forward into Conv2D through ReLU"."""
    part = "" if moved.step.part == "all" else f"the {moved.step.part} "
    if not moved.absorptions:
        return f"{part}without effect"
    ends = dict.fromkeys(type(a.node.operation).__name__ for a in moved.absorptions)
    way = dict.fromkeys(name for absorption in moved.absorptions for name in absorption.through)
    through = f" through {', '.join(way)}" if way else ""
    return f"{part}{moved.step.direction} into {', '.join(ends)}{through}"


def _enclosed(view: View, closed: Mapping[int, str]) -> Iterator[KeptLayer]:
    """Normalizations inside layers whose own computation the view cannot see."""
    seen = {id(node.operation) for node in view.nodes if is_batch_norm(node.operation)}
    for node in view.nodes:
        if not isinstance(node.operation, keras.Layer):
            continue
        for layer in node.operation._flatten_layers():
            if not isinstance(layer, keras.layers.BatchNormalization) or id(layer) in seen:
                continue
            seen.add(id(layer))
            why = closed.get(id(node.operation), "computes on its own")
            if layer is node.operation:
                yield KeptLayer(node.path, f"{type(layer).__name__} overrides how it is computed")
            elif isinstance(node.operation, AlwaysTraining) and layer is node.operation.layer:
                yield KeptLayer(node.path, f"it {why}")
            else:
                kind = type(node.operation).__name__
                yield KeptLayer(
                    f"{node.path}/{layer.name}", f"it is inside '{node.path}' ({kind}), which {why}"
                )
