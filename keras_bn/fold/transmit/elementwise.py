"""What gives back its input, and activations that are linear on each side of zero."""

from __future__ import annotations

from typing import Any

from keras import layers
from keras.src.ops import core
from keras.src.ops import nn as activations
from keras.src.ops import numpy as operators

from keras_bn.fold.activation import through_activation, through_homogeneous
from keras_bn.fold.affine import Affine, Refused
from keras_bn.fold.transmit.rule import Call, Transmit, of_keras, single, unchanged

AUGMENTATION = of_keras(
    layers,
    "AugMix",
    "CutMix",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
)

NOTHING = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
    layers.Identity,
    *AUGMENTATION,
)
"""What gives back its very input in inference, mask and all."""

# Where they change the dtype, they do not come this far.
_COPIES = (
    core.Cast,
    core.ConvertToTensor,
    core.SaturateCast,
    core.StopGradient,
    operators.Array,
    operators.Copy,
)


def _activation(layer: Any, affine: Affine, call: Call) -> Affine:
    return through_activation(layer.activation, affine, f"('{layer.name}')")


def _rectified(layer: Any, affine: Affine, call: Call) -> Affine:
    if getattr(layer, "max_value", None) is not None or getattr(layer, "threshold", 0) != 0:
        raise Refused(f"'{layer.name}' bends elsewhere than at zero")
    return through_homogeneous(affine, f"'{layer.name}' ({type(layer).__name__})")


def _absolute_backward(operation: Any, affine: Affine, call: Call) -> Affine:
    return through_homogeneous(affine, f"'{operation.name}'")


def _absolute_forward(operation: Any, affine: Affine, call: Call) -> Affine:
    """|s·x| = |s|·|x|"""
    return through_homogeneous(affine.map(abs), f"'{operation.name}'")


RULES = (
    Transmit((*NOTHING, *_COPIES), *single(unchanged)),
    Transmit(
        (operators.Absolute, *of_keras(operators, "Abs", "Fabs")),
        *single(_absolute_backward, _absolute_forward),
    ),
    Transmit((layers.Activation,), *single(_activation)),
    Transmit(
        (layers.ReLU, layers.LeakyReLU, layers.PReLU, activations.Relu, activations.LeakyRelu),
        *single(_rectified),
    ),
)
