"""Building a new model out of an old one, with changes, in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src.saving.serialization_lib import SafeModeScope

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.view import Site, arguments, calls, functional_graph, structure

Weights = Mapping[str, np.ndarray]
"""Values of a layer's variables by attribute and place in lists, such as "cell.cells.0.kernel"."""


@dataclass(frozen=True)
class Changes:
    """How the new model differs from the old one.

    Operations are layers or nodes of `keras.ops`, named by their `id`.

    Attributes:
        removed: Calls that hand their first tensor on unchanged: x of 2 * x.
        weights: By operation, a function that gives its new values: by the dotted path of
            attributes, and of places in lists, from the layer to the variable. It is called once,
            when the layer is built, so that one layer's values are in memory at a time. The layer's
            other variables are copied.
        config: Constructor arguments that differ, by layer. Variables that a layer gains by
            them have to be among its `weights`.
        replaced: By operation, a function that makes the layer which stands in for it at every
            call, under its name, called with the first argument that holds tensors and nothing
            else. The new layer starts with its `weights` and nothing of the old one's.
        redirected: Calls of replaced operations that are made on what another call of the same
            model gets.
    """

    removed: frozenset[Site] = frozenset()
    weights: Mapping[int, Callable[[], Weights]] = field(default_factory=dict)
    config: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    replaced: Mapping[int, Callable[[], keras.Layer]] = field(default_factory=dict)
    redirected: Mapping[Site, Site] = field(default_factory=dict)


def rebuild(model: keras.Model, changes: Changes) -> keras.Model:
    """A new model with `changes` applied, sharing no variable with `model`.

    Names of layers, inputs and outputs, nesting, shared layers and the structure of inputs and
    outputs stay what they were. Each layer is made anew from its configuration. The result is
    not compiled.

    Args:
        model: A model that `view` can read.
        changes: What to do differently.

    Raises:
        UnsupportedModelError: a layer cannot be made from its configuration.
    """
    new = _Rebuilder(changes).model(model)
    # Its layers have all been called, and it can be: Keras exports to ONNX what was called only.
    new._called = True
    return new


class _Rebuilder:
    """Remembers the layers made so far, so that a layer shared by two models stays shared."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.made: dict[int, Any] = {}
        self.filled: set[int] = set()

    def model(self, model: Any) -> Any:
        if isinstance(model, keras.Sequential):
            return self.sequential(model)
        inputs, outputs = structure(model)
        tensors = {id(tensor): self.input(tensor) for tensor in tree.flatten(inputs)}
        self.run(model, tensors)

        def new(tensor: Any) -> Any:
            return tensors[id(tensor)]

        rebuilt = keras.Model(
            tree.map_structure(new, inputs),
            tree.map_structure(new, outputs),
            name=model.name,
            trainable=model.trainable,
        )
        rebuilt.supports_masking = model.supports_masking
        return rebuilt

    def sequential(self, model: Any) -> Any:
        functional: Any = functional_graph(model)
        (tensor,) = functional.inputs
        layers = [
            self.operation(call.operation)
            for position, call in enumerate(calls(functional))
            # Masks are computed by operations of their own, which the layers bring along.
            if isinstance(call.operation, keras.Layer)
            and Site(id(functional), position) not in self.changes.removed
        ]
        # A Sequential model with no layer left would not be callable.
        layers = layers or [keras.layers.Identity()]
        new = keras.Sequential(
            [self.input(tensor), *layers], name=model.name, trainable=model.trainable
        )
        for call in calls(functional):
            self.fill(call.operation)
        return new

    def run(self, functional: Any, tensors: dict[int, Any]) -> None:
        """Call the new operations in order; `tensors` maps old tensors' ids to new ones."""
        outputs_of_model = set(map(id, functional.outputs))
        in_order = list(calls(functional))
        for position, call in enumerate(in_order):
            old, (result, *_) = call.operation, call.outputs
            site = Site(id(functional), position)
            if site in self.changes.removed:
                outputs = tree.flatten(_first_tensors(call, tensors))[:1]
                if id(result) in outputs_of_model:
                    outputs = [self.stand_in(old, functional, result.dtype)(outputs[0])]
            elif id(old) in self.changes.replaced:
                read = in_order[self.changes.redirected.get(site, site).position]
                outputs = tree.flatten(self.operation(old)(_first_tensors(read, tensors)))
                self.fill(old)
            else:
                args, kwargs = call.arguments.fill_in(tensors)
                outputs = tree.flatten(self.operation(old)(*args, **kwargs))
                self.fill(old)
            tensors.update(zip(map(id, call.outputs), outputs, strict=True))

    def stand_in(self, old: Any, functional: Any, dtype: str) -> Any:
        """An Identity of the name of `old`, after which an output of the model is called."""
        stays = any(
            call.operation is old and Site(id(functional), position) not in self.changes.removed
            for position, call in enumerate(calls(functional))
        )
        if stays:  # its name is taken
            return keras.layers.Identity(dtype=dtype)
        if id(old) not in self.made:
            self.made[id(old)] = keras.layers.Identity(name=old.name, dtype=dtype)
            self.filled.add(id(old))
        return self.made[id(old)]

    def input(self, tensor: Any) -> Any:
        """A new input like the one that `tensor` comes from."""
        layer = tensor._keras_history.operation
        new = type(layer).from_config(layer.get_config()).output
        new.name = tensor.name  # which an unnamed Input takes from a counter, not from its layer
        return new

    def operation(self, old: Any) -> Any:
        """The new operation that stands for `old`, made on first use."""
        if id(old) not in self.made:
            self.made[id(old)] = self.make(old)
        return self.made[id(old)]

    def make(self, old: Any) -> Any:
        if id(old) in self.changes.replaced:
            new = self.changes.replaced[id(old)]()
            new.name = old.name
            return new
        return self.model(old) if functional_graph(old) is not None else self.clone(old)

    def clone(self, old: Any) -> Any:
        classes = {type(part).__name__: type(part) for part in _parts(old)}
        try:
            config = {**old.get_config(), **self.changes.config.get(id(old), {})}
            # The caller's own objects, already in memory: nothing foreign is deserialized here.
            with SafeModeScope(False), keras.saving.CustomObjectScope(classes):
                new = type(old).from_config(config)
        except Exception as error:
            raise UnsupportedModelError(
                f"layer '{old.name}' ({type(old).__name__}) cannot be made anew from its "
                f"configuration: {error}. Implement get_config and from_config so that "
                f"{type(old).__name__}.from_config(layer.get_config()) works"
            ) from error
        new.name = old.name  # which Keras leaves out of the configuration it derives by itself
        for part, twin in zip(_parts(old), _parts(new), strict=False):  # some are made later
            _begin_as(part, twin)
        return new

    def fill(self, old: Any) -> None:
        """Give the new layer, built by its first call, the old one's weights and the changes."""
        if id(old) in self.filled or id(old) not in self.made:  # removed at every call
            return
        self.filled.add(id(old))
        new, replaced = self.made[id(old)], id(old) in self.changes.replaced
        for part in _parts(new):
            vars(part).pop("add_weight", None)
        if not isinstance(new, keras.Layer) or (not replaced and functional_graph(old) is not None):
            return
        if id(old) not in self.changes.weights and not replaced:
            copy_weights(old, new)
            return
        values = self.changes.weights.get(id(old), dict)()
        changed = set()
        for path, value in values.items():
            variable = _at(path, new)
            variable.assign(_copy(value, variable.dtype))
            changed.add(id(variable))
        if not replaced:
            _copy_others(old, new, changed)
        _derive_constants(new)


def _at(path: str, layer: Any) -> Any:
    """What the dotted path of attributes, and of numbers that count in lists, leads to."""
    for name in path.split("."):
        layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
    return layer


def _first_tensors(call: Any, tensors: Mapping[int, Any]) -> Any:
    """The first argument of Keras's node that holds tensors, in terms of the new ones."""
    first, others = arguments(call)
    for value in (first, *others.values()):
        if any(isinstance(leaf, keras.KerasTensor) for leaf in tree.flatten(value)):
            return tree.map_structure(lambda leaf: tensors.get(id(leaf), leaf), value)
    raise ValueError(f"'{call.operation.name}' is called without tensors")


def copy_weights(old: Any, new: Any) -> None:
    """Copy every weight of layer `old` into `new`, its twin."""
    if len(old.weights) != len(new.weights):
        raise UnsupportedModelError(
            f"layer '{old.name}' ({type(old).__name__}) has {len(old.weights)} weights, but the "
            f"layer made from its configuration has {len(new.weights)}; its get_config leaves "
            "something out, or it makes weights later than its first call"
        )
    for source, target in zip(old.weights, new.weights, strict=True):
        target.assign(_copy(source, target.dtype))
    _derive_constants(new)


def _begin_as(old: Any, new: Any) -> None:
    """Let the weights that `new` makes begin as those of `old` with the same name and shape.

    What they begin as does not matter, since `fill` assigns all of them, but drawing random
    numbers takes a quarter of a rebuild's time. Until `fill`, `new` has an `add_weight` of its own.
    """
    weights = {weight.name: weight for weight in old.weights}
    add_weight = new.add_weight

    def begin(*args: Any, **arguments: Any) -> Any:
        weight = weights.get(arguments.get("name"))
        if weight is not None and not args and arguments.get("shape") == tuple(weight.shape):
            arguments["initializer"] = lambda shape, dtype: _copy(weight, dtype)
        return add_weight(*args, **arguments)

    if weights:
        vars(new)["add_weight"] = begin  # setattr would track it


def _copy(value: Any, dtype: str) -> Any:
    """`value` as a tensor of its own: JAX deletes the arrays of a model that is trained.

    What is beyond the range of `dtype` becomes infinite.
    """
    with np.errstate(over="ignore"):
        return keras.ops.copy(keras.ops.convert_to_tensor(value, dtype))


def _copy_others(old: Any, new: Any, changed: set[int]) -> None:
    """Copy the weights of `old` into `new`, its twin with some more weights; not into `changed`.

    Raises:
        UnsupportedModelError: a weight of `new` that is not in `changed` has none in `old`.
    """
    sources = dict(_weights_by_place(old))
    for place, target in _weights_by_place(new):
        if id(target) in changed:
            continue
        if place not in sources:
            raise UnsupportedModelError(
                f"layer '{old.name}' ({type(old).__name__}), made anew from its configuration, has "
                f"a weight '{target.path}' of shape {tuple(target.shape)} that it did not have: "
                "its get_config leaves something out, or the weight's value was not given"
            )
        target.assign(_copy(sources[place], target.dtype))


def _parts(operation: Any) -> list[Any]:
    """A layer and the layers inside it; none of other operations."""
    return operation._flatten_layers() if isinstance(operation, keras.Layer) else []


def _weights_by_place(layer: Any) -> Iterator[tuple[Any, Any]]:
    """Every weight of `layer` and of the layers inside it, with where it is kept.

    Names and positions do not do: those inside a layer may all be called "kernel", and a bias
    that is gained moves what follows. The attribute of a layer that holds a weight stays.
    """
    for number, part in enumerate(layer._flatten_layers()):
        inner = {id(w) for each in part._flatten_layers(include_self=False) for w in each.weights}
        attributes = {
            id(member): (name, position)
            for name, value in vars(part).items()
            # These hold all: Keras's lists, and what TensorFlow tracks of a layer in a model.
            if name not in ("_trainable_variables", "_non_trainable_variables")
            and not name.startswith("_self_")
            for position, member in enumerate(_members(value))
            if isinstance(member, keras.Variable)
        }
        unnamed = itertools.count()
        for weight in part.weights:
            if id(weight) not in inner:
                yield (number, attributes.get(id(weight)) or next(unnamed)), weight


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else (value,)


def _derive_constants(layer: Any) -> None:
    for part in layer._flatten_layers():
        # Normalization, lookups and the like derive constants from their weights.
        if hasattr(part, "finalize_state"):
            part.finalize_state()
