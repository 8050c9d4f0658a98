"""A table of networks: what folds, and what is refused with which reason."""

from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from tests.fold.agreement import assert_agree, normalizations
from tests.random_weights import randomize


def bn(**options):
    options.setdefault("name", "bn")
    return layers.BatchNormalization(**options)


@dataclass(frozen=True)
class Case:
    """A stack of layers on one input, and what becomes of its normalizations.

    `folded` maps each normalization that goes to (into, rule); `kept` maps each that stays to a
    part of its reason; `left` maps those of them of which only a part stays to what is left.
    """

    id: str
    shape: tuple
    stack: Callable[[], list]
    folded: dict = field(default_factory=dict)
    kept: dict = field(default_factory=dict)
    left: dict = field(default_factory=dict)


IMAGE = (9, 8, 6)
SEQUENCE = (10, 6)
VOLUME = (6, 7, 5, 4)


def backward(kind, through=None):
    return {"bn": ("linear", f"backward into {kind}" + (f" through {through}" if through else ""))}


def forward(kind, through=None):
    return {"bn": ("linear", f"forward into {kind}" + (f" through {through}" if through else ""))}


def linear(kind, *args, **options):
    return getattr(layers, kind)(*args, name="linear", **options)


BACKWARD = [
    Case(f"{kind}{suffix}-bn", shape, stack, backward(kind))
    for kind, shape, suffix, stack in [
        ("Dense", (7,), "", lambda: [linear("Dense", 5), bn()]),
        ("Dense", (7,), "-no-bias", lambda: [linear("Dense", 5, use_bias=False), bn()]),
        ("Dense", SEQUENCE, "-3d", lambda: [linear("Dense", 5), bn()]),
        ("Dense", IMAGE, "-4d", lambda: [linear("Dense", 5), bn()]),
        ("Conv1D", SEQUENCE, "", lambda: [linear("Conv1D", 5, 3), bn()]),
        ("Conv1D", SEQUENCE, "-causal", lambda: [linear("Conv1D", 5, 3, padding="causal"), bn()]),
        ("Conv2D", IMAGE, "", lambda: [linear("Conv2D", 5, 3), bn()]),
        ("Conv2D", IMAGE, "-same", lambda: [linear("Conv2D", 5, 3, padding="same"), bn()]),
        ("Conv2D", IMAGE, "-no-bias", lambda: [linear("Conv2D", 5, 3, use_bias=False), bn()]),
        ("Conv2D", IMAGE, "-strided", lambda: [linear("Conv2D", 5, 3, strides=2), bn()]),
        ("Conv2D", IMAGE, "-dilated", lambda: [linear("Conv2D", 5, 3, dilation_rate=2), bn()]),
        ("Conv2D", IMAGE, "-grouped", lambda: [linear("Conv2D", 8, 3, groups=2), bn()]),
        ("Conv3D", VOLUME, "", lambda: [linear("Conv3D", 5, 2), bn()]),
        ("DepthwiseConv1D", SEQUENCE, "", lambda: [linear("DepthwiseConv1D", 3), bn()]),
        (
            "DepthwiseConv1D",
            SEQUENCE,
            "-multiplier",
            lambda: [linear("DepthwiseConv1D", 3, depth_multiplier=3), bn()],
        ),
        ("DepthwiseConv2D", IMAGE, "", lambda: [linear("DepthwiseConv2D", 3), bn()]),
        (
            "DepthwiseConv2D",
            IMAGE,
            "-multiplier",
            lambda: [linear("DepthwiseConv2D", 3, depth_multiplier=2, use_bias=False), bn()],
        ),
        ("SeparableConv1D", SEQUENCE, "", lambda: [linear("SeparableConv1D", 5, 3), bn()]),
        (
            "SeparableConv2D",
            IMAGE,
            "-multiplier",
            lambda: [linear("SeparableConv2D", 5, 3, depth_multiplier=2), bn()],
        ),
        ("Conv1DTranspose", SEQUENCE, "", lambda: [linear("Conv1DTranspose", 5, 3), bn()]),
        (
            "Conv2DTranspose",
            IMAGE,
            "-strided",
            lambda: [linear("Conv2DTranspose", 5, 3, strides=2, padding="same"), bn()],
        ),
        ("Conv3DTranspose", VOLUME, "", lambda: [linear("Conv3DTranspose", 5, 2), bn()]),
        ("Dense", (7,), "-center-off", lambda: [linear("Dense", 5), bn(center=False)]),
        ("Dense", (7,), "-scale-off", lambda: [linear("Dense", 5), bn(scale=False)]),
        ("Dense", (7,), "-ours", lambda: [linear("Dense", 5), ours(name="bn")]),
    ]
]

BACKWARD_THROUGH = [
    Case(
        f"Conv2D-{between.__name__}-bn" if callable(between) else "", IMAGE, stack, backward(*rule)
    )
    for between, stack, rule in [
        (
            layers.Dropout,
            lambda: [linear("Conv2D", 5, 3), layers.Dropout(0.5), bn()],
            ("Conv2D", "Dropout"),
        ),
        (
            layers.Activation,
            lambda: [linear("Conv2D", 5, 3), layers.Activation("linear"), bn()],
            ("Conv2D", "Activation"),
        ),
        (
            layers.AveragePooling2D,
            lambda: [linear("Conv2D", 5, 3), layers.AveragePooling2D(2, padding="same"), bn()],
            ("Conv2D", "AveragePooling2D"),
        ),
        (
            layers.GlobalAveragePooling2D,
            lambda: [linear("Conv2D", 5, 3), layers.GlobalAveragePooling2D(), bn()],
            ("Conv2D", "GlobalAveragePooling2D"),
        ),
        (
            layers.Reshape,
            lambda: [linear("Conv2D", 6, 3), layers.Reshape((-1, 6)), bn()],
            ("Conv2D", "Reshape"),
        ),
        (
            layers.Cropping2D,
            lambda: [linear("Conv2D", 5, 3), layers.Cropping2D(1), bn()],
            ("Conv2D", "Cropping2D"),
        ),
        (
            layers.UpSampling2D,
            lambda: [
                linear("Conv2D", 5, 3),
                layers.UpSampling2D(interpolation="bilinear"),
                bn(),
            ],
            ("Conv2D", "UpSampling2D"),
        ),
    ]
] + [
    Case(
        "Dense-Reshape-bn-varies-over-what-was-one-axis",
        (7,),
        lambda: [linear("Dense", 24), layers.Reshape((2, 3, 4)), bn()],
        backward("Dense", "Reshape"),
    ),
    Case(
        "Conv1D-Permute-bn",
        SEQUENCE,
        lambda: [linear("Conv1D", 5, 3), layers.Permute((2, 1)), bn(axis=1)],
        backward("Conv1D", "Permute"),
    ),
    Case(
        "Conv2D-MaxPooling-bn-positive",
        IMAGE,
        lambda: [linear("Conv2D", 5, 3), layers.MaxPooling2D(), bn(scale=False)],
        backward("Conv2D", "MaxPooling2D"),
    ),
    Case(
        "Conv2D-GlobalMaxPooling-bn-positive",
        IMAGE,
        lambda: [
            linear("Conv2D", 5, 3),
            layers.GlobalMaxPooling2D(keepdims=True),
            bn(scale=False),
        ],
        backward("Conv2D", "GlobalMaxPooling2D"),
    ),
    Case(
        "several-layers-between",
        IMAGE,
        lambda: [
            linear("Conv2D", 5, 3),
            layers.Dropout(0.1),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Reshape((3, 3, 5)),
            bn(),
        ],
        backward("Conv2D", "Reshape, Flatten, AveragePooling2D, Dropout"),
    ),
]

FORWARD = [
    Case(f"bn-{kind}{suffix}", shape, stack, forward(kind, *through))
    for kind, suffix, shape, stack, *through in [
        ("Dense", "", (7,), lambda: [bn(), linear("Dense", 5, activation="relu")]),
        ("Dense", "-no-bias", (7,), lambda: [bn(), linear("Dense", 5, use_bias=False)]),
        ("Conv2D", "-valid", IMAGE, lambda: [bn(), linear("Conv2D", 5, 3, activation="relu")]),
        ("Conv2D", "-grouped", IMAGE, lambda: [bn(), linear("Conv2D", 4, 3, groups=2)]),
        ("Conv2D", "-1x1-same", IMAGE, lambda: [bn(), linear("Conv2D", 4, 1, padding="same")]),
        (
            "Conv2D",
            "-same-without-padding",
            (8, 8, 6),
            lambda: [bn(), linear("Conv2D", 4, 2, strides=2, padding="same")],
        ),
        ("Conv1D", "-dilated", SEQUENCE, lambda: [bn(), linear("Conv1D", 5, 3, dilation_rate=2)]),
        ("Conv3D", "", VOLUME, lambda: [bn(), linear("Conv3D", 5, 2)]),
        (
            "DepthwiseConv2D",
            "-multiplier",
            IMAGE,
            lambda: [bn(), linear("DepthwiseConv2D", 3, depth_multiplier=2)],
        ),
        ("DepthwiseConv1D", "", SEQUENCE, lambda: [bn(), linear("DepthwiseConv1D", 3)]),
        (
            "SeparableConv2D",
            "-multiplier",
            IMAGE,
            lambda: [bn(), linear("SeparableConv2D", 5, 3, depth_multiplier=2)],
        ),
        ("SeparableConv1D", "", SEQUENCE, lambda: [bn(), linear("SeparableConv1D", 5, 3)]),
        ("Conv2DTranspose", "-1x1", IMAGE, lambda: [bn(), linear("Conv2DTranspose", 5, 1)]),
        (
            "Dense",
            "-flattened",
            IMAGE,
            lambda: [bn(), layers.Flatten(), linear("Dense", 5)],
            "Flatten",
        ),
        (
            "Dense",
            "-global-pooling",
            IMAGE,
            lambda: [bn(), layers.GlobalAveragePooling2D(), linear("Dense", 5)],
            "GlobalAveragePooling2D",
        ),
        (
            "Conv2D",
            "-max-pooling-positive",
            IMAGE,
            lambda: [bn(scale=False), layers.MaxPooling2D(), linear("Conv2D", 5, 2)],
            "MaxPooling2D",
        ),
    ]
]

CHAINS = [
    Case(
        "Dense-bn-bn",
        (7,),
        lambda: [linear("Dense", 5), bn(), bn(name="bn2")],
        {"bn": ("linear", "backward into Dense"), "bn2": ("linear", "backward into Dense")},
    ),
    Case(
        "bn-bn-Conv2D: the second carries the first along",
        IMAGE,
        lambda: [bn(), bn(name="bn2", center=False, scale=False), linear("Conv2D", 5, 3)],
        {
            "bn": ("bn2", "forward into BatchNormalization"),
            "bn2": ("linear", "forward into Conv2D"),
        },
    ),
    Case(
        "bn-Conv2D-bn: one layer absorbs on both sides",
        IMAGE,
        lambda: [bn(), linear("Conv2D", 5, 3), bn(name="bn2")],
        {"bn": ("linear", "forward into Conv2D"), "bn2": ("linear", "backward into Conv2D")},
    ),
    Case(
        "relu-bn-bn-relu: two become one",
        (7,),
        lambda: [layers.ReLU(name="relu"), bn(), bn(name="bn2"), layers.ReLU()],
        {"bn": ("bn2", "forward into BatchNormalization")},
        {"bn2": "'relu' (ReLU) lets no negative scale pass"},
    ),
]

WRAPPED = [
    Case(
        "Dense-each-bn",
        SEQUENCE,
        lambda: [linear("Dense", 5), layers.TimeDistributed(bn(), name="each")],
        {"each/bn": ("linear", "backward into Dense")},
    ),
    Case(
        "each-bn-Conv1D",
        SEQUENCE,
        lambda: [layers.TimeDistributed(bn(), name="each"), linear("Conv1D", 5, 3)],
        {"each/bn": ("linear", "forward into Conv1D")},
    ),
    Case(
        "each-Conv2D-each-bn",
        (3, *IMAGE),
        lambda: [
            layers.TimeDistributed(layers.Conv2D(5, 3), name="linear"),
            layers.TimeDistributed(bn(), name="each"),
        ],
        {"each/bn": ("linear", "backward into TimeDistributed")},
    ),
    Case(
        "each-each-bn-Dense",
        (2, *SEQUENCE),
        lambda: [
            layers.TimeDistributed(layers.TimeDistributed(bn(), name="step"), name="each"),
            linear("Dense", 5),
        ],
        {"each/step/bn": ("linear", "forward into Dense")},
    ),
    Case(
        "each-bn-each-bn: two become one",
        SEQUENCE,
        lambda: [
            layers.ReLU(),
            layers.TimeDistributed(bn(), name="each"),
            layers.TimeDistributed(bn(name="bn2"), name="each2"),
            layers.Softmax(name="softmax"),
        ],
        {"each/bn": ("each2", "forward into TimeDistributed")},
        {"each2/bn2": "'softmax' (Softmax) is not a layer that a scale and shift can pass"},
        {"each2/bn2": "both"},
    ),
    Case(
        "each-bn over the rows of a step, which are steps of no weight",
        (3, *SEQUENCE),
        lambda: [layers.TimeDistributed(bn(axis=1), name="each"), linear("Dense", 5)],
        kept={"each/bn": "vary along axis 2, not only along the channel axis 3 of 'linear'"},
    ),
]


class Doubling(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(2 * inputs, training, mask)


REFUSED = [
    Case("bn-alone", (7,), lambda: [bn()], kept={"bn": "model's input"}),
    Case(
        "activation-inside",
        IMAGE,
        lambda: [linear("Conv2D", 5, 3, activation="relu"), bn()],
        kept={"bn": "the activation relu inside 'linear' lets no negative scale pass"},
    ),
    Case(
        "activation-layer",
        IMAGE,
        lambda: [linear("Conv2D", 5, 3), layers.Activation("tanh", name="tanh"), bn()],
        kept={"bn": "the activation tanh ('tanh') stands between them"},
    ),
    Case(
        "zero-padding-between",
        IMAGE,
        lambda: [linear("Conv2D", 5, 3), layers.ZeroPadding2D(name="pad"), bn()],
        kept={"bn": "'pad' pads with zeros, which the shift would have to reach"},
        left={"bn": "addition"},
    ),
    Case(
        "same-padding-after",
        IMAGE,
        lambda: [bn(), linear("Conv2D", 5, 3, padding="same")],
        kept={"bn": "'linear' pads its input with zeros (same)"},
        left={"bn": "addition"},
    ),
    Case(
        "causal-padding-after",
        SEQUENCE,
        lambda: [bn(), linear("Conv1D", 5, 3, padding="causal")],
        kept={"bn": "'linear' pads its input with zeros (causal)"},
        left={"bn": "addition"},
    ),
    Case(
        "transposed-after",
        IMAGE,
        lambda: [bn(), linear("Conv2DTranspose", 5, 3)],
        kept={"bn": "'linear' spreads its input"},
        left={"bn": "addition"},
    ),
    Case(
        "max-pooling-of-negative-scales",
        IMAGE,
        lambda: [linear("Conv2D", 5, 3), layers.MaxPooling2D(name="pool"), bn()],
        kept={"bn": "a scale is negative, and 'pool' takes maxima"},
        left={"bn": "multiplication"},
    ),
    Case(
        "rows-not-channels",
        IMAGE,
        lambda: [linear("Conv2D", 5, 3), bn(axis=1)],
        kept={"bn": "vary along axis 1, not only along the channel axis 3"},
    ),
    Case(
        "per-time-step",
        SEQUENCE,
        lambda: [linear("Conv1D", 5, 3), ours(axis=(1, 2), name="bn")],
        kept={"bn": "vary along axis 1, not only along the channel axis 2"},
    ),
    Case(
        "unknown-layer",
        SEQUENCE,
        lambda: [layers.Softmax(name="softmax"), bn(), layers.Softmax(name="again")],
        kept={"bn": "'softmax' (Softmax) is not a layer that a scale and shift can pass"},
    ),
    Case(
        "inside-a-wrapper",
        SEQUENCE,
        lambda: [layers.TimeDistributed(Doubling(name="bn"), name="each"), layers.Dense(3)],
        kept={"each/bn": "it is inside 'each' (TimeDistributed), which computes on its own"},
    ),
]


def ours(**options):
    return keras_bn.layers.BatchNormalization(**options)


CASES = BACKWARD + BACKWARD_THROUGH + FORWARD + CHAINS + WRAPPED + REFUSED


def operation(layer):
    """What a Rescaling that stands for a part of a normalization does."""
    assert isinstance(layer, layers.Rescaling)
    shifts, scales = np.any(np.asarray(layer.offset)), np.any(np.asarray(layer.scale) != 1)
    kinds = {(True, False): "addition", (False, True): "multiplication", (True, True): "both"}
    return kinds[shifts, scales]


def build(case: Case) -> keras.Model:
    model = keras.Sequential([keras.Input(case.shape), *case.stack()])
    randomize(model)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 0.3)  # never a zero shift by chance
    return model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case):
    model = build(case)
    before = model.get_weights()
    result = keras_bn.fold(model)

    assert {r.layer: (r.into, r.rule) for r in result.folded} == case.folded
    assert {r.layer for r in result.kept} == set(case.kept)
    for record in result.kept:
        assert case.kept[record.layer] in record.reason
    whole = [path.rsplit("/")[-1] for path in case.kept if path not in case.left]
    assert normalizations(result.model) == whole
    assert {
        path: operation(result.model.get_layer(path.split("/")[0])) for path in case.left
    } == case.left
    assert_agree(model, result.model)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("case", BACKWARD, ids=lambda case: case.id)
def test_the_functional_form_folds_alike(case):
    inputs = keras.Input(case.shape, name="pixels")
    tensor = inputs
    for layer in case.stack():
        tensor = layer(tensor)
    model = randomize(keras.Model(inputs, tensor, name="net"))
    result = keras_bn.fold(model)
    assert normalizations(result.model) == []
    assert result.model.name == "net"
    assert [t.name for t in result.model.inputs] == ["pixels"]
    assert_agree(model, result.model)
