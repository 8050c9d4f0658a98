"""Calibration data: the samples from which integer quantization takes its ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_bn.samples import Samples, random_samples, read_samples
from keras_bn.signature import input_specs

if TYPE_CHECKING:
    import keras

# "a small subset (around ~100-500 samples) of the training or validation data", says
# https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/post_training_quantization
DEFAULT_SAMPLES = 200


def calibration_data(
    model: keras.Model, data: Any, *, samples: int | None = DEFAULT_SAMPLES
) -> Samples:
    """Calibration samples for `model`, read and checked.

    Args:
        model: The model that will be quantized.
        data: Samples like those that the model will meet, in any form that
            `keras_bn.samples.read_samples` takes: an `.npz` or `.npy` file, an array, a
            dictionary or list of arrays, a dataset or iterable of batches.
        samples: At most this many; None for all.

    Returns:
        One array for each input, by name, with the samples on the first axis.

    Raises:
        CalibrationError: The data are missing, empty or not finite, or do not suit the inputs
            in name, shape or dtype.

    Example:
        >>> import keras, numpy as np
        >>> x = keras.Input((4,), name="features")
        >>> model = keras.Model(x, keras.layers.Dense(2)(x))
        >>> calibration_data(model, np.ones((1000, 4)))["features"].shape
        (200, 4)
    """
    return read_samples(data, input_specs(model), limit=samples)


def random_calibration(
    model: keras.Model, *, samples: int = DEFAULT_SAMPLES, seed: int = 0
) -> Samples:
    """Random calibration samples, for measuring speed and size: the accuracy means nothing.

    Example:
        >>> import keras
        >>> x = keras.Input((4,), name="features")
        >>> model = keras.Model(x, keras.layers.Dense(2)(x))
        >>> random_calibration(model, samples=10)["features"].shape
        (10, 4)
    """
    return random_samples(model, samples, seed=seed)
