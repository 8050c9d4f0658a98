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


def first_derivatives(x, axes, weights, gamma, beta, mask=None, epsilon=1e-3):
    """Derivatives of Σ weights·y² by `x`, `gamma` and `beta`.

    They are Im f(x + ih)/h, in which no difference is rounded (Squire and Trapp, 1998, Using
    Complex Variables to Estimate Derivatives of Real Functions).
    """
    arrays = [np.asarray(array, "float64") for array in (x, gamma, beta)]
    ends = np.cumsum([array.size for array in arrays])[:-1]
    reduced = tuple(axis + 1 for axis in range(x.ndim) if axis not in axes)
    kept = np.ones(x.shape) if mask is None else mask.astype("float64")
    count = np.maximum(kept.sum(tuple(axis - 1 for axis in reduced), keepdims=True), 1)

    point = np.concatenate([array.ravel() for array in arrays])
    step = 1e-30
    points = point + 1j * step * np.eye(point.size)
    # Each row moves one of all numbers.
    moved, gamma_, beta_ = np.split(points, ends, axis=1)
    moved = moved.reshape(-1, *x.shape)
    mean = (moved * kept).sum(reduced, keepdims=True) / count
    variance = ((moved - mean) ** 2 * kept).sum(reduced, keepdims=True) / count
    y = (moved - mean) / np.sqrt(variance + epsilon)
    wide = [-1] + [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
    y = y * gamma_.reshape(wide) + beta_.reshape(wide)
    slopes = (weights * y**2).reshape(point.size, -1).sum(1).imag / step
    return [
        part.reshape(array.shape)
        for part, array in zip(np.split(slopes, ends), arrays, strict=True)
    ]


def derivatives(x, axes, weights, gamma, beta, mask=None):
    """The first derivatives, then those of the sum of their sines, by central differences."""
    arrays = [np.array(array, "float64") for array in (x, gamma, beta)]

    def curved():
        x, gamma, beta = arrays
        slopes = first_derivatives(x, axes, weights, gamma, beta, mask)
        return sum(np.sin(slope).sum() for slope in slopes)

    step = 1e-6
    second = [np.zeros(array.shape) for array in arrays]
    for array, derivative in zip(arrays, second, strict=True):
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + step
            above = curved()
            array[index] = value - step
            derivative[index] = (above - curved()) / (2 * step)
            array[index] = value
    return [*first_derivatives(x, axes, weights, gamma, beta, mask), *second]
