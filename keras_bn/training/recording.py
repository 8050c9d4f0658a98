"""What the batch normalizations of a model see in a forward pass, with nothing in it moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import keras

from keras_bn.errors import UnsupportedModelError
from keras_bn.layers import BatchNormalization
from keras_bn.layers.moments import Moments
from keras_bn.training import in_place
from keras_bn.training.replace import like


class Recording:
    """The `training` argument of a call in which the recorded layers alone are in training.

    It is false, so everything else is in inference, and it is not `False`, which the code of a
    model passes to a layer that is to infer whatever the model does. It also is an object of its
    own in each pass, so that a tf.function within the model is traced anew for it.
    """

    def __bool__(self) -> bool:
        return False


@contextmanager
def recording(layers: Sequence[Any], record: Callable[[int, Moments], None]) -> Iterator[Recording]:
    """While open, a call of a layer that is asked for `training` gives `record` its moments.

    The layer normalizes by the batch, and none of its statistics moves.

    Args:
        layers: Built batch normalizations, Keras's or this package's.
        record: Called with the layer's number and the moments of each of its calls.

    Yields:
        What to call the model with as `training`.

    Raises:
        UnsupportedModelError: a layer computes in a way of its own.
    """
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            twin = _ours(layer)
            recorded = partial(record, index)
            call = _recording_call(layer.call, twin, twin.call, recorded)
            stack.enter_context(set_on_object(twin, "_track", recorded))
            stack.enter_context(set_on_object(layer, "call", call))
        yield Recording()


def _recording_call(
    inference: Callable[..., Any],
    twin: BatchNormalization,
    batch_call: Callable[..., Any],
    recorded: Callable[[Moments], None],
) -> Callable[..., Any]:
    """What stands in for `inference`; `batch_call` of the `twin` calls `recorded` by itself."""

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if training is False:
            return inference(inputs, training=False, mask=mask)
        if mask is None and in_place.covers(twin, inputs):
            outputs, batch = in_place.normalize(twin, inputs)
            recorded(batch)
            return outputs
        return batch_call(inputs, training=True, mask=mask)

    return call


@contextmanager
def set_on_object(layer: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """While open, `method` stands in front of the one that the class of `layer` has."""
    earlier = vars(layer).get(name)
    setattr(layer, name, method)
    try:
        yield
    finally:
        if earlier is None:
            delattr(layer, name)
        else:
            setattr(layer, name, earlier)


def _ours(layer: Any) -> BatchNormalization:
    """`layer` itself, or for Keras's a layer of ours over the same weights."""
    if isinstance(layer, BatchNormalization):
        return layer
    if type(layer).call is not keras.layers.BatchNormalization.call:
        raise UnsupportedModelError(
            f"layer '{layer.name}' of class {type(layer).__name__} computes in its own way what "
            "keras.layers.BatchNormalization does; only that one and this package's are known"
        )
    twin = like(layer, unbiased=False)
    shape: list[int | None] = [None] * layer.input_spec.ndim
    for axis, size in layer.input_spec.axes.items():
        shape[axis] = size
    twin.build(shape)
    for weight in layer.weights:
        object.__setattr__(twin, weight.name, weight)  # past Keras, which lets none be exchanged
    return twin
