"""Every kind of data that a model is trained on."""

import collections

import keras
import numpy as np
import pytest

from keras_bn.training.batches import input_batches
from keras_bn.training.population import update_bn

BACKEND = keras.backend.backend()


def data(samples=50, features=3, seed=0):
    return np.random.default_rng(seed).gamma(2.0, 3.0, (samples, features)).astype("float32")


class Batches(keras.utils.PyDataset):
    def __init__(self, x, **options):
        super().__init__(**options)
        self.x = x

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return self.x[10 * index : 10 * index + 10], np.zeros(10)


class Sequence:
    """With a length and items, but no end of its own, and not iterable."""

    def __init__(self, x):
        self.x = x

    __len__ = Batches.__len__
    __getitem__ = Batches.__getitem__


def file(x, tmp_path):
    array = np.memmap(tmp_path / "x", "float32", "w+", shape=x.shape)
    array[:] = x
    array.flush()
    return np.memmap(tmp_path / "x", "float32", "r", shape=x.shape)


def dataset(*arrays):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(10)


def loader(*arrays):
    torch = pytest.importorskip("torch")
    samples = torch.utils.data.TensorDataset(*map(torch.from_numpy, arrays))
    return torch.utils.data.DataLoader(samples, batch_size=10)


def tensor_with_gradient(x):
    torch = pytest.importorskip("torch")
    return torch.tensor(x, requires_grad=True)


KINDS = {
    "array": lambda x: x,
    "x, y": lambda x: (x, np.zeros(len(x))),
    "float64": lambda x: x.astype("float64"),
    "tensor": keras.ops.convert_to_tensor,
    "torch tensor": tensor_with_gradient,
    "Dataset": dataset,
    "Dataset x, y": lambda x: dataset(x, x),
    "PyDataset": Batches,
    "PyDataset with threads": lambda x: Batches(x, workers=3),
    "Sequence": Sequence,
    "DataLoader": loader,
    "DataLoader x, y": lambda x: loader(x, x),
    "list": lambda x: np.split(x, 5),
    "list of tensors": lambda x: [keras.ops.convert_to_tensor(part) for part in np.split(x, 5)],
    "generator": lambda x: (part for part in np.split(x, 5)),
    "generator of x, y": lambda x: ((part, part) for part in np.split(x, 5)),
    "generator of x, y, weights": lambda x: ((part, part, part) for part in np.split(x, 5)),
    "generator of (x,)": lambda x: ((part,) for part in np.split(x, 5)),
    "deque": lambda x: collections.deque(np.split(x, 5)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_statistics_of_all_samples(kind):
    x = data()
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    update_bn(model, KINDS[kind](x))
    mean, variance = model.layers[0].get_weights()[2:]
    # Float32 moments of the batches: 6 digits.
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-5)


def test_files_are_read_a_batch_at_a_time(tmp_path):
    x = data(7)
    batches, total = input_batches(keras.Sequential(), file(x, tmp_path), batch_size=3)
    read = list(batches)
    assert total == 3
    assert [type(part) for part in read] == [np.ndarray] * 3
    np.testing.assert_array_equal(np.concatenate(read), x)


@pytest.mark.parametrize("structure", [dict, list])
@pytest.mark.parametrize("kind", ["arrays", "generator", "Dataset"])
def test_several_inputs(structure, kind):
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    inputs = {"left": left, "right": right} if structure is dict else [left, right]
    layer = keras.layers.BatchNormalization()
    model = keras.Model(inputs, layer(left + 2.0 * right))
    x, y = data(seed=1), data(seed=2)

    def together(x, y):
        return {"left": x, "right": y} if structure is dict else [x, y]

    if kind == "arrays":
        samples = together(x, y)
    elif kind == "generator":
        samples = (together(x[i : i + 10], y[i : i + 10]) for i in range(0, 50, 10))
    else:
        samples = dataset(x, y).map(lambda x, y: (together(x, y) if structure is dict else (x, y),))
    update_bn(model, samples)
    mean, variance = layer.get_weights()[2:]
    np.testing.assert_allclose(mean, (x + 2 * y).mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, (x + 2 * y).var(0), rtol=1e-5)


def test_datasets_that_never_end_need_steps():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    x = data()
    with pytest.raises(ValueError, match="give `steps`"):
        update_bn(model, dataset(x).repeat())
    update_bn(model, dataset(x).repeat(), steps=5)
    np.testing.assert_allclose(model.layers[0].get_weights()[2], x.mean(0), rtol=1e-5)


class Endless(Batches):
    def __len__(self):
        return None

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return super().__getitem__(index % 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_datasets_without_a_length_need_steps(workers):
    x = data()
    with pytest.raises(ValueError, match="give `steps`"):
        input_batches(keras.Sequential(), Endless(x, workers=workers), 32)
    batches, total = input_batches(keras.Sequential(), Endless(x, workers=workers), 32, steps=7)
    assert total == 7
    read = list(batches)
    np.testing.assert_array_equal(np.concatenate(read), np.concatenate([x, x[:20]]))


class Failing(Batches):
    def __getitem__(self, index):
        if index == 3:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_dataset_raises_is_raised(workers):
    batches, _ = input_batches(keras.Sequential(), Failing(data(), workers=workers), 32)
    with pytest.raises(OSError, match="the disk is gone"):
        list(batches)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (3, TypeError, "an iterable of batches. Received: int"),
        ({"a": np.zeros((3, 1)), "b": np.zeros((4, 1))}, ValueError, r"Received: \[3, 4\]"),
        ([[[1.0, 2.0], [3.0, 4.0]]], TypeError, r"np.array\(batch\).* Received: float"),
        ([["a text"]], TypeError, "Received: str"),
    ],
    ids=["a number", "unequal arrays", "nested numbers", "texts"],
)
def test_wrong_data_are_refused(batches, error, message):
    with pytest.raises(error, match=message):
        list(input_batches(keras.Sequential(), batches, 32)[0])


@pytest.mark.backend("tensorflow", because="ragged tensors are TensorFlow's")
def test_ragged_tensors_are_refused_with_advice():
    import tensorflow as tf

    ragged = tf.data.Dataset.from_tensors(tf.ragged.constant([[1.0], [2.0, 3.0]]))
    with pytest.raises(TypeError, match=r"padded ones with a mask. Received: RaggedTensor"):
        list(input_batches(keras.Sequential(), ragged, 32)[0])


def test_a_batch_has_samples():
    with pytest.raises(ValueError, match=r"`batch_size` must be positive. Received: batch_size=0"):
        input_batches(keras.Sequential(), data(), batch_size=0)
