"""BatchNormalization under `fit`, beside a float64 NumPy simulation of the whole training."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bn.layers import BatchNormalization
from tests.layers.backends import BACKEND, arrays

# torch.compile needs a C++ compiler.
WAYS = {
    "tensorflow": {
        "graph": {"jit_compile": False},
        "XLA": {"jit_compile": True},
        "eager": {"run_eagerly": True},
    },
    "jax": {"jit": {"jit_compile": True}, "eager": {"run_eagerly": True}},
    "torch": {"eager": {"jit_compile": False}},
}[BACKEND]

RATE, BATCH, EPSILON = 0.5, 16, 1e-3


def data(samples=96):
    rng = np.random.default_rng(0)
    x = rng.normal(4, 2, (samples, 3)) * [1, 3, 0.2]
    return x.astype("float32"), rng.normal(1, 1, (samples, 3)).astype("float32")


def simulated(x, t, momentum, accumulate=1, ema=None):
    """γ, β and the moving statistics after an epoch of SGD on the mean squared error."""
    x, t = x.astype("float64"), t.astype("float64")
    weights = average = np.array([np.ones(3), np.zeros(3)])
    mean, variance = np.zeros(3), np.ones(3)
    gradients = []
    for step, (batch, target) in enumerate(
        zip(np.split(x, len(x) // BATCH), np.split(t, len(x) // BATCH), strict=True)
    ):
        normalized = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + EPSILON)
        error = 2 * (weights[0] * normalized + weights[1] - target) / batch.size
        gradients.append([(error * normalized).sum(0), error.sum(0)])
        if len(gradients) == accumulate:
            weights = weights - RATE * np.mean(gradients, 0)
            gradients = []
        if ema is not None:
            average = weights if step == 0 else ema * average + (1 - ema) * weights
        mean = momentum * mean + (1 - momentum) * batch.mean(0)
        variance = momentum * variance + (1 - momentum) * batch.var(0, ddof=1)
    return [*(weights if ema is None else average), mean, variance]


def fitted(optimizer, inputs=None, **options):
    x, t = data()
    layer = BatchNormalization(momentum=0.6)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(optimizer, "mse", **options)
    x = x if inputs is None else inputs
    model.fit(x, t, batch_size=BATCH, shuffle=False, verbose=0)
    return arrays([weight.value for weight in layer.weights])


def check(weights, expected, tolerance=1e-5):
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# Float32 keeps 7 digits; six steps of sums of 48 terms leave 5.
@pytest.mark.parametrize("way", WAYS)
def test_weights_and_statistics_are_those_of_the_mathematics(way):
    check(fitted(keras.optimizers.SGD(RATE), **WAYS[way]), simulated(*data(), 0.6))


@pytest.mark.parametrize("way", WAYS)
def test_gradient_accumulation_moves_the_statistics_at_every_batch(way):
    optimizer = keras.optimizers.SGD(RATE, gradient_accumulation_steps=3)
    check(fitted(optimizer, **WAYS[way]), simulated(*data(), 0.6, accumulate=3))


@pytest.mark.parametrize("way", WAYS)
def test_averaged_weights_leave_the_statistics_alone(way):
    optimizer = keras.optimizers.SGD(RATE, use_ema=True, ema_momentum=0.7)
    check(fitted(optimizer, **WAYS[way]), simulated(*data(), 0.6, ema=0.7))


def test_overwriting_by_averaged_weights_does_so_as_well():
    optimizer = keras.optimizers.SGD(
        RATE, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=6
    )
    check(fitted(optimizer), simulated(*data(), 0.6, ema=0.7))


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"], indirect=True)
@pytest.mark.parametrize("way", WAYS)
def test_mixed_precision(policy, way):
    half = policy.removeprefix("mixed_")
    x, t = data()
    # What the layer is to be given. XLA may leave a rounding out, and on GPUs does so.
    rounded = arrays(ops.cast(ops.cast(x, half), "float32"))
    gamma, beta, mean, variance = fitted(keras.optimizers.SGD(RATE), rounded, **WAYS[way])
    expected = simulated(rounded, t, 0.6)
    check([mean, variance], expected[2:])
    # Outputs around 1 and gradients carry 8 bits in bfloat16, 11 in float16.
    check([gamma, beta], expected[:2], 2**-8 if half == "bfloat16" else 2**-10)


def test_a_network_trains_as_with_kerass_layer():
    """The gradient that the layers before it get is the right one as well."""

    def network(kind, **options):
        return keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                keras.layers.Conv2D(4, 3, use_bias=False, kernel_initializer=glorot(1)),
                kind(**options),
                keras.layers.Activation("sigmoid"),
                keras.layers.Conv2D(3, 3, strides=2, kernel_initializer=glorot(2)),
                kind(axis=1, **options),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1, kernel_initializer=glorot(3)),
            ]
        )

    def glorot(seed):
        return keras.initializers.GlorotUniform(seed)

    rng = np.random.default_rng(0)
    x, t = rng.normal(2, 3, (40, 8, 8, 2)), rng.normal(size=(40, 1))
    trained = []
    for model in (
        network(BatchNormalization, unbiased=False),
        network(keras.layers.BatchNormalization),
    ):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, t, batch_size=8, shuffle=False, verbose=0)
        trained.append(arrays([weight.value for weight in model.weights]))
    # Ten steps, each of which passes on the rounding of the one before: 4 digits.
    check(*trained, tolerance=1e-4)
