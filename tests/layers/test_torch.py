"""Beside torch.nn.BatchNorm1d and BatchNorm2d, and what their kernel and a GPU are given."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn
from keras_bn.layers import BatchNormalization
from tests.layers.backends import arrays
from tests.layers.numpy_reference import batch_norm, first_derivatives

pytestmark = pytest.mark.backend("torch", because="it is about PyTorch's own layers and memory")


def device():
    """Where Keras has its tensors: on a GPU if there is one."""
    return ops.zeros(()).device


# The same kernel on the same numbers; only the running averages are added up in another order.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((16, 5), -1),
        ((8, 5, 7), 1),
        ((8, 7, 5), -1),
        ((4, 5, 6, 7), 1),
        ((4, 6, 7, 5), -1),
        ((2, 3, 4, 5, 6), -1),
    ],
    ids=str,
)
def test_parity_with_pytorchs_layers(shape, axis, momentum, fused):
    import torch

    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}[len(shape)]
    theirs = getattr(torch.nn, kind)(shape[axis], eps=1e-4, momentum=momentum).to(device())
    ours = BatchNormalization(
        axis=axis, epsilon=1e-4, momentum=None if momentum is None else 1 - momentum, fused=fused
    )
    ours.build(shape)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for weight, parameter in ((ours.gamma, theirs.weight), (ours.beta, theirs.bias)):
            parameter.copy_(torch.tensor(rng.uniform(0.5, 2, shape[axis])))
            weight.assign(parameter)
    for _ in range(4):
        x = ops.convert_to_tensor(rng.normal(3, 2, shape), "float32")
        weights = ops.convert_to_tensor(rng.normal(size=shape), "float32")
        x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y_ours = ours(x_ours, training=True)
        y_theirs = theirs(x_theirs.movedim(axis, 1)).movedim(1, axis)
        (y_ours * weights).sum().backward()
        (y_theirs * weights).sum().backward()
        # Plain operations round differently.
        close = CLOSE if fused else {"rtol": 1e-4, "atol": 1e-5}
        for one, other in (
            (y_ours, y_theirs),
            (x_ours.grad, x_theirs.grad),
            (ours.moving_mean.value, theirs.running_mean),
            (ours.moving_variance.value, theirs.running_var),
        ):
            np.testing.assert_allclose(*arrays([one, other]), **close)
    if momentum is None:
        assert int(ours.num_batches_tracked.value) == int(theirs.num_batches_tracked)
    expected = theirs.eval()(x.movedim(axis, 1)).movedim(1, axis)
    np.testing.assert_allclose(*arrays([ours(x), expected]), rtol=1e-5, atol=1e-5)


@pytest.fixture
def kernel_inputs(monkeypatch):
    """The tensors that torch.nn.functional.batch_norm is called with."""
    import torch

    kernel, seen = torch.nn.functional.batch_norm, []

    def spy(x, *arguments, **options):
        seen.append(x)
        return kernel(x, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "batch_norm", spy)
    return seen


def is_whole(given):
    """Contiguous; the images that GPUs are given have their channels last."""
    import torch

    last = given.is_cuda and given.ndim == 4
    return given.is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((6, 3), 1),
        ((4, 5, 3), 2),
        ((4, 3, 5), 1),
        ((2, 4, 5, 3), 3),
        ((2, 3, 4, 5), 1),
        ((2, 4, 3, 5), 2),
        ((2, 2, 4, 5, 3), 4),
        ((2, 3, 2, 4, 5), 1),
        ((2, 1, 2, 2, 1, 3), 5),
    ],
    ids=str,
)
def test_the_kernel_is_given_the_memory_as_it_is(kernel_inputs, shape, axis, dtype):
    import torch

    half = dtype.removeprefix("mixed_")
    x = torch.randn(shape, dtype=getattr(torch, half), device=device())
    y = BatchNormalization(axis=axis, dtype=dtype)(x, training=True)
    (given,) = kernel_inputs
    assert given.data_ptr() == x.data_ptr() and is_whole(given)
    assert y.stride() == x.stride() and y.dtype == x.dtype


@pytest.mark.parametrize("axis", [1, -1])
def test_images_whose_memory_is_the_other_way_round_are_not_copied_either(kernel_inputs, axis):
    import torch

    # What Keras's convolutions give: channels last to look at, channels first in memory.
    x = torch.randn((2, 3, 4, 5), device=device()).movedim(axis, -axis)
    y = BatchNormalization(axis=-axis)(x, training=True)
    (given,) = kernel_inputs
    assert given.data_ptr() == x.data_ptr() and is_whole(given)
    assert y.stride() == x.stride()


@pytest.mark.parametrize(
    ("shape", "axis", "image"),
    [
        ((6, 3), 1, (1, 3, 6, 1)),
        ((4, 5, 3), 2, (1, 3, 20, 1)),
        ((2, 4, 5, 3), 3, (1, 3, 40, 1)),
        ((2, 3, 4, 5), 1, (2, 3, 20)),  # which cuDNN takes as they are
    ],
    ids=str,
)
def test_a_gpu_is_given_channels_that_are_last_as_an_image(kernel_inputs, shape, axis, image):
    """On any machine: by a tensor that says it is on a GPU."""
    import torch

    class OnGPU(torch.Tensor):
        is_cuda = property(lambda self: True)

    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(2, *shape)).astype("float32")
    x = ops.convert_to_tensor(values).requires_grad_()
    y = BatchNormalization(axis=axis)(x.as_subclass(OnGPU), training=True)
    (y**2 * ops.convert_to_tensor(weights)).sum().backward()
    # Twice the same, since such a tensor hears of the call first.
    assert {tuple(given.shape) for given in kernel_inputs} == {image}
    assert all(given.data_ptr() == x.data_ptr() and is_whole(given) for given in kernel_inputs)
    assert y.stride() == x.stride()
    ones, zeros = np.ones(shape[axis]), np.zeros(shape[axis])
    expected, *_ = batch_norm(values, (axis,))
    slopes, *_ = first_derivatives(values, (axis,), weights, ones, zeros)
    np.testing.assert_allclose(arrays(y), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(arrays(x.grad), slopes, rtol=1e-4, atol=1e-5)


def training_calls():
    """Calls of every layer in training, ready to be made."""
    layers, rng = keras_bn.layers, np.random.default_rng(0)
    images = ops.convert_to_tensor(rng.normal(size=(2, 4, 5, 3)), "float32")
    sequences, mask = images[0], ops.convert_to_tensor(rng.random((4, 5)) < 0.7)

    def call(layer, x, **options):
        layer.build(x.shape)
        if isinstance(layer, (BatchNormalization, keras.layers.RNN)):
            options["training"] = True
        return lambda: layer(x, **options)

    return {
        "batch": call(BatchNormalization(), images),
        "biased": call(BatchNormalization(unbiased=False), images),
        "cumulative": call(BatchNormalization(momentum=None), images),
        "debiased": call(BatchNormalization(debias=True, axis=1), images),
        "plain": call(BatchNormalization(fused=False), images),
        "several axes": call(BatchNormalization(axis=(1, 2), momentum=None), images),
        "masked": call(BatchNormalization(), sequences, mask=mask),
        "masked steps": call(BatchNormalization(axis=(1, 2), debias=True), sequences, mask=mask),
        "layer": call(layers.LayerNormalization(), sequences, mask=mask),
        "instance": call(layers.InstanceNormalization(), images),
        "LSTM": call(layers.LayerNormLSTM(3), sequences, mask=mask),
        "GRU": call(layers.LayerNormGRU(3, variant="paper"), sequences),
        "SimpleRNN": call(layers.LayerNormSimpleRNN(3), sequences),
    }


def test_training_sends_no_number_to_the_device():
    """On a GPU each would wait for all that the GPU has yet to do."""
    from torch import Tensor, as_tensor, tensor
    from torch.overrides import TorchFunctionMode

    sent = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), options=None):
            options = options or {}
            if function in (tensor, as_tensor) and not isinstance(args[0], Tensor):
                sent.append((args[0], options.get("device")))
            return function(*args, **options)

    for call in training_calls().values():
        with Spy():
            call()
    # Keras's loop over time steps counts them in a tensor that stays on the CPU.
    assert [one for one in sent if one != (0, None)] == []


def test_training_does_not_wait_for_a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU; without one, the test above stands in")
    calls = training_calls()
    for call in calls.values():
        call()  # which loads the kernels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not see all there are
            torch.cuda.set_sync_debug_mode("error")
        for call in calls.values():
            ops.sum(call()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{"fused": False}, {"axis": (1, 2)}, {"synchronized": True}])
def test_the_kernel_is_not_taken_where_it_does_not_apply(kernel_inputs, options):
    import torch

    BatchNormalization(**options)(torch.randn((4, 5, 3), device=device()), training=True)
    assert kernel_inputs == []


@pytest.mark.parametrize("strides", [(12, 1, 3, 1), (12, 4, 1, 1), (12, 1, 3, 12)], ids=str)
@pytest.mark.parametrize("gradient_strides", [(12, 1, 3, 3), (12, 4, 1, 12), (0, 0, 0, 0)], ids=str)
def test_gradients_do_not_depend_on_strides(strides, gradient_strides):
    # Given these as images 1 wide, the kernel confuses rows and channels (PyTorch 2.13, CPU).
    import torch

    shape, rng = (2, 3, 4, 1), np.random.default_rng(0)
    values = rng.normal(size=shape).astype("float32")
    weights = np.ones(shape) if gradient_strides[0] == 0 else rng.normal(size=shape)
    x = torch.empty_strided(shape, strides, device=device()).copy_(torch.tensor(values))
    x.requires_grad_()
    dy = torch.ones(1, device=device()).as_strided(shape, (0, 0, 0, 0))
    if gradient_strides[0]:
        dy = torch.empty_strided(shape, gradient_strides, device=device())
        dy.copy_(torch.tensor(weights))
    BatchNormalization(axis=1)(x, training=True).backward(dy)

    # The chain rule in Ioffe and Szegedy, 2015, section 3.
    def mean(values):
        return values.mean((0, 2, 3), keepdims=True)

    y, _, variance, _ = batch_norm(values, (1,))
    expected = weights - mean(weights) - y * mean(weights * y)
    expected /= np.sqrt(variance + 1e-3).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(arrays(x.grad), expected, rtol=1e-4, atol=1e-5)  # sums of 8


# Run with the number of this process, and the folder where both meet and leave their results.
TWO_PROCESSES = """
import sys
from pathlib import Path
import numpy as np, torch
from keras import ops
from keras_bn.layers import BatchNormalization
from tests.layers.backends import arrays
from tests.layers.test_torch import ours_of_two

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
)
x, weights, mask = (ops.convert_to_tensor(array) for array in ours_of_two(rank))
for name, mask in (("whole", None), ("mask", mask)):
    x = x.detach().requires_grad_()
    layer = BatchNormalization(momentum=0.0, synchronized=True)
    y = layer(x, training=True, mask=mask)
    (y**2 * weights).sum().backward()
    found = {"y": y, "dx": x.grad, "mean": layer.moving_mean.value,
             "variance": layer.moving_variance.value}
    np.savez(folder / f"{name} {rank}.npz", **arrays(found))
torch.distributed.destroy_process_group()
"""


def ours_of_two(rank=None):
    """Inputs, weights of the loss and mask of one process's 5 or 3 samples, or of all 8."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4, 3)) + np.arange(8)[:, None, None]
    arrays = (
        x.astype("float32"),
        rng.normal(size=x.shape).astype("float32"),
        rng.random((8, 4)) < 0.7,
    )
    return arrays if rank is None else [np.split(array, [5])[rank] for array in arrays]


def test_processes_share_their_statistics(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), tmp_path],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    x, weights, mask = ours_of_two()
    for name, kept in (("whole", np.ones_like(mask)), ("mask", mask)):
        wide = np.broadcast_to(kept[..., None], x.shape)
        y, mean, variance, count = batch_norm(x, (2,), wide)
        dx, *_ = first_derivatives(x, (2,), weights, np.ones(3), np.zeros(3), wide)
        got = [np.load(tmp_path / f"{name} {rank}.npz") for rank in range(2)]
        # Sums of 32 float32 terms of order 10.
        close = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(np.concatenate([part["y"] for part in got]), y, **close)
        np.testing.assert_allclose(np.concatenate([part["dx"] for part in got]), dx, **close)
        for part in got:
            np.testing.assert_allclose(part["mean"], mean, **close)
            np.testing.assert_allclose(part["variance"], variance * count / (count - 1), **close)
