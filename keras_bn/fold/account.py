"""The account of a plan: what became of every scale and shift, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import keras

from keras_bn.fold.result import FoldedLayer, KeptLayer
from keras_bn.fold.sources import is_batch_norm, path_of, unwrapped
from keras_bn.fold.state import Moved, State
from keras_bn.graph.always_training import AlwaysTraining
from keras_bn.graph.view import Node, Site, View


def account(
    calls: list[Node], state: State, reasons: dict[Site, str], hidden: list[KeptLayer]
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
    return folded, kept + hidden, others


def _record(
    nodes: list[Node], state: State, reasons: dict[Site, str]
) -> FoldedLayer | KeptLayer | None:
    """What became of an operation called at `nodes`; None where it turned out to be no affine."""
    path, sites = path_of(nodes[0]), {node.site for node in nodes}
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


def enclosed(view: View, closed: Mapping[int, str]) -> Iterator[KeptLayer]:
    """Normalizations inside layers whose own computation the view cannot see."""
    seen = {id(unwrapped(node.operation)) for node in view.nodes if is_batch_norm(node.operation)}
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
