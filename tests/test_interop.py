import keras
import numpy as np
import pytest

from keras_bn.interop import load_torch_batch_norm
from keras_bn.layers import BatchNormalization

CHANNELS = 5


def state(prefix="", affine=True, seed=0):
    rng = np.random.default_rng(seed)
    values = {
        "running_mean": rng.normal(2.0, 1.0, CHANNELS),
        "running_var": rng.uniform(0.5, 4.0, CHANNELS),
        "num_batches_tracked": np.int64(17),
    }
    if affine:
        values |= {"weight": rng.normal(size=CHANNELS), "bias": rng.normal(size=CHANNELS)}
    return {prefix + name: value for name, value in values.items()}


def built(kind=BatchNormalization, **options):
    layer = kind(epsilon=1e-5, **options)
    layer.build((None, CHANNELS))
    return layer


@pytest.mark.parametrize("kind", [BatchNormalization, keras.layers.BatchNormalization])
@pytest.mark.parametrize(("written", "given"), [("", ""), ("net.1.", "net.1"), ("n.", "n.")])
def test_inference_follows_torchs_formula(kind, written, given):
    values = state()
    layer = load_torch_batch_norm(built(kind), state(written), given)
    x = np.random.default_rng(1).normal(size=(7, CHANNELS)).astype("float32")
    # torch.nn.BatchNorm1d: (x − running_mean)/√(running_var + eps)·weight + bias
    scaled = (x - values["running_mean"]) / np.sqrt(values["running_var"] + 1e-5)
    expected = scaled * values["weight"] + values["bias"]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)  # float32 rounding


def test_the_counter_goes_where_there_is_one():
    layer = load_torch_batch_norm(built(momentum=None), state())
    assert int(layer.num_batches_tracked) == 17


def test_layers_without_affine_weights():
    layer = built(center=False, scale=False)
    values = state(affine=False)
    load_torch_batch_norm(layer, values)
    np.testing.assert_allclose(layer.moving_variance, values["running_var"], rtol=1e-6)


class Tensor:
    """What of a torch tensor is used, for bfloat16 on an accelerator."""

    def __init__(self, values, steps=()):
        self.values, self.steps = values, steps

    def detach(self):
        return Tensor(self.values, (*self.steps, "detach"))

    def cpu(self):
        return Tensor(self.values, (*self.steps, "cpu"))

    def double(self):
        return Tensor(np.asarray(self.values, "float64"), (*self.steps, "double"))

    def is_floating_point(self):
        return np.asarray(self.values).dtype.kind == "f"

    def numpy(self):
        assert self.steps[:2] == ("detach", "cpu")
        return self.values


def test_tensors_are_brought_to_the_host():
    values = state()
    layer = load_torch_batch_norm(built(), {name: Tensor(v) for name, v in values.items()})
    np.testing.assert_allclose(layer.gamma, values["weight"], rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "values", "prefix", "words"),
    [
        (lambda: BatchNormalization(), state(), "", "no weights yet"),
        (built, state("a."), "b", "Expected b.weight.*it has a.bias"),
        (built, state(affine=False), "", "center=False, scale=False"),
        (lambda: built(scale=False), state(), "", "has gamma, which"),
        (built, state() | {"weight": np.ones(4)}, "", r"gamma of shape \(5,\).*received \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(layer, values, prefix, words):
    layer = layer()
    before = layer.get_weights()
    with pytest.raises(ValueError, match=words):
        load_torch_batch_norm(layer, values, prefix)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
