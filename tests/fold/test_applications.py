"""Published architectures fold to no batch normalization at all."""

import keras
import pytest

import keras_bn
from tests.fold.agreement import assert_agree, normalizations
from tests.random_weights import randomize


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("MobileNetV2", 32, 52),
        ("ResNet50", 32, 53),
        ("EfficientNetB0", 32, 49),
        ("InceptionV3", 75, 94),
    ],
)
def test_application_folds_completely(name, size, count):
    # Without the final softmax, which would hide differences between large outputs.
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    result = keras_bn.fold(randomize(model))
    assert len(result.folded) == count
    assert result.kept == []
    assert normalizations(result.model) == []
    survivors = {
        layer.name
        for layer in model.layers
        if not isinstance(layer, (keras.layers.BatchNormalization, keras.layers.Rescaling))
    }
    assert {layer.name for layer in result.model.layers} == survivors
    assert_agree(model, result.model)
