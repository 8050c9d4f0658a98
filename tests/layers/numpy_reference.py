"""Batch normalization in float64 NumPy, element by element from its definition."""

import numpy as np


def batch_norm(x, axes, mask=None, gamma=1.0, beta=0.0, epsilon=1e-3):
    """Output, mean, biased variance and count, the last three of the shape of `axes`.

    `mask` has the shape of `x`. Channels without any element have mean and variance 0.
    """
    x = np.asarray(x, "float64")
    channels = [x.shape[axis] for axis in axes]
    mean, variance, count = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    y = np.empty_like(x)
    gamma, beta = np.broadcast_to(gamma, channels), np.broadcast_to(beta, channels)
    for index in np.ndindex(*channels):
        where = [slice(None)] * x.ndim
        for axis, position in zip(axes, index, strict=True):
            where[axis] = position
        values = x[tuple(where)]
        kept = values if mask is None else values[mask[tuple(where)]]
        count[index] = kept.size
        if kept.size:
            mean[index], variance[index] = kept.mean(), kept.var()
        scale = gamma[index] / np.sqrt(variance[index] + epsilon)
        y[tuple(where)] = (values - mean[index]) * scale + beta[index]
    return y, mean, variance, count
