"""Embeddings take what follows them into their table."""

import numpy as np
import pytest
from keras import layers

from keras_bn.fold import absorb
from tests.fold.absorb.absorption import (
    DTYPES,
    assert_backward,
    assert_refused,
    model_around,
    random_affine,
)


def indices(*shape):
    return [np.random.default_rng(3).integers(0, 7, shape).astype("int32")]


@DTYPES
@pytest.mark.parametrize("shape", [(), (5,), (4, 5)], ids=["scalar", "sequence", "grid"])
def test_backward(dtype, shape):
    layer = layers.Embedding(7, 4, dtype=dtype)
    model = model_around(layer, [shape], input_dtype="int32")
    affine = random_affine((1,) * len(shape) + (4,))
    assert_backward(model, layer, affine, indices(3, *shape))


def test_the_mask_stays():
    layer = layers.Embedding(7, 4, mask_zero=True)
    after = layers.GlobalAveragePooling1D()
    model = model_around(layer, [(5,)], lambda x: after(layer(x)), input_dtype="int32")
    affine = random_affine((1, 4))
    # An average over the steps that count, so the affine of all steps is that of the average.
    assert_backward(model, layer, affine, [np.array([[1, 2, 0, 3, 0]] * 3, "int32")])


def test_refusals():
    layer = layers.Embedding(7, 4)
    layer.build()
    assert_refused(layer, random_affine((5, 4)), "vary along axis 1")
    assert absorb.rule_for(layer).forward is None
