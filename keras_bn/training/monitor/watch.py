"""What passes through the layers of a model while it is called, with nothing in it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
from keras.src.backend import get_keras_mask

from keras_bn.graph.view import calls as graph_calls
from keras_bn.graph.view import functional_graph
from keras_bn.training.monitor import activations
from keras_bn.training.monitor.activations import Activation
from keras_bn.training.recording import set_on_object

Tensor = Any

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)
LINEAR = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
RECURRENT = (keras.layers.RNN,)


@dataclass
class Call:
    """One call of a layer.

    Attributes:
        layer: The layer.
        inputs: The tensor it received.
        mask: The mask that came with it, if any.
        outputs: What the layer computed, before an activation function of its own.
        following, preceding: The activation right after and right before it, with its values.
    """

    layer: Any
    inputs: Tensor
    mask: Tensor | None
    outputs: Tensor = None
    following: tuple[Activation, Tensor] | None = None
    preceding: tuple[Activation, Tensor] | None = None

    @property
    def activation(self) -> tuple[Activation, Tensor] | None:
        return self.following or self.preceding


@dataclass
class Seen:
    """What a call of a model passed through.

    Attributes:
        calls: Those of normalizations, linear and recurrent layers, and requested ones.
        order: Every layer, by its first call.
    """

    calls: list[Call] = field(default_factory=list)
    order: list[Any] = field(default_factory=list)

    def gradient_flow(self) -> list[Call]:
        """The calls at whose outputs gradients compare, in the order of the layers.

        A layer in front of a normalization is left out: the gradient at its output is that at
        the normalization's divided by the deviation it normalizes by, which may be any.
        """
        normalized = self.normalized()
        return [call for call in self.calls if id(call.outputs) not in normalized]

    def in_order(self, model: keras.Model) -> list[Any]:
        """All layers of `model` in the order of their calls.

        A layer that is not called itself, such as the cell of a recurrent layer which computes a
        sequence at once, stands with the layer around it.
        """
        ranks = {id(operation): rank for rank, operation in enumerate(self.order)}
        for rank, operation in enumerate(self.order):
            if isinstance(operation, keras.Layer):
                for inner in operation._flatten_layers(include_self=False):
                    ranks.setdefault(id(inner), rank)
        layers = model._flatten_layers()
        return sorted(layers, key=lambda layer: ranks.get(id(layer), -1))

    def normalized(self) -> set[int]:
        """Ids of the tensors that a normalization receives as they are."""
        return {id(call.inputs) for call in self.calls if isinstance(call.layer, NORMALIZATIONS)}


@contextmanager
def watching(
    model: keras.Model,
    requested: Sequence[Any],
    passing: Callable[[int, Tensor], Tensor],
) -> Iterator[Seen]:
    """While open, calls of the model's layers are seen, and its batch normalizations in training.

    Calls inside a loop or function that the backend compiles by itself are not seen, since their
    tensors do not exist outside it; nor are those of the layers in a recurrent one, which runs
    them once for each time step.

    Args:
        model: The model.
        requested: Layers to see besides those that normalize, are linear or recurrent.
        passing: Given the number of a call and its outputs, returns what takes their place.
    """
    seen = Seen()
    level = _trace_level()
    # By the ids of tensors, which are kept so that no other gets the same.
    awaiting: dict[int, Call] = {}
    activated: dict[int, tuple[Activation, Tensor]] = {}

    def see(layer: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inputs = _first(args, kwargs)
        mask = kwargs.get("mask")
        call = Call(layer, inputs, keras_mask(inputs) if mask is None else mask)
        call.preceding = activated.get(id(inputs))
        number = len(seen.calls)
        seen.calls.append(call)
        own = activations.of_function(layer.activation) if isinstance(layer, LINEAR) else None
        if own is None:
            outputs = original(*args, **kwargs)
            if not hasattr(outputs, "shape"):  # several, as from a layer that returns its states
                seen.calls.remove(call)
                return outputs
            call.outputs = passing(number, outputs)
            awaiting[id(call.outputs)] = call
            return call.outputs
        function = layer.activation

        def activation(x: Tensor) -> Tensor:
            call.outputs = passing(number, x)
            y = function(call.outputs)
            call.following = own, y
            return y

        with set_on_object(layer, "activation", activation):
            result = original(*args, **kwargs)
        activated[id(result)] = own, result
        return result

    def follow(kind: Activation, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        activated[id(result)] = kind, result
        call = awaiting.get(id(_first(args, kwargs)))
        if call is not None and call.following is None:
            call.following = kind, result
        return result

    def hook(operation: Any, watched: bool) -> Callable[..., Any]:
        original, kind = operation.call, activations.of_operation(operation)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not any(operation is one for one in seen.order):
                seen.order.append(operation)
            if _trains(operation) and kwargs.get("training") is not False:
                kwargs["training"] = True
            if _trace_level() != level:
                return original(*args, **kwargs)
            if kind is not None:
                return follow(kind, original, args, kwargs)
            if watched:
                return see(operation, original, args, kwargs)
            return original(*args, **kwargs)

        return call

    in_recurrent = {
        id(inner)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.RNN)
        for inner in layer._flatten_layers(include_self=False)
    }
    with ExitStack() as stack:
        for operation in _operations(model):
            watched = id(operation) not in in_recurrent and (
                isinstance(operation, (*NORMALIZATIONS, *LINEAR, *RECURRENT))
                or any(operation is one for one in requested)
            )
            stack.enter_context(set_on_object(operation, "call", hook(operation, watched)))
        yield seen


def chosen(calls: Sequence[Call], requested: Sequence[Any], y_pred: Any) -> list[Call]:
    """The calls of the layers that were asked for; without any, those that normalize.

    In a model that normalizes nothing, those of the linear layers which an activation follows,
    except where that is the model's output: the places where others have a normalization.
    """
    if requested:
        return [call for call in calls if any(call.layer is one for one in requested)]
    normalizing = [call for call in calls if isinstance(call.layer, NORMALIZATIONS)]
    if normalizing:
        return normalizing
    outputs = {id(leaf) for leaf in keras.tree.flatten(y_pred)}
    hidden = [
        call
        for call in calls
        if call.following is not None and id(call.following[1]) not in outputs
    ]
    return hidden or list(calls)


def channel_axes(layer: Any, rank: int) -> tuple[int, ...]:
    """The axes of the outputs of `layer` along which its units stand."""
    axis = getattr(layer, "axis", None)
    if axis is None:
        axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    several = axis if isinstance(axis, (list, tuple)) else [axis]
    return tuple(sorted(one % rank for one in several))


def own_weights(layer: Any) -> list[Any]:
    """The trainable weights of `layer` that none of the layers within it has."""
    within = {
        id(weight)
        for inner in layer._flatten_layers(include_self=False)
        for weight in inner.trainable_weights
    }
    return [weight for weight in layer.trainable_weights if id(weight) not in within]


def keras_mask(tensor: Tensor) -> Tensor | None:
    """The mask that Keras keeps beside a tensor."""
    return get_keras_mask(tensor)


def _operations(model: keras.Model) -> Iterator[Any]:
    """Every layer, and the operations that stand by themselves in graphs of layers, once each."""
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    yield from layers
    known = {id(layer) for layer in layers}
    for layer in (model, *layers):
        graph = functional_graph(layer)
        for call in graph_calls(graph) if graph is not None else ():
            if not isinstance(call.operation, keras.Layer) and id(call.operation) not in known:
                known.add(id(call.operation))
                yield call.operation


def _trains(operation: Any) -> bool:
    return isinstance(operation, keras.layers.BatchNormalization) and operation.trainable


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _trace_level() -> Any:
    """What the tensors that are made now belong to: a graph or a trace of the backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return id(tf.compat.v1.get_default_graph())
    if backend == "jax":
        from jax.extend.core import get_opaque_trace_state

        return get_opaque_trace_state()
    return None
