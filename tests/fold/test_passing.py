"""What a scale and shift pass whole, in both directions, and what stops them."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from tests.fold.agreement import assert_agree, normalizations
from tests.random_weights import randomize

IMAGE = (8, 7, 4)
SEQUENCE = (6, 4)
VOLUME = (4, 5, 6, 4)
FILM = (3, 8, 7, 4)

# Keras names both a layer and what it does in inference by one class.
AUGMENTATION = {
    "AugMix": {},
    "CutMix": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomBrightness": {"factor": 0.5},
    "RandomColorDegeneration": {"factor": 0.5},
    "RandomColorJitter": {"brightness_factor": 0.5},
    "RandomContrast": {"factor": 0.5},
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {},
    "RandomHue": {"factor": 0.5},
    "RandomInvert": {},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.5},
    "RandomSaturation": {"factor": 0.5},
    "RandomSharpness": {"factor": 0.5},
    "RandomShear": {},
    "RandomTranslation": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomZoom": {"height_factor": 0.5},
    "RandomCrop": {"height": 4, "width": 4},
}


def bn(name):
    return layers.BatchNormalization(name=name)


def each(layer):
    return layers.TimeDistributed(layer)


PASSED = {
    "Resizing": (IMAGE, lambda: layers.Resizing(5, 9)),
    "Resizing-nearest": (IMAGE, lambda: layers.Resizing(5, 9, "nearest")),
    "Resizing-bicubic": (IMAGE, lambda: layers.Resizing(21, 3, "bicubic")),
    "Resizing-lanczos3": (IMAGE, lambda: layers.Resizing(5, 9, "lanczos3")),
    "Resizing-lanczos5": (IMAGE, lambda: layers.Resizing(21, 3, "lanczos5")),
    "Resizing-antialias": (IMAGE, lambda: layers.Resizing(3, 3, antialias=True)),
    "Resizing-bicubic-antialias": (
        IMAGE,
        lambda: layers.Resizing(3, 5, "bicubic", antialias=True),
    ),
    "Resizing-crop": (IMAGE, lambda: layers.Resizing(12, 4, crop_to_aspect_ratio=True)),
    "Resizing-pad-in-proportion": (
        IMAGE,
        lambda: layers.Resizing(16, 14, pad_to_aspect_ratio=True, fill_value=3.0),
    ),
    "UpSampling2D-bicubic": (IMAGE, lambda: layers.UpSampling2D(interpolation="bicubic")),
    "UpSampling2D-lanczos5": (IMAGE, lambda: layers.UpSampling2D(interpolation="lanczos5")),
    "CenterCrop": (IMAGE, lambda: layers.CenterCrop(5, 4)),
    "CenterCrop-resizes": (IMAGE, lambda: layers.CenterCrop(10, 12)),
    "RepeatVector": ((4,), lambda: layers.RepeatVector(3)),
    "TimeDistributed(Dropout)": (SEQUENCE, lambda: each(layers.Dropout(0.5))),
    "TimeDistributed(MaxPooling2D)": (FILM, lambda: each(layers.MaxPooling2D())),
    "TimeDistributed(AveragePooling2D)": (
        FILM,
        lambda: each(layers.AveragePooling2D(2, padding="same")),
    ),
    "TimeDistributed(GlobalAveragePooling2D)": (
        FILM,
        lambda: each(layers.GlobalAveragePooling2D()),
    ),
    "TimeDistributed(Reshape)": (FILM, lambda: each(layers.Reshape((56, 4)))),
    "TimeDistributed(TimeDistributed(Dropout))": (FILM, lambda: each(each(layers.Dropout(0.5)))),
}
# Calls of keras.ops, and what the record calls them.
OPERATIONS = {
    "ops.mean": (IMAGE, lambda x: keras.ops.mean(x, axis=(1, 2)), "Mean"),
    "ops.mean-keepdims": (SEQUENCE, lambda x: keras.ops.mean(x, -2, keepdims=True), "Mean"),
    "ops.max": (IMAGE, lambda x: keras.ops.max(x, axis=1), "Max"),
    "ops.min": (SEQUENCE, lambda x: keras.ops.min(x, axis=1, keepdims=True), "Min"),
    "ops.average_pool": (
        IMAGE,
        lambda x: keras.ops.average_pool(x, 2, padding="same"),
        "AveragePool",
    ),
    "ops.max_pool": (IMAGE, lambda x: keras.ops.max_pool(x, 2, padding="same"), "MaxPool"),
    "ops.swapaxes": (IMAGE, lambda x: keras.ops.swapaxes(x, 1, -2), "Swapaxes"),
    "ops.moveaxis": (VOLUME, lambda x: keras.ops.moveaxis(x, 1, -2), "Moveaxis"),
    "ops.transpose": (IMAGE, lambda x: keras.ops.transpose(x, (0, 2, 1, 3)), "Transpose"),
}
PASSED |= {name: (shape, lambda call=call: call) for name, (shape, call, _) in OPERATIONS.items()}
for _rank, _shape in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME)):
    for _kind in ("Average", "Max"):
        _name = f"Adaptive{_kind}Pooling{_rank}D"
        if hasattr(layers, _name):
            PASSED[_name] = (_shape, lambda name=_name: getattr(layers, name)(2))


def linear(shape):
    kinds = {1: layers.Dense, 2: layers.Conv1D, 3: layers.Conv2D, 4: layers.Conv3D}
    arguments = () if len(shape) == 1 else (1,)
    return kinds[len(shape)](4, *arguments, name="linear")


def built(inputs, outputs):
    model = randomize(keras.Model(inputs, outputs))
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(keras.ops.abs(layer.gamma))  # for maxima
            layer.moving_mean.assign(layer.moving_mean + 3.0)  # a shift that shows
    return model


def stack(inputs, *stacked):
    x = inputs
    for layer in stacked:
        x = layer(x)
    return built(inputs, x)


@pytest.mark.parametrize("name", PASSED)
def test_a_scale_and_shift_pass_both_ways(name):
    shape, make = PASSED[name]
    inputs, between = keras.Input(shape), make()
    behind = bn("behind")(between(linear(shape)(inputs)))
    in_front = layers.Dense(3, name="dense")(make()(bn("in_front")(inputs)))
    model = built(inputs, [behind, in_front])
    result = keras_bn.fold(model, verify=False)  # which would undo what is wrong
    *_, kind = OPERATIONS.get(name, [type(between).__name__])
    through = f"through {kind}"
    records = {r.layer: (r.into, r.rule.partition(" into ")[0], r.rule) for r in result.folded}
    assert set(records) == {"behind", "in_front"}
    assert records["behind"][:2] == ("linear", "backward")
    assert records["in_front"][:2] == ("dense", "forward")
    assert all(rule.endswith(through) for *_, rule in records.values())
    assert normalizations(result.model) == []
    assert_agree(model, result.model)


def test_augmentation_does_nothing_in_inference_and_lets_everything_pass():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    stacked = [
        getattr(layers, name)(**options)
        for name, options in AUGMENTATION.items()
        if hasattr(layers, name)
    ]
    for layer in stacked:
        np.testing.assert_array_equal(layer(images, training=False), images)
    conv = layers.Conv2D(3, 1, name="linear")
    model = stack(keras.Input((8, 8, 3)), conv, *stacked, bn("bn"))
    result = keras_bn.fold(model, verify=False)
    (record,) = result.folded
    assert record.into == "linear"
    through = record.rule.partition("through ")[2].split(", ")
    assert sorted(through) == sorted(type(layer).__name__ for layer in stacked)
    assert_agree(model, result.model)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: keras.ops.mean(x), "reduces the batch axis"),
        (lambda x: keras.ops.mean(x, axis=-1), "vary along an axis that"),
        (lambda x: keras.ops.max(x, axis=1, initial=0.0), "compares with a constant"),
    ],
)
def test_reductions_that_nothing_passes(call, reason):
    inputs = keras.Input(batch_shape=(3, *SEQUENCE))
    x = call(bn("bn")(inputs))
    outputs = layers.Dense(2)(keras.ops.reshape(x, (-1, 1)))
    model = randomize(keras.Model(inputs, outputs))
    (record,) = keras_bn.fold(model, verify=False).kept
    assert reason in record.reason


def test_what_is_filled_up_lets_a_scale_pass_only_where_the_filling_stays():
    padded = {"pad_to_aspect_ratio": True, "name": "resizing"}
    for fill_value, left in ((0.0, "only the scale"), (2.0, None)):
        layer = layers.Resizing(12, 4, fill_value=fill_value, **padded)
        model = stack(keras.Input(IMAGE), linear(IMAGE), layer, bn("bn"))
        result = keras_bn.fold(model, verify=False)
        (record,) = result.kept
        assert f"'resizing' fills up with {fill_value}" in record.reason
        assert (left is not None) == ("only" in record.reason)
        assert_agree(model, result.model)


def test_resizing_one_image_takes_the_batch_for_its_height():
    model = stack(
        keras.Input(batch_shape=(5, 8, 4)), linear((8, 4)), layers.Resizing(6, 8), bn("bn")
    )
    (record,) = keras_bn.fold(model, verify=False).kept
    assert "takes the batch axis for the height of one image" in record.reason


def test_a_wrapper_lets_pass_what_the_layer_inside_it_lets_pass():
    softmax = layers.TimeDistributed(layers.Softmax(), name="each")
    model = stack(keras.Input(SEQUENCE), linear(SEQUENCE), softmax, bn("bn"))
    (record,) = keras_bn.fold(model, verify=False).kept
    assert "'each' (TimeDistributed of Softmax) is not a layer that a scale" in record.reason
    rows = layers.BatchNormalization(axis=1, name="bn")
    model = stack(keras.Input(SEQUENCE), linear(SEQUENCE), each(layers.Dropout(0.5)), rows)
    (record,) = keras_bn.fold(model, verify=False).kept
    assert "its scale and shift vary from step to step" in record.reason


def test_an_average_over_the_steps_that_a_mask_leaves_lets_everything_pass():
    inputs = keras.Input(SEQUENCE)
    x = bn("bn")(layers.Masking()(inputs))
    x = layers.Dense(3, name="behind")(layers.GlobalAveragePooling1D()(x))
    model = randomize(keras.Model(inputs, x))
    result = keras_bn.fold(model, verify=False)
    assert [record.into for record in result.folded] == ["behind"]
    data = np.random.default_rng(0).normal(size=(3, *SEQUENCE)).astype("float32")
    data[:, 4:] = 0.0
    # 6e-8 an operation, over some ten of them.
    np.testing.assert_allclose(result.model(data), model(data), rtol=1e-5, atol=1e-5)
