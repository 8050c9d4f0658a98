"""Calibration data for a model; what can be wrong with samples is in tests/test_samples.py."""

import numpy as np

from keras_bn.quantize.calibration import DEFAULT_SAMPLES, calibration_data, random_calibration
from tests.deployable import image_model, images, token_model


def test_two_hundred_samples_are_enough_by_default():
    assert len(calibration_data(image_model(), images(500))["image"]) == DEFAULT_SAMPLES == 200
    assert len(calibration_data(image_model(), images(500), samples=None)["image"]) == 500
    assert len(calibration_data(image_model(), images(5))["image"]) == 5


def test_random_calibration_is_an_explicit_call():
    ids = random_calibration(token_model(), samples=50)["ids"]
    assert ids.shape == (50, 7)
    assert ids.max() < 11  # the embedding's rows
    assert len(np.unique(ids)) == 11
