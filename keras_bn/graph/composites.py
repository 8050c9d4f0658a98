"""Putting nested models in the place of layers that are built out of other layers.

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
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src import backend
from keras.src.ops.node import Node
from keras.src.ops.numpy import GetItem
from keras.src.utils.python_utils import is_default

from keras_bn.graph.always_training import AlwaysTraining
from keras_bn.graph.lengths import batch_sizes_known, has_unknown, write_batch_sizes
from keras_bn.graph.records import (
    chain,
    distinct,
    is_input,
    is_layer,
    node_of,
    nodes_before,
    signature,
)
from keras_bn.graph.symbolic import (
    Stopped,
    attributes_kept,
    call_context,
    current_context,
    forget,
    reads,
    run_code,
    stopping,
    whole_tracebacks,
)
from keras_bn.graph.view import arguments, calls, functional_graph, structure

_OURS = ("keras.", "keras_bn.layers.")
# Any that no other axis is likely to have.
_BATCH_SIZE = 3
_ALWAYS_TRAINING = "is called with training=True, whatever the model is told"
UNKNOWN_LENGTH = "computes with the length of an axis that is not known before it runs"


@dataclass
class Level:
    """One call in the making: of a composite, or of a model with a graph.

    Attributes:
        code: Whether the user's code makes the calls of this level, rather than a graph.
        training: What the call was told.
        opens: The calls so far of layers that a nested model takes the place of.
        passed_on: The `training` argument that the graph of this level has for its next call.
        guessed: Whether a length that the code did not know was taken to be the batch's.
        left_in: What Keras takes `training` to be at the end of the call.
        outermost: Whether the outputs are the model's own.
    """

    code: bool
    training: bool
    opens: list[Open] = field(default_factory=list)
    passed_on: bool | None = None
    guessed: bool = False
    left_in: bool | None = None
    outermost: bool = False


@dataclass
class Trace:
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
            self.models[masks] = model_like(
                self.layer,
                inputs[0] if len(inputs) == 1 else inputs,
                [self.outputs, chosen] if chosen else self.outputs,
            )
        return self.models[masks]


@dataclass
class Open:
    """One call of a layer that a nested model takes the place of, in terms of outer tensors.

    Attributes:
        trace: What the call comes down to.
        sources: The tensors for the trace's inputs.
        outputs: What the call returned, flattened.
        carried: The masks that the outputs had when the call itself was done, or None.
        masks: Tensors for the trace's masks.
        training: The `training` argument of the call in the model's graph.
    """

    trace: Trace
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


class Tracer:
    """Runs calls on symbolic tensors and puts nested models in the place of what it can trace.

    Attributes:
        inputs: Every tensor that a call was traced from.
        closed: Why layers stay closed, by their id.
    """

    def __init__(self, layers: Collection[Any]) -> None:
        self.composites = {id(layer): layer for layer in layers if is_composite(layer)}
        self.graphs = {id(x): x for x in layers if functional_graph(x) is not None}
        self.names = {layer.name for layer in layers}
        self.inputs: list[Any] = []
        self.closed: dict[int, str] = {}
        self.traces: dict[Any, Trace | None] = {}
        self.arguments: list[Any] = []  # kept alive, since their ids are in the keys of `traces`
        self.made: set[int] = set()
        self.level = Level(code=False, training=False)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Intercept the calls of all layers to be opened; afterwards no trace of it is left."""
        with contextlib.ExitStack() as stack:
            # What a call warns of was said when the model made it.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(whole_tracebacks())
            stack.enter_context(call_context(training=False))
            stack.enter_context(batch_sizes_known())
            for layer in (*self.composites.values(), *self.graphs.values()):
                stack.enter_context(attributes_kept(layer))
                vars(layer)["symbolic_call"] = functools.partial(self.intercept, layer)
            stack.callback(forget, self.inputs)
            yield

    def call_root(self, model: Any, given: dict[str, Any]) -> Any:
        """The outputs of the subclassed `model`, run on its inputs as they are."""
        histories: list[tuple[Any, Any]] = []

        def run(*args: Any, **kwargs: Any) -> Any:
            outputs, level = self.run_root(model, args, kwargs)
            self.level.guessed = level.guessed
            histories.extend((t, t._keras_history) for t in tree.flatten(outputs))
            return outputs

        vars(model)["symbolic_call"] = run
        first, *others = given
        outputs = model(given[first], **{name: given[name] for name in others})
        for tensor, history in histories:  # which the call of the model itself has overwritten
            tensor._keras_history = history
        return outputs

    def run_root(self, model: Any, args: Any, kwargs: Any) -> tuple[Any, Level]:
        """The outputs of `model`, which is the whole, and what it took to get them."""
        level = Level(functional_graph(model) is None, training=False, outermost=True)
        return self.run(model, args, kwargs, level), level

    def intercept(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """What `layer` returns for symbolic tensors; stands in for Layer.symbolic_call."""
        training = self.level.code and bool(current_context().get_value("training"))
        told = dict(kwargs)
        if "training" in kwargs or layer._call_has_training_arg:
            told["training"] = training
        key = (id(layer), training, signature(args, told))
        if key not in self.traces:
            self.arguments.append((args, told))
            try:
                with stopping():
                    self.traces[key] = self.trace(layer, args, told, training)
            except Stopped as stop:
                self.closed[id(layer)] = str(stop)
                self.traces[key] = None
        trace = self.traces[key]
        if trace is None:
            return type(layer).symbolic_call(layer, *args, **kwargs)
        if trace.code:
            current_context().set_value("training", trace.left_in)
        return self.apply(trace, args, told)

    def trace(self, layer: Any, args: Any, kwargs: Any, training: bool) -> Trace | None:
        """Run the call of `layer` on inner tensors; None where there is nothing to open up.

        Raises:
            Stopped: it cannot be traced.
        """
        graph = functional_graph(layer)
        if training and not self.level.training:  # which a nested model could not keep up
            raise Stopped(_ALWAYS_TRAINING)
        if graph is None:
            _check_composite(layer)
        elif not self.worth_opening(layer, args, kwargs):
            return None
        else:
            _check_graph_call(graph, args, kwargs)
        outer = distinct(args, kwargs)
        inner: dict[int, Any] = {}
        dtypes = {} if graph is None else _input_dtypes(graph, args)
        for number, tensor in enumerate(outer):
            inner[id(tensor)] = keras.Input(
                batch_shape=tensor.shape,
                dtype=dtypes.get(id(tensor), tensor.dtype),
                sparse=self.is_sparse(tensor),
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
        level = Level(graph is None, training)
        outputs = self.run(layer, args, kwargs, level)
        opens = graph is None or any(call.trace.opens for call in level.opens)
        trace = Trace(layer, inputs, outputs, [], level.code, opens, level.left_in)
        needed = reached([*tree.flatten(outputs), *trace.masks], level.opens)
        if any(is_input(t) and all(t is not own for own in inputs) for t in needed.values()):
            raise Stopped("reads a tensor that another call left behind")
        trace.live = [id(tensor) in needed for tensor in inputs]
        if not any(trace.live):
            raise Stopped("returns what does not depend on its inputs")
        if level.guessed and not agrees(layer.call, args, kwargs, inputs, outputs):
            raise Stopped(UNKNOWN_LENGTH)
        return trace

    def is_sparse(self, tensor: Any) -> bool:
        """Whether `tensor` is; Keras also says so of what came about with a number, as x * 2."""
        return tensor.sparse and any(source.sparse for source in self.inputs)

    def worth_opening(self, layer: Any, args: Any, kwargs: Any) -> bool:
        """Whether a model with a graph holds composites, or hands masks on.

        Called as a whole, a Functional model forgets masks, which the calls after it may read.
        """
        return any(
            id(part) in self.composites or _makes_masks(part) for part in layer._flatten_layers()
        ) or any(backend.get_keras_mask(tensor) is not None for tensor in distinct(args, kwargs))

    def apply(self, trace: Trace, args: Any, kwargs: Any) -> Any:
        """Note a call of `trace` on outer tensors, and return what it gives in terms of these."""
        sources = distinct(args, kwargs)
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
        self.level.opens.append(Open(trace, sources, results, carried, made, self.level.passed_on))
        return tree.pack_sequence_as(trace.outputs, results)

    def run(self, layer: Any, args: Any, kwargs: Any, level: Level) -> Any:
        """Call what is inside `layer`, and put nested models in place of what was opened up."""
        outside, self.level = self.level, level
        try:
            if level.code:
                with call_context(level.training) as context:
                    outputs = run_code(layer, args, kwargs)
                    level.left_in = context.get_value("training")
            else:
                outputs = self.run_graph(functional_graph(layer), args[0])
            self.finish(level, tree.flatten(outputs))
        finally:
            self.level = outside
        return outputs

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
            opened_before = len(self.level.opens)
            with call_context(training=None):
                results = tree.flatten(operation(*args, **kwargs))
            if self.level.passed_on is not None and len(self.level.opens) == opened_before:
                recorded = node_of(results[0]).arguments
                options = {**recorded.kwargs, "training": self.level.passed_on}
                Node(operation, recorded.args, options, results)
            tensors.update(zip(map(id, call.outputs), results, strict=True))
        return tree.map_structure(lambda tensor: tensors[id(tensor)], structure(graph)[1])

    # --- from calls to nested models ------------------------------------------------------------

    def finish(self, level: Level, outputs: list[Any]) -> None:
        """Make the graph that leads to `outputs` one that Keras can run and `rebuild` can read."""
        if level.outermost:
            self.drop_masks(level, outputs)
        masks = [m for m in map(backend.get_keras_mask, outputs) if m is not None]
        needed = reached([*outputs, *masks], level.opens)
        for call in level.opens:
            if any(id(tensor) in needed for tensor in (*call.outputs, *call.masks)):
                self.put_model(call, needed)
        if level.code:
            level.guessed = write_batch_sizes(nodes_before([*outputs, *masks]))
            for node in nodes_before([*outputs, *masks]):
                _check_node(node)
                if node.arguments.kwargs.get("training") and not level.training:
                    self.fix_training(node)
        self.name_uniquely([*outputs, *masks], level.code)

    def drop_masks(self, level: Level, outputs: list[Any]) -> None:
        """Forget the masks of outputs that nothing else reads, which only a loss would use.

        The last layer, by whose name an output is known, is then the one that it was.
        """
        read = {id(tensor) for call in level.opens for tensor in call.sources}
        for tensor in outputs:
            read.update(id(t) for node in nodes_before([tensor]) for t in node.input_tensors)
        for tensor in outputs:
            if id(tensor) not in read and not is_input(tensor):
                backend.set_keras_mask(tensor, None)

    def put_model(self, call: Open, needed: Mapping[int, Any]) -> None:
        """Let a nested model produce the outputs of `call`."""
        wanted = tuple(id(mask) in needed for mask in call.masks)
        masks = [mask for mask in call.masks if id(mask) in needed]
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
            model, recorded = call.trace.layer, node_of(call.outputs[0]).arguments
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
        self.closed[id(layer)] = _ALWAYS_TRAINING
        first, others = arguments(node)
        del others["training"]
        Node(layer, (first,), others, node.outputs)

    def name_uniquely(self, outputs: list[Any], code: bool) -> None:
        """Give each operation that leads to `outputs` a name of its own, as Keras demands.

        The caller's layers keep their names; of several that share one, all but the first go
        into a nested model each.
        """
        nodes = nodes_before(outputs)
        operations = list({id(node.operation): node.operation for node in nodes}.values())
        operations.sort(key=lambda operation: not isinstance(operation, keras.layers.InputLayer))
        ours = [op for op in operations if id(op) in self.made or (code and not is_layer(op))]
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
                    batch_shape=tensor.shape, dtype=tensor.dtype, sparse=self.is_sparse(tensor)
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


def is_composite(layer: Any) -> bool:
    """Whether a class of the user's, or a Sequential without a graph, calls layers inside it."""
    if functional_graph(layer) is not None or not layer._layers:
        return False
    owner = next((kind for kind in type(layer).__mro__ if "call" in vars(kind)), None)
    if owner is keras.Sequential:
        return True
    return owner is not None and _is_the_users(owner)


def _is_the_users(kind: type) -> bool:
    """Whether a class comes neither with Keras nor with this package."""
    return kind is not AlwaysTraining and not kind.__module__.startswith(_OURS)


def model_like(layer: Any, inputs: Any, outputs: Any) -> keras.Model:
    """A model with the name and manners of `layer`, Sequential where that is and it is a chain."""
    links = chain(inputs, outputs) if isinstance(layer, keras.Sequential) else None
    if links:
        model = keras.Sequential(links, name=layer.name, trainable=layer.trainable)
    else:
        model = keras.Model(inputs, outputs, name=layer.name, trainable=layer.trainable)
    # Several outputs would get the masks of several inputs, one each.
    single = len(tree.flatten(outputs)) == 1
    model.supports_masking = layer.supports_masking and single and is_default(layer.compute_mask)
    return model


def _check_composite(layer: Any) -> None:
    if type(layer).__call__ is not keras.Layer.__call__:
        raise Stopped("overrides __call__")
    if layer.quantization_mode is not None:
        raise Stopped(f"is quantized to {layer.quantization_mode}")


def _check_graph_call(graph: Any, args: Any, kwargs: Any) -> None:
    """Refuse a call of a model with a graph that converts its inputs, or gives them masks."""
    inputs = tree.flatten(args)
    if len(inputs) != len(graph.inputs) or not all(
        isinstance(new, keras.KerasTensor) and len(new.shape) == len(old.shape)
        for new, old in zip(inputs, graph.inputs, strict=True)
    ):
        raise Stopped("is called on inputs of another structure or rank")
    given = tree.flatten(kwargs.get("mask"))
    known = {id(backend.get_keras_mask(tensor)) for tensor in inputs}
    if any(mask is not None and id(mask) not in known for mask in given):
        raise Stopped("is called with a mask of its own")


def _input_dtypes(graph: Any, args: Any) -> dict[int, str]:
    """What a model with a graph converts its inputs to, by their ids."""
    return {id(new): old.dtype for new, old in zip(tree.flatten(args), graph.inputs, strict=True)}


def _check_node(node: Any) -> None:
    """Refuse a call, made by the user's code, that would not run again as it was recorded."""
    operation = node.operation
    for value in tree.flatten((node.arguments.args, node.arguments.kwargs)):
        if isinstance(value, keras.Variable):
            raise Stopped(reads(value))
    if is_layer(operation) or type(operation) is GetItem:  # whose None is a new axis
        return
    own = [value for name, value in vars(operation).items() if not name.startswith("_")]
    if not any(map(has_unknown, (*own, *node.arguments.args))):
        return
    try:
        args, kwargs = node.arguments.args, node.arguments.kwargs
        found = tree.flatten(backend.compute_output_spec(operation.call, *args, **kwargs))
        ranks = [len(tensor.shape) for tensor in found]
    except Exception:  # a backend may raise anything at a length of None
        ranks = []
    if ranks != [len(tensor.shape) for tensor in node.outputs]:
        raise Stopped(f"{UNKNOWN_LENGTH} ({type(operation).__name__})")


def agrees(call: Callable[..., Any], args: Any, kwargs: Any, inputs: Any, outputs: Any) -> bool:
    """Whether the graph from `inputs` to `outputs` gives what `call` does, on random numbers."""
    rng = np.random.default_rng(0)
    values: dict[int, Any] = {}
    for tensor in inputs:
        shape = [length or _BATCH_SIZE for length in tensor.shape]
        numbers = rng.normal(size=shape) if "float" in tensor.dtype else rng.integers(0, 2, shape)
        values[id(tensor)] = keras.ops.convert_to_tensor(numbers, tensor.dtype)
    for tensor in inputs:
        mask = backend.get_keras_mask(tensor)
        if mask is not None:
            backend.set_keras_mask(values[id(tensor)], values[id(mask)])
    args, kwargs = tree.map_structure(lambda leaf: values.get(id(leaf), leaf), (args, kwargs))
    with keras.StatelessScope():
        expected = tree.flatten(call(*args, **kwargs))
        computed = tree.flatten(keras.Function(inputs, outputs)(list(values.values())))
    for pair in zip(expected, computed, strict=True):
        a, b = (keras.ops.convert_to_numpy(tensor).astype("float64") for tensor in pair)
        # A wrong guess gives other elements, not other roundings.
        if a.shape != b.shape or not np.all(np.abs(a - b) <= 0.01 * np.max(np.abs(a), initial=0)):
            return False
    return True


def _makes_masks(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Embedding):
        return layer.mask_zero
    return isinstance(layer, keras.layers.Masking) or (
        _is_the_users(type(layer)) and not is_default(layer.compute_mask)
    )


def reached(outputs: list[Any], opens: Sequence[Open]) -> dict[int, Any]:
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
            pending += node_of(tensor).input_tensors
        else:
            pending += call.live + [mask for mask in call.attached if mask is not None]
    return found
