"""What gives back its input, and activations that are linear on each side of zero."""

from __future__ import annotations

from typing import Any

from keras import layers
from keras.src.ops import nn as activations

from keras_bn.fold.activation import through_activation, through_homogeneous
from keras_bn.fold.affine import Affine, Refused
from keras_bn.fold.transmit.rule import Shapes, Transmit, of_keras, single, unchanged

AUGMENTATION = of_keras(
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
"""What gives back its very input in inference."""


def _activation(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    return through_activation(layer.activation, affine, f"('{layer.name}')")


def _rectified(layer: Any, affine: Affine, shapes: Shapes) -> Affine:
    if getattr(layer, "max_value", None) is not None or getattr(layer, "threshold", 0) != 0:
        raise Refused(f"'{layer.name}' bends elsewhere than at zero")
    return through_homogeneous(affine, f"'{layer.name}' ({type(layer).__name__})")


RULES = (
    Transmit(NOTHING, *single(unchanged)),
    Transmit((layers.Activation,), *single(_activation)),
    Transmit(
        (layers.ReLU, layers.LeakyReLU, layers.PReLU, activations.Relu, activations.LeakyRelu),
        *single(_rectified),
    ),
)
