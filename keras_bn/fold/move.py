"""Sending one affine through the graph, to where layers absorb it.

Every tensor may be stored otherwise than the original model computes it: as affine(x), or as x'
with x = affine(x'). A move starts where an affine is taken off a call and changes how the tensor
next to it is stored. Whoever produces that tensor has to produce the stored values, and whoever
reads it has to work from them: a layer absorbs the difference, another affine is composed with
it, and what affines pass through hands the question on to its other tensors. The move holds
where every such demand is met.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from keras import layers

from keras_bn.fold import absorb, transmit
from keras_bn.fold.affine import Affine, Refused
from keras_bn.fold.masks import is_masked
from keras_bn.graph.view import Node, Site, Tensor, View, first_argument

Direction = Literal["backward", "forward"]

# Tensors that one move may look at. Sums give it choices, which could be very many.
_BUDGET = 1000


@dataclass(frozen=True)
class Storage:
    """How a tensor is stored.

    Attributes:
        affine: "backward": affine(x) is stored, which whoever produces x has to apply.
            "forward": x' is stored with x = affine(x'), which whoever reads x has to apply.
        direction: Which of the two.
        through: Class names of what lay on the way here.
    """

    affine: Affine
    direction: Direction
    through: tuple[str, ...] = ()

    def equals(self, other: Storage) -> bool:
        if self.affine.is_identity:
            return other.affine.is_identity
        return self.direction == other.direction and self.affine.equals(other.affine)


@dataclass(frozen=True)
class Absorption:
    """A call that takes an affine in, on its output or on its input."""

    node: Node
    direction: Direction
    affine: Affine
    change: absorb.Change | None  # of the layer's weights; None: another affine is composed with it
    through: tuple[str, ...]
    reading: absorb.Reading | None = None  # how the call reads the tensor in front of it

    def equals(self, other: Absorption) -> bool:
        return self.direction == other.direction and self.affine.equals(other.affine)


@dataclass(frozen=True)
class Landing:
    """Where a move may end.

    Attributes:
        view: What is left of the graph.
        composable: The calls that are affines themselves, with which another is composed.
        ends: The calls that end in an affine, with which another behind them is composed.
        kept: Ids of operations that are to stay as they are.
        may_invert: Whether an affine may be undone, so that one side of a tensor can make good
            for what is done to the other.
    """

    view: View
    composable: frozenset[Site]
    ends: frozenset[Site]
    kept: frozenset[int]
    may_invert: bool


@dataclass
class Move:
    """The demands met so far; extended by `send`."""

    landing: Landing
    sources: frozenset[Site]
    stored: dict[Tensor, Storage] = field(default_factory=dict)
    absorptions: list[Absorption] = field(default_factory=list)
    budget: Iterator[int] = field(default_factory=lambda: iter(range(_BUDGET)))

    def send(self, source: Node, affine: Affine, direction: Direction) -> None:
        """Take `affine` off the call `source`, on its input ("backward") or output ("forward").

        Raises:
            Refused: a demand cannot be met. The move is then worthless.
        """
        tensor = source.tensor if direction == "backward" else source.outputs[0]
        self._store(tensor, Storage(affine, direction), source)

    # --- how a tensor is stored, and what that demands -------------------------------------------

    def _store(self, tensor: Tensor, storage: Storage, origin: Node) -> None:
        """Store `tensor` anew, as `origin` asks, and meet the demands of all others at it."""
        if tensor in self.stored:
            if not self.stored[tensor].equals(storage):
                raise Refused(f"the ways around '{origin.path}' ask for different things")
            return
        # Also that it stays as it is: of x + x, one x cannot be shifted without the other.
        self.stored[tensor] = storage
        if storage.affine.is_identity:
            return
        if next(self.budget, None) is None:
            raise Refused("it would have to go too far")
        view = self.landing.view
        producer = view.producer(tensor)
        readers = self._affected(tensor, storage.affine, origin)
        if tensor in view.outputs:
            raise Refused(self._reaches_output(producer, storage))
        if producer is None:
            raise Refused(f"nothing but the model's input '{_input_name(view, tensor)}' before it")
        if storage.direction == "backward" and readers and not self.landing.may_invert:
            raise Refused(f"'{producer.path}' also feeds '{readers[0].path}'")
        if producer is not origin:
            self._at_producer(producer, tensor, storage)
        elif not any(view.readers(output) for output in producer.outputs):
            raise Refused("nothing reads its output")
        for reader in dict.fromkeys(readers):
            self._at_reader(reader, tensor, storage)

    def _affected(self, tensor: Tensor, affine: Affine, origin: Node) -> list[Node]:
        """The readers of `tensor`, other than `origin`, for which `affine` changes something."""
        readers = [node for node in self.landing.view.readers(tensor) if node is not origin]
        return [node for node in readers if not self._passes_over(node, affine)]

    def _passes_over(self, node: Node, affine: Affine) -> bool:
        """Whether `node` is a slice of what `affine` leaves as it is."""
        if not isinstance(node.operation, transmit.SLICES):
            return False
        try:
            (assignment,) = self._assignments(node, self._passed_by(node), "forward", 0, affine)
        except Refused:
            return False
        return all(output.is_identity for output in assignment.outputs)

    def _at_producer(self, node: Node, tensor: Tensor, storage: Storage) -> None:
        """Have `node` produce the stored values."""
        rule = absorb.rule_for(node.operation)
        if self._composes(node):
            affine = self._to_apply(storage, "backward")
            self._absorb(node, "backward", affine, None, storage)
        elif rule is not None and rule.backward is not None:
            if tensor != node.outputs[0]:
                raise Refused(f"it is not the first output of '{node.path}'")
            affine = self._to_apply(storage, "backward")
            if affine.shifts and gives_zeros(self.landing.view, node):
                raise Refused(f"'{node.path}' gives zeros at masked steps, without any shift")
            change = rule.backward(node.operation, affine)
            composed = node.site in self.landing.ends
            self._absorb(node, "backward", affine, None if composed else change, storage)
        else:
            self._transmit(node, "backward", node.outputs.index(tensor), storage)

    def _at_reader(self, node: Node, tensor: Tensor, storage: Storage) -> None:
        """Have `node` work from the stored values."""
        rule = absorb.rule_for(node.operation)
        if self._composes(node):
            affine = self._to_apply(storage, "forward")
            self._absorb(node, "forward", affine, None, storage)
        elif rule is not None and rule.forward is not None:
            affine = self._to_apply(storage, "forward")
            how = reading(self.landing.view, node, tensor)
            change = rule.forward(node.operation, affine, how)
            self._absorb(node, "forward", affine, change, storage, how)
        else:
            inputs = self._passed_by(node)
            for position in (i for i, other in enumerate(inputs) if other == tensor):
                self._transmit(node, "forward", position, storage)

    def _to_apply(self, storage: Storage, direction: Direction) -> Affine:
        """The affine that the side `direction` of a tensor has to apply."""
        if storage.direction == direction:
            return storage.affine
        if not self.landing.may_invert:
            raise Refused("it would have to be undone")
        return storage.affine.inverse()

    def _absorb(
        self,
        node: Node,
        direction: Direction,
        affine: Affine,
        change: absorb.Change | None,
        storage: Storage,
        how: absorb.Reading | None = None,
    ) -> None:
        check_call(node, self.landing)
        self.absorptions.append(Absorption(node, direction, affine, change, storage.through, how))

    def _composes(self, node: Node) -> bool:
        return node.site in self.landing.composable and node.site not in self.sources

    # --- passing on ------------------------------------------------------------------------------

    def _transmit(self, node: Node, direction: Direction, position: int, storage: Storage) -> None:
        """Settle the other tensors of `node`, one of which is stored so.

        That is the output ("backward") or the input ("forward") at `position`. The first
        assignment that holds is taken. Those that fewest other readers have to make good for come
        first.
        """
        inputs = self._passed_by(node)
        first, *others = self._assignments(node, inputs, direction, position, storage.affine)
        passed = (*storage.through, type(node.operation).__name__)

        def settle(move: Move, assignment: transmit.Assignment) -> None:
            tensors, affines = (*inputs, *node.outputs), (*assignment.inputs, *assignment.outputs)
            for tensor, affine in zip(tensors, affines, strict=True):
                move._store(tensor, Storage(affine, storage.direction, passed), node)

        def touched(assignment: transmit.Assignment) -> int:
            return sum(
                len(self._affected(tensor, affine, node)) * (affine.scales + affine.shifts)
                for tensor, affine in zip(inputs, assignment.inputs, strict=True)
            )

        if not others:
            settle(self, first)
            return
        refusals = []
        for assignment in sorted([first, *others], key=touched):
            trial = replace(self, stored=dict(self.stored), absorptions=list(self.absorptions))
            try:
                settle(trial, assignment)
            except Refused as refusal:
                refusals.append(refusal)
            else:
                self.stored, self.absorptions = trial.stored, trial.absorptions
                return
        raise refusals[0]

    def _assignments(
        self,
        node: Node,
        inputs: tuple[Tensor, ...],
        direction: Direction,
        position: int,
        affine: Affine,
    ) -> Iterator[transmit.Assignment]:
        """The affines around `node` that go with `affine` on one of its tensors."""
        rule = transmit.rule_for(node.operation)
        assert rule is not None
        shapes = self.landing.view.shapes
        before, after = (
            tuple(shapes[tensor][1:] for tensor in side) for side in (inputs, node.outputs)
        )
        call = transmit.Call(before, after, node.constants)
        assign = rule.backward if direction == "backward" else rule.forward
        return assign(node.operation, affine, call, position)

    def _passed_by(self, node: Node) -> tuple[Tensor, ...]:
        """The inputs of `node` that affines pass to its output."""
        view = self.landing.view
        if id(node.operation) in self.landing.kept:
            raise Refused(f"'{node.path}' was asked to be kept as it is")
        if transmit.rule_for(node.operation) is None:
            kind = _kind(node.operation)
            raise Refused(f"'{node.path}' ({kind}) is not a layer that a scale and shift can pass")
        inputs = transmit.tensors_of(node, view.masked)
        require_one_dtype(view, node)
        return inputs

    def _reaches_output(self, producer: Node | None, storage: Storage) -> str:
        if storage.direction == "forward":
            return "its output reaches an output of the model"
        if producer is None:
            return "it would change an output of the model"
        return f"the output of '{producer.path}' is also an output of the model"


def check_call(node: Node, landing: Landing) -> None:
    """Refuse a call of a layer that may not change, or computes with more than its weights."""
    layer: Any = node.operation
    if id(layer) in landing.kept:
        raise Refused(f"'{node.path}' was asked to be kept as it is")
    if id(layer) in landing.view.closed:
        raise Refused(f"'{node.path}' also runs inside a model that cannot be opened up")
    if node.training and absorb.rule_for(layer) in absorb.TRAIN_OTHERWISE:
        raise Refused(f"'{node.path}' is called with training=True")
    if getattr(layer, "quantization_mode", None):
        raise Refused(f"'{node.path}' holds weights quantized to {layer.quantization_mode}")
    if getattr(layer, "lora_enabled", False):
        raise Refused(f"'{node.path}' has LoRA enabled, whose update is kept apart")


def gives_zeros(view: View, node: Node) -> bool:
    """Whether the layer called at `node` gives zeros under a mask that this call has."""
    rule = absorb.rule_for(node.operation)
    return rule is not None and rule.zeroed_by_mask(node.operation) and is_masked(view, node)


def reading(view: View, node: Node, tensor: Tensor) -> absorb.Reading:
    """How `node` reads `tensor`."""
    first = [first_argument(node.operation)] * node.inputs.count(tensor)
    others = [name for name, tensors in node.others.items() for other in tensors if other == tensor]
    constants = [name for name, value in node.constants.items() if value is not None]
    given = (first_argument(node.operation), *node.others, *constants)
    return absorb.Reading((*first, *others), view.shapes[tensor][1:], given)


def require_one_dtype(view: View, node: Node) -> None:
    """Refuse a call that changes the dtype: beyond it other numbers overflow or round."""
    after = view.dtypes[node.outputs[0]]
    masks = node.others.get("mask", ())
    for tensor in node.tensors:
        if view.dtypes[tensor] != after and tensor not in masks:
            raise Refused(f"'{node.path}' takes {view.dtypes[tensor]} and gives {after}")


def _kind(operation: Any) -> str:
    """The operation's class, and that of the layer inside a wrapper."""
    kind = type(operation).__name__
    return f"{kind} of {_kind(operation.layer)}" if isinstance(operation, layers.Wrapper) else kind


def _input_name(view: View, tensor: Tensor) -> str:
    return view.input_names[view.inputs.index(tensor)]
