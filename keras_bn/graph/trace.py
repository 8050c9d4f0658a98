"""Opening up what only Python code knows: layers and models built out of other layers.

A Functional model has a graph to read. A class of the user's that overrides `call` and runs other
layers in it has none, so nothing inside it can fold. `opened` runs such a call once on symbolic
tensors, which every layer that it reaches records, and puts a nested Functional model of these
records in its place: under its name, with the same layers, so that "block/conv" is a layer like
any other. Blocks in blocks are nested models in nested models, and a subclassed model becomes a
Functional one.

Keras itself makes each call: it casts the arguments, says whether it is training, and fills in
masks. Only the last step is replaced, for the time of the tracing, in which a layer finds out what
it returns for symbolic tensors.

Masks that travel on tensors go on doing so. Where a call reads one, it becomes a further input of
the nested model; where a block hands its input's mask on past operations that lose it, a nested
Identity puts it back.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import math
import operator
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext
from keras.src.ops.node import Node
from keras.src.ops.numpy import Reshape
from keras.src.utils.python_utils import is_default

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.view import arguments, calls, functional_graph, structure, view

# Any that no other axis is likely to have.
_BATCH_SIZE = 3
_UNKNOWN_LENGTH = "computes with the length of an axis that is not known before it runs"
_LIBRARIES = {"keras", "keras_bn", "tensorflow", "jax", "jaxlib", "torch", "numpy", "optree"}


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
    if not any(_is_composite(layer) for layer in layers):
        return Opened(model, {})
    if functional_graph(model) is not None:
        return _open_functional(model, layers)
    return _open_subclassed(model, layers)


def _is_unbuilt_sequential(model: Any) -> bool:
    return type(model).call is keras.Sequential.call and functional_graph(model) is None


def _is_composite(layer: Any) -> bool:
    """Whether a class of the user's, or a Sequential without a graph, calls layers inside it."""
    if functional_graph(layer) is not None or not layer._layers:
        return False
    owner = next((kind for kind in type(layer).__mro__ if "call" in vars(kind)), None)
    if owner is keras.Sequential:
        return True
    return owner is not None and owner.__module__.split(".")[0] not in ("keras", "keras_bn")


# --- whole models -------------------------------------------------------------------------------


def _open_functional(model: Any, layers: list[Any]) -> Opened:
    graph = functional_graph(model)
    inputs_struct, _ = structure(graph)
    tracer = _Tracer(layers)
    with tracer.at_work():
        inputs = tree.map_structure(_input_like, inputs_struct)
        tracer.inputs += tree.flatten(inputs)
        try:
            outputs, level = tracer.run(model, (inputs,), {}, training=False)
        except _Stopped as stop:
            return Opened(model, {**tracer.closed, id(model): str(stop)})
        if not any(call.trace.opens for call in level.opens):
            return Opened(model, tracer.closed)
        return Opened(_model_like(model, inputs, outputs), tracer.closed)


def _input_like(tensor: Any) -> Any:
    """A new input like the one that `tensor` comes from."""
    layer = tensor._keras_history.operation
    new = type(layer).from_config(layer.get_config()).output
    new.name = tensor.name  # which an unnamed Input takes from a counter, not from its layer
    return new


def _open_subclassed(model: Any, layers: list[Any]) -> Opened:
    shapes = _remembered_shapes(model)
    first: _Stopped | None = None
    for dtype in _possible_dtypes(model, layers):
        try:
            result = _trace_root(model, layers, shapes, dtype, {})
            indices = _index_inputs(result.model, dtype)
            if indices:
                result = _trace_root(model, layers, shapes, dtype, dict.fromkeys(indices, "int32"))
            return result
        except _Stopped as stop:
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
    tracer = _Tracer(layers)
    tracer.inputs += tree.flatten(given)
    with tracer.at_work():
        outputs = tracer.call_root(model, given)
        inputs = next(iter(given.values())) if len(given) == 1 else given
        result = keras.Model(inputs, outputs, name=model.name, trainable=model.trainable)
        if tracer.level.guessed:
            distinct = tree.flatten(given)
            trace = _Trace(model, distinct, outputs, [True] * len(distinct), True, True)
            first, *others = given
            named = {name: given[name] for name in others}
            if not _agrees(model, (given[first],), named, trace):
                raise _Stopped(_UNKNOWN_LENGTH)
    return Opened(result, tracer.closed)


def _remembered_shapes(model: Any) -> dict[str, Any]:
    """Shapes of the tensors that `model` was built on, by argument of its call."""
    if not model.built:
        raise UnsupportedModelError(
            f"the subclassed model '{model.name}' ({type(model).__name__}) does not know yet what "
            "inputs it takes: call it once on data, as in model(x) or model.predict(x)"
        )
    remembered = getattr(model, "_build_shapes_dict", None)
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
            except _Stopped as stop:
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


# --- tracing ------------------------------------------------------------------------------------


class _Stopped(Exception):  # noqa: N818 - not an error by itself: a layer stays closed for it
    """A call cannot be traced; the message is a clause about the layer that was called."""


@dataclass
class _Level:
    """One call in the making: of a composite, or of a model with a graph.

    Attributes:
        code: Whether the user's code makes the calls of this level, rather than a graph.
        training: What the call was told.
        opens: The calls so far of layers that a nested model takes the place of.
        passed_on: The `training` argument that the graph of this level has for its next call.
        guessed: Whether a length that the code did not know was taken to be the batch's.
        left_in: What Keras takes `training` to be at the end of the call.
    """

    code: bool
    training: bool
    opens: list[_Open] = field(default_factory=list)
    passed_on: bool | None = None
    guessed: bool = False
    left_in: bool | None = None


@dataclass
class _Trace:
    """What calling a layer on tensors of certain shapes comes down to.

    Attributes:
        layer: What was called.
        inputs: The inner tensors that stand for the arguments' and their masks, in order.
        outputs: The structure that the call returned, of inner tensors.
        live: Which of `inputs` anything depends on.
        code: Whether the user's code made the calls, rather than a graph.
        opens: Whether a layer was opened up on the way.
        left_in: What Keras takes `training` to be after the call, since it does not go back to
            what it was before the last call inside.
    """

    layer: Any
    inputs: list[Any]
    outputs: Any
    live: list[bool]
    code: bool
    opens: bool
    left_in: bool | None = None
    models: dict[tuple[bool, ...], keras.Model] = field(default_factory=dict)

    @property
    def masks(self) -> list[Any]:
        """Masks of the outputs that came about inside the call."""
        known = set(map(id, self.inputs))
        masks = map(backend.get_keras_mask, tree.flatten(self.outputs))
        return list({id(m): m for m in masks if m is not None and id(m) not in known}.values())

    def model(self, masks: tuple[bool, ...]) -> keras.Model:
        """The call as a Functional model that also returns the chosen ones of `masks`."""
        if masks not in self.models:
            inputs = [tensor for tensor, live in zip(self.inputs, self.live, strict=True) if live]
            chosen = [mask for mask, wanted in zip(self.masks, masks, strict=True) if wanted]
            self.models[masks] = _model_like(
                self.layer,
                inputs[0] if len(inputs) == 1 else inputs,
                [self.outputs, chosen] if chosen else self.outputs,
            )
        return self.models[masks]


@dataclass
class _Open:
    """One call of a layer that a nested model takes the place of, in terms of outer tensors.

    Attributes:
        trace: What the call comes down to.
        sources: The tensors for the trace's inputs.
        outputs: What the call returned, flattened.
        carried: The masks that the outputs had when the call itself was done, or None.
        masks: Tensors for the trace's masks.
        training: The `training` argument of the call in the model's graph.
    """

    trace: _Trace
    sources: list[Any]
    outputs: list[Any]
    carried: list[Any]
    masks: list[Any]
    training: bool | None

    @property
    def live(self) -> list[Any]:
        return [t for t, live in zip(self.sources, self.trace.live, strict=True) if live]

    @property
    def attached(self) -> list[Any]:
        """For each output, the mask that Keras put on it after the call, or None."""
        after = map(backend.get_keras_mask, self.outputs)
        return [b if a is None else None for a, b in zip(self.carried, after, strict=True)]


class _Tracer:
    """Runs calls on symbolic tensors and puts nested models in the place of what it can trace.

    Attributes:
        inputs: Every tensor that a call was traced from.
        closed: Why layers stay closed, by their id.
    """

    def __init__(self, layers: Collection[Any]) -> None:
        self.composites = {id(layer): layer for layer in layers if _is_composite(layer)}
        self.graphs = {id(x): x for x in layers if functional_graph(x) is not None}
        self.names = {layer.name for layer in layers}
        self.inputs: list[Any] = []
        self.closed: dict[int, str] = {}
        self.traces: dict[Any, _Trace | None] = {}
        self.arguments: list[Any] = []  # kept alive, since their ids are in the keys of `traces`
        self.made: set[int] = set()
        self.level = _Level(code=False, training=False)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Intercept the calls of all layers to be opened; afterwards no trace of it is left."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_whole_tracebacks())
            stack.enter_context(_call_context(training=False))
            for layer in (*self.composites.values(), *self.graphs.values()):
                stack.enter_context(_attributes_kept(layer))
                vars(layer)["symbolic_call"] = functools.partial(self.intercept, layer)
            stack.callback(_forget, self.inputs)
            yield

    def call_root(self, model: Any, given: dict[str, Any]) -> Any:
        """The outputs of the subclassed `model`, run on its inputs as they are."""
        histories: list[tuple[Any, Any]] = []

        def run(*args: Any, **kwargs: Any) -> Any:
            outputs, level = self.run(model, args, kwargs, training=False)
            self.level.guessed = level.guessed
            histories.extend((t, t._keras_history) for t in tree.flatten(outputs))
            return outputs

        vars(model)["symbolic_call"] = run
        first, *others = given
        try:
            outputs = model(given[first], **{name: given[name] for name in others})
        except _Stopped:
            raise
        except Exception as error:  # Keras refuses the inputs before any call
            raise _Stopped(_why(error)) from error
        for tensor, history in histories:  # which the call of the model itself has overwritten
            tensor._keras_history = history
        return outputs

    def intercept(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """What `layer` returns for symbolic tensors; stands in for Layer.symbolic_call."""
        training = self.level.code and bool(_current_context().get_value("training"))
        if "training" in kwargs or layer._call_has_training_arg:
            kwargs = {**kwargs, "training": training}
        key = (id(layer), training, _signature(args, kwargs))
        if key not in self.traces:
            self.arguments.append((args, kwargs))
            try:
                self.traces[key] = self.trace(layer, args, kwargs, training)
            except _Stopped as stop:
                self.closed[id(layer)] = str(stop)
                self.traces[key] = None
        trace = self.traces[key]
        if trace is None:
            return type(layer).symbolic_call(layer, *args, **kwargs)
        if trace.code:
            _current_context().set_value("training", trace.left_in)
        return self.apply(trace, args, kwargs)

    def trace(self, layer: Any, args: Any, kwargs: Any, training: bool) -> _Trace | None:
        """Run the call of `layer` on inner tensors; None where there is nothing to open up.

        Raises:
            _Stopped: it cannot be traced.
        """
        graph = functional_graph(layer)
        if graph is None:
            _check_composite(layer)
            if training and not self.level.training:  # which the nested model could not keep up
                raise _Stopped("is called with training=True, whatever the model is told")
        elif not self.worth_opening(layer, args, kwargs):
            return None
        else:
            _check_graph_call(graph, args, kwargs)
        outer = _distinct(args, kwargs)
        inner: dict[int, Any] = {}
        dtypes = {} if graph is None else _input_dtypes(graph, args)
        for number, tensor in enumerate(outer):
            inner[id(tensor)] = keras.Input(
                batch_shape=tensor.shape,
                dtype=dtypes.get(id(tensor), tensor.dtype),
                sparse=tensor.sparse,
                name=f"{layer.name}_input{number or ''}",
            )
            self.made.add(id(inner[id(tensor)]._keras_history.operation))
        for tensor in outer:
            mask = backend.get_keras_mask(tensor)
            if mask is not None:
                backend.set_keras_mask(inner[id(tensor)], inner[id(mask)])
        inputs = list(inner.values())
        self.inputs += inputs

        def stand_in(value: Any) -> Any:
            return inner.get(id(value), value)

        args, kwargs = tree.map_structure(stand_in, (args, kwargs))
        outputs, level = self.run(layer, args, kwargs, training)
        opens = graph is None or any(call.trace.opens for call in level.opens)
        trace = _Trace(layer, inputs, outputs, [], level.code, opens, level.left_in)
        reached = _reached([*tree.flatten(outputs), *trace.masks], level.opens)
        foreign = [t for t in reached.values() if _is_input(t) and all(t is not i for i in inputs)]
        if foreign:
            raise _Stopped("reads a tensor that another call left behind")
        trace.live = [id(tensor) in reached for tensor in inputs]
        if not any(trace.live):
            raise _Stopped("returns what does not depend on its inputs")
        if level.guessed and not _agrees(layer, args, kwargs, trace):
            raise _Stopped(_UNKNOWN_LENGTH)
        return trace

    def worth_opening(self, layer: Any, args: Any, kwargs: Any) -> bool:
        """Whether a model with a graph holds composites, or hands masks on.

        Called as a whole, a Functional model forgets masks, which the calls after it may read.
        """
        return any(
            id(part) in self.composites or _makes_masks(part) for part in layer._flatten_layers()
        ) or any(backend.get_keras_mask(tensor) is not None for tensor in _distinct(args, kwargs))

    def apply(self, trace: _Trace, args: Any, kwargs: Any) -> Any:
        """Note a call of `trace` on outer tensors, and return what it gives in terms of these."""
        sources = _distinct(args, kwargs)
        masks = {id(inner): outer for inner, outer in zip(trace.inputs, sources, strict=True)}
        for mask in trace.masks:
            masks[id(mask)] = keras.KerasTensor(mask.shape, mask.dtype)
        made = [masks[id(mask)] for mask in trace.masks]
        if made:  # They belong to no operation until the nested model is made, at the end.
            Node(keras.Operation(), (sources,), {}, made)
        results = []
        for tensor in tree.flatten(trace.outputs):
            result = keras.KerasTensor(tensor.shape, tensor.dtype, tensor.sparse)
            mask = backend.get_keras_mask(tensor)
            if mask is not None:
                backend.set_keras_mask(result, masks[id(mask)])
            results.append(result)
        carried = [backend.get_keras_mask(tensor) for tensor in results]
        self.level.opens.append(_Open(trace, sources, results, carried, made, self.level.passed_on))
        return tree.pack_sequence_as(trace.outputs, results)

    def run(self, layer: Any, args: Any, kwargs: Any, training: bool) -> tuple[Any, _Level]:
        """Call what is inside `layer`, and put nested models in place of what was opened up."""
        graph = functional_graph(layer)
        outside, level = self.level, _Level(graph is None, training)
        self.level = level
        try:
            if graph is None:
                with _call_context(training) as context:
                    outputs = _run_code(layer, args, kwargs)
                    level.left_in = context.get_value("training")
            else:
                outputs = self.run_graph(graph, args[0])
            self.finish(level, tree.flatten(outputs))
        except _Stopped:
            raise
        except Exception as error:  # the user's code may raise anything
            raise _Stopped(_why(error)) from error
        finally:
            self.level = outside
        return outputs, level

    def run_graph(self, graph: Any, inputs: Any) -> Any:
        """Make the calls of a graph on new tensors, as they stand there."""
        tensors = dict(zip(map(id, graph.inputs), tree.flatten(inputs), strict=True))
        for call in calls(graph):
            args, kwargs = call.arguments.fill_in(tensors)
            operation = call.operation
            self.level.passed_on = None
            if id(operation) in self.composites or id(operation) in self.graphs:
                # In inference the model's own False overrides it; the nested model keeps it.
                self.level.passed_on = kwargs.pop("training", None)
            with _call_context(training=None):
                results = tree.flatten(operation(*args, **kwargs))
            tensors.update(zip(map(id, call.outputs), results, strict=True))
        return tree.map_structure(lambda tensor: tensors[id(tensor)], structure(graph)[1])

    # --- from calls to nested models ------------------------------------------------------------

    def finish(self, level: _Level, outputs: list[Any]) -> None:
        """Make the graph that leads to `outputs` one that Keras can run and `rebuild` can read."""
        masks = [m for m in map(backend.get_keras_mask, outputs) if m is not None]
        reached = _reached([*outputs, *masks], level.opens)
        for call in level.opens:
            if any(id(tensor) in reached for tensor in (*call.outputs, *call.masks)):
                self.put_model(call, reached)
        if level.code:
            level.guessed = _resolve_lengths(_nodes([*outputs, *masks]))
            for node in _nodes([*outputs, *masks]):
                _check_node(node)
                if node.arguments.kwargs.get("training") and not level.training:
                    self.fix_training(node)
        self.name_uniquely([*outputs, *masks], level.code)

    def put_model(self, call: _Open, reached: Mapping[int, Any]) -> None:
        """Let a nested model produce the outputs of `call`."""
        wanted = tuple(id(mask) in reached for mask in call.masks)
        masks = [mask for mask in call.masks if id(mask) in reached]
        results = [
            tensor if mask is None else keras.KerasTensor(tensor.shape, tensor.dtype)
            for tensor, mask in zip(call.outputs, call.attached, strict=True)
        ]
        # Keras fills in False by itself, and inside a composite nothing was told otherwise.
        told = call.training or (call.training is False and not call.trace.code)
        options = {"training": call.training} if told else {}
        if call.trace.opens or masks:
            model = call.trace.model(wanted)
            self.made.add(id(model))
            sources = call.live
            args: Any = (sources[0] if len(sources) == 1 else sources,)
        else:  # Nothing was opened up inside, and the model itself will do.
            model, recorded = call.trace.layer, _node_of(call.outputs[0]).arguments
            args, options = recorded.args, {**recorded.kwargs, **options}
        Node(model, args, options, [*results, *masks])
        for result, tensor, mask in zip(results, call.outputs, call.attached, strict=True):
            if mask is not None:
                carrier = self.identity(tensor, f"{call.trace.layer.name}_mask")
                Node(carrier, (result,), {"mask": mask}, [tensor])

    def identity(self, tensor: Any, name: str) -> keras.Model:
        """A model that changes nothing; called with a mask, it hands its input on with it."""
        x = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=f"{name}_input")
        self.inputs.append(x)
        y = keras.layers.Identity(dtype=tensor.dtype, name="identity")(x)
        model = keras.Model(x, y, name=name)
        model.supports_masking = True
        self.made.add(id(model))
        return model

    def fix_training(self, node: Any) -> None:
        """Let the call of `node` run in training, whatever the model around it is told."""
        layer = AlwaysTraining(node.operation, name=node.operation.name)
        self.made.add(id(layer))
        self.closed[id(layer)] = "is called with training=True, whatever the model is told"
        first, others = arguments(node)
        del others["training"]
        Node(layer, (first,), others, node.outputs)

    def name_uniquely(self, outputs: list[Any], code: bool) -> None:
        """Give each operation that leads to `outputs` a name of its own, as Keras demands.

        The caller's layers keep their names; of several that share one, all but the first go
        into a nested model each.
        """
        nodes = _nodes(outputs)
        operations = list({id(node.operation): node.operation for node in nodes}.values())
        operations.sort(key=lambda operation: not isinstance(operation, keras.layers.InputLayer))
        ours = [op for op in operations if id(op) in self.made or (code and not _is_layer(op))]
        taken: dict[str, Any] = {}
        for operation in operations:
            if any(operation is own for own in ours):
                continue
            if taken.setdefault(operation.name, operation) is not operation:
                for node in nodes:
                    if node.operation is operation:
                        ours.append(self.wrap(node))
        for operation in ours:
            if operation.name in taken:
                operation.name = self.free_name(operation.name)
            taken[operation.name] = operation
            self.names.add(operation.name)

    def free_name(self, name: str) -> str:
        number = 1
        while f"{name}_{number}" in self.names:
            number += 1
        return f"{name}_{number}"

    def wrap(self, node: Any) -> keras.Model:
        """Put a nested model around the call of `node`."""
        inner: dict[int, Any] = {}
        for tensor in node.input_tensors:
            if id(tensor) not in inner:
                inner[id(tensor)] = keras.Input(
                    batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse
                )
        inputs = list(inner.values())
        self.inputs += inputs
        args, kwargs = node.arguments.fill_in(inner)
        outputs = [keras.KerasTensor(t.shape, t.dtype, t.sparse) for t in node.outputs]
        Node(node.operation, args, kwargs, outputs)
        model = keras.Model(inputs, outputs, name=node.operation.name)
        model.supports_masking = node.operation.supports_masking
        sources = list({id(tensor): tensor for tensor in node.input_tensors}.values())
        Node(model, (sources,), {}, node.outputs)
        return model


@keras.saving.register_keras_serializable("keras_bn")
class AlwaysTraining(keras.Layer):
    """Calls `layer` with training=True, whatever the model around it is told.

    A Functional model passes its own `training` argument on to every layer. Where the code of a
    model made a call with training=True, this layer goes on making it.

    Args:
        layer: The layer to call.
    """

    def __init__(self, layer: keras.Layer, **options: Any) -> None:
        super().__init__(**options)
        self.layer = layer
        self.supports_masking = layer.supports_masking

    def call(self, inputs: Any, **options: Any) -> Any:
        return self.layer(inputs, **options, training=True)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AlwaysTraining:
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def _is_layer(operation: Any) -> bool:
    return isinstance(operation, keras.Layer)


def _model_like(layer: Any, inputs: Any, outputs: Any) -> keras.Model:
    """A model with the name and manners of `layer`, Sequential where that is and it is a chain."""
    chain = _chain(inputs, outputs) if isinstance(layer, keras.Sequential) else None
    if chain:
        model = keras.Sequential(chain, name=layer.name, trainable=layer.trainable)
    else:
        model = keras.Model(inputs, outputs, name=layer.name, trainable=layer.trainable)
    # Several outputs would get the masks of several inputs, one each.
    single = len(tree.flatten(outputs)) == 1
    model.supports_masking = layer.supports_masking and single and is_default(layer.compute_mask)
    return model


def _chain(inputs: Any, outputs: Any) -> list[Any] | None:
    """The layers between `inputs` and `outputs`, input included, if each feeds just the next."""
    if tree.is_nested(inputs) or tree.is_nested(outputs):
        return None
    layers: list[Any] = []
    tensor = outputs
    while tensor is not inputs:
        node = _node_of(tensor)
        alone = len(node.arguments.args) == 1 and not node.arguments.kwargs
        if not (_is_layer(node.operation) and alone and len(node.outputs) == 1):
            return None
        layers.insert(0, node.operation)
        (tensor,) = node.arguments.args
        if not isinstance(tensor, keras.KerasTensor):
            return None
    return [inputs, *layers] if layers else None


# --- one call -----------------------------------------------------------------------------------


class _Watch(keras.StatelessScope):
    """A scope that notes which variables are read or assigned, and assigns none."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Any] = []
        self.assigned: list[Any] = []

    def get_current_value(self, variable: Any) -> Any:
        self.read.append(variable)
        return super().get_current_value(variable)

    def add_update(self, update: tuple[Any, Any]) -> None:
        self.assigned.append(update[0])
        super().add_update(update)


def _run_code(layer: Any, args: Any, kwargs: Any) -> Any:
    """What the call of `layer` returns for symbolic tensors.

    Raises:
        _Stopped: it does something beside calling layers and operations.
    """
    with _Watch() as watch:
        outputs = layer.call(*args, **kwargs)
    for variable in (*watch.assigned, *watch.read):
        if "seed" in variable.path:
            raise _Stopped(f"draws random numbers in its call ('{variable.path}')")
    if watch.assigned:
        raise _Stopped(f"assigns to '{watch.assigned[0].path}' in its call")
    if watch.read:
        raise _Stopped(_reads(watch.read[0]))
    results = tree.flatten(outputs)
    if not results or not all(isinstance(result, keras.KerasTensor) for result in results):
        other = next((r for r in results if not isinstance(r, keras.KerasTensor)), None)
        raise _Stopped(f"returns {type(other).__name__} beside tensors computed from its inputs")
    return outputs


def _reads(variable: Any) -> str:
    return f"reads the variable '{variable.path}' in its call, not by calling a layer on a tensor"


def _check_composite(layer: Any) -> None:
    if type(layer).__call__ is not keras.Layer.__call__:
        raise _Stopped("overrides __call__")
    if layer.quantization_mode is not None:
        raise _Stopped(f"is quantized to {layer.quantization_mode}")


def _check_graph_call(graph: Any, args: Any, kwargs: Any) -> None:
    """Refuse a call of a model with a graph that converts its inputs, or gives them masks."""
    inputs = tree.flatten(args)
    if len(inputs) != len(graph.inputs) or not all(
        isinstance(new, keras.KerasTensor) and len(new.shape) == len(old.shape)
        for new, old in zip(inputs, graph.inputs, strict=True)
    ):
        raise _Stopped("is called on inputs of another structure or rank")
    given = tree.flatten(kwargs.get("mask"))
    known = {id(backend.get_keras_mask(tensor)) for tensor in inputs}
    if any(mask is not None and id(mask) not in known for mask in given):
        raise _Stopped("is called with a mask of its own")


def _input_dtypes(graph: Any, args: Any) -> dict[int, str]:
    """What a model with a graph converts its inputs to, by their ids."""
    return {id(new): old.dtype for new, old in zip(tree.flatten(args), graph.inputs, strict=True)}


def _check_node(node: Any) -> None:
    """Refuse a call, made by the user's code, that would not run again as it was recorded."""
    operation = node.operation
    for value in tree.flatten((node.arguments.args, node.arguments.kwargs)):
        if isinstance(value, keras.Variable):
            raise _Stopped(_reads(value))
    if _is_layer(operation):
        return
    own = [value for name, value in vars(operation).items() if not name.startswith("_")]
    if not any(map(_has_unknown, (*own, *node.arguments.args))):
        return
    try:
        args, kwargs = node.arguments.args, node.arguments.kwargs
        found = tree.flatten(backend.compute_output_spec(operation.call, *args, **kwargs))
        ranks = [len(tensor.shape) for tensor in found]
    except Exception:  # a backend may raise anything at a length of None
        ranks = []
    if ranks != [len(tensor.shape) for tensor in node.outputs]:
        raise _Stopped(f"{_UNKNOWN_LENGTH} ({type(operation).__name__})")


def _has_unknown(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and any(item is None for item in value)


def _resolve_lengths(nodes: list[Any]) -> bool:
    """Write -1 for the batch size, unknown while tracing, in shapes that the code asks for.

    Shapes after it are inferred anew. Returns whether any needed a guess that has to be checked.
    """
    guessed = False
    changed: set[int] = set()
    for node in nodes:
        operation, recorded = node.operation, node.arguments
        if type(operation) is Reshape and _has_unknown(operation.newshape):
            before = node.input_tensors[0].shape
            newshape = _with_one_unknown(operation.newshape, before)
            if newshape is not None:
                guessed |= -1 in operation.newshape
                operation = Reshape(newshape, name=operation.name)
                Node(operation, recorded.args, recorded.kwargs, node.outputs)
        if operation is not node.operation or not changed.isdisjoint(map(id, node.input_tensors)):
            found = operation.compute_output_spec(*recorded.args, **recorded.kwargs)
            for tensor, new in zip(node.outputs, tree.flatten(found), strict=True):
                if tensor.shape != new.shape:
                    tensor._shape = new.shape
                    changed.add(id(tensor))
    return guessed


def _with_one_unknown(newshape: tuple[Any, ...], before: tuple[Any, ...]) -> tuple[int, ...] | None:
    """`newshape` with -1 for its None, where that leaves nothing else unknown.

    A -1 beside it becomes known if the None is what is unknown `before`: a guess.
    """
    known = math.prod(length for length in newshape if length not in (None, -1))
    if newshape.count(None) != 1:
        return None
    if -1 in newshape:
        size = math.prod(length for length in before if length is not None)
        if before.count(None) != 1 or not known or size % known:
            return None
        newshape = tuple(size // known if length == -1 else length for length in newshape)
    return tuple(-1 if length is None else length for length in newshape)


def _agrees(layer: Any, args: Any, kwargs: Any, trace: _Trace) -> bool:
    """Whether `trace` gives what the call of `layer` does, on random numbers."""
    rng = np.random.default_rng(0)
    values: dict[int, Any] = {}
    for tensor in trace.inputs:
        shape = [length or _BATCH_SIZE for length in tensor.shape]
        value = rng.normal(size=shape) if "float" in tensor.dtype else rng.integers(0, 2, shape)
        values[id(tensor)] = keras.ops.convert_to_tensor(value.astype(tensor.dtype))
    for tensor in trace.inputs:
        mask = backend.get_keras_mask(tensor)
        if mask is not None:
            backend.set_keras_mask(values[id(tensor)], values[id(mask)])

    def value_of(leaf: Any) -> Any:
        return values.get(id(leaf), leaf)

    args, kwargs = tree.map_structure(value_of, (args, kwargs))
    with keras.StatelessScope():
        expected = tree.flatten(layer.call(*args, **kwargs))
        computed = tree.flatten(keras.Function(trace.inputs, trace.outputs)(list(values.values())))
    for pair in zip(expected, computed, strict=True):
        a, b = (keras.ops.convert_to_numpy(tensor).astype("float64") for tensor in pair)
        # A wrong guess gives other elements, not other roundings.
        if a.shape != b.shape or np.max(np.abs(a - b), initial=0) > 0.01 * np.max(np.abs(a)):
            return False
    return True


def _makes_masks(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Embedding):
        return layer.mask_zero
    foreign = type(layer).__module__.split(".")[0] not in ("keras", "keras_bn")
    return isinstance(layer, keras.layers.Masking) or (
        foreign and not is_default(layer.compute_mask)
    )


def _distinct(args: Any, kwargs: Any) -> list[Any]:
    """The different symbolic tensors among arguments and those that are their masks, in order."""
    found: dict[int, Any] = {}
    for value in tree.flatten((args, kwargs)):
        if isinstance(value, keras.KerasTensor):
            found.setdefault(id(value), value)
            mask = backend.get_keras_mask(value)
            if mask is not None:
                found.setdefault(id(mask), mask)
    return list(found.values())


def _signature(args: Any, kwargs: Any) -> str:
    """Equal for arguments on which a call does the same."""
    numbers = {id(tensor): number for number, tensor in enumerate(_distinct(args, kwargs))}

    def describe(value: Any) -> str:
        if isinstance(value, keras.KerasTensor):
            mask = numbers.get(id(backend.get_keras_mask(value)))
            return f"{numbers[id(value)]} {value.shape} {value.dtype} {value.sparse} {mask}"
        if value is None or isinstance(value, (bool, int, float, str)):
            return repr(value)
        return f"{type(value).__name__} {id(value)}"

    return repr(tree.map_structure(describe, (args, kwargs)))


# --- graphs -------------------------------------------------------------------------------------


def _node_of(tensor: Any) -> Any:
    """Keras's node that gave `tensor`."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def _is_input(tensor: Any) -> bool:
    return _node_of(tensor).is_input


def _reached(outputs: list[Any], opens: Sequence[_Open]) -> dict[int, Any]:
    """Every tensor that `outputs` depend on, themselves included, by id."""
    producers = {id(tensor): call for call in opens for tensor in (*call.outputs, *call.masks)}
    found: dict[int, Any] = {}
    pending = list(outputs)
    while pending:
        tensor = pending.pop()
        if id(tensor) in found:
            continue
        found[id(tensor)] = tensor
        call = producers.get(id(tensor))
        if call is None:
            pending += _node_of(tensor).input_tensors
        else:
            pending += call.live + [mask for mask in call.attached if mask is not None]
    return found


def _nodes(outputs: list[Any]) -> list[Any]:
    """The nodes that lead to `outputs`, the first called first."""
    found: dict[int, Any] = {}
    pending = list(reversed(outputs))
    while pending:
        node = _node_of(pending[-1])
        missing = [t for t in node.input_tensors if id(_node_of(t)) not in found]
        if missing and id(node) not in found:
            pending += reversed(missing)
            continue
        found.setdefault(id(node), node)
        pending.pop()
    return list(found.values())


def _forget(inputs: list[Any]) -> None:
    """Let operations forget every call that anything depending on `inputs` went into."""
    ours = set(map(id, inputs))
    nodes: dict[int, Any] = {}
    operations: dict[int, Any] = {}
    pending = [tensor._keras_history.operation for tensor in inputs]
    while pending:
        operation = pending.pop()
        operations[id(operation)] = operation
        for node in operation._outbound_nodes:
            if id(node) not in nodes and not ours.isdisjoint(map(id, node.input_tensors)):
                nodes[id(node)] = node
                ours.update(map(id, node.outputs))
                pending.append(node.operation)
    for operation in operations.values():
        for record in (operation._inbound_nodes, operation._outbound_nodes):
            record[:] = [node for node in record if id(node) not in nodes]


# --- leaving everything as it was ---------------------------------------------------------------


@contextlib.contextmanager
def _call_context(training: bool | None) -> Iterator[Any]:
    """Calls made inside are like calls made inside a layer that was told `training`.

    Without a context each would be an outermost call, which drops the losses kept from the last.
    """
    before = global_state.get_global_attribute("current_call_ctx")
    context = CallContext(entry_layer=None)
    context.set_value("training", training)
    global_state.set_global_attribute("current_call_ctx", context)
    try:
        yield context
    finally:
        global_state.set_global_attribute("current_call_ctx", before)


def _current_context() -> Any:
    return global_state.get_global_attribute("current_call_ctx")


@contextlib.contextmanager
def _attributes_kept(layer: Any) -> Iterator[None]:
    """Undo what happens to the attributes of `layer`, and inside those that are collections."""
    before = dict(vars(layer))
    contents = [
        (value, list(value.items() if isinstance(value, dict) else value))
        for value in before.values()
        if isinstance(value, (list, dict))
    ]
    try:
        yield
    finally:
        vars(layer).clear()
        vars(layer).update(before)
        for value, content in contents:
            _restore(value, content)


def _restore(collection: Any, content: list[Any]) -> None:
    """Give a list, or a dictionary, back the content that it had; what did not change stays."""
    now = list(collection.items() if isinstance(collection, dict) else collection)
    flat_now, flat_content = (
        [part for item in items for part in (item if isinstance(collection, dict) else (item,))]
        for items in (now, content)
    )
    if len(flat_now) == len(flat_content) and all(map(operator.is_, flat_now, flat_content)):
        return
    if isinstance(collection, dict):
        collection.clear()
        collection.update(dict(content))
    else:
        collection[:] = content


@contextlib.contextmanager
def _whole_tracebacks() -> Iterator[None]:
    """Exceptions come with their own message and all their frames."""
    filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtering:
            keras.config.enable_traceback_filtering()


# --- what stopped it ----------------------------------------------------------------------------


def _why(error: Exception) -> str:
    """A clause that names the operation in the user's code at which `error` came up."""
    what = _in_plain_words(error)
    walked = traceback.walk_tb(error.__traceback__)
    summaries = traceback.extract_tb(error.__traceback__)
    for (frame, _), summary in reversed(list(zip(walked, summaries, strict=True))):
        module = frame.f_globals.get("__name__", "").split(".")[0]
        if module not in _LIBRARIES and module not in sys.stdlib_module_names:
            place = f"{Path(summary.filename).name}, line {summary.lineno}"
            return f"stops at `{_expression(summary)}` ({place}): {what}"
    return f"cannot be called on symbolic tensors: {what}"


def _expression(summary: traceback.FrameSummary) -> str:
    """The source of what was being evaluated, or the line, or the function."""
    line = linecache.getline(summary.filename, summary.lineno or 0)
    start, end = getattr(summary, "colno", None), getattr(summary, "end_colno", None)
    if start is not None and end is not None and summary.end_lineno == summary.lineno:
        # Columns count bytes.
        return line.encode()[start:end].decode(errors="replace") or summary.name
    return line.strip() or summary.name


def _in_plain_words(error: Exception) -> str:
    message = str(error)
    if "add_loss" in message:
        return "a loss is added, for which a graph has no place"
    if "cannot be used as a boolean" in message:
        return "a condition in Python on the value of a tensor"
    if "A KerasTensor is symbolic" in message or "Iterating over a symbolic" in message:
        return "the value of a tensor is needed in Python"
    if "KerasTensor cannot be used as input to a" in message:
        return "it takes no symbolic tensors; layers and keras.ops do"
    return f"{type(error).__name__}: {message.strip().splitlines()[0] if message else ''}"
