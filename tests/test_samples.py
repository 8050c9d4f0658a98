"""Samples in every form that users have them in, and every way in which they can be wrong."""

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_bn.errors import CalibrationError, ComparisonError, UnsupportedModelError
from keras_bn.quantize.calibration import random_calibration
from keras_bn.samples import random_samples, random_samples_of, read_samples
from keras_bn.signature import InputSpec, input_specs
from tests.deployable import dictionary_model, image_model, token_model

IMAGE = [InputSpec("image", (None, 4, 4, 3), "float32")]
PAIR = [InputSpec("left", (None, 2), "float32"), InputSpec("ids", (None, 3), "int32")]


def array(*shape, dtype="float32"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


class Batches(keras.utils.PyDataset):
    """Five batches of four; an index beyond them would be a bug of the reader."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        assert index < 5
        return array(4, 4, 4, 3), array(4)


def endless():
    while True:
        yield {"left": array(4, 2), "ids": array(4, 3, dtype="int32")}


def image_dataset(count):
    return tf.data.Dataset.from_tensor_slices((array(count, 4, 4, 3), array(count)))


SUITABLE = {
    "array": (IMAGE, lambda path: array(20, 4, 4, 3)),
    "float64": (IMAGE, lambda path: array(20, 4, 4, 3, dtype="float64")),
    "uint8 images": (IMAGE, lambda path: array(20, 4, 4, 3, dtype="uint8")),
    "tensor": (IMAGE, lambda path: tf.constant(array(20, 4, 4, 3))),
    "list of one": (IMAGE, lambda path: [array(20, 4, 4, 3)]),
    "dictionary": (PAIR, lambda path: {"ids": array(20, 3, dtype="int64"), "left": array(20, 2)}),
    "list": (PAIR, lambda path: [array(20, 2), array(20, 3, dtype="uint8")]),
    "dataset of pairs": (IMAGE, lambda path: image_dataset(20).batch(8)),
    "PyDataset": (IMAGE, lambda path: Batches()),
    "generator": (PAIR, lambda path: itertools.islice(endless(), 5)),
    "npy": (IMAGE, lambda path: saved(path / "x.npy", np.save, array(20, 4, 4, 3))),
    "npz": (
        PAIR,
        lambda path: saved(
            path / "x.npz", np.savez, left=array(20, 2), ids=array(20, 3, dtype="int32")
        ),
    ),
    "npz of one array": (IMAGE, lambda path: saved(path / "x.npz", np.savez, array(20, 4, 4, 3))),
}


def saved(path, save, *arrays, **named):
    save(path, *arrays, **named)
    return path


@pytest.mark.parametrize("case", SUITABLE)
def test_every_form_gives_named_arrays_in_the_models_dtypes(case, tmp_path):
    specs, make = SUITABLE[case]
    samples = read_samples(make(tmp_path), specs)
    assert list(samples) == [spec.name for spec in specs]
    for spec in specs:
        assert samples[spec.name].shape == (20, *spec.shape[1:])
        assert samples[spec.name].dtype == spec.dtype


def test_values_are_kept():
    given = array(6, 4, 4, 3, dtype="float64") / 7
    # float64 to float32 rounds, to half a unit in the last place of 24 bits
    np.testing.assert_allclose(read_samples(given, IMAGE)["image"], given, rtol=2**-24)


def test_limit_is_spread_over_arrays_and_stops_iterables():
    classes = np.repeat(np.arange(10.0), 10)[:, None, None, None] * np.ones((1, 4, 4, 3))
    chosen = read_samples(classes, IMAGE, limit=10)["image"]
    assert sorted(set(chosen[:, 0, 0, 0])) == list(range(10))
    assert len(read_samples(endless(), PAIR, limit=10)["left"]) == 10


UNSUITABLE = {
    "None": (IMAGE, lambda path: None, "received None"),
    "other object": (IMAGE, lambda path: 3.5, "received float"),
    "no file": (IMAGE, lambda path: path / "none.npz", "there is none"),
    "other suffix": (IMAGE, lambda path: path / "x.csv", "received '.*x.csv'"),
    "damaged npz": (IMAGE, lambda path: written(path / "x.npz", b"PK\3\4 cut"), "damaged"),
    "empty npy": (IMAGE, lambda path: written(path / "x.npy", b""), "damaged"),
    "pickled npz": (
        IMAGE,
        lambda path: saved(path / "x.npz", np.savez, image=np.array([{}, {}])),
        "pickled objects, which are never loaded",
    ),
    "wrong name": (
        PAIR,
        lambda path: {"left": 0, "right": 0},
        "'left', 'ids'; received 'left', 'r",
    ),
    "missing name": (PAIR, lambda path: {"left": 0}, "'left', 'ids'; received 'left'"),
    "array for two inputs": (PAIR, lambda path: array(4, 2), "each of the 2 inputs; received 1"),
    "list of samples": (IMAGE, lambda path: [array(4, 4, 3)] * 5, "numpy.stack"),
    "no batch axis": (IMAGE, lambda path: array(4, 4, 3), r"array\[None\]"),
    "wrong shape": (IMAGE, lambda path: array(9, 3, 4, 4), r"\(4, 4, 3\).*\(9, 3, 4, 4\)"),
    "floats for integers": (
        PAIR,
        lambda path: [array(4, 2), array(4, 3)],
        r"int32 values for input 'ids'; received float32.*astype\('int32'\)",
    ),
    "int64 for floats": (IMAGE, lambda path: array(4, 4, 4, 3, dtype="int64"), "received int64"),
    "complex": (IMAGE, lambda path: array(4, 4, 4, 3, dtype="complex64"), "complex64"),
    "text": (IMAGE, lambda path: np.full((4, 4, 4, 3), "a"), "<U1"),
    "objects": (IMAGE, lambda path: np.full((4, 4, 4, 3), None), "object"),
    "too large integers": (
        PAIR,
        lambda path: [array(4, 2), np.full((4, 3), 2**40)],
        "fit int32.*1099511627776",
    ),
    "NaN": (IMAGE, lambda path: np.full((4, 4, 4, 3), np.nan), "192 of 192 are NaN"),
    "infinite": (IMAGE, lambda path: np.full((1, 4, 4, 3), np.inf), "48 of 48"),
    "overflowing": (IMAGE, lambda path: np.full((1, 4, 4, 3), 1e300), "infinite as float32"),
    "empty": (IMAGE, lambda path: array(0, 4, 4, 3), "at least one sample"),
    "no batches": (IMAGE, lambda path: iter(()), "at least one batch"),
    "unequal counts": (
        PAIR,
        lambda path: [array(4, 2), array(5, 3, dtype="int32")],
        "'left': 4, 'ids': 5",
    ),
    "unbatched dataset": (IMAGE, lambda path: image_dataset(3), "dataset.batch"),
}


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", UNSUITABLE)
def test_unsuitable_samples_are_refused_in_words(case, tmp_path):
    specs, make, words = UNSUITABLE[case]
    with pytest.raises(CalibrationError, match=words) as raised:
        read_samples(make(tmp_path), specs)
    assert str(specs[0]) in str(raised.value)  # what was expected


def test_samples_that_differ_in_length_between_batches_are_refused():
    free = [InputSpec("steps", (None, None, 2), "float32")]
    with pytest.raises(CalibrationError, match="pad them"):
        read_samples(iter([array(2, 5, 2), array(2, 6, 2)]), free)


def test_the_purpose_chooses_the_error():
    with pytest.raises(ComparisonError):
        read_samples(None, IMAGE, error=ComparisonError)


def test_limit_must_be_positive():
    with pytest.raises(ValueError, match=re.escape("received 0")):
        read_samples(array(2, 4, 4, 3), IMAGE, limit=0)


@pytest.mark.parametrize("model", [image_model, dictionary_model, token_model])
def test_random_samples_suit_their_model(model):
    model = model()
    samples = random_samples(model, 12)
    assert read_samples(samples, input_specs(model)).keys() == samples.keys()
    assert {len(values) for values in samples.values()} == {12}


def test_random_samples_are_wide_and_repeatable():
    model = image_model()
    samples = random_samples(model, 200)["image"]
    scales = samples.std(axis=(1, 2, 3))
    # log-uniform over [0.1, 10]: 200 draws miss neither the lowest nor the highest quarter
    assert scales.min() < 0.32
    assert scales.max() > 3.2
    np.testing.assert_array_equal(samples, random_samples(model, 200)["image"])
    assert not np.array_equal(samples, random_samples(model, 200, seed=1)["image"])


def test_random_samples_for_files_fill_each_dtype():
    specs = [
        InputSpec("pixels", (1, None, 3), "uint8"),
        InputSpec("ids", (None, 50), "int32"),
        InputSpec("mask", (None, 50), "bool"),
    ]
    samples = random_samples_of(specs, 40)
    assert samples["pixels"].shape == (40, 64, 3)
    assert (samples["pixels"].min(), samples["pixels"].max()) == (0, 255)
    assert set(np.unique(samples["ids"])) == {0, 1}
    assert set(np.unique(samples["mask"])) == {False, True}


class Words(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.dense = layers.Embedding(7, 4), layers.Dense(2)

    def call(self, words):
        return self.dense(self.embedding(words))


def test_random_samples_of_a_subclassed_model_suit_it_and_go_by_its_argument():
    model = Words()
    with pytest.raises(UnsupportedModelError, match="call it once on data"):
        random_samples(model, 3)
    model(np.zeros((1, 5), "int32"))
    for samples in (random_samples(model, 3), random_calibration(model, samples=3)):
        assert set(samples) == {"words"}
        assert samples["words"].shape == (3, 5)
        assert samples["words"].max() < 7
        assert model(samples["words"]).shape == (3, 5, 2)
