"""Opening up what only Python code knows: layers and models built out of other layers.

A Functional model has a graph to read. A class of the user's that overrides `call` and runs other
layers in it has none, so nothing inside it can fold. `opened` runs such a call once on symbolic
tensors, which every layer that it reaches records, and puts a nested Functional model of these
records in its place: under its name, with the same layers, so that "block/conv" is a layer like
any other. Blocks in blocks are nested models in nested models, and a subclassed model becomes a
Functional one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import tree
from keras.src.models.functional import Functional

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.composites import (
    UNKNOWN_LENGTH,
    Tracer,
    agrees,
    is_composite,
    model_like,
)
from keras_bn.graph.symbolic import Stopped, stopping
from keras_bn.graph.view import functional_graph, structure, view


@dataclass(frozen=True)
class Opened:
    """A model whose graph shows what the layers of the user's compute.

    Attributes:
        model: A Functional or Sequential model that computes the same in inference, out of the
            same layers. It is for reading, rebuilding and running; saving needs `rebuild` first,
            since the layers keep no record of their calls in it.
        closed: By id, each layer that is made of others and stays as it is, and the reason: a
            clause about the layer, such as "reads its variable 'scale' outside any layer".
    """

    model: keras.Model
    closed: Mapping[int, str]


def opened(model: keras.Model) -> Opened:
    """Open up every layer and model inside `model` that only its `call` describes.

    `model` is left as it is, its layers' records of their calls included.

    Args:
        model: A built model of any kind. A subclassed one has to have been called or built: what
            it remembers of that gives the shapes of its inputs, which are named for the keys of a
            dictionary or for the argument of `call`. Of several arguments the inputs become a
            dictionary.

    Returns:
        The opened model, which is `model` itself where there is nothing to open up.

    Raises:
        UnsupportedModelError: `model` is subclassed, and was never called, or its call cannot be
            traced; the message says which operation stopped it.

    Example:
        >>> import keras
        >>> class Block(keras.layers.Layer):
        ...     def __init__(self, **options):
        ...         super().__init__(**options)
        ...         self.conv = keras.layers.Conv2D(4, 3, name="conv")
        ...         self.norm = keras.layers.BatchNormalization(name="norm")
        ...     def call(self, x):
        ...         return keras.ops.relu(self.norm(self.conv(x)))
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), Block(name="block")])
        >>> [node.path.rsplit("_")[0] for node in view(opened(model).model).nodes]
        ['block/conv', 'block/norm', 'block/relu']
    """
    if not isinstance(model, keras.Model) or _is_unbuilt_sequential(model):
        view(model)  # says what is wrong
    layers = model._flatten_layers()
    if not any(is_composite(layer) for layer in layers):
        return Opened(model, {})
    if functional_graph(model) is not None:
        return _open_functional(model, layers)
    return _open_subclassed(model, layers)


def call_as_opened(model: keras.Model, inputs: Any) -> Any:
    """What `model` returns in inference for `inputs` in the structure that `opened` gives them.

    Of several arguments of a subclassed model's call that is a dictionary.
    """
    if functional_graph(model) is None and len(_remembered_shapes(model)) > 1:
        return model(**inputs, training=False)
    return model(inputs, training=False)


def _is_unbuilt_sequential(model: Any) -> bool:
    return type(model).call is keras.Sequential.call and functional_graph(model) is None


def _open_functional(model: Any, layers: list[Any]) -> Opened:
    graph = functional_graph(model)
    inputs_struct, _ = structure(graph)
    tracer = Tracer(layers)
    with tracer.at_work():
        inputs = tree.map_structure(_input_like, inputs_struct)
        tracer.inputs += tree.flatten(inputs)
        try:
            with stopping():
                outputs, level = tracer.run_root(model, (inputs,), {})
                opens = any(call.trace.opens for call in level.opens)
                result = model_like(model, inputs, outputs) if opens else model
        except Stopped as stop:
            return Opened(model, {**tracer.closed, id(model): str(stop)})
    return Opened(result, tracer.closed)


def _input_like(tensor: Any) -> Any:
    """A new input like the one that `tensor` comes from."""
    layer = tensor._keras_history.operation
    new = type(layer).from_config(layer.get_config()).output
    new.name = tensor.name  # which an unnamed Input takes from a counter, not from its layer
    return new


def _open_subclassed(model: Any, layers: list[Any]) -> Opened:
    shapes = _remembered_shapes(model)
    first: Stopped | None = None
    for dtype in _possible_dtypes(model, layers):
        try:
            result = _trace_root(model, layers, shapes, dtype, {})
            indices = _index_inputs(result.model, dtype)
            if indices:
                result = _trace_root(model, layers, shapes, dtype, dict.fromkeys(indices, "int32"))
            return result
        except Stopped as stop:
            first = first or stop
    raise _untraceable(model, f"it {first}") from first


def _untraceable(model: Any, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{model.name}' is a subclassed model ({type(model).__name__}), whose graph is found by "
        f"running its call on symbolic tensors, but {reason}. Let call use layers and keras.ops "
        "only, move what cannot be written so into a layer of its own, or build the model with "
        "keras.Model(inputs, outputs)"
    )


def _trace_root(
    model: Any, layers: list[Any], shapes: dict[str, Any], dtype: str, dtypes: Mapping[str, str]
) -> Opened:
    """Trace `model` with inputs of `dtype`, other than those named in `dtypes`."""
    given = {
        name: _new_inputs(shape, name, dtype, dtypes, outermost=True)
        for name, shape in shapes.items()
    }
    tracer = Tracer(layers)
    tracer.inputs += tree.flatten(given)
    with tracer.at_work(), stopping():
        outputs = tracer.call_root(model, given)
        first, *others = given
        named = {name: given[name] for name in others}
        inputs = given if others else given[first]
        result = keras.Model(inputs, outputs, name=model.name, trainable=model.trainable)
        if tracer.level.guessed and not agrees(
            model, (given[first],), named, tree.flatten(given), outputs
        ):
            raise Stopped(UNKNOWN_LENGTH)
    return Opened(result, tracer.closed)


def _remembered_shapes(model: Any) -> dict[str, Any]:
    """Shapes of the tensors that `model` was built on, by argument of its call."""
    if not model.built:
        raise UnsupportedModelError(
            f"the subclassed model '{model.name}' ({type(model).__name__}) does not know yet what "
            "inputs it takes: call it once on data, as in model(x) or model.predict(x)"
        )
    remembered = getattr(model, "_build_shapes_dict", None)
    if isinstance(model, Functional):  # with a call of its own
        inputs_struct, _ = structure(model)
        remembered = {"inputs": tree.map_structure(lambda tensor: tensor.shape, inputs_struct)}
    if not remembered:
        raise _untraceable(model, _why_nothing_is_remembered(model))
    if len(remembered) > 1:
        return {name.removesuffix("_shape"): shape for name, shape in remembered.items()}
    required = [
        parameter.name
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise UnsupportedModelError(
            f"call of the subclassed model '{model.name}' takes {', '.join(required)}, but Keras "
            f"remembers the shape of {required[0]} alone. Take one list or dictionary of tensors, "
            f"or define build({', '.join(f'{name}_shape' for name in required)})"
        )
    (shape,) = remembered.values()
    return {model.call_signature_parameters[0]: shape}


def _why_nothing_is_remembered(model: Any) -> str:
    """What stopped Keras when it ran the call on symbolic tensors itself, to learn the shapes.

    The shape that the first layer inside was built on will do to find that out.
    """
    first = model.call_signature_parameters[0]
    for layer in model._flatten_layers(include_self=False):
        for shape in (layer._build_shapes_dict or {}).values():
            try:
                _trace_root(
                    model, model._flatten_layers(), {first: shape}, layer.variable_dtype, {}
                )
            except Stopped as stop:
                return f"it {stop}"
    return "Keras could not do so when it was first called, and remembers no shape of its inputs"


def _possible_dtypes(model: Any, layers: list[Any]) -> Iterator[str]:
    """What the inputs may be, of which Keras remembers nothing; likeliest first."""
    if any(isinstance(layer, keras.layers.TextVectorization) for layer in layers):
        yield "string"
    yield model.variable_dtype
    yield "int32"


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, (list, tuple)) and all(
        length is None or isinstance(length, int) for length in shape
    )


def _new_inputs(
    shapes: Any, name: str, dtype: str, dtypes: Mapping[str, str], outermost: bool = False
) -> Any:
    """Inputs in the structure of `shapes`, of any batch size, with names made of its keys."""
    if _is_shape(shapes):
        batch_shape = (None, *shapes[1:]) if shapes else ()
        return keras.Input(batch_shape=batch_shape, dtype=dtypes.get(name, dtype), name=name)
    if isinstance(shapes, dict):
        return {
            key: _new_inputs(shape, key if outermost else f"{name}_{key}", dtype, dtypes)
            for key, shape in shapes.items()
        }
    parts = [_new_inputs(s, f"{name}_{i}", dtype, dtypes) for i, s in enumerate(shapes)]
    return tuple(parts) if isinstance(shapes, tuple) else parts


def _index_inputs(model: keras.Model, dtype: str) -> set[str]:
    """Names of floating-point inputs that an Embedding reads, so that they are indices."""
    if not keras.backend.is_float_dtype(dtype):
        return set()
    graph = view(model)
    names = dict(zip(graph.inputs, graph.input_names, strict=True))
    found = set()
    for node in graph.nodes:
        if isinstance(node.operation, keras.Layer):
            if any(
                isinstance(layer, keras.layers.Embedding)
                for layer in node.operation._flatten_layers()
            ):
                found |= {names[tensor] for tensor in node.inputs if tensor in names}
        elif type(node.operation).__name__ == "Cast" and node.inputs[0] in names:
            names[node.outputs[0]] = names[node.inputs[0]]
    return found
