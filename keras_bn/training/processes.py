"""Batches over the devices and processes of a keras.distribution, which is JAX's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_bn.training.batches import rows


def in_every_process(condition: bool) -> bool:
    """Whether `condition` holds in all processes that train together; all must ask."""
    if not _several():
        return condition
    return bool(_gather(np.array([condition])).all())


def over_devices(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of all processes together, sharded over the devices as `fit` shards them.

    Every process brings its share of each batch. A batch that the devices cannot share alike
    (the last one, or shares of different sizes) is gathered and put whole on each of them, and
    a process whose shares have ended goes on with empty ones until all have. What is computed
    from a batch thus depends on its samples alone.
    """
    distribution = keras.distribution.distribution()
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
            raise ValueError(
                "a model that is spread over several processes needs batches of one size that "
                f"{shards} shards divide. Received shares of {', '.join(map(str, sizes))} samples"
            )
        else:
            yield tree.map_structure(copied, _gathered(x, sizes))


def result_shardings(variables: list[Any]) -> Any:
    """Shardings of (measurements, variables): the former whole everywhere, the latter as given."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    import jax

    mesh = distribution.device_mesh.backend_mesh
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return whole, [variable.sharding for variable in variables]


def _in_step(batches: Iterable[Any]) -> Iterator[tuple[Any, list[int]]]:
    """Each batch of this process with the sizes of all processes' batches, until all have ended."""
    remaining = iter(batches)
    last = None
    while True:
        x = next(remaining, None)
        ended = x is None
        x = rows(last, 0, 0) if ended else x
        size = len(tree.flatten(x)[0])
        sizes, all_ended = _gather(np.array([size, ended])).T
        if all_ended.all():
            return
        yield x, [int(one) for one in sizes]
        last = x


def _gathered(x: Any, sizes: list[int]) -> Any:
    """The samples of all processes, where this one has `x`."""

    def gathered(array: Any) -> Any:
        padded = np.zeros((max(sizes), *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        shares = zip(_gather(padded), sizes, strict=True)
        return np.concatenate([share[:size] for share, size in shares])

    return tree.map_structure(gathered, x)


def _gather(array: Any) -> Any:
    """The `array` of every process, in a new first axis."""
    if not _several():
        return array[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array)


def _several() -> bool:
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return False
    import jax

    return jax.process_count() > 1
