import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn.layers
from keras_bn.callbacks import GradientWarning, NormalizationMonitor
from keras_bn.errors import CalibrationError, UnsupportedModelError
from keras_bn.training.monitor.measurement import hellinger, histogram
from tests.random_weights import randomize

STOCK = keras.layers.BatchNormalization
OURS = keras_bn.layers.BatchNormalization
# Float32 sums of a few hundred terms, over deviations of order 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def data(samples=24, features=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.5, 2, (samples, features)).astype("float32")
    return x, rng.integers(0, classes, samples)


def classifier(*hidden, features=5, classes=3, **options):
    model = keras.Sequential(
        [keras.Input((features,)), *hidden, keras.layers.Dense(classes, name="head")]
    )
    return compiled(model, **options)


def compiled(model, learning_rate=0.1, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"], **options)
    return model


def measured(model, probe, epochs=1, **options):
    """The measurement before a training of that many epochs, which is not begun."""
    monitor = NormalizationMonitor(probe, **options)
    callbacks = keras.callbacks.CallbackList([monitor], model=model, epochs=epochs, steps=1)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    callbacks.on_train_end()
    return monitor.measurements[0]


def numbers(variables):
    return [ops.convert_to_numpy(variable.value) for variable in variables]


def dense(x, layer):
    kernel, bias = (weight.astype("float64") for weight in numbers(layer.weights))
    return x @ kernel + bias


def normalized(x, layer):
    gamma, beta = (weight.astype("float64") for weight in numbers(layer.weights[:2]))
    return (x - x.mean(0)) / np.sqrt(x.var(0) + layer.epsilon) * gamma + beta


def check_histogram(found, values):
    values = np.asarray(values).ravel()
    assert found.counts.sum() == values.size and found.not_finite == 0
    np.testing.assert_allclose(
        [found.minimum, found.maximum], [values.min(), values.max()], **CLOSE
    )
    np.testing.assert_allclose(
        [found.mean, found.deviation], [values.mean(), values.std()], **CLOSE
    )
    # Values that lie at a limit within rounding may stand to either side of it.
    rounding = 1e-4 * max(1, np.abs(values).max())
    below = np.array([(values < edge - rounding).sum() for edge in found.edges[1:-1]])
    at_most = np.array([(values < edge + rounding).sum() for edge in found.edges[1:-1]])
    counts = np.cumsum(found.counts)[:-1]
    assert np.all((below <= counts) & (counts <= at_most))


@pytest.mark.parametrize("kind", [STOCK, OURS], ids=["Keras", "keras_bn"])
def test_the_distributions_are_those_of_a_training_step(kind):
    first, layer = keras.layers.Dense(4), kind(name="bn")
    model = randomize(classifier(first, layer, keras.layers.ReLU()))
    x, y = data()
    found = measured(model, (x, y)).layers
    assert list(found) == ["bn"]
    received = dense(x.astype("float64"), first)
    output = normalized(received, layer)
    check_histogram(found["bn"].input, received)
    check_histogram(found["bn"].output, output)
    check_histogram(found["bn"].activation, np.maximum(output, 0))


def loss_of(hidden, head, y):
    logits = dense(hidden, head)
    logits = logits - logits.max(1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y])


def finite_differences(function, at, step=1e-6):
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        for sign in (1, -1):
            moved = at.copy()
            moved[place] += sign * step
            gradient[place] += sign * function(moved) / (2 * step)
    return gradient


def test_gradient_norms_are_those_of_finite_differences():
    first, layer = keras.layers.Dense(4, name="first"), OURS(name="bn")
    model = randomize(classifier(first, layer, keras.layers.Activation("tanh")))
    x, y = data(12)
    found = measured(model, (x, y))
    head = model.layers[-1]
    output = normalized(dense(x.astype("float64"), first), layer)
    by_output = finite_differences(lambda z: loss_of(np.tanh(z), head, y), output)

    kernel, bias = (weight.astype("float64") for weight in numbers(first.weights))

    def through_all(kernel_and_bias):
        z = x.astype("float64") @ kernel_and_bias[:-1] + kernel_and_bias[-1]
        return loss_of(np.tanh(normalized(z, layer)), head, y)

    by_weights = finite_differences(through_all, np.vstack([kernel, bias]))
    assert found.loss == pytest.approx(loss_of(np.tanh(output), head, y), rel=1e-5)
    # float32 gradients through the variance of 12 samples.
    assert found.layers["bn"].gradient_norm == pytest.approx(np.linalg.norm(by_output), rel=1e-3)
    assert found.weights["first"].gradient_norm == pytest.approx(
        np.linalg.norm(by_weights), rel=1e-3
    )
    # In front of the normalization gradients do not compare, at the head they do.
    assert list(found.flow) == ["bn", "head"]
    probabilities = np.exp(dense(np.tanh(output), head))
    probabilities /= probabilities.sum(1, keepdims=True)
    at_head = (probabilities - np.eye(3)[y]) / len(y)
    assert found.flow["head"] == pytest.approx(np.linalg.norm(at_head), rel=1e-4)


def test_dead_units():
    hidden = keras.layers.Dense(4, activation="relu", name="hidden")
    model = classifier(hidden)
    kernel = np.random.default_rng(0).normal(size=(5, 4))
    hidden.set_weights([kernel, np.array([0.0, -1e3, 0.0, -1e3])])
    found = measured(model, data())
    assert list(found.layers) == ["hidden"]
    assert found.layers["hidden"].dead == 0.5
    assert found.layers["hidden"].saturated is None


@pytest.mark.parametrize(
    "channels_first",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.backend(
                "jax", "torch", because="TensorFlow convolves channels_first on GPUs alone"
            ),
        ),
    ],
)
def test_a_channel_is_dead_when_it_is_at_every_position(channels_first):
    shape = (2, 6, 6) if channels_first else (6, 6, 2)
    convolution = keras.layers.Conv2D(
        4, 3, data_format="channels_first" if channels_first else "channels_last"
    )
    model = compiled(
        keras.Sequential([
            keras.Input(shape), convolution, keras.layers.ReLU(), keras.layers.Flatten(),
            keras.layers.Dense(3),
        ])
    )  # fmt: skip
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4))
    convolution.set_weights([kernel, np.array([0.0, -1e3, 0.0, 0.0])])
    x = np.random.default_rng(1).normal(size=(8, *shape)).astype("float32")
    found = measured(model, (x, np.arange(8) % 3))
    assert found.layers[convolution.name].dead == 0.25


@pytest.mark.parametrize(
    ("activation", "place", "values", "share"),
    [
        # logit(0.985) = 4.18, artanh(0.97) = 2.09
        ("sigmoid", "own", [-9.0, -4.1, -4.3, 0.0, 4.1, 4.3, 9.0, 1.0], 4 / 8),
        ("tanh", "layer", [-2.0, -2.2, 0.0, 2.0, 2.2, 3.0, 1.0, 1.5], 3 / 8),
        ("sigmoid", "operation", [-9.0, -4.1, -4.3, 0.0, 4.1, 4.3, 9.0, 1.0], 4 / 8),
        ("relu6", "operation", [-5.0, 0.0, 1.0, 5.0, 6.0, 7.0, 8.0, 3.0], 3 / 8),
    ],
    ids=str,
)
def test_saturated_activations(activation, place, values, share):
    function = getattr(keras.activations, activation)
    x = inputs = keras.Input((1,))
    x = keras.layers.Dense(1, activation=function if place == "own" else None, name="hidden")(x)
    if place == "layer":
        x = keras.layers.Activation(function)(x)
    elif place == "operation":
        x = function(x)
    model = compiled(keras.Model(inputs, keras.layers.Dense(3)(x)))
    model.get_layer("hidden").set_weights([np.ones((1, 1)), np.zeros(1)])
    found = measured(model, (np.array(values, "float32")[:, None], np.arange(8) % 3))
    assert found.layers["hidden"].saturated == share
    check_histogram(found.layers["hidden"].output, values)


def test_the_distance_is_that_between_two_normal_distributions():
    first, second = np.array([1.0, -2.0, 0.3]), np.array([0.5, 3.0, 0.3])
    variance, other = np.array([2.0, 0.1, 1.0]), np.array([1.0, 4.0, 1.0])
    points = np.linspace(-40, 40, 400_001)[:, None]

    def density(mean, variance):
        return np.exp(-((points - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    roots = np.sqrt(density(first, variance) * density(second, other))
    integral = np.sqrt(np.maximum(1 - np.trapezoid(roots, points, axis=0), 0))
    # The square root turns the integral's rounding, 1e-12, into 1e-6 where the distance is zero.
    np.testing.assert_allclose(hellinger(first, variance, second, other), integral, atol=2e-6)


@pytest.mark.parametrize("kind", [STOCK, OURS], ids=["Keras", "keras_bn"])
@pytest.mark.parametrize("trainable", [True, False])
def test_the_distance_of_the_statistics(kind, trainable):
    layer = kind(name="bn", trainable=trainable)
    model = randomize(classifier(layer))
    x, y = data()
    monitor = NormalizationMonitor((x, y))
    before = numbers(layer.weights[-2:])
    model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor])
    after = numbers(layer.weights[-2:])
    for (mean, variance), index in ((before, 0), (after, 3)):
        expected = hellinger(
            x.mean(0).astype("float64"), x.var(0) + 1e-3, mean.astype("float64"), variance + 1e-3
        ).mean()
        found = monitor.measurements[index].layers["bn"]
        assert 0.1 < found.distance == pytest.approx(expected, rel=1e-4)
    if not trainable:  # in training as in inference it normalizes by the moving statistics
        gamma, beta = numbers([layer.gamma, layer.beta])
        check_histogram(found.output, (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta)


def test_estimates_are_as_far_from_their_population_as_documented():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(400, 64))
    found = hellinger(samples.mean(1), samples.var(1), np.zeros(400), np.ones(400))
    assert np.sqrt((found**2).mean()) == pytest.approx(
        0.5 / np.sqrt(64), rel=0.1
    )  # 4 standard errors


def network(normalize, activation="relu", depth=2, kind=OURS, **options):
    layers = []
    for number in range(depth):
        layers.append(keras.layers.Dense(6, name=f"dense_{number}"))
        if normalize:
            layers.append(kind(name=f"bn_{number}"))
        layers.append(keras.layers.Activation(activation))
    return classifier(*layers, keras.layers.Dropout(0.3), **options)


@pytest.mark.parametrize(
    ("options", "frequency"),
    [
        ({"jit_compile": True}, "epoch"),
        ({"jit_compile": False}, "epoch"),
        ({"run_eagerly": True}, "epoch"),
        ({}, 2),
    ],
    ids=str,
)
def test_training_is_the_same_to_the_bit(options, frequency):
    if options.get("jit_compile") and keras.backend.backend() == "torch":
        options = {}  # torch.compile needs a C++ compiler
    probe = data(16, seed=3)
    results = []
    for watched in (False, True):
        keras.utils.set_random_seed(5)
        model = network(True, depth=1, **options)
        monitor = NormalizationMonitor(probe, frequency=frequency)
        before = {layer.name: set(vars(layer)) for layer in model.layers}
        history = model.fit(
            *data(), epochs=2, batch_size=8, verbose=0, callbacks=[monitor] if watched else []
        )
        assert {layer.name: set(vars(layer)) for layer in model.layers} == before
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        results.append([*numbers(variables), *history.history["loss"]])
    assert len(monitor.measurements) == (3 if frequency == "epoch" else 4)
    for plain, watched in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, watched)
    keras.models.clone_model(model)


def test_graphs_and_single_operations_measure_the_same():
    few, many = (measured(randomize(network(True)), data(), epochs=epochs) for epochs in (2, 10))
    for tag, value in few.scalars().items():
        # Operations are fused in a graph, which changes their rounding.
        assert many.scalars()[tag] == pytest.approx(value, rel=1e-4, abs=1e-6), tag


@keras.saving.register_keras_serializable("keras_bn_tests")
class Block(keras.Model):
    """Calls a shared normalization twice, and another in a model inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(5)
        self.bn = OURS(name="shared")
        self.inner = keras.Sequential([keras.layers.Dense(4), STOCK(name="inner")])
        self.head = keras.layers.Dense(3)

    def call(self, x, training=False):
        x = self.bn(x, training=training)
        x = ops.relu(self.bn(self.dense(x), training=training))
        return self.head(self.inner(x, training=training))


def test_subclassed_models_built_by_training(tmp_path):
    model = compiled(Block())
    x, y = data()
    monitor = NormalizationMonitor((x, y))
    model.fit(x, y, epochs=1, verbose=0, callbacks=[monitor])
    assert [list(one.layers) for one in monitor.measurements] == [
        ["shared", "shared:2", "inner"]
    ] * 2
    check_histogram(monitor.measurements[0].layers["shared"].input, x)
    model.save(tmp_path / "model.keras")


def test_functional_and_nested_models_with_other_normalizations():
    inner = keras.Sequential(
        [keras.Input((4,)), keras_bn.layers.LayerNormalization(name="ln"), keras.layers.ReLU()],
        name="inner",
    )
    x = inputs = keras.Input((5,))
    x = keras.layers.Dense(4)(x)
    x = inner(x) + keras.layers.GroupNormalization(2, name="gn")(x)
    model = randomize(compiled(keras.Model(inputs, keras.layers.Dense(3)(x))))
    found = measured(model, data())
    assert set(found.layers) == {"ln", "gn"}
    assert found.layers["ln"].dead is not None and found.layers["ln"].distance is None
    received = dense(data()[0].astype("float64"), model.layers[1])
    deviations = received - received.mean(1, keepdims=True)
    gamma, beta = numbers(inner.layers[0].weights)
    epsilon = inner.layers[0].epsilon
    check_histogram(
        found.layers["ln"].output,
        deviations / np.sqrt((deviations**2).mean(1, keepdims=True) + epsilon) * gamma + beta,
    )


def test_masked_elements_are_left_out():
    layer = OURS(name="bn")
    x = np.random.default_rng(0).normal(size=(6, 4, 2)).astype("float32")
    x[2:, 3:] = 0
    model = compiled(
        keras.Sequential([
            keras.Input((4, 2)), keras.layers.Masking(), layer,
            keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(3),
        ])
    )  # fmt: skip
    found = measured(model, (x, np.arange(6) % 3)).layers["bn"]
    check_histogram(found.input, x[(x != 0).any(-1)])


class NormalizedCell(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.state_size = 3
        self.dense = keras.layers.Dense(3, activation="tanh", name="dense_in_cell")
        self.norm = keras.layers.LayerNormalization(name="norm_in_cell")

    def build(self, shape):
        self.dense.build((shape[0], shape[-1] + 3))
        self.norm.build((shape[0], 3))

    def call(self, inputs, states):
        state = self.norm(self.dense(ops.concatenate([inputs, states[0]], -1)))
        return state, [state]


def test_layers_in_recurrent_ones_are_left_to_them():
    model = compiled(
        keras.Sequential([
            keras.Input((4, 2)), keras.layers.RNN(NormalizedCell(), name="rnn"),
            keras.layers.Dense(4, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="head"),
        ])
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(6, 4, 2)).astype("float32")
    found = measured(model, (x, np.arange(6) % 3))
    assert list(found.layers) == ["hidden"] and list(found.flow) == ["rnn", "hidden", "head"]
    assert list(found.weights) == ["dense_in_cell", "norm_in_cell", "hidden", "head"]
    assert all(one.gradient_norm > 0 for one in found.weights.values())


def test_the_weights_of_a_layer_that_calls_no_cell():
    model = compiled(
        keras.Sequential([
            keras.Input((4, 2)), keras_bn.layers.LayerNormLSTM(3, name="lstm"),
            keras.layers.Dense(3, name="head"),
        ])
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(6, 4, 2)).astype("float32")
    found = measured(model, (x, np.arange(6) % 3)).weights
    assert list(found)[-1] == "head" and len(found) > 1
    assert all(one.gradient_norm > 0 for one in found.values())


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        half = randomize(network(True))
        found = measured(half, data())
    finally:
        keras.config.set_dtype_policy("float32")
    whole = randomize(network(True))
    expected = measured(whole, data())
    for name, layer in expected.layers.items():
        # bfloat16 has 8 bits, and rounds every activation on the way.
        assert found.layers[name].gradient_norm == pytest.approx(layer.gradient_norm, rel=0.1)
        assert found.layers[name].output.deviation == pytest.approx(
            layer.output.deviation, rel=0.05
        )


def test_gradients_too_small_for_half_precision_are_measured_with_the_scaled_loss():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((5,)), STOCK(name="bn"), keras.layers.Dense(1)])
        model.compile("sgd", "mse", loss_weights=[1e-7])
    finally:
        keras.config.set_dtype_policy("float32")
    x = data()[0]
    found = measured(model, (x, x[:, :1]))
    assert found.layers["bn"].gradient_norm > 0  # 1e-8 at each element; float16 ends at 6e-8


def deep(activation, initializer, depth=10):
    layers = [
        keras.layers.Dense(8, activation, kernel_initializer=initializer, name=f"dense_{number}")
        for number in range(depth)
    ]
    return classifier(*layers)


def test_vanishing_gradients_are_told_of_once_with_names():
    keras.utils.set_random_seed(0)
    model = deep("sigmoid", "glorot_uniform")
    monitor = NormalizationMonitor(data())
    with pytest.warns(GradientWarning, match="vanishing") as caught:
        model.fit(*data(), epochs=2, verbose=0, callbacks=[monitor])
    (message,) = (str(one.message) for one in caught if one.category is GradientWarning)
    assert "'dense_0'" in message and "'head'" in message and "batch normalization" in message
    assert [finding.kind for _, finding in monitor.findings] == ["vanishing"] * 3


def test_exploding_gradients_are_told_of():
    keras.utils.set_random_seed(0)
    model = deep("relu", keras.initializers.RandomNormal(stddev=3.0))
    with pytest.warns(GradientWarning, match="exploding"):
        measured(model, data())


def test_gradients_that_exceed_the_weights_are_told_of():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, name="only")])
    model.compile("sgd", "mse")
    x = data()[0]
    with pytest.warns(GradientWarning, match="'only'.*times the kernel"):
        measured(model, (x, 1e4 * x[:, :1]))


def test_what_is_not_finite_is_told_of():
    model = randomize(network(True))
    x, y = data()
    x[3, 1] = np.inf
    with pytest.warns(GradientWarning, match="not finite.*'bn_0'"):
        found = measured(model, (x, y))
    assert found.layers["bn_0"].input.not_finite > 0


@pytest.mark.parametrize("normalize", [True, False])
def test_healthy_networks_are_not_warned_of(normalize):
    keras.utils.set_random_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        for activation in ("relu", "tanh"):
            model = network(normalize, activation, depth=3)
            monitor = NormalizationMonitor(data())
            model.fit(*data(), epochs=3, verbose=0, callbacks=[monitor])
            assert monitor.findings == []


def test_a_head_of_zeros_is_no_vanishing_gradient():
    model = network(True)
    model.layers[-1].set_weights([np.zeros((6, 3)), np.zeros(3)])
    monitor = NormalizationMonitor(data())
    model.fit(*data(), verbose=0, callbacks=[monitor])
    assert monitor.findings == []


def test_inputs_alone_have_no_gradients():
    model = randomize(network(True))
    monitor = NormalizationMonitor(data()[0])
    model.fit(*data(), verbose=0, callbacks=[monitor])
    found = monitor.measurements[0]
    assert found.loss is None and found.flow == {}
    assert found.layers["bn_0"].gradient_norm is None and found.layers["bn_0"].dead is not None


def test_regularization_is_part_of_the_loss():
    layer = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(10.0), name="first")
    model = randomize(classifier(layer, OURS()))
    plain = randomize(classifier(keras.layers.Dense(4, name="first"), OURS()))
    found, without = measured(model, data()), measured(plain, data())
    kernel = numbers(layer.weights)[0]
    assert found.loss - without.loss == pytest.approx(10 * (kernel**2).sum(), rel=1e-4)
    # 20·kernel, beside which the gradient of the data is small.
    assert found.weights["first"].gradient_norm == pytest.approx(
        20 * np.linalg.norm(kernel), rel=0.05
    )


def test_history_goes_on_at_the_initial_epoch():
    model = network(True)
    monitor = NormalizationMonitor(data(), layers=["bn_1"])
    model.fit(*data(), epochs=2, batch_size=8, verbose=0, callbacks=[monitor])
    model.fit(*data(), epochs=4, initial_epoch=2, batch_size=8, verbose=0, callbacks=[monitor])
    assert monitor.history["epoch"] == [0, 1, 2, 3, 4]
    assert monitor.history["batch"] == [0, 3, 6, 9, 12]
    assert len(monitor.history["bn_1/distance"]) == 5
    assert not any(tag.startswith("bn_0/d") for tag in monitor.history)
    model.fit(*data(), epochs=1, verbose=0, callbacks=[monitor])
    assert monitor.history["epoch"] == [0, 1]


def test_batches_that_end_in_another_order_are_counted():
    # Keras ends them in a pool of threads, whose last one need not be the last batch's.
    class Reversed(NormalizationMonitor):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            self.ended = []

        def on_train_batch_end(self, batch, logs=None):
            self.ended.append(batch)

        def on_epoch_end(self, epoch, logs=None):
            for batch in sorted(self.ended, reverse=True):
                super().on_train_batch_end(batch)
            super().on_epoch_end(epoch, logs)

    monitor = Reversed(data())
    network(True).fit(*data(), epochs=2, batch_size=8, verbose=0, callbacks=[monitor])
    assert monitor.history["batch"] == [0, 3, 6]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return data(7, seed=index)


@pytest.mark.parametrize(
    "probe", [Batches(), [data(7), data(9)], iter([data(7)])], ids=["PyDataset", "list", "iterator"]
)
def test_batches_as_a_probe(probe):
    model = network(True)
    received = dense(data(7)[0].astype("float64"), model.layers[0])
    monitor = NormalizationMonitor(probe)
    model.fit(*data(), verbose=0, callbacks=[monitor])
    check_histogram(monitor.measurements[0].layers["bn_0"].input, received)


def test_a_sorted_data_set_is_probed_evenly():
    x = np.arange(100, dtype="float32")[:, None]
    model = classifier(OURS(name="bn"), features=1)
    monitor = NormalizationMonitor((x, np.zeros(100, int)), batch_size=10)
    model.fit(x, np.zeros(100, int), verbose=0, callbacks=[monitor])
    check_histogram(monitor.measurements[0].layers["bn"].input, np.arange(0, 100, 10))


def test_large_tensors_are_sampled_evenly():
    x = np.random.default_rng(0).normal(size=(32, 6400)).astype("float32")
    x[:, ::2] += 100  # of which a stride of two would see one half alone
    model = classifier(OURS(name="bn"), features=6400)
    found = measured(model, (x, np.arange(32) % 3)).layers["bn"].input
    assert 2**14 < found.counts.sum() <= 2**16
    assert found.quantile(0.25) == pytest.approx(np.quantile(x, 0.25), abs=1.0)
    assert found.mean == pytest.approx(x.mean(), abs=0.5)


def test_an_outlier_leaves_the_bins_to_the_others():
    values = np.random.default_rng(0).normal(size=10_000)
    values[7] = 1e3
    found = histogram(values)
    assert found.maximum == 1e3 and found.counts.sum() == 10_000
    for share in (0.15, 0.5, 0.85):
        # A bin is 8 deviations / 120 wide, and the outlier made the deviation 10.
        assert found.quantile(share) == pytest.approx(np.quantile(values, share), abs=0.7)


def test_event_files_hold_the_numbers(tmp_path):
    import tensorflow as tf

    model = network(True)
    monitor = NormalizationMonitor(data(), log_dir=tmp_path / "logs")
    model.fit(*data(), epochs=2, verbose=0, callbacks=[monitor])
    (file,) = (tmp_path / "logs").iterdir()
    scalars, histograms = {}, {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            kind = {"scalars": scalars, "histograms": histograms}[
                value.metadata.plugin_data.plugin_name
            ]
            kind.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    assert {tag: list(steps) for tag, steps in scalars.items()} == {
        tag: [0, 1, 2] for tag in monitor.measurements[0].scalars()
    }
    for tag, steps in scalars.items():
        np.testing.assert_allclose(list(steps.values()), monitor.history[tag], rtol=1e-6)
    assert set(histograms) == {
        f"{name}/{tensor}"
        for name in ("bn_0", "bn_1")
        for tensor in ("input", "output", "activation")
    }
    rows = histograms["bn_1/input"][2]
    expected = monitor.measurements[2].layers["bn_1"].input
    assert rows.shape == (30, 3) and rows[:, 2].sum() == expected.counts.sum() == 24 * 6
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, 1])
    assert (rows[0, 0], rows[-1, 1]) == (expected.minimum, expected.maximum)
    np.testing.assert_array_equal(np.cumsum(rows[:, 2]), np.cumsum(expected.counts)[3::4])


def test_the_plot_shows_both_trainings(tmp_path):
    import matplotlib.image

    with_normalization, without = (NormalizationMonitor(data()) for _ in range(2))
    network(True, "sigmoid").fit(*data(), epochs=2, verbose=0, callbacks=[with_normalization])
    network(False).fit(*data(), epochs=2, verbose=0, callbacks=[without])
    with_normalization.plot(tmp_path / "one.png")
    with_normalization.plot(tmp_path / "both.png", beside=without)
    one, both = (matplotlib.image.imread(tmp_path / name) for name in ("one.png", "both.png"))
    assert both.shape[1] > 1.7 * one.shape[1]
    halves = np.array_split(both[..., :3], 2, axis=1)
    blue, orange = (
        [np.mean(half[..., channel] - half[..., 2 - channel] > 0.1) for half in halves]
        for channel in (2, 0)
    )
    assert blue[0] > 0.02 and orange[1] > 0.02
    assert orange[0] < 0.01 and blue[1] < 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "both.png"}


def test_without_a_measurement_there_is_nothing_to_plot(tmp_path):
    with pytest.raises(ValueError, match="a monitor has none"):
        NormalizationMonitor(data()).plot(tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequency": 0}, "`frequency` must be"),
        ({"frequency": "batch"}, "`frequency` must be"),
        ({"layers": "bn"}, "`layers` must be"),
        ({"layers": []}, "`layers` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NormalizationMonitor(data(), **options)


def test_wrong_data_are_refused():
    with pytest.raises(TypeError, match="int"):
        NormalizationMonitor(3)
    for empty in ((np.zeros((0, 5)), np.zeros(0)), [], np.zeros((0, 5))):
        with pytest.raises(CalibrationError, match="received none"):
            NormalizationMonitor(empty)
    with pytest.raises(ValueError, match="one number of samples"):
        NormalizationMonitor((np.zeros((3, 5)), np.zeros(4)))


def test_layers_that_are_not_there_are_refused():
    model = network(True)
    monitor = NormalizationMonitor(data(), layers=["bn_9"])
    with pytest.raises(ValueError, match=r"'bn_9'.*bn_1"):
        model.fit(*data(), verbose=0, callbacks=[monitor])


def test_a_model_without_anything_to_watch_is_refused():
    model = compiled(keras.Sequential([keras.Input((3,)), keras.layers.ReLU()]))
    with pytest.raises(UnsupportedModelError, match="Name those to watch"):
        model.fit(*data(features=3), verbose=0, callbacks=[NormalizationMonitor(data(features=3))])
