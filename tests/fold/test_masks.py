"""Masks as they are when a model runs: attention takes them off the tensors that it reads."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from tests.fold.agreement import outputs
from tests.random_weights import randomize


def bn(name):
    return layers.BatchNormalization(name=name)


def attention(name):
    return layers.MultiHeadAttention(2, 2, name=name)


def pooled(tensor):
    return layers.GlobalAveragePooling1D()(layers.Dense(3)(tensor))


def normalized_after_attention(x):
    for block in range(3):
        x = bn(f"bn{block}")(layers.Add()([x, attention(f"a{block}")(x, x)]))
    return pooled(x)


def normalized_before_attention(x):
    for block in range(3):
        y = bn(f"bn{block}")(x)
        x = layers.Add()([x, attention(f"a{block}")(y, y)])
    return pooled(x)


def no_residual_connection(x):
    for block in range(2):
        y = bn(f"bn{block}")(layers.Dense(4)(x))
        x = attention(f"a{block}")(y, y)
    return pooled(x)


def read_twice(x):
    other = attention("a0")(layers.Dropout(0.1)(x), x)
    y = bn("bn0")(layers.Dense(4)(x))
    return [pooled(other), pooled(layers.Dense(3)(attention("a1")(y, y)))]


def rescaled(x):
    y = layers.Rescaling(2.0, 0.5, name="bn0")(x)
    return [pooled(attention("a0")(x, x)), pooled(layers.Dense(3)(attention("a1")(y, y)))]


PUTS_BACK = "takes the mask off what it reads, which it puts back"
EXPOSES = "would take the mask off what is in front of it, which others read too"


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        # Without each of them the next attention would find no mask. The last has no next one.
        (normalized_after_attention, {"bn0": PUTS_BACK, "bn1": PUTS_BACK}),
        (normalized_before_attention, {"bn0": EXPOSES, "bn1": EXPOSES}),
        (no_residual_connection, {}),
        (read_twice, {"bn0": PUTS_BACK}),
        (rescaled, {"bn0": PUTS_BACK}),
    ],
)
def test_attention_finds_the_masks_that_it_found_before(build, kept):
    ids = keras.Input((6,), dtype="int32")
    model = randomize(keras.Model(ids, build(layers.Embedding(9, 4, mask_zero=True)(ids))))
    result = keras_bn.fold(model, verify=False)  # which would find out, and undo it
    records = [*result.kept, *result.others]
    reasons = {r.layer: r.reason for r in records if hasattr(r, "reason") and "mask" in r.reason}
    assert set(reasons) == set(kept)
    for name, reason in kept.items():
        assert reason in reasons[name]
    x = np.random.default_rng(0).integers(1, 9, (4, 6))
    x[:, 4:] = 0
    for a, b in zip(outputs(model, x), outputs(result.model, x), strict=True):
        # Float32 carries 6e-8 an operation; sums and softmax over six steps stay below 1e-5.
        assert np.max(np.abs(a - b)) < 1e-5 * np.max(np.abs(a))
