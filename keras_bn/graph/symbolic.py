"""Running the call of a layer on symbolic tensors, and leaving everything as it was."""

from __future__ import annotations

import contextlib
import linecache
import operator
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from keras import tree
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext

_LIBRARIES = {"keras", "keras_bn", "tensorflow", "jax", "jaxlib", "torch", "numpy", "optree"}


class Stopped(Exception):  # noqa: N818 - not an error by itself: a layer stays closed for it
    """A call cannot be traced; the message is a clause about the layer that was called."""


class Watch(keras.StatelessScope):
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


def run_code(layer: Any, args: Any, kwargs: Any) -> Any:
    """What the call of `layer` returns for symbolic tensors.

    Raises:
        Stopped: it does something beside calling layers and operations.
    """
    with Watch() as watch:
        outputs = layer.call(*args, **kwargs)
    for variable in (*watch.assigned, *watch.read):
        if "seed" in variable.path:
            raise Stopped(f"draws random numbers in its call ('{variable.path}')")
    if watch.assigned:
        raise Stopped(f"assigns to '{watch.assigned[0].path}' in its call")
    if watch.read:
        raise Stopped(reads(watch.read[0]))
    results = tree.flatten(outputs)
    if not results or not all(isinstance(result, keras.KerasTensor) for result in results):
        other = next((r for r in results if not isinstance(r, keras.KerasTensor)), None)
        raise Stopped(f"returns {type(other).__name__} beside tensors computed from its inputs")
    return outputs


def reads(variable: Any) -> str:
    return f"reads the variable '{variable.path}' in its call, not by calling a layer on a tensor"


def forget(inputs: list[Any]) -> None:
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


@contextlib.contextmanager
def call_context(training: bool | None) -> Iterator[Any]:
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


def current_context() -> Any:
    return global_state.get_global_attribute("current_call_ctx")


@contextlib.contextmanager
def attributes_kept(layer: Any) -> Iterator[None]:
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
def whole_tracebacks() -> Iterator[None]:
    """Exceptions come with their own message and all their frames."""
    filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtering:
            keras.config.enable_traceback_filtering()


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Whatever is raised inside becomes a `Stopped` that names where it came up."""
    try:
        yield
    except Stopped:
        raise
    except Exception as error:  # the user's code may raise anything
        raise Stopped(why(error)) from error


def why(error: Exception) -> str:
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
