"""The samples that a monitor looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_bn.errors import CalibrationError
from keras_bn.training.monitor.probe import Batch


def first_batch(data: Any, batch_size: int) -> Batch:
    """Inputs, targets and sample weights of one batch; the last two may be None.

    Args:
        data: Arrays, of which `batch_size` evenly spread samples are taken (a sorted data set is
            then represented by all of its classes), or batches, of which the first is.
        batch_size: Samples to take of arrays.

    Raises:
        CalibrationError: `data` are empty.
        TypeError, ValueError: They are of no such kind.

    Example:

    >>> x, y, sample_weight = first_batch((np.arange(100), np.arange(100)), 4)
    >>> x.tolist(), sample_weight is None
    ([0, 25, 50, 75], True)
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive number. Received: {batch_size!r}")
    if isinstance(data, (tuple, dict)) or _is_array(data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        sizes = {len(array) for array in tree.flatten((x, y, sample_weight)) if array is not None}
        if len(sizes) != 1:
            raise ValueError(f"`data` must have one number of samples. Received: {sorted(sizes)}")
        size = sizes.pop()
        places = np.arange(min(size, batch_size)) * size // min(size or 1, batch_size)
        batch = tree.map_structure(
            lambda array: None if array is None else _rows(array, places), (x, y, sample_weight)
        )
    elif isinstance(data, keras.utils.PyDataset):
        batch = keras.utils.unpack_x_y_sample_weight(data[0])
    elif isinstance(data, Iterable):
        batch = keras.utils.unpack_x_y_sample_weight(next(iter(data), (np.empty(0),)))
    else:
        raise TypeError(
            "`data` must be a tuple (x, y) or (x, y, sample_weight) of arrays, an array, a "
            "tf.data.Dataset, a PyDataset or an iterable of batches. Received: "
            f"{type(data).__name__}"
        )
    if not len(tree.flatten(batch[0])[0]):
        raise CalibrationError("expected samples for the monitor to look at, received none")
    return batch


def _rows(array: Any, places: np.ndarray) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()  # PyTorch's
    return np.asarray(array)[places]


def _is_array(data: Any) -> bool:
    return hasattr(data, "__array__") and hasattr(data, "shape")
