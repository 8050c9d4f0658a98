"""A read-only view of a model: every call of every operation, nested models opened up.

Keras keeps a graph per Functional model and a model inside a model is one node of it. Folding
does not care about that boundary, so the view has none: the nodes of a nested model stand where
it is called, once for each call. Each node remembers its `Site`, the place in the nested
structure that it came from, which is what `rebuild` acts on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import keras
from keras import tree
from keras.src import backend
from keras.src.models.functional import Functional

from keras_bn.errors import UnsupportedModelError

Tensor = int
"""Number of a tensor in one view."""


class Site(NamedTuple):
    """A call inside one Functional model: the model's id, and which of its calls it is."""

    owner: int
    position: int


@dataclass(frozen=True, eq=False)
class Node:
    """One call of one operation.

    Attributes:
        site: Where the call stands in the nested structure. The calls inside a nested model
            that is itself called twice appear twice, with the same site.
        operation: The Keras layer or operation.
        path: Its name, preceded by the names of the models around it: "backbone/conv1".
        inputs: The tensors of its first argument.
        others: The tensors of every other argument that has any, such as a mask or an
            attention's keys, by the argument's name.
        constants: The arguments that hold no tensor, by name, as the 2 of `2 * x`, and the first
            one also where it holds other things as well.
        outputs: The tensors it returns.
        training: The `training` argument it runs with: that of the outermost model around it
            that was called with one, else its own, as Keras has it; None where nobody passed any.
    """

    site: Site
    operation: keras.Operation
    path: str
    inputs: tuple[Tensor, ...]
    others: Mapping[str, tuple[Tensor, ...]]
    constants: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    training: bool | None

    @cached_property
    def tensor(self) -> Tensor:
        """The first tensor among the arguments: x of `2 * x`."""
        return self.tensors[0]

    @cached_property
    def side_inputs(self) -> tuple[Tensor, ...]:
        """The tensors of all arguments but the first."""
        return tuple(tensor for tensors in self.others.values() for tensor in tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of all arguments."""
        return (*self.inputs, *self.side_inputs)

    def reading(self, new: Tensor, old: Tensor) -> Node:
        """The same call, reading `new` where it read `old`."""

        def renamed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(new if tensor == old else tensor for tensor in tensors)

        others = {name: renamed(tensors) for name, tensors in self.others.items()}
        return replace(self, inputs=renamed(self.inputs), others=others)


@dataclass(frozen=True)
class _Index:
    """Numbers of calls, by what they are looked up by; they stay where calls go."""

    producers: dict[Tensor, int]
    calls: dict[int, list[int]]
    sites: dict[Site, list[int]]

    @staticmethod
    def of(nodes: Iterable[Node]) -> _Index:
        producers: dict[Tensor, int] = {}
        calls: dict[int, list[int]] = {}
        sites: dict[Site, list[int]] = {}
        for number, node in enumerate(nodes):
            producers.update(dict.fromkeys(node.outputs, number))
            calls.setdefault(id(node.operation), []).append(number)
            sites.setdefault(node.site, []).append(number)
        return _Index(producers, calls, sites)


@dataclass(frozen=True)
class View:
    """The calls of a model in the order they run.

    Attributes:
        numbered: The calls in topological order, by numbers that stay when others go.
        read_by: By tensor, the numbers of the calls that read it; one that reads it twice stands
            there twice.
        index: The numbers of the calls by all else.
        inputs, outputs: The model's own tensors, flattened.
        input_names: The names of the model's inputs.
        shapes: Shape of each tensor, batch axis first, None where it is not known.
        dtypes: Dtype of each tensor.
        masked: The tensors that carry a mask.
        closed: Ids of the operations and models that are also reached by a call of a model that
            could not be opened up. Nothing may change in them, since not all calls are seen.
    """

    numbered: Mapping[int, Node]
    read_by: Mapping[Tensor, tuple[int, ...]]
    index: _Index
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    shapes: Mapping[Tensor, tuple[int | None, ...]]
    dtypes: Mapping[Tensor, str]
    masked: frozenset[Tensor]
    closed: frozenset[int]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The calls in topological order."""
        return tuple(self.numbered.values())

    def producer(self, tensor: Tensor) -> Node | None:
        """The call that gives `tensor`; None for an input of the model."""
        number = self.index.producers.get(tensor)
        return None if number is None else self.numbered[number]

    def readers(self, tensor: Tensor) -> list[Node]:
        """The calls that read `tensor`; one that reads it twice stands there twice."""
        return [self.numbered[number] for number in self.read_by[tensor]]

    def calls(self, operation: keras.Operation) -> list[Node]:
        """All calls of `operation`."""
        return self._left(self.index.calls[id(operation)])

    def at(self, site: Site) -> list[Node]:
        """The calls at `site`: several where a model around it is called several times."""
        return self._left(self.index.sites[site])

    def _left(self, numbers: Iterable[int]) -> list[Node]:
        return [self.numbered[number] for number in numbers if number in self.numbered]

    def is_only_call(self, node: Node) -> bool:
        """Whether the operation called at `node` is called nowhere else."""
        return len(self.calls(node.operation)) == 1

    def without(self, sites: Iterable[Site]) -> View:
        """The view in which the calls at `sites` hand their input on unchanged."""
        numbered, read_by, outputs = dict(self.numbered), dict(self.read_by), self.outputs
        for number in sorted(number for site in sites for number in self.index.sites[site]):
            gone = numbered.pop(number)
            before, after = gone.tensor, gone.outputs[0]
            for tensor in gone.tensors:
                read_by[tensor] = tuple(other for other in read_by[tensor] if other != number)
            for reader in set(read_by[after]):
                numbered[reader] = numbered[reader].reading(before, after)
            read_by[before] = tuple(sorted(read_by[before] + read_by[after]))
            read_by[after] = ()
            outputs = tuple(before if tensor == after else tensor for tensor in outputs)
        return replace(self, numbered=numbered, read_by=read_by, outputs=outputs)


def view(model: keras.Model) -> View:
    """Read `model`, a built Functional or Sequential model.

    Raises:
        UnsupportedModelError: the model has no graph to read: it was never built, or it is
            subclassed and decides in Python what it computes.
    """
    functional = functional_graph(model) if isinstance(model, keras.Model) else None
    if functional is None:
        raise UnsupportedModelError(_why_there_is_no_graph(model))
    reader = _Reader()
    inputs = tuple(reader.number(tensor) for tensor in functional.inputs)
    outputs = reader.read(functional, inputs, "", None)
    names = tuple(tensor.name for tensor in functional.inputs)
    read_by: dict[Tensor, list[int]] = {tensor: [] for tensor in reader.shapes}
    for number, node in enumerate(reader.nodes):
        for tensor in node.tensors:
            read_by[tensor].append(number)
    return View(
        dict(enumerate(reader.nodes)),
        {tensor: tuple(numbers) for tensor, numbers in read_by.items()},
        _Index.of(reader.nodes),
        inputs,
        names,
        outputs,
        reader.shapes,
        reader.dtypes,
        frozenset(reader.masked),
        frozenset(reader.closed),
    )


def functional_graph(operation: keras.Operation) -> Any | None:
    """The Functional graph that calling `operation` runs, or None where there is none.

    A class that overrides `call` decides for itself what it computes, whatever it inherits.
    """
    if type(operation).call is keras.Sequential.call:
        return operation._functional
    if isinstance(operation, Functional) and type(operation).call is Functional.call:
        return operation
    return None


def calls(functional: Any) -> Iterator[Any]:
    """Keras's nodes of a Functional model in the order they run, its inputs left out."""
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def structure(functional: Any) -> tuple[Any, Any]:
    """The nested structures of the model's symbolic inputs and outputs."""
    return functional._inputs_struct, functional._outputs_struct


class _Reader:
    """Collects the calls of a model and of the models inside it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.shapes: dict[Tensor, tuple[int | None, ...]] = {}
        self.dtypes: dict[Tensor, str] = {}
        self.masked: set[Tensor] = set()
        self.closed: set[int] = set()

    def number(self, tensor: Any) -> Tensor:
        new = len(self.shapes)
        self.shapes[new], self.dtypes[new] = tuple(tensor.shape), tensor.dtype
        if backend.get_keras_mask(tensor) is not None:
            self.masked.add(new)
        return new

    def read(
        self, functional: Any, inputs: tuple[Tensor, ...], prefix: str, training: bool | None
    ) -> tuple[Tensor, ...]:
        """Append the calls of `functional` and return the numbers of its outputs."""
        numbers = dict(zip(map(id, functional.inputs), inputs, strict=True))
        for position, call in enumerate(calls(functional)):
            operation = call.operation
            path = prefix + operation.name
            first, rest = arguments(call)
            data = tuple(numbers[id(tensor)] for tensor in _symbolic(first))
            others = {
                name: tuple(numbers[id(tensor)] for tensor in _symbolic(value))
                for name, value in rest.items()
                if _symbolic(value)
            }
            constants = {name: value for name, value in rest.items() if name not in others}
            if len(data) < len(tree.flatten(first)):
                constants = {first_argument(operation): first, **constants}
            runs_in = _training_argument(call) if training is None else training
            inner = functional_graph(operation)
            if inner is not None and self._fits(inner, first, rest, data):
                outputs = self.read(inner, data, path + "/", runs_in)
            else:
                if inner is not None:
                    self.closed |= _everything_in(inner)
                outputs = tuple(self.number(tensor) for tensor in call.outputs)
                # Inside a nested model only the call that is read here knows of its mask.
                if getattr(operation, "supports_masking", False) and not self.masked.isdisjoint(
                    data
                ):
                    self.masked.update(outputs)
                site = Site(id(functional), position)
                self.nodes.append(
                    Node(site, operation, path, data, others, constants, outputs, runs_in)
                )
            numbers.update(zip(map(id, call.outputs), outputs, strict=True))
        return tuple(numbers[id(tensor)] for tensor in functional.outputs)

    def _fits(self, inner: Any, first: Any, rest: dict[str, Any], data: tuple[Tensor, ...]) -> bool:
        """Whether the call hands each input on as it is: same structure, no rank adjusted.

        A mask beside the inputs changes no value that an affine passes through.
        """
        if any(_symbolic(value) for name, value in rest.items() if name != "mask"):
            return False
        expected = inner._inputs_struct
        if isinstance(expected, (list, tuple)) and len(expected) == 1 and not tree.is_nested(first):
            first = [first]
        try:
            tree.assert_same_structure(tree.lists_to_tuples(first), tree.lists_to_tuples(expected))
        except (TypeError, ValueError):
            return False
        return all(
            len(self.shapes[number]) == len(tensor.shape)
            for number, tensor in zip(data, inner.inputs, strict=True)
        )


def _everything_in(functional: Any) -> set[int]:
    """Ids of a Functional graph, its operations, and those of the models inside it."""
    found = {id(functional)}
    for call in calls(functional):
        found.add(id(call.operation))
        inner = functional_graph(call.operation)
        if inner is not None:
            found |= _everything_in(inner)
    return found


def arguments(call: Any) -> tuple[Any, dict[str, Any]]:
    """The first argument of a Keras node's call, and all others by name."""
    signature = inspect.signature(call.operation.call)
    # Any layer may be told whether it trains; what its call does not take goes to layers inside.
    taken = {
        name: value
        for name, value in call.arguments.kwargs.items()
        if name in signature.parameters
        or name not in getattr(call.operation, "_call_context_args", ())
    }
    bound = signature.bind(*call.arguments.args, **taken).arguments
    flat: dict[str, Any] = {}
    for name, value in bound.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat |= value
        else:
            flat[name] = value
    return flat.pop(first_argument(call.operation), None), flat


def first_argument(operation: Any) -> str:
    """The name of the argument that `operation` takes its data in."""
    return next(iter(inspect.signature(operation.call).parameters))


def _symbolic(arguments: Any) -> list[Any]:
    return [leaf for leaf in tree.flatten(arguments) if isinstance(leaf, keras.KerasTensor)]


def _training_argument(call: Any) -> bool | None:
    training = call.arguments.kwargs.get("training")
    return None if training is None else bool(training)


def _why_there_is_no_graph(model: Any) -> str:
    if not isinstance(model, keras.Model):
        return f"expected a keras.Model, received {type(model).__module__}.{type(model).__name__}"
    if type(model).call is keras.Sequential.call:
        return (
            f"the Sequential model '{model.name}' has no input shape yet; add a keras.Input as "
            "its first layer, or call it once on data"
        )
    return (
        f"'{model.name}' is a subclassed model ({type(model).__name__} overrides call), whose "
        "graph only its Python code knows; build it with the Functional API: "
        "keras.Model(inputs, outputs)"
    )
