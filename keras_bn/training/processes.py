"""Batches over the devices and processes of a keras.distribution, which is JAX's.

Several processes train as one: each brings its share of a batch, and what is computed from it is
computed from all of it. They go in step, so each of them has to hear when the data of one end or
raise; else the others would wait for it for ever.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
from keras import tree

from keras_bn.errors import CalibrationError
from keras_bn.training.batches import rows

T = TypeVar("T")


def own_share(data: Any) -> Any:
    """What this process brings of `data`, dealt out by the distribution as it is for `fit`.

    Raises:
        ValueError: The distribution is to deal out data that are no tf.data.Dataset.
    """
    if not _several_processes():
        return data
    try:
        return keras.distribution.distribution().distribute_dataset(data)
    except ValueError as error:
        raise ValueError(
            f"{error} Expected a batched tf.data.Dataset, which the distribution deals out; where "
            "each process brings a share of its own, set its auto_shard_dataset=False"
        ) from error


def in_every_process(action: Callable[[], T]) -> T:
    """What `action` returns here, once it has succeeded in all processes.

    Raises:
        Exception: What `action` raised here.
        CalibrationError: It raised in another process.
    """
    result, error = _attempt(action)
    _agree([], error)
    return result


def over_devices(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of all processes together, sharded over the devices as `fit` shards them.

    Every process brings its share of each batch. A batch that the devices cannot share alike
    (the last one, or shares of different sizes) is gathered and put whole on each of them, and
    a process whose shares have ended goes on with empty ones until all have. What is computed
    from a batch thus depends on its samples alone.

    Raises:
        Exception: What `batches` raised here.
        CalibrationError: They raised in another process, or the shares do not fit together.
    """
    distribution = _distribution()
    if distribution is None:
        yield from batches
        return
    import jax

    mesh = distribution.device_mesh.backend_mesh
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shards = mesh.shape[distribution.batch_dim_name]

    def shared(array: Any) -> Any:
        layout = distribution.get_data_layout(array.shape).backend_layout
        return jax.make_array_from_process_local_data(layout, array)

    def copied(array: Any) -> Any:
        return jax.make_array_from_process_local_data(whole, array)

    for x, sizes in _in_step(batches):
        if len(set(sizes)) == 1 and sum(sizes) % shards == 0:
            yield tree.map_structure(shared, x)
        elif shards % len(sizes):
            raise CalibrationError(
                "a copy of the model is spread over several processes, so all must bring as many "
                f"samples to a batch, which {shards} shards divide. Received: "
                f"{', '.join(map(str, sizes))} samples"
            )
        else:
            yield tree.map_structure(copied, _joined(x, sizes))


def result_shardings(variables: list[Any]) -> Any:
    """Shardings of (measurements, variables): the former whole everywhere, the latter as given."""
    distribution = _distribution()
    if distribution is None:
        return None
    import jax

    mesh = distribution.device_mesh.backend_mesh
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return whole, [variable.sharding for variable in variables]


def _in_step(batches: Iterable[Any]) -> Iterator[tuple[Any, list[int]]]:
    """Each batch of this process with the sizes of all processes' batches, until all have ended."""
    remaining = iter(batches)
    ended = None, [0, 0, True]

    def next_share() -> tuple[Any, list[int]]:
        x = next(remaining, None)
        if x is None:
            return ended
        x = tree.map_structure(np.asarray, x)
        return x, [len(tree.flatten(x)[0]), _kind(x), False]

    while True:
        share, error = _attempt(next_share)
        x, numbers = share or ended
        sizes, kinds, ends = _agree(numbers, error)
        if all(ends):
            return
        if len({kind for kind, end in zip(kinds, ends, strict=True) if not end}) > 1:
            raise CalibrationError(
                "the processes must bring batches of one structure, dtype and shape, but for the "
                "number of samples. This process brought "
                f"{tree.map_structure(lambda array: f'{array.dtype} {array.shape}', x)}"
            )
        yield _empty_for_the_ended(x) if any(ends) else x, sizes


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The result of `action` and None, or None and the error that it raised."""
    try:
        return action(), None
    except Exception as error:
        return None, error


def _agree(numbers: list[int], error: Exception | None) -> list[list[int]]:
    """Each of the `numbers` in all processes, unless there is an `error` in one of them."""
    failed, *others = _gather(np.array([error is not None, *numbers], "int32")).T.tolist()
    if error is not None:
        raise error
    if any(failed):
        raise CalibrationError(
            f"the data of process {failed.index(1)} raised an error, which that process reports; "
            "nothing has changed in the model of this one"
        )
    return others


def _kind(x: Any) -> int:
    """A number that tells batches of other structures, shapes or dtypes apart, but no sizes."""
    empty = tree.map_structure(lambda array: (array.shape[1:], array.dtype.str), x)
    return zlib.crc32(repr(empty).encode()) >> 1  # 31 bits, since JAX's integers have 32


def _empty_for_the_ended(x: Any) -> Any:
    """`x`, or where this process has none, a batch of no samples like those of the others."""
    like = b"" if x is None else pickle.dumps(rows(x, 0, 0))
    sizes = [int(size) for size in _gather(np.array(len(like)))]
    likes = _of_all(np.frombuffer(like, "uint8"), sizes)
    return pickle.loads(max(likes, key=len).tobytes()) if x is None else x


def _joined(x: Any, sizes: Sequence[int]) -> Any:
    """The samples of all processes, where this one has `x`."""
    return tree.map_structure(lambda array: np.concatenate(_of_all(array, sizes)), x)


def _of_all(array: Any, sizes: Sequence[int]) -> list[Any]:
    """The `array` of every process, of which each has its own of the `sizes`."""
    padded = np.zeros((max(sizes), *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return [one[:size] for one, size in zip(_gather(padded), sizes, strict=True)]


def _gather(array: Any) -> Any:
    """The `array` of every process, in a new first axis; all have it in the same shape."""
    if not _several_processes():
        return array[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array)


def _several_processes() -> bool:
    distribution = _distribution()
    return distribution is not None and distribution.device_mesh.backend_mesh.is_multi_process


def _distribution() -> Any:
    return keras.distribution.distribution() if keras.backend.backend() == "jax" else None
