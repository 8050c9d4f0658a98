"""Weights far from the identity: a fresh batch normalization hides every folding bug."""

import keras
import numpy as np


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give `model` random weights and far-from-identity statistics, and return it.

    Kernels keep the scale of their initialisation, so that activations neither vanish nor
    explode in deep networks; gamma takes both signs and varies threefold, variances fourfold.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if not keras.backend.is_float_dtype(variable.dtype) or "seed" in variable.path:
            continue
        name, shape = variable.path.rsplit("/", 1)[-1], tuple(variable.shape)
        if name in ("moving_variance", "variance"):
            value = rng.uniform(0.5, 2.0, shape)
        elif name in ("moving_mean", "mean"):
            value = rng.normal(0.0, 0.7, shape)
        elif name == "gamma":
            value = rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)
        elif name in ("beta", "bias"):
            value = rng.normal(0.0, 0.5, shape)
        else:
            fan_in = max(1, int(np.prod(shape[:-1])))
            value = rng.normal(0.0, 1.0 / np.sqrt(fan_in), shape)
        variable.assign(value.astype("float32"))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model
