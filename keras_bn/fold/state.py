"""A plan while it is made: what is left of the graph and of the affines, and who took what in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import keras

from keras_bn.fold import absorb
from keras_bn.fold.affine import Affine
from keras_bn.fold.move import Absorption, Direction
from keras_bn.fold.sources import Met
from keras_bn.graph.view import Node, Site, View


class Step(NamedTuple):
    """What part of an affine leaves its place, and which way."""

    part: str  # "all", "scale" or "shift"
    direction: Direction


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


def taken_in(absorbed: Mapping[int, Absorbed], layer: Any) -> Absorbed:
    """What `layer` took in so far, by `absorbed`: nothing, where it is not in there."""
    return absorbed.get(id(layer)) or Absorbed(layer)


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
class State:
    """The plan so far.

    Attributes:
        view: What is left of the graph.
        affines: What each call that may go does by now.
        met: What it meets by now.
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
    met: dict[Site, Met]
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
