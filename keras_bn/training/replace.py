"""Replacing Keras's batch normalizations in a model by those of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.rebuild import copy_weights
from keras_bn.graph.view import functional_graph
from keras_bn.layers import BatchNormalization


def replace_batch_norm(model: keras.Model, **options: Any) -> keras.Model:
    """A copy of `model` with every `keras.layers.BatchNormalization` replaced by this package's.

    Names, arguments and weights carry over, so inference gives exactly the same outputs; layers
    that are ours already stay as they are. Nested models are opened, shared layers stay shared,
    and a batch normalization inside a wrapper such as `TimeDistributed` is replaced in place.

    Args:
        model: A Sequential or Functional model. It is not changed, and shares no variable with
            the result.
        options: Arguments for each new layer, such as `momentum=None` or `debias=True`. They
            take the place of the replaced layer's own.

    Returns:
        The new model. If `model` was compiled so is the result, with the same settings and an
        optimizer that starts anew.

    Raises:
        UnsupportedModelError: `model`, or a model or layer within it that holds batch
            normalizations, is written as a class, so that nothing outside can replace them.
        ValueError, TypeError: a wrong option.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    >>> replaced = replace_batch_norm(model, momentum=None)
    >>> type(replaced.layers[0]).__module__, replaced.layers[0].momentum
    ('keras_bn.layers.batch_normalization', None)
    """
    if not _is_open(model):
        raise UnsupportedModelError(
            f"expected a Sequential or Functional model, received '{model.name}' of class "
            f"{type(model).__name__}, whose `call` only its Python code knows. Use "
            "keras_bn.layers.BatchNormalization where it creates its layers"
        )
    copies: dict[int, tuple[Any, Any]] = {}

    def copy(operation: Any) -> Any:
        if id(operation) not in copies:
            copies[id(operation)] = operation, _copy(operation, options, copy)
        return copies[id(operation)][1]

    replaced = copy(model)
    for original, twin in copies.values():
        if isinstance(original, keras.Layer) and not _is_open(original):
            _carry_weights_over(original, twin)
    return replaced


def _copy(operation: Any, options: dict[str, Any], copy: Callable[[Any], Any]) -> Any:
    """A new operation like `operation`, with its batch normalizations replaced; not yet built.

    `copy` copies the operations inside it.
    """
    if not isinstance(operation, keras.Layer):
        return operation  # a function of keras.ops, which has no state
    if _is_stock(operation):
        return like(operation, **options)
    if _is_open(operation):
        model = keras.models.clone_model(
            operation, input_tensors=_new_inputs(operation), clone_function=copy
        )
        if not operation.trainable:
            model.trainable = False
        return model
    if isinstance(operation, keras.layers.Wrapper) and _is_stock(operation.layer):
        arguments = {k: v for k, v in operation.get_config().items() if k != "layer"}
        return type(operation)(copy(operation.layer), **arguments)
    hidden = [layer.name for layer in operation._flatten_layers() if _is_stock(layer)]
    if hidden:
        raise UnsupportedModelError(
            f"layer '{operation.name}' of class {type(operation).__name__} holds batch "
            f"normalizations ({', '.join(hidden)}) that cannot be replaced from outside it. Use "
            "keras_bn.layers.BatchNormalization where it creates them"
        )
    new = type(operation).from_config(operation.get_config())
    new.name = operation.name  # which Keras leaves out of the configuration it derives by itself
    return new


def like(layer: keras.layers.BatchNormalization, **options: Any) -> BatchNormalization:
    """This package's layer with the arguments of `layer`, which is Keras's; not yet built.

    Initializers, regularizers and constraints are the same objects, so that none of them has to
    be registered as serializable.
    """
    names = set(keras.layers.BatchNormalization.get_config(layer)) - {"dtype"}
    arguments = {name: getattr(layer, name) for name in names}
    return BatchNormalization(**{**arguments, "dtype": layer.dtype_policy, **options})


def _carry_weights_over(original: keras.Layer, twin: keras.Layer) -> None:
    if _is_stock(original):
        # Options may have added weights to the twin, or taken some away.
        twins = {weight.name: weight for weight in twin.weights}
        for weight in original.weights:
            if weight.name in twins:
                # A copy: JAX deletes the arrays of a model that is trained.
                twins[weight.name].assign(keras.ops.copy(weight))
    elif not (isinstance(original, keras.layers.Wrapper) and _is_stock(original.layer)):
        copy_weights(original, twin)


def _new_inputs(model: keras.Model) -> Any:
    """Input tensors like those of `model`, under their layers' names."""
    if isinstance(model, keras.Sequential):
        return None  # copied by Keras, name included
    layers = {
        id(layer.output): layer
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }

    def copied(tensor: Any) -> Any:
        layer = layers[id(tensor)]
        new = type(layer).from_config(layer.get_config()).output
        new.name = tensor.name  # an unnamed input's, by which data in dictionaries go
        return new

    return tree.map_structure(copied, model.input)


def _is_stock(layer: Any) -> bool:
    # A subclass of Keras's layer, ours or the user's, is what it is on purpose.
    return type(layer) is keras.layers.BatchNormalization


def _is_open(operation: Any) -> bool:
    """Whether `operation` is a model given as a list or a graph of layers."""
    return functional_graph(operation) is not None or type(operation).call is keras.Sequential.call
