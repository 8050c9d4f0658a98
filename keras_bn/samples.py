"""Samples for a model's inputs: read from what users have, checked, named by input.

Calibration and comparison both start here. What comes out is always a dictionary from input
name to one array with the samples on its first axis, in the dtype the model declares.
"""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_bn.errors import CalibrationError, KerasBNError
from keras_bn.signature import InputSpec

if TYPE_CHECKING:
    import keras

Samples = dict[str, np.ndarray]

# Free axes other than the batch (image sides, time steps) get this size in random samples for
# files: a power of two large enough for the five halvings that image networks commonly make.
FREE_AXIS_SIZE = 64


def read_samples(
    data: Any,
    specs: Sequence[InputSpec],
    *,
    limit: int | None = None,
    error: type[KerasBNError] = CalibrationError,
) -> Samples:
    """Named, checked arrays for the inputs `specs`, from `data` in any of these forms.

    - a path to an `.npz` file (arrays named like the inputs; any name where there is one input
      and one array) or to an `.npy` file (one input);
    - an array, for a model with one input;
    - a dictionary from input name to array, or a list of arrays in the order of the inputs;
    - a `tf.data.Dataset`, a `keras.utils.PyDataset`, or any iterable of batches as `model.fit`
      takes them: x, (x, y) or (x, y, sample_weight); targets are left aside.

    Args:
        data: The samples.
        specs: The model's inputs.
        limit: At most this many samples: spread evenly over arrays and files, which are often
            sorted by class; the first ones of an iterable, which is read no further. An iterable
            without an end needs it.
        error: The error to raise, which names the samples' purpose.

    Returns:
        One array of shape (samples, …) for each input.

    Raises:
        error: `data` is missing, empty or not finite, or an array's name, dtype or shape does
            not suit its input. Only casts that keep every value are made: to a wider dtype,
            from float64 to float32, between integers where the values fit.

    Example:
        >>> spec = InputSpec("image", (None, 4, 4, 3), "float32")
        >>> read_samples(np.zeros((10, 4, 4, 3)), [spec], limit=5)["image"].shape
        (5, 4, 4, 3)
    """
    if limit is not None and limit < 1:
        raise ValueError(f"Expected limit to be at least 1 sample, or None; received {limit}.")
    try:
        named = _named_arrays(data, specs, limit)
        return _checked(named, specs, limit)
    except _UnsuitableError as unsuitable:
        wanted = "; ".join(str(spec) for spec in specs)
        raise error(f"{unsuitable} The model's inputs: {wanted}.") from unsuitable.__cause__


def random_samples(model: keras.Model, count: int, *, seed: int = 0) -> Samples:
    """Random samples for a Keras model, whose scale varies widely from one to the next.

    Floats are standard normal times a factor for each sample that is log-uniform in [0.1, 10],
    so that both the linear and the saturated parts of activations are reached. Integers, and
    floats that an Embedding looks up, are uniform below the model's smallest vocabulary; booleans
    are fair coins. A model that fixes its batch size gets that many samples. A subclassed model
    has to have been called once; its inputs go by the argument of its call, or by the keys of the
    dictionary that it takes.

    Raises:
        UnsupportedModelError: no such samples suit the model, or it is subclassed and its call
            cannot be traced.

    Example:
        >>> import keras
        >>> x = keras.Input((5,), name="features")
        >>> random_samples(keras.Model(x, keras.layers.ReLU()(x)), 3)["features"].shape
        (3, 5)
    """
    import keras

    from keras_bn.graph.inputs import random_inputs
    from keras_bn.graph.trace import opened

    model = opened(model).model  # which says what its inputs are
    arrays = keras.tree.flatten(random_inputs(model, count, seed=seed))
    rng = np.random.default_rng(seed)
    return {
        tensor.name: _widened(array, rng)
        for tensor, array in zip(model.inputs, arrays, strict=True)
    }


def random_samples_of(specs: Sequence[InputSpec], count: int, *, seed: int = 0) -> Samples:
    """Random samples for inputs of which no more is known than `specs`, as of a `.tflite` file.

    As `random_samples`, except that integers of 8 bits fill their type, as images do, and wider
    ones are 0 or 1, which every table has rows for. Free axes other than the batch have size 64.

    Example:
        >>> random_samples_of([InputSpec("ids", (None, 5), "int32")], 3)["ids"].shape
        (3, 5)
    """
    rng = np.random.default_rng(seed)
    samples: Samples = {}
    for spec in specs:
        shape = (count, *(size or FREE_AXIS_SIZE for size in spec.shape[1:]))
        dtype = _numpy_dtype(spec.dtype)
        if dtype.kind == "b":
            samples[spec.name] = rng.random(shape) < 0.5
        elif dtype.kind in "iu":
            limits = np.iinfo(dtype)
            low, high = (limits.min, limits.max + 1) if dtype.itemsize == 1 else (0, 2)
            samples[spec.name] = rng.integers(low, high, shape).astype(dtype)
        else:
            samples[spec.name] = _widened(rng.standard_normal(shape).astype(dtype), rng)
    return samples


def _widened(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Float samples times a factor each; whole numbers are indices, and stay."""
    if np.array_equal(array, np.round(array)):
        return array
    factor = 10.0 ** rng.uniform(-1, 1, (len(array),) + (1,) * (array.ndim - 1))
    return (factor * array).astype(array.dtype)


class _UnsuitableError(Exception):
    """What is wrong with the data; `read_samples` adds the inputs and the error's type."""


def _named_arrays(data: Any, specs: Sequence[InputSpec], limit: int | None) -> Mapping[str, Any]:
    if data is None:
        raise _UnsuitableError("Expected samples; received None.")
    if isinstance(data, str | os.PathLike):
        data = _load(Path(data))
        if isinstance(data, Mapping) and len(data) == len(specs) == 1:
            return {specs[0].name: next(iter(data.values()))}
    if isinstance(data, Mapping):
        return data
    if isinstance(data, list | tuple):
        return _by_position(data, specs)
    if hasattr(data, "__array__"):
        return _by_position([data], specs)
    if hasattr(data, "__iter__") or hasattr(data, "num_batches"):
        return _joined(_batches(data), specs, limit)
    raise _UnsuitableError(
        "Expected a path, an array, a dictionary or list of arrays, a dataset or an iterable of "
        f"batches; received {type(data).__name__}."
    )


def _load(path: Path) -> Any:
    if path.suffix not in (".npz", ".npy"):
        raise _UnsuitableError(
            f"Expected an .npz or .npy file; received {str(path)!r}. "
            "Write one with numpy.savez(path, **{input_name: array})."
        )
    if not path.is_file():
        raise _UnsuitableError(f"Expected a file of samples; there is none at {str(path)!r}.")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, zipfile.BadZipFile) as refused:
        # Unpickling runs code that the file chooses, so object arrays stay closed.
        raise _UnsuitableError(
            f"Expected arrays of numbers in {str(path)!r}; it is damaged or holds pickled "
            "objects, which are never loaded. Save plain arrays with numpy.savez."
        ) from refused


def _by_position(arrays: Sequence[Any], specs: Sequence[InputSpec]) -> Mapping[str, Any]:
    if len(arrays) != len(specs):
        advice = (
            " A list of single samples becomes one array with numpy.stack."
            if len(specs) == 1
            else ""
        )
        raise _UnsuitableError(
            f"Expected one array for each of the {len(specs)} inputs; received {len(arrays)}."
            + advice
        )
    return {spec.name: array for spec, array in zip(specs, arrays, strict=True)}


def _batches(data: Any) -> Iterator[Any]:
    if hasattr(data, "num_batches"):  # a PyDataset has indices, and may have no end
        endless = data.num_batches is None
        return (data[i] for i in (itertools.count() if endless else range(data.num_batches)))
    return iter(data)


def _joined(
    batches: Iterator[Any], specs: Sequence[InputSpec], limit: int | None
) -> Mapping[str, Any]:
    """The batches' inputs one after the other; stops reading at `limit` samples."""
    parts: list[Samples] = []
    count = 0
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple) else batch
        named = (
            x
            if isinstance(x, Mapping)
            else _by_position(x if isinstance(x, list | tuple) else [x], specs)
        )
        parts.append(_checked(named, specs, None))
        count += len(parts[-1][specs[0].name])
        if limit is not None and count >= limit:
            break
    if not parts:
        raise _UnsuitableError(
            "Expected at least one batch; the iterable gave none. A generator can be read only "
            "once: pass a fresh one."
        )
    try:
        joined = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in specs}
    except ValueError as uneven:
        raise _UnsuitableError(
            "Expected batches whose samples all have one shape; pad them to the same size "
            f"({uneven})."
        ) from uneven
    return {name: array[:limit] for name, array in joined.items()}


def _checked(named: Mapping[str, Any], specs: Sequence[InputSpec], limit: int | None) -> Samples:
    names = [spec.name for spec in specs]
    if set(named) != set(names):
        received = ", ".join(map(repr, named)) or "nothing"
        raise _UnsuitableError(
            f"Expected arrays named {', '.join(map(repr, names))}; received {received}."
        )
    arrays = {name: np.asarray(named[name]) for name in names}
    for spec in specs:
        _check_shape(arrays[spec.name], spec)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise _UnsuitableError(
            f"Expected the same number of samples in each input; received {counts}."
        )
    count = counts[names[0]]
    if count == 0:
        raise _UnsuitableError("Expected at least one sample; the arrays are empty.")
    if limit is not None and count > limit:
        chosen = np.linspace(0, count - 1, limit).round().astype(int)
        arrays = {name: array[chosen] for name, array in arrays.items()}
    return {spec.name: _cast(arrays[spec.name], spec) for spec in specs}


def _check_shape(array: np.ndarray, spec: InputSpec) -> None:
    free = (None, *spec.shape[1:])  # any number of samples, whatever batch the model fixes
    fits = array.ndim == len(free) and all(
        size is None or size == actual for size, actual in zip(free, array.shape, strict=True)
    )
    if not fits:
        advice = ""
        if array.ndim == len(free) - 1:
            advice = " Add the batch axis: array[None], or dataset.batch(...)."
        raise _UnsuitableError(
            f"Expected samples of shape {free[1:]} with the samples' axis before it for input "
            f"{spec.name!r}; received an array of shape {array.shape}.{advice}"
        )


def _cast(array: np.ndarray, spec: InputSpec) -> np.ndarray:
    dtype = _numpy_dtype(spec.dtype)
    kinds = {"b": "b", "i": "iu", "u": "iu"}.get(dtype.kind)
    if kinds is None:  # a float input, bfloat16 (kind "V") among them
        suits = array.dtype.kind in "fV" or np.can_cast(array.dtype, dtype, "safe")
        suits = suits and array.dtype.names is None and array.dtype.kind != "O"
    else:
        suits = array.dtype.kind in kinds
    if not suits:
        raise _UnsuitableError(
            f"Expected {spec.dtype} values for input {spec.name!r}; received {array.dtype}, which "
            f"does not convert safely. Convert it yourself: array.astype({spec.dtype!r})."
        )
    with np.errstate(over="ignore"):  # what overflows is found below
        cast = array.astype(dtype, copy=False)
    if kinds is None:
        finite = np.isfinite(cast)
        if not finite.all():
            raise _UnsuitableError(
                f"Expected finite values for input {spec.name!r}; {np.count_nonzero(~finite)} of "
                f"{cast.size} are NaN or infinite as {spec.dtype}. Remove those samples."
            )
    elif not np.array_equal(cast, array):
        raise _UnsuitableError(
            f"Expected values that fit {spec.dtype} for input {spec.name!r}; received "
            f"{array.min()} to {array.max()} as {array.dtype}."
        )
    return cast


def _numpy_dtype(name: str) -> np.dtype:
    if name == "bfloat16":  # NumPy knows it once ml_dtypes, which Keras depends on, is there
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
