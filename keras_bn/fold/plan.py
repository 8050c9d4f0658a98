"""Deciding where every normalization goes, without touching the model.

Each batch normalization is an affine. It is sent back through the graph until linear layers
absorb it, or, where that is refused, forward. What absorbs it must absorb it at every call: a
shared layer folds only if all its calls meet the same affine, and then all those normalizations
go together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from keras_bn.fold import absorb, transmit
from keras_bn.fold.affine import Affine, Refused
from keras_bn.fold.result import FoldedLayer, KeptLayer
from keras_bn.fold.sources import affine_of, is_batch_norm
from keras_bn.graph.rebuild import Changes
from keras_bn.graph.view import Node, Site, Tensor, View


@dataclass(frozen=True)
class FoldPlan:
    """What to change in the model, and the account of every normalization in it."""

    changes: Changes
    folded: list[FoldedLayer]
    kept: list[KeptLayer]


@dataclass(frozen=True)
class Absorption:
    """A call of a linear layer that takes `affine` in on its output or on its input."""

    node: Node
    direction: str  # "backward" or "forward"
    affine: Affine
    through: tuple[str, ...]  # class names of what lay in between


@dataclass(frozen=True)
class Move:
    """Normalizations that disappear together, and where their affines end."""

    sites: frozenset[Site]
    absorptions: tuple[Absorption, ...]


Send = Callable[[View, Node, Affine], Iterator[Absorption]]
"""Sends the affine of a normalization's call on its way, to where it is absorbed."""


@dataclass(frozen=True)
class Step:
    """One affine that a layer takes in, as vectors over its channels."""

    direction: str
    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Absorbed:
    """A layer and what it takes in; calling it gives the layer's new weights, in float64."""

    layer: Any
    rule: absorb.Absorb
    steps: tuple[Step, ...] = ()

    def __call__(self) -> absorb.Arrays:
        weights = self.rule.read(self.layer)
        for step in self.steps:
            change = self.rule.backward if step.direction == "backward" else self.rule.forward
            weights = change(self.layer, weights, step.scale, step.shift)
        return weights

    def then(self, step: Step) -> Absorbed:
        return replace(self, steps=(*self.steps, step))


@dataclass
class _State:
    """The plan so far: what is left of the graph, and what the layers have absorbed."""

    view: View
    kept_layers: frozenset[int]
    removed: set[Site] = field(default_factory=set)
    absorbed: dict[int, Absorbed] = field(default_factory=dict)

    def absorbed_by(self, layer: Any) -> Absorbed:
        """What `layer`, which has a rule, has taken in so far."""
        rule = absorb.rule_for(layer)
        assert rule is not None
        return self.absorbed.get(id(layer)) or Absorbed(layer, rule)

    def affine_of(self, node: Node) -> Affine:
        """What the normalization called at `node` does in inference."""
        rank = len(self.view.shapes[node.outputs[0]])
        return affine_of(node.operation, self.absorbed_by(node.operation)(), rank)


def plan(view: View, *, keep: Collection[str] = ()) -> FoldPlan:
    """Decide for every batch normalization in `view` whether and where it folds.

    Args:
        view: The model's calls.
        keep: Names or paths ("backbone/bn") of normalizations to leave alone.

    Raises:
        ValueError: `keep` names something that is not a normalization of this model.
        UnsupportedModelError: a normalization's statistics are not finite.
    """
    normalizations = [node for node in view.nodes if is_batch_norm(node.operation)]
    _check_keep(keep, normalizations)
    asked = [n for n in normalizations if n.operation.name in keep or n.path in keep]
    state = _State(view, frozenset(id(node.operation) for node in asked))
    reasons = {node.site: "asked to be kept" for node in asked}
    sites = dict.fromkeys(node.site for node in normalizations)
    pending = [site for site in sites if site not in reasons]
    moves: list[Move] = []
    progress = True
    while progress:  # what folds may clear the way for another
        progress = False
        for site in pending:
            if site in state.removed:
                continue
            try:
                move, absorbed = _find_move(state, site, pending)
            except Refused as refusal:
                reasons[site] = str(refusal)
            else:
                moves.append(move)
                _apply(state, move, absorbed)
                progress = True
    folded, kept = _account(normalizations, moves, reasons)
    return FoldPlan(
        Changes(
            frozenset(state.removed),
            weights=state.absorbed,
            config={key: absorbed.rule.gains for key, absorbed in state.absorbed.items()},
        ),
        folded,
        kept + list(_enclosed(view, normalizations)),
    )


def _check_keep(keep: Collection[str], normalizations: list[Node]) -> None:
    if isinstance(keep, str):
        raise TypeError(f"keep takes a collection of layer names, received the string {keep!r}")
    known = {name for node in normalizations for name in (node.operation.name, node.path)}
    unknown = sorted(set(keep) - known)
    if unknown:
        raise ValueError(
            f"keep names {', '.join(map(repr, unknown))}, which is no batch normalization of this "
            f"model; it has {', '.join(sorted(node.path for node in normalizations)) or 'none'}"
        )


# --- finding a way ------------------------------------------------------------------------------


def _find_move(
    state: _State, site: Site, candidates: Collection[Site]
) -> tuple[Move, dict[int, Absorbed]]:
    """The move that removes the normalization at `site`, and what the layers then hold.

    Backward where possible, else forward. `candidates` are the sites that may go along.
    """
    refusals = []
    for direction, send in (("backward", _send_back), ("forward", _send_forward)):
        try:
            move = _complete(state, _move_site(state, site, send), send, candidates)
            return move, _absorb(state, move)
        except Refused as refusal:
            refusals.append(f"{direction}: {refusal}")
    raise Refused("; ".join(refusals))


def _move_site(state: _State, site: Site, send: Send) -> Move:
    """Send the normalization at `site` on its way, at each call it stands for."""
    view = state.view
    if site.owner in view.closed:
        raise Refused(
            "the model around it is also called on inputs of another rank or structure, or with "
            "further tensors"
        )
    absorptions: list[Absorption] = []
    for node in view.nodes:
        if node.site == site:
            if node.training:
                raise Refused("it is called with training=True and normalises every batch anew")
            _require_one_dtype(view, node)
            absorptions += send(view, node, state.affine_of(node))
    return Move(frozenset({site}), tuple(absorptions))


def _send_back(view: View, node: Node, affine: Affine) -> Iterator[Absorption]:
    return _push_back(view, node.inputs[0], node, affine, ())


def _send_forward(view: View, node: Node, affine: Affine) -> Iterator[Absorption]:
    return _push_forward(view, node.outputs[0], affine, ())


def _push_back(
    view: View, tensor: Tensor, reader: Node, affine: Affine, through: tuple[str, ...]
) -> Iterator[Absorption]:
    """Move `affine`, which `reader` sees on `tensor`, into what produces `tensor`."""
    producer = view.producers.get(tensor)
    if producer is None:
        name = view.input_names[view.inputs.index(tensor)]
        raise Refused(f"nothing but the model's input '{name}' comes before it")
    others = [node for node in view.consumers[tensor] if node is not reader]
    if others:
        raise Refused(f"'{producer.path}' also feeds '{others[0].path}'")
    if len(view.consumers[tensor]) > 1:
        raise Refused(f"'{reader.path}' reads '{producer.path}' more than once")
    if tensor in view.outputs:
        raise Refused(f"the output of '{producer.path}' is also an output of the model")
    if absorb.rule_for(producer.operation):
        yield Absorption(producer, "backward", affine, through)
        return
    rule = _transmission(view, producer)
    inputs = rule.backward(producer.operation, affine, _shapes(view, producer))
    passed = (*through, type(producer.operation).__name__)
    for source, part in zip(producer.inputs, inputs, strict=True):
        yield from _push_back(view, source, producer, part, passed)


def _push_forward(
    view: View, tensor: Tensor, affine: Affine, through: tuple[str, ...]
) -> Iterator[Absorption]:
    """Move `affine` on `tensor` into everything that reads it."""
    if tensor in view.outputs:
        raise Refused("its output reaches an output of the model")
    if not view.consumers[tensor]:
        raise Refused("nothing reads its output")
    for consumer in view.consumers[tensor]:
        if tensor in consumer.side_inputs or consumer.inputs.count(tensor) > 1:
            raise Refused(f"'{consumer.path}' reads its output in more than one role")
        if absorb.rule_for(consumer.operation):
            yield Absorption(consumer, "forward", affine, through)
            continue
        rule = _transmission(view, consumer)
        position = consumer.inputs.index(tensor)
        passed = (*through, type(consumer.operation).__name__)
        after = rule.forward(consumer.operation, affine, _shapes(view, consumer), position)
        yield from _push_forward(view, consumer.outputs[0], after, passed)


def _transmission(view: View, node: Node) -> transmit.Transmit:
    rule = transmit.rule_for(node.operation)
    if rule is None:
        kind = type(node.operation).__name__
        raise Refused(f"'{node.path}' ({kind}) is not a layer that a scale and shift can pass")
    transmit.check_node(node)
    _require_one_dtype(view, node)
    return rule


def _require_one_dtype(view: View, node: Node) -> None:
    """Refuse a call that changes the dtype: beyond it other numbers overflow or round."""
    before, after = view.dtypes[node.inputs[0]], view.dtypes[node.outputs[0]]
    if before != after:
        raise Refused(f"'{node.path}' takes {before} and gives {after}")


def _shapes(view: View, node: Node) -> transmit.Shapes:
    return transmit.Shapes(
        tuple(view.shapes[tensor][1:] for tensor in node.inputs),
        view.shapes[node.outputs[0]][1:],
    )


# --- shared layers ------------------------------------------------------------------------------


def _complete(state: _State, move: Move, send: Send, candidates: Collection[Site]) -> Move:
    """Extend `move` until every call of every absorbing layer takes the same affine in.

    A layer called at several places has one set of weights, so the normalizations at all of its
    calls go together or not at all.
    """
    while missing := _calls_left_out(state.view, move):
        partner = _partner(state, missing[0], send, set(candidates) - move.sites)
        if partner is None:
            raise Refused(
                f"'{missing[0].path}' is shared by {len(_calls(state.view, missing[0]))} calls, "
                "and no equal normalization can join it at every one of them"
            )
        move = Move(move.sites | partner.sites, move.absorptions + partner.absorptions)
    return move


def _calls(view: View, node: Node) -> list[Node]:
    return view.calls[id(node.operation)]


def _calls_left_out(view: View, move: Move) -> list[Node]:
    """Calls of absorbing layers that absorb nothing yet; refuses calls that disagree."""
    met: dict[int, Absorption] = {}
    for absorption in move.absorptions:
        first = met.setdefault(id(absorption.node.operation), absorption)
        if not first.affine.equals(absorption.affine):
            raise Refused(
                f"'{absorption.node.operation.name}' is shared, and its calls meet different "
                "normalizations"
            )
    absorbing = [absorption.node for absorption in move.absorptions]
    return [
        call
        for absorption in met.values()
        for call in _calls(view, absorption.node)
        if call not in absorbing
    ]


def _partner(state: _State, call: Node, send: Send, candidates: Collection[Site]) -> Move | None:
    """A move of another normalization that ends in `call`."""
    for site in dict.fromkeys(node.site for node in state.view.nodes):
        if site not in candidates:
            continue
        try:
            move = _move_site(state, site, send)
        except Refused:
            continue
        if any(absorption.node is call for absorption in move.absorptions):
            return move
    return None


# --- carrying it out on the plan ----------------------------------------------------------------


def _absorb(state: _State, move: Move) -> dict[int, Absorbed]:
    """The absorbing layers with what they take in by `move`, by layer id."""
    results = {}
    for absorption in move.absorptions:
        node, affine = absorption.node, absorption.affine
        if id(node.operation) in state.kept_layers:
            raise Refused(f"'{node.path}' was asked to be kept as it is")
        if id(node.operation) in state.view.closed:
            raise Refused(f"'{node.path}' also runs inside a model that cannot be opened up")
        absorbed = state.absorbed_by(node.operation)
        if absorption.direction == "backward":
            scale, shift = absorb.backward_channels(absorbed.rule, node, affine)
        else:
            shape = state.view.shapes[node.inputs[0]]
            scale, shift = absorb.forward_channels(absorbed.rule, node, affine, shape)
        # A shared layer is asked at every call, since its padding depends on its input, and
        # takes the affine in once: its calls all meet the same.
        results[id(node.operation)] = absorbed.then(Step(absorption.direction, scale, shift))
    return results


def _apply(state: _State, move: Move, absorbed: dict[int, Absorbed]) -> None:
    state.absorbed |= absorbed
    state.removed |= move.sites
    state.view = state.view.without(move.sites)


# --- the account --------------------------------------------------------------------------------


def _account(
    normalizations: list[Node], moves: list[Move], reasons: dict[Site, str]
) -> tuple[list[FoldedLayer], list[KeptLayer]]:
    """One record for each layer, however many calls and paths it has."""
    folded, kept = [], []
    for calls in _by_layer(normalizations):
        path, sites = calls[0].path, {node.site for node in calls}
        taken = [move for move in moves if move.sites & sites]
        gone = {site for move in taken for site in move.sites} & sites
        if gone == sites:
            folded.append(_folded_record(path, taken))
            continue
        stay = dict.fromkeys(reasons[node.site] for node in calls if node.site not in gone)
        count = sum(node.site in gone for node in calls)
        note = f" (folded at {count} of its {len(calls)} calls)" if count else ""
        kept.append(KeptLayer(path, "; ".join(stay) + note))
    return folded, kept


def _by_layer(nodes: list[Node]) -> list[list[Node]]:
    layers: dict[int, list[Node]] = {}
    for node in nodes:
        layers.setdefault(id(node.operation), []).append(node)
    return list(layers.values())


def _folded_record(path: str, moves: list[Move]) -> FoldedLayer:
    absorptions = [absorption for move in moves for absorption in move.absorptions]
    into = dict.fromkeys(absorption.node.path for absorption in absorptions)
    rules = dict.fromkeys(_rule(move) for move in moves)
    return FoldedLayer(path, ", ".join(into), "; ".join(rules))


def _rule(move: Move) -> str:
    first = move.absorptions[0]
    way = dict.fromkeys(name for absorption in move.absorptions for name in absorption.through)
    through = f" through {', '.join(way)}" if way else ""
    return f"{first.direction} into {type(first.node.operation).__name__}{through}"


def _enclosed(view: View, normalizations: list[Node]) -> Iterator[KeptLayer]:
    """Normalizations inside layers whose own computation the view cannot see."""
    seen = {id(node.operation) for node in normalizations}
    for node in view.nodes:
        if not isinstance(node.operation, keras.Layer):
            continue
        for layer in node.operation._flatten_layers():
            if not isinstance(layer, keras.layers.BatchNormalization) or id(layer) in seen:
                continue
            seen.add(id(layer))
            if layer is node.operation:
                yield KeptLayer(node.path, f"{type(layer).__name__} overrides how it is computed")
            else:
                kind = type(node.operation).__name__
                yield KeptLayer(
                    f"{node.path}/{layer.name}",
                    f"it is inside '{node.path}' ({kind}), which computes on its own",
                )
