"""Sums over the replicas that train in step, each with its share of a batch."""

from __future__ import annotations

import keras

from keras_bn.layers.moments import Tensor


def sum_over_replicas(partial_sum: Tensor) -> Tensor:
    """Add up `partial_sum` over the replicas; on one device, itself. Differentiable.

    - TensorFlow: the replicas of a tf.distribute strategy.
    - PyTorch: the processes of torch.distributed's default group.
    - JAX: arrays that keras.distribution spreads over devices are summed as the whole they are.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return partial_sum
        return context.all_reduce(tf.distribute.ReduceOp.SUM, partial_sum)
    if keras.backend.backend() == "torch":
        import torch

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            from torch.distributed.nn.functional import all_reduce

            return all_reduce(partial_sum)
    return partial_sum
