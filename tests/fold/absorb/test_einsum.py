"""EinsumDense takes affines in along the axes of its kernel and of its bias."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_bn.fold.affine import Affine
from tests.fold.absorb.absorption import (
    DTYPES,
    assert_backward,
    assert_forward,
    assert_refused,
    model_around,
    positive,
    random_affine,
)

# equation, output_shape, shape of the input, bias_axes, then the shapes of affines that go in
# behind and in front
CASES = {
    "dense": ("ab,bc->ac", 4, (6,), "c", [(4,)], [(6,)]),
    "dense-no-bias": ("ab,bc->ac", 4, (6,), None, [(4,)], [(6,)]),
    "sequence": ("abc,cd->abd", (None, 4), (5, 6), "d", [(1, 4)], [(1, 6)]),
    "unknown-length": ("abc,cd->abd", (None, 4), (None, 6), None, [(1, 4)], [(1, 6)]),
    "two-features": ("ab,bcd->acd", (3, 4), (6,), "cd", [(3, 4), (1, 4), (3, 1)], [(6,)]),
    "heads": ("abc,cde->abde", (None, 3, 4), (5, 6), "e", [(1, 3, 4), (1, 1, 4)], [(1, 6)]),
    "heads-no-bias": ("abc,cde->abde", (None, 3, 4), (5, 6), None, [(1, 3, 4)], [(1, 6)]),
    "merging-heads": ("abcd,cde->abe", (None, 4), (5, 3, 2), None, [(1, 4)], [(1, 3, 2)]),
    "one-head-summed": ("abcd,de->abe", (None, 4), (5, 3, 2), "e", [(1, 4)], [(1, 1, 2)]),
    "positions-in-the-bias": ("abc,cd->abd", (5, 4), (5, 6), "bd", [(1, 4)], [(1, 6)]),
    "own-kernel-for-every-position": ("abc,bcd->abd", (5, 4), (5, 6), None, [(5, 4)], [(5, 6)]),
    "output-transposed": ("abc,cd->adb", (4, None), (5, 6), None, [(4, 1)], [(1, 6)]),
    "kernel-transposed": ("abc,dec->abed", (None, 3, 4), (5, 6), None, [(1, 3, 4)], [(1, 6)]),
    "ellipsis-left": ("...x,xy->...y", 4, (5, 3, 6), "y", [(1, 1, 4)], [(1, 1, 6)]),
    "ellipsis-of-the-batch": ("...x,xy->...y", 4, (6,), None, [(4,)], [(6,)]),
    "ellipsis-right": ("ab...,bc->ac...", 4, (6, 5, 3), None, [(4, 1, 1)], [(6, 1, 1)]),
    "ellipsis-right-bias": ("ab...,bc->ac...", 4, (6, 5), "c", [(4, 1)], [(6, 1)]),
    "elementwise": ("ab,b->ab", 6, (6,), None, [(6,)], [(6,)]),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def einsum(equation, output_shape, shape, bias_axes, dtype, **options):
    layer = layers.EinsumDense(equation, output_shape, bias_axes=bias_axes, dtype=dtype, **options)
    return layer, model_around(layer, [shape])


@DTYPES
@EACH
def test_backward(case, dtype):
    *arguments, behind, _ = case
    for number, shape in enumerate(behind):
        layer, model = einsum(*arguments, dtype)
        assert_backward(model, layer, random_affine(shape, number))


@DTYPES
@EACH
def test_forward(case, dtype):
    *arguments, _, in_front = case
    for number, shape in enumerate(in_front):
        layer, model = einsum(*arguments, dtype)
        assert_forward(model, layer, random_affine(shape, number), ["inputs"])


def test_a_scale_and_a_shift_vary_where_each_has_a_place():
    layer, model = einsum("abc,cd->abd", (5, 4), (5, 6), "bd", "float64")
    rng = np.random.default_rng(0)
    behind = Affine(rng.normal(0, 2, (1, 4)), rng.normal(0, 2, (5, 4)))
    assert_backward(model, layer, behind)
    in_front = Affine(rng.normal(0, 2, (1, 6)), rng.normal(0, 2, (5, 6)))
    assert_forward(model, layer, in_front, ["inputs"])


def test_a_shift_varies_along_an_axis_that_is_summed_without_a_kernel():
    layer, model = einsum("abcd,de->abe", (None, 4), (5, 3, 2), None, "float64")
    rng = np.random.default_rng(0)
    affine = Affine(rng.normal(0, 2, (1, 1, 2)), rng.normal(0, 2, (1, 3, 2)))
    assert_forward(model, layer, affine, ["inputs"])
    assert_refused(layer, random_affine((1, 3, 2)), "scale varies along axis 2", ["inputs"])


def test_no_length_is_needed_for_a_scale():
    layer, model = einsum("abcd,de->abe", (None, 4), (5, None, 2), None, "float64")
    assert_forward(model, layer, random_affine((1, 1, 2), shifts=False), ["inputs"])
    # Zeros multiplied by how many steps there are would still be right; a shift is not.
    with pytest.raises(Exception, match="not known in full"):
        assert_forward(model, layer, random_affine((1, 1, 2)), ["inputs"])


def test_an_output_without_features_takes_scales():
    layer, model = einsum("abc,c->ab", (None,), (5, 6), None, "float64")
    changed = assert_forward(model, layer, random_affine((1, 6), shifts=False), ["inputs"])
    assert changed.get_layer(layer.name).bias is None
    assert_backward(model, layer, random_affine((1,), shifts=False))
    assert_refused(layer, random_affine((1,)), "can have no bias")
    assert_refused(layer, random_affine((1, 6)), "can have no bias", ["inputs"])


def test_only_the_axes_that_are_missing_are_added_to_the_bias():
    layer, model = einsum("abc,cde->abde", (None, 3, 4), (5, 6), "e", "float32")
    changed = assert_backward(model, layer, random_affine((1, 3, 4)))
    assert layer.bias_axes == "e"
    assert changed.get_layer(layer.name).bias_axes == "de"
    assert tuple(changed.get_layer(layer.name).bias.shape) == (3, 4)


def test_both_sides_of_one_layer():
    layer, model = einsum("abc,cde->abde", (None, 3, 4), (5, 6), None, "float64", activation="relu")
    changed = assert_backward(model, layer, positive(random_affine((1, 3, 4))))
    twin = changed.get_layer(layer.name)
    assert_forward(changed, twin, random_affine((1, 6)), ["inputs"])


def test_refusals():
    layer, _ = einsum("abc,cd->abd", (None, 4), (5, 6), None, "float32")
    assert_refused(layer, random_affine((5, 4), shifts=False), "scale varies along axis 1")
    assert_refused(layer, random_affine((5, 4), scales=False), "shift varies along axis 1")
    assert_refused(layer, random_affine((5, 6)), "scale varies along axis 1", ["inputs"])
    assert_refused(
        layer, random_affine((5, 6), scales=False), "shift varies along axis 1", ["inputs"]
    )
    layer, _ = einsum("abc,cd->abd", (None, 4), (5, 6), "d", "float32", activation="tanh")
    assert_refused(layer, random_affine((1, 4)), "tanh")
    layer, _ = einsum("abc,cd->abd", (None, 4), (5, 6), "d", "float32", activation="relu")
    assert_refused(layer, Affine(np.full((1, 4), -2.0), np.zeros((1, 4))), "negative")
    assert_refused(layer, random_affine((1, 4), scales=False), "no shift")
    layer = layers.EinsumDense("ab,ab->ab", 6)
    layer(keras.ops.ones((3, 6)))
    assert_refused(layer, random_affine((6,)), "batch axis")
