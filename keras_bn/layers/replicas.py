"""Sums over the replicas of a tf.distribute strategy."""

from __future__ import annotations

from typing import Any


def sum_over_replicas(partial_sum: Any) -> Any:
    """Add up `partial_sum` over the replicas that train in step; on one device, itself."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return partial_sum
    return context.all_reduce(tf.distribute.ReduceOp.SUM, partial_sum)
