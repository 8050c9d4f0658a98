"""Building a new model out of an old one, with changes, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src.saving.serialization_lib import SafeModeScope

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.view import Site, arguments, calls, functional_graph, structure

Weights = Mapping[str, np.ndarray]
"""Values of a layer's variables by name, such as "kernel" and "bias"."""


@dataclass(frozen=True)
class Changes:
    """How the new model differs from the old one.

    Attributes:
        removed: Calls that hand their first input on unchanged.
        weights: By layer id, a function that gives its new values: by the name of the variable
            and of the layer's attribute that holds it. It is called once, when the layer is
            built, so that one layer's values are in memory at a time. The layer's other
            variables are copied.
        config: Constructor arguments that differ, by layer id.
    """

    removed: frozenset[Site] = frozenset()
    weights: Mapping[int, Callable[[], Weights]] = field(default_factory=dict)
    config: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


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
    return _Rebuilder(changes).model(model)


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

        return keras.Model(
            tree.map_structure(new, inputs),
            tree.map_structure(new, outputs),
            name=model.name,
            trainable=model.trainable,
        )

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
        for position, call in enumerate(calls(functional)):
            if Site(id(functional), position) in self.changes.removed:
                first, _ = arguments(call)
                outputs = [tensors[id(first)]]
                if id(call.outputs[0]) in outputs_of_model:
                    outputs = [self.stand_in(call.operation, functional)(outputs[0])]
            else:
                args, kwargs = call.arguments.fill_in(tensors)
                outputs = tree.flatten(self.operation(call.operation)(*args, **kwargs))
                self.fill(call.operation)
            tensors.update(zip(map(id, call.outputs), outputs, strict=True))

    def stand_in(self, old: Any, functional: Any) -> Any:
        """An Identity of the name of `old`, after which an output of the model is called."""
        stays = any(
            call.operation is old and Site(id(functional), position) not in self.changes.removed
            for position, call in enumerate(calls(functional))
        )
        if stays:  # its name is taken
            return keras.layers.Identity(dtype=old.dtype_policy.name)
        if id(old) not in self.made:
            self.made[id(old)] = keras.layers.Identity(name=old.name, dtype=old.dtype_policy.name)
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
            self.made[id(old)] = (
                self.model(old) if functional_graph(old) is not None else self.clone(old)
            )
        return self.made[id(old)]

    def clone(self, old: Any) -> Any:
        parts = old._flatten_layers() if isinstance(old, keras.Layer) else [old]
        classes = {type(part).__name__: type(part) for part in parts}
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
        return new

    def fill(self, old: Any) -> None:
        """Give the new layer, built by its first call, the old one's weights and the changes."""
        if id(old) in self.filled or id(old) not in self.made:  # removed at every call
            return
        self.filled.add(id(old))
        if not isinstance(old, keras.Layer) or functional_graph(old) is not None:
            return
        new = self.made[id(old)]
        if id(old) not in self.changes.weights:
            copy_weights(old, new)
            return
        changed = self.changes.weights[id(old)]()
        for name, value in changed.items():
            getattr(new, name).assign(value)
        twins = {weight.name: weight for weight in new.weights}
        for weight in old.weights:
            if weight.name not in changed:
                twins[weight.name].assign(weight)


def copy_weights(old: Any, new: Any) -> None:
    """Copy every weight of layer `old` into `new`, its twin."""
    if len(old.weights) != len(new.weights):
        raise UnsupportedModelError(
            f"layer '{old.name}' ({type(old).__name__}) has {len(old.weights)} weights, but the "
            f"layer made from its configuration has {len(new.weights)}; its get_config leaves "
            "something out, or it makes weights later than its first call"
        )
    for source, target in zip(old.weights, new.weights, strict=True):
        target.assign(source)
    for layer in new._flatten_layers():
        # Normalization, lookups and the like derive constants from their weights.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
