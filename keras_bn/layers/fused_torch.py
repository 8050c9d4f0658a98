"""Batch normalization of a training batch as one differentiable operation, on PyTorch.

The kernel, torch.nn.functional.batch_norm, computes the moments in two passes and has one
operation for its gradient, and one for that gradient's.
"""

from __future__ import annotations

from collections.abc import Callable

from keras_bn.layers.moments import Moments, Tensor, moments

DTYPES = ("float32", "float64", "float16", "bfloat16")


def normalize(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Moments]:
    """See `keras_bn.layers.fused.normalize`."""
    import torch

    channels = x.shape[axis]
    dtype = torch.promote_types(x.dtype, torch.float32)
    gamma = torch.ones(channels, dtype=dtype, device=x.device) if gamma is None else gamma
    beta = torch.zeros(channels, dtype=dtype, device=x.device) if beta is None else beta

    flat, restored = _flattened(x, axis)
    elements = x.numel() // channels if channels else 0
    if elements < 2:  # which the kernel refuses
        y, batch = _plain(flat, gamma, beta, epsilon)
    else:
        # With momentum 1 these become the batch's own moments.
        mean, sample_variance = torch.zeros((2, channels), dtype=dtype, device=x.device)
        y = torch.nn.functional.batch_norm(
            flat, mean, sample_variance, gamma, beta, training=True, momentum=1.0, eps=epsilon
        )
        variance = sample_variance * ((elements - 1) / elements)  # the kernel divides by m − 1
        batch = Moments(mean, variance, float(elements))
    return restored(y), batch


def _plain(flat: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, Moments]:
    wide = flat.to(gamma.dtype)
    batch = moments(wide, [axis for axis in range(flat.ndim) if axis != 1])
    channelwise = [-1] + [1] * (flat.ndim - 2)
    slope = (gamma * (batch.variance + epsilon).rsqrt()).reshape(channelwise)
    y = (wide - batch.mean.reshape(channelwise)) * slope + beta.reshape(channelwise)
    return y.to(flat.dtype), batch


def _flattened(x: Tensor, axis: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`x` as (elements, channels) or (outer, channels, inner), and the way back.

    A view of contiguous memory, whether `x` has its channels there last or not. Images would do
    as well, but for one defect of the kernel's (PyTorch 2.13, CPU): where their width is 1 its
    gradient takes channels-last memory for channels-first, or the other way round, if the strides
    of `x` and of the incoming gradient differ in that dimension. Two and three dimensions have one
    memory format only.

    On a GPU, where that defect is not, channels that are last become those of one image:
    (1, channels, elements, 1). cuDNN, which takes nothing else in that order, needs half to nine
    tenths of the time of PyTorch's own kernel for rows of channels, and loses fewer digits.
    """
    last = x.movedim(axis, -1)
    if x.ndim == 2 or last.is_contiguous():
        rows = last.flatten(0, -2)
        if x.is_cuda:
            image = rows.unsqueeze(1).unsqueeze(0).permute(0, 3, 1, 2)
            return image, lambda y: y.permute(0, 2, 3, 1).reshape(last.shape).movedim(-1, axis)
        return rows, lambda y: y.reshape(last.shape).movedim(-1, axis)
    if axis == x.ndim - 1:
        first = x.movedim(axis, 1)
        return first.flatten(2), lambda y: y.reshape(first.shape).movedim(1, axis)
    return x.flatten(0, axis - 1).flatten(2), lambda y: y.reshape(x.shape)
