"""`keras_bn.fold`: read the model, plan, rebuild, measure the difference."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_bn.fold.plan import plan
from keras_bn.fold.result import FoldResult
from keras_bn.graph.inputs import random_inputs
from keras_bn.graph.rebuild import rebuild
from keras_bn.graph.view import view


def fold(model: keras.Model, *, keep: Collection[str] = ()) -> FoldResult:
    """Fold every batch normalization of `model` that algebra allows into its neighbours.

    In inference a batch normalization is a scale and a shift per channel. Convolutions (also
    depthwise, separable and transposed ones) and Dense layers before or after it take both
    into their weights, across whatever leaves channels alone in between. The arithmetic is
    done in float64 and stored in each variable's dtype, so that the folded model differs from
    the original by rounding only.

    Args:
        model: A built Functional or Sequential model, nested models and shared layers
            included. It is not changed.
        keep: Names of normalizations to leave alone; "model/layer" inside a nested model.

    Returns:
        A `FoldResult` with the folded model, not compiled, and a record for every
        normalization: what it was folded into, or the reason that it stayed. One that gave an
        output of a Functional model leaves an Identity of its name, by which losses know it.

    Raises:
        UnsupportedModelError: the model's graph cannot be read, a layer cannot be made from its
            configuration, or statistics are not finite.
        ValueError: `keep` names no normalization of this model.

    Example:
        >>> import keras, keras_bn
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 3, name="conv"),
        ...     keras.layers.BatchNormalization(name="bn"),
        ... ])
        >>> result = keras_bn.fold(model)
        >>> result.folded
        [FoldedLayer(layer='bn', into='conv', rule='backward into Conv2D')]
        >>> [layer.name for layer in result.model.layers]
        ['conv']
    """
    decisions = plan(view(model), keep=keep)
    folded = rebuild(model, decisions.changes)
    return FoldResult(folded, decisions.folded, decisions.kept, _max_abs_error(model, folded))


def _max_abs_error(model: keras.Model, folded: keras.Model) -> float:
    """Largest absolute difference between the two models' outputs on random inputs.

    NaN where the original cannot be run on random numbers, as with strings or matrices that
    have to be positive definite.
    """
    try:
        inputs = random_inputs(model)
        original = _outputs(model, inputs)
    except Exception:  # a layer may raise anything at values that it cannot take
        return math.nan
    pairs = zip(original, _outputs(folded, inputs), strict=True)
    return max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs)


def _outputs(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """What `model` computes, in float64; the states that some layers keep stay as they are."""
    outputs, _ = model.stateless_call(
        model.trainable_variables, model.non_trainable_variables, inputs, training=False
    )
    return [
        np.asarray(keras.ops.convert_to_numpy(output), np.float64)
        for output in tree.flatten(outputs)
    ]
