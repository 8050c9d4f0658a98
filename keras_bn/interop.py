"""Weights from other frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

# PyTorch's name → the layer's. weight and bias are there with affine=True, the statistics with
# track_running_stats=True (torch.nn.modules.batchnorm).
_NAMES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "num_batches_tracked": "num_batches_tracked",
}


def load_torch_batch_norm(
    layer: keras.layers.BatchNormalization, state_dict: Mapping[str, Any], prefix: str = ""
) -> keras.layers.BatchNormalization:
    """Give a batch normalization the weights of a `torch.nn.BatchNorm1d`, `2d` or `3d`.

    A state dictionary holds no hyperparameters, so the layer has to be made with those that
    correspond. PyTorch's defaults, momentum 0.1 and eps 1e-5, are

        keras_bn.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)

    since PyTorch's momentum is the share of the new batch, Keras's that of the old statistics:
    each is 1 minus the other. `momentum=None` means the same in both, and the unbiased moving
    variance is PyTorch's (Keras's own layer goes on with the biased one). `affine=False` is
    `center=False, scale=False`. PyTorch's channels are axis 1; here they are wherever `axis` says.

    Args:
        layer: A built batch normalization, ours or Keras's; its weights are set in place.
        state_dict: `module.state_dict()`, of tensors or arrays.
        prefix: What stands before the names of this module: "features.1." or "features.1".

    Returns:
        `layer`.

    Raises:
        ValueError: the layer is not built, or the dictionary and the layer differ in which
            weights they have or in their shape. The layer is then unchanged.
        TypeError: the layer is no batch normalization.

    Example:
        >>> from keras_bn.layers import BatchNormalization
        >>> layer = BatchNormalization(momentum=0.9, epsilon=1e-5)
        >>> layer.build((None, 2))
        >>> state = {"bn.weight": [1.0, 2.0], "bn.bias": [0.0, 1.0],
        ...          "bn.running_mean": [3.0, 4.0], "bn.running_var": [1.0, 1.0]}
        >>> _ = load_torch_batch_norm(layer, state, "bn")
        >>> keras.ops.convert_to_numpy(layer.moving_mean).tolist()
        [3.0, 4.0]
    """
    if not isinstance(layer, keras.layers.BatchNormalization):
        raise TypeError(
            f"Expected a BatchNormalization layer; received a {type(layer).__name__}. PyTorch's "
            "other normalizations have their own weights."
        )
    if not layer.built:
        raise ValueError(
            f"Expected a built layer; '{layer.name}' has no weights yet. Call it, or "
            "layer.build(input_shape), first."
        )
    stem = prefix if not prefix or prefix.endswith(".") else prefix + "."
    found = {
        name: _array(state_dict[stem + theirs])
        for theirs, name in _NAMES.items()
        if stem + theirs in state_dict
    }
    targets = {
        name: getattr(layer, name)
        for name in _NAMES.values()
        if getattr(layer, name, None) is not None
    }
    # The counter is PyTorch's own with every setting, and a layer's only where it needs one.
    if missing := sorted(targets.keys() - found.keys() - {"num_batches_tracked"}):
        theirs = ", ".join(stem + key for key, name in _NAMES.items() if name in missing)
        raise ValueError(
            f"Expected {theirs} in the state dictionary, for the {', '.join(missing)} of "
            f"'{layer.name}'; it has {', '.join(sorted(state_dict)) or 'nothing'}. Check the "
            "prefix. A module with affine=False goes to a layer with center=False, scale=False; "
            "one with track_running_stats=False has no statistics to load: keras_bn.update_bn "
            "measures them."
        )
    if surplus := sorted(found.keys() - targets.keys() - {"num_batches_tracked"}):
        raise ValueError(
            f"The state dictionary has {', '.join(surplus)}, which '{layer.name}' has not; make "
            "the layer with center=True, scale=True."
        )
    for name, variable in targets.items():
        if name in found and found[name].shape != tuple(variable.shape):
            raise ValueError(
                f"Expected {name} of shape {tuple(variable.shape)} for '{layer.name}'; received "
                f"{found[name].shape}. Is this another layer's prefix?"
            )
    for name, variable in targets.items():
        if name in found:
            variable.assign(found[name].astype(variable.dtype))
    if getattr(layer, "renorm", False):  # which PyTorch has not, but whose start is the same
        stddev = np.sqrt(found["moving_variance"] + layer.epsilon)
        layer.moving_stddev.assign(stddev)
        layer.renorm_stddev.assign(stddev)
        layer.renorm_mean.assign(found["moving_mean"])
    return layer


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, perhaps on another device or in bfloat16
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
        value = value.numpy()
    return np.asarray(value)
