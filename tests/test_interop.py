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


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


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
    # Float32 rounding.
    np.testing.assert_allclose(array(layer(x)), expected, rtol=1e-5, atol=1e-5)


def test_the_counter_goes_where_there_is_one():
    layer = load_torch_batch_norm(built(momentum=None), state())
    assert int(layer.num_batches_tracked) == 17


def test_layers_without_affine_weights():
    layer = built(center=False, scale=False)
    values = state(affine=False)
    load_torch_batch_norm(layer, values)
    np.testing.assert_allclose(array(layer.moving_variance), values["running_var"], rtol=1e-6)


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
    np.testing.assert_allclose(array(layer.gamma), values["weight"], rtol=1e-6)


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


def torch_module(rank, **options):
    """A torch.nn.BatchNorm1d, 2d or 3d after a few steps of training, gamma of both signs."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = getattr(torch.nn, f"BatchNorm{rank}d")(CHANNELS, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(CHANNELS))
    for _ in range(3):
        module(2 + 3 * torch.randn(4, CHANNELS, *[3] * rank))
    return torch, module


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("channels", ["first", "last"])
def test_a_module_and_its_layer_infer_and_train_alike(rank, affine, momentum, channels):
    torch, module = torch_module(rank, affine=affine, momentum=momentum, eps=1e-4)
    network = torch.nn.Sequential(torch.nn.Identity(), module)
    layer = BatchNormalization(
        axis=1 if channels == "first" else -1,
        momentum=None if momentum is None else 1 - momentum,
        epsilon=1e-4,
        center=affine,
        scale=affine,
    )

    def ordered(x):
        return x if channels == "first" else np.moveaxis(x, 1, -1)

    x = np.random.default_rng(1).normal(1, 2, (4, CHANNELS, *[3] * rank)).astype("float32")
    layer.build(ordered(x).shape)
    assert load_torch_batch_norm(layer, network.state_dict(), "1") is layer

    def expected(module):
        return ordered(module(torch.from_numpy(x)).detach().numpy())

    close = {"rtol": 1e-5, "atol": 1e-5}  # float32 rounding
    np.testing.assert_allclose(array(layer(ordered(x))), expected(module.eval()), **close)
    np.testing.assert_allclose(
        array(layer(ordered(x), training=True)), expected(module.train()), **close
    )
    np.testing.assert_allclose(array(layer.moving_mean), module.running_mean, **close)
    np.testing.assert_allclose(array(layer.moving_variance), module.running_var, **close)
    if momentum is None:
        assert int(layer.num_batches_tracked) == int(module.num_batches_tracked) == 4


def test_a_module_without_running_statistics_has_none_to_load():
    _, module = torch_module(1, track_running_stats=False)
    layer = built()
    before = layer.get_weights()
    with pytest.raises(ValueError, match="track_running_stats=False"):
        load_torch_batch_norm(layer, module.state_dict())
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_module_in_half_precision():
    torch, module = torch_module(2)
    layer = load_torch_batch_norm(built(), module.to(torch.bfloat16).state_dict())
    np.testing.assert_array_equal(array(layer.moving_mean), module.running_mean.float().numpy())


def test_layers_of_several_axes_are_refused_by_shape():
    layer = BatchNormalization(axis=(1, 2))
    layer.build((None, 4, CHANNELS))
    with pytest.raises(ValueError, match=r"of shape \(4, 5\)"):
        load_torch_batch_norm(layer, state())


@pytest.mark.parametrize("other", [keras.layers.Dense(3), keras.layers.GroupNormalization()])
def test_other_layers_are_refused(other):
    other.build((None, 32))
    with pytest.raises(TypeError, match=type(other).__name__):
        load_torch_batch_norm(other, state())


@pytest.mark.skipif(
    "renorm" not in keras.layers.BatchNormalization().get_config(),
    reason="this Keras has no batch renormalization",
)
def test_a_layer_with_renorm_gets_all_its_statistics():
    values = state()
    layer = load_torch_batch_norm(built(renorm=True), values)
    stddev = np.sqrt(values["running_var"] + 1e-5)
    for name in ("moving_stddev", "renorm_stddev"):
        np.testing.assert_allclose(array(getattr(layer, name)), stddev, rtol=1e-6)
    np.testing.assert_allclose(array(layer.renorm_mean), values["running_mean"], rtol=1e-6)
