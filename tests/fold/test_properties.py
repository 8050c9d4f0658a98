"""Random layers in random settings: what folds agrees with the original."""

import keras
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

import keras_bn
from tests.fold.agreement import assert_agree, normalizations
from tests.random_weights import randomize

# Building Keras models takes tens of milliseconds, which Hypothesis would call slow.
SAMPLED = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def convolutions(draw):
    """Any convolution of one to three dimensions, with channels it can take."""
    rank = draw(st.sampled_from([1, 2, 3]))
    kinds = ["Conv", "Conv", "ConvTranspose"] + (["DepthwiseConv", "SeparableConv"] * (rank < 3))
    kind = draw(st.sampled_from(kinds))
    strides = draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)) if strides == 1 else 1
    groups = draw(st.integers(1, 3)) if kind == "Conv" else 1
    channels = groups * draw(st.integers(1, 3))
    options = {
        "kernel_size": draw(st.integers(1, 3)),
        "strides": strides,
        "dilation_rate": dilation,
        "padding": draw(st.sampled_from(["same", "valid"])),
        "use_bias": draw(st.booleans()),
    }
    if kind in ("Conv", "ConvTranspose", "SeparableConv"):
        options["filters"] = groups * draw(st.integers(1, 3))
    if kind == "Conv":
        options["groups"] = groups
    if kind in ("DepthwiseConv", "SeparableConv"):
        options["depth_multiplier"] = draw(st.integers(1, 3))
    name = f"Conv{rank}DTranspose" if kind == "ConvTranspose" else f"{kind}{rank}D"
    return name, (*(draw(st.integers(7, 9)) for _ in range(rank)), channels), options


def normalization(center, scale):
    return layers.BatchNormalization(center=center, scale=scale, epsilon=1e-4, name="bn")


@SAMPLED
@given(convolutions(), st.booleans(), st.booleans(), st.integers(0, 100))
def test_every_linear_convolution_absorbs_what_follows_it(convolution, center, scale, seed):
    name, shape, options = convolution
    layer = getattr(layers, name)(**options)
    model = keras.Sequential([keras.Input(shape), layer, normalization(center, scale)])
    randomize(model, seed)
    result = keras_bn.fold(model)
    assert normalizations(result.model) == []
    assert_agree(model, result.model)


@SAMPLED
@given(convolutions(), st.booleans(), st.booleans(), st.integers(0, 100))
def test_what_precedes_a_convolution_folds_or_stays_but_never_changes_the_result(
    convolution, center, scale, seed
):
    name, shape, options = convolution
    layer = getattr(layers, name)(**options)
    model = keras.Sequential([keras.Input(shape), normalization(center, scale), layer])
    randomize(model, seed)
    result = keras_bn.fold(model)
    assert len(result.folded) + len(result.kept) == 1
    if options["padding"] == "valid" and "Transpose" not in name:
        assert normalizations(result.model) == []
    assert_agree(model, result.model)


@SAMPLED
@given(
    st.lists(
        st.sampled_from(["dropout", "zero", "average", "maximum", "crop", "permute", "flatten"]),
        max_size=3,
        unique=True,
    ),
    st.booleans(),
    st.integers(0, 100),
)
def test_whatever_lies_between_the_result_stays(between, before, seed):
    make = {
        "dropout": lambda: layers.Dropout(0.3),
        "zero": lambda: layers.ZeroPadding2D(((1, 0), (0, 2))),
        "average": lambda: layers.AveragePooling2D(2, strides=1, padding="same"),
        "maximum": lambda: layers.MaxPooling2D(3, strides=2, padding="same"),
        "crop": lambda: layers.Cropping2D(((1, 0), (0, 1))),
        "permute": lambda: layers.Permute((2, 1, 3)),
        "flatten": lambda: layers.Reshape((-1,)),
    }
    chain = [make[name]() for name in sorted(between, key="flatten".__eq__)]
    norm = layers.BatchNormalization(scale=bool(seed % 2), name="bn")
    ends = [norm, layers.Dense(3)] if before else [layers.Conv2D(4, 2), norm]
    model = keras.Sequential([keras.Input((8, 9, 4)), ends[0], *chain, ends[1]])
    randomize(model, seed)
    result = keras_bn.fold(model)
    assert len(result.folded) + len(result.kept) == 1
    assert_agree(model, result.model)


def test_zero_shift_moves_through_zero_padding_and_same_convolutions():
    for layer in (layers.Conv2D(3, 3, padding="same"), layers.Conv2DTranspose(3, 3, strides=2)):
        norm = layers.BatchNormalization(center=False, name="bn")
        model = keras.Sequential(
            [keras.Input((6, 6, 4)), norm, layers.ZeroPadding2D(1), layer, layers.ReLU()]
        )
        randomize(model)
        norm.moving_mean.assign(np.zeros(4, "float32"))
        result = keras_bn.fold(model)
        assert normalizations(result.model) == []
        assert_agree(model, result.model)
