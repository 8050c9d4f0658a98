"""The inputs of each batch, from every kind of data that a Keras model is trained on."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import count, islice
from numbers import Number
from typing import Any

import keras
import numpy as np
from keras import tree


def input_batches(
    model: keras.Model, data: Any, batch_size: int, steps: int | None = None
) -> tuple[Iterator[Any], int | None]:
    """The inputs of each batch in `data`, and how many batches there are if that is known.

    Args:
        model: Whose inputs they are: a list of arrays is one batch for a model of several
            inputs, and a list of batches for a model of one.
        data: As `update_bn` takes them. Targets and sample weights are left out.
        batch_size: Samples in a batch of arrays.
        steps: Batches to take at most; all of them if None.

    Raises:
        TypeError, ValueError: `data` are of no such kind, or never end although `steps` is None.
            In the iterator: a batch is no array.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])
    >>> batches, total = input_batches(model, (np.ones((5, 2)), np.ones(5)), batch_size=2)
    >>> total, [len(batch) for batch in batches]
    (3, [2, 2, 1])
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    batches, total = _batches(model, data, batch_size)
    if steps is not None:
        total = steps if total is None else min(steps, total)
    elif total == math.inf:
        raise ValueError("`data` never end: give `steps`")
    return _dense(islice(batches, steps)), None if total is None else int(total)


def _batches(model: keras.Model, data: Any, batch_size: int) -> tuple[Iterator[Any], Any]:
    several_inputs = len(getattr(model, "inputs", None) or ()) > 1
    if isinstance(data, tuple):
        data = data[0]
    if _is_array(data) or isinstance(data, dict) or (isinstance(data, list) and several_inputs):
        sizes = {len(array) for array in tree.flatten(data)}
        if len(sizes) != 1:
            raise ValueError(f"`data` must have one number of samples. Received: {sorted(sizes)}")
        starts = range(0, sizes.pop(), batch_size)
        # A batch at a time, since an array may be a file's.
        return (rows(data, start, start + batch_size) for start in starts), len(starts)
    if isinstance(data, keras.utils.PyDataset):
        total = data.num_batches
        return map(_inputs, _items(data, total)), math.inf if total is None else total
    if _is_torch_loader(data):  # its collation makes lists of the samples' tuples
        batches = (tuple(batch) if isinstance(batch, list) else batch for batch in data)
        return map(_inputs, batches), _length(data)
    if isinstance(data, Iterable):
        return map(_inputs, data), _length(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return map(_inputs, map(data.__getitem__, range(len(data)))), len(data)
    raise TypeError(
        "`data` must be an array, a dict of arrays, a tuple (x, y), a tf.data.Dataset, a "
        "PyDataset, a PyTorch DataLoader or an iterable of batches. "
        f"Received: {type(data).__name__}"
    )


def rows(inputs: Any, start: int, stop: int) -> Any:
    """Those samples of every array in the structure `inputs`."""
    return tree.map_structure(lambda array: array[start:stop], inputs)


def _items(dataset: keras.utils.PyDataset, total: int | None) -> Iterator[Any]:
    """The batches of `dataset` in order, fetched ahead by its workers if it has any."""
    if dataset.workers <= 1 and not (dataset.workers and dataset.use_multiprocessing):
        yield from map(dataset.__getitem__, count() if total is None else range(total))
        return
    # What `fit` fetches with. Keras publishes the arguments that drive it, but not itself.
    from keras.src.trainers.data_adapters.py_dataset_adapter import OrderedEnqueuer

    enqueuer = OrderedEnqueuer(
        dataset,
        workers=dataset.workers,
        use_multiprocessing=dataset.use_multiprocessing,
        max_queue_size=dataset.max_queue_size,
    )
    enqueuer.start()
    try:
        yield from islice(enqueuer.get(), total)
    finally:
        enqueuer.stop()


def _inputs(batch: Any) -> Any:
    """x of a batch that may be x, (x,), (x, y) or (x, y, sample_weight)."""
    return batch[0] if isinstance(batch, tuple) else batch


def _dense(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches as tensors of this backend where they are that, and else as NumPy arrays."""
    for batch in batches:
        yield tree.map_structure(_array, batch)


def _array(part: Any) -> Any:
    if isinstance(part, (Number, str)) or hasattr(part, "row_splits"):  # which RaggedTensors have
        raise TypeError(
            "expected batches of arrays of one shape for all samples, such as np.array(batch), or "
            f"padded ones with a mask. Received: {type(part).__name__}"
        )
    if keras.ops.is_tensor(part) or not hasattr(part, "__array__"):
        return part
    return np.asarray(part.detach().cpu() if hasattr(part, "detach") else part)


def _is_array(data: Any) -> bool:
    return hasattr(data, "__array__") and hasattr(data, "shape")


def _is_torch_loader(data: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a loader has imported it
    return torch is not None and isinstance(data, torch.utils.data.DataLoader)


def _length(data: Any) -> Any:
    """Batches in an iterable: a number, infinity, or None where nobody knows."""
    if hasattr(data, "cardinality"):  # tf.data.Dataset: −1 is infinite, −2 unknown
        cardinality = int(data.cardinality())
        return {-1: math.inf, -2: None}.get(cardinality, cardinality)
    try:
        return len(data)
    except TypeError:  # of a generator, or a DataLoader over one
        return None
