import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_bn.layers
from tests.layers import recurrent_reference
from tests.layers.backends import BACKEND, MODES, arrays, compiled, derivatives, gradient

VARIANTS = ("gate", "paper")
NETWORKS = ("LSTM", "GRU", "SimpleRNN")
# Network, and the options that change its mathematics.
KINDS = {
    f"{network} {' '.join(map(str, options.values()))} {variant}": (
        network,
        {"variant": variant, **options},
    )
    for network, variant in itertools.product(NETWORKS, VARIANTS)
    for options in ([{"reset_after": True}, {"reset_after": False}] if network == "GRU" else [{}])
}
every_kind = pytest.mark.parametrize(("network", "options"), KINDS.values(), ids=KINDS)
tensorflow_alone = pytest.mark.backend(
    "tensorflow", because="Keras multiplies float64 matrices in float32 on the others"
)
written_out = pytest.mark.backend(
    "tensorflow", because="the loop's derivatives are written out there alone"
)
every_network = pytest.mark.parametrize("network", NETWORKS)

# Float32 carries 7 digits; a gate's values are sums of a dozen terms of order 1 over a deviation
# that may be 0.1, and every step passes its error on to the next.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def layer_of(network, units=5, **options):
    return getattr(keras_bn.layers, f"LayerNorm{network}")(units, **options)


def cell_of(network, units=5, **options):
    return getattr(keras_bn.layers, f"LayerNorm{network}Cell")(units, **options)


def randomized(layer, features=3, seed=0, batch=None):
    """Build `layer` and give it weights that differ in every unit, γ of both signs."""
    layer.build((batch, None, features))
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        value = rng.normal(size=weight.shape)
        weight.assign(value + np.sign(value) * 0.3 if "gamma" in weight.name else value)
    return layer


def weights_of(layer):
    return {weight.name: ops.convert_to_numpy(weight) for weight in layer.trainable_weights}


def data(batch=4, time=6, features=3, seed=1):
    return np.random.default_rng(seed).normal(1, 2, (batch, time, features)).astype("float32")


def states_for(network, batch, units, seed=2):
    count = 2 if network == "LSTM" else 1
    return list(np.random.default_rng(seed).normal(size=(count, batch, units)).astype("float32"))


def all_outputs(layer, x, **call):
    def run(x):
        return layer(x, **call)

    # Without it JAX compiles every operation of a new shape by itself.
    outputs, *states = arrays((compiled(run, "XLA") if BACKEND == "jax" else run)(x))
    return outputs, states


# --- against float64 NumPy ----------------------------------------------------------------------


@settings(max_examples=10 if BACKEND == "jax" else 40, deadline=None)  # JAX compiles each anew
@given(
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(2, 6)),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
    masked=st.booleans(),
    given_states=st.booleans(),
    backwards=st.booleans(),
    unroll=st.booleans(),
    use_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_option_agrees_with_numpy(
    kind, sizes, epsilon, masked, given_states, backwards, unroll, use_bias, seed
):
    network, options = KINDS[kind]
    batch, time, features, units = sizes
    layer = layer_of(
        network,
        units,
        epsilon=epsilon,
        go_backwards=backwards,
        unroll=unroll,
        use_bias=use_bias,
        return_sequences=True,
        return_state=True,
        **options,
    )
    randomized(layer, features, seed)
    x = data(batch, time, features, seed)
    states = states_for(network, batch, units, seed)
    mask = np.random.default_rng(seed).random((batch, time)) < 0.6 if masked else None

    outputs, last = all_outputs(layer, x, mask=mask, initial_state=states if given_states else None)

    expected, expected_last = recurrent_reference.run(
        network,
        weights_of(layer),
        x,
        epsilon=epsilon,
        states=states if given_states else [0 * state for state in states],
        mask=mask,
        backwards=backwards,
        state_first=BACKEND == "jax" and not unroll,  # Keras's loops differ in that
        **options,
    )
    # A deviation of √1e-5 magnifies rounding a hundredfold more than one of order 1.
    close = {"rtol": 1e-3, "atol": 1e-3} if epsilon < 1e-3 else {"rtol": 1e-3, "atol": 2e-4}
    np.testing.assert_allclose(outputs, expected, **close)
    for one, other in zip(last, expected_last, strict=True):
        np.testing.assert_allclose(one, other, **close)


@tensorflow_alone
@every_kind
def test_float64_agrees_with_numpy_to_twelve_digits(network, options):
    layer = randomized(
        layer_of(network, 7, dtype="float64", return_sequences=True, return_state=True, **options)
    )
    x = data(3, 20).astype("float64")
    outputs, last = all_outputs(layer, ops.convert_to_tensor(x))
    expected, expected_last = recurrent_reference.run(
        network,
        weights_of(layer),
        x,
        epsilon=1e-3,
        states=[np.zeros((3, 7))] * len(last),
        **options,
    )
    # 20 steps of a map that may stretch a difference a few times.
    np.testing.assert_allclose(outputs, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(last, expected_last, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


# --- against Keras's own layers, with the normalization taken out -------------------------------

LARGE = 1e8


def without_normalization(network, units=5, **options):
    """A layer whose normalization does nothing, and Keras's layer with the same weights.

    γ·(z − mean z)/√(var z + ε) is z where mean z is 0, ε dwarfs var z and γ = √ε. The means are
    0 where the kernels have none; the reset gate is the same in all units, for weighing its
    candidate's terms differently would give them a mean.
    """
    layer = layer_of(network, units, epsilon=LARGE, **options)
    keras_options = {name: value for name, value in options.items() if name != "variant"}
    stock = getattr(keras.layers, network)(units, **keras_options)
    stock.build((None, None, 3))
    randomized(layer)
    weights = weights_of(layer)
    for name in ("kernel", "recurrent_kernel"):
        gates = weights[name].reshape(len(weights[name]), -1, units)
        if network == "GRU":
            gates[:, 1] = 0
        weights[name] = (gates - gates.mean(-1, keepdims=True)).reshape(weights[name].shape)
    if network == "GRU":
        weights["bias"][..., units : 2 * units] = 0.4
    for weight in layer.trainable_weights:
        scale = np.full(weight.shape, LARGE**0.5)
        weight.assign(scale if "gamma" in weight.name else weights[weight.name])
    bias = weights["bias"]
    if stock.cell.bias.shape != bias.shape:
        bias = np.stack([bias, 0 * bias])  # Keras's second bias joins the first where it is alone
    stock.set_weights([weights["kernel"], weights["recurrent_kernel"], bias])
    return layer, stock


without_normalization_kinds = pytest.mark.parametrize(
    ("network", "options"),
    # The paper's LSTM also normalizes the cell state, whose mean no weight can take away.
    [kind for name, kind in KINDS.items() if name != "LSTM  paper"],
    ids=[name for name in KINDS if name != "LSTM  paper"],
)


@without_normalization_kinds
@pytest.mark.parametrize(
    ("more", "called_with"),
    [
        ({"activation": "relu"}, []),
        ({"go_backwards": True}, ["mask", "initial_state"]),
        ({"zero_output_for_mask": True}, ["mask"]),
        ({"unroll": True}, ["mask"]),
    ],
    ids=str,
)
def test_without_normalization_it_is_kerass_layer(network, options, more, called_with):
    layer, stock = without_normalization(
        network, return_sequences=True, return_state=True, **options, **more
    )
    x = data()
    every = {
        "mask": np.random.default_rng(3).random(x.shape[:2]) < 0.7,
        "initial_state": states_for(network, 4, 5),
    }
    call = {name: every[name] for name in called_with}
    (ours, our_states), (theirs, their_states) = (
        all_outputs(each, x, **call) for each in (layer, stock)
    )
    for one, other in zip([ours, *our_states], [theirs, *their_states], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # relu gives some 100


@without_normalization_kinds
@pytest.mark.parametrize(
    "dropout",
    [{"dropout": 0.4}, {"recurrent_dropout": 0.4}, {"dropout": 0.4, "recurrent_dropout": 0.3}],
    ids=str,
)
def test_dropout_is_kerass(network, options, dropout):
    # The mean of a gate is 0 whatever of its inputs is dropped, and equal seeds drop alike.
    layer, stock = without_normalization(
        network, return_sequences=True, seed=7, **options, **dropout
    )
    x = data()
    trained = arrays(layer(x, training=True))
    np.testing.assert_allclose(trained, arrays(stock(x, training=True)), **CLOSE)
    assert not np.allclose(trained, arrays(layer(x)))
    np.testing.assert_allclose(arrays(layer(x)), arrays(stock(x)), **CLOSE)


@every_network
def test_the_first_weights_are_kerass(network):
    ours, stock = layer_of(network, seed=1), getattr(keras.layers, network)(5, seed=1)
    for layer in (ours, stock):
        layer.build((None, None, 3))
    names = ["kernel", "recurrent_kernel", "bias"]
    assert [weight.name for weight in ours.weights[:3]] == names
    assert [weight.name for weight in stock.weights] == names
    for one, other in zip(ours.weights[:2], stock.weights[:2], strict=True):
        assert one.shape == other.shape
    if network == "LSTM":  # the forget gate's is 1
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (ours.cell.bias, stock.cell.bias)))


# --- the layer and the cell ---------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dropout", [{}, {"dropout": 0.4, "recurrent_dropout": 0.3}], ids=str)
def test_the_layer_equals_its_cell_in_kerass_loop(network, options, dropout):
    options = {**options, **dropout, "seed": 5}
    layer = randomized(layer_of(network, return_sequences=True, return_state=True, **options))
    loop = keras.layers.RNN(cell_of(network, **options), return_sequences=True, return_state=True)
    loop.build((None, None, 3))
    loop.set_weights(layer.get_weights())
    x = data()
    for training in (False, True):
        for one, other in zip(
            arrays(layer(x, training=training)), arrays(loop(x, training=training)), strict=True
        ):
            np.testing.assert_allclose(one, other, **CLOSE)


def test_cells_stack():
    cells = [cell_of("LSTM", 4), cell_of("GRU", 5, variant="paper"), cell_of("SimpleRNN", 6)]
    stack = keras.layers.RNN(keras.layers.StackedRNNCells(cells), return_sequences=True)
    stack.build((None, None, 3))
    layers = [
        layer_of("LSTM", 4, return_sequences=True),
        layer_of("GRU", 5, variant="paper", return_sequences=True),
        layer_of("SimpleRNN", 6, return_sequences=True),
    ]
    y = x = data()
    for features, cell, layer in zip((3, 4, 5), cells, layers, strict=True):
        randomized(layer, features)
        cell.set_weights(layer.get_weights())
        y = layer(y)
    np.testing.assert_allclose(arrays(stack(x)), arrays(y), **CLOSE)


@every_network
def test_a_cell_takes_its_state_alone_or_in_a_list(network):
    cell = cell_of(network)
    states = states_for(network, 2, 5)
    x = data(2)[:, 0]
    output, new_states = cell(x, states)
    assert len(new_states) == len(states)
    if network != "LSTM":
        alone, state = cell(x, states[0])
        np.testing.assert_array_equal(*arrays([alone, output]))
        np.testing.assert_array_equal(*arrays([state, output]))


@every_network
def test_bidirectional(network):
    forward = layer_of(network, return_sequences=True)
    both = keras.layers.Bidirectional(forward, merge_mode=None)
    x = data()
    both(x)
    randomized(both.forward_layer, seed=1)
    randomized(both.backward_layer, seed=2)
    there, back = arrays(both(x))
    assert both.backward_layer.go_backwards and not both.forward_layer.go_backwards
    turned = layer_of(network, return_sequences=True)
    turned.build((None, None, 3))
    turned.set_weights(both.backward_layer.get_weights())
    np.testing.assert_allclose(there, arrays(both.forward_layer(x)), **CLOSE)
    np.testing.assert_allclose(back, arrays(turned(x[:, ::-1]))[:, ::-1], **CLOSE)


# --- what each sample and step depends on -------------------------------------------------------


@every_kind
def test_nothing_depends_on_the_batch_or_on_later_steps(network, options):
    layer = randomized(layer_of(network, return_sequences=True, **options))
    x = data()
    whole = arrays(layer(x))
    np.testing.assert_allclose(arrays(layer(x[1:2])), whole[1:2], **CLOSE)
    np.testing.assert_allclose(arrays(layer(x[:, :2])), whole[:, :2], **CLOSE)
    np.testing.assert_allclose(arrays(layer(x, training=True)), whole, **CLOSE)


@every_kind
def test_the_scale_of_the_inputs_does_not_matter(network, options):
    # As long as ε is small beside the variances; R·h is taken out, which does not scale along.
    layer = randomized(layer_of(network, epsilon=1e-12, **options))
    layer.cell.recurrent_kernel.assign(np.zeros(layer.cell.recurrent_kernel.shape))
    x = data()
    np.testing.assert_allclose(arrays(layer(1000 * x)), arrays(layer(x)), **CLOSE)


@pytest.mark.parametrize(
    ("network", "options", "mode"),
    [(*kind, MODES[0]) for kind in KINDS.values()] + [("LSTM", {}, mode) for mode in MODES[1:]],
    ids=str,
)
def test_masked_steps_reach_neither_outputs_nor_gradients(network, options, mode):
    x = data()
    garbage = np.where(np.arange(x.size).reshape(x.shape) % 2, np.nan, np.inf)
    mask = np.ones(x.shape[:2], bool)
    mask[1, 4:] = mask[2, :2] = mask[3, 2:4] = mask[0] = False
    layer = randomized(layer_of(network, return_sequences=True, **options))
    others = [weight.value for weight in layer.non_trainable_variables]
    trainable = [ops.convert_to_tensor(weight) for weight in layer.trainable_variables]
    factors = np.random.default_rng(0).normal(size=(*x.shape[:2], 5)).astype("float32")

    def loss(x, *trainable):
        y, _ = layer.stateless_call(trainable, others, x, mask=ops.convert_to_tensor(mask))
        return ops.sum(ops.sin(y) * ops.convert_to_tensor(factors))

    slopes = compiled(gradient(loss), mode)
    spoilt = np.where(mask[..., None], x, garbage).astype("float32")
    d_x, *d_weights = arrays(slopes(ops.convert_to_tensor(spoilt), *trainable))
    d_clean, *d_clean_weights = arrays(slopes(ops.convert_to_tensor(x), *trainable))
    np.testing.assert_array_equal(d_x[~mask], 0)
    np.testing.assert_allclose(d_x, np.where(mask[..., None], d_clean, 0), **CLOSE)
    for one, other in zip(d_weights, d_clean_weights, strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # sums over 18 steps


@every_network
def test_a_masking_layer_is_heeded(network):
    x = data()
    x[1, 4:] = x[3, 2:] = 0
    model = keras.Sequential([
        keras.Input((None, 3)), keras.layers.Masking(), randomized(layer_of(network))
    ])  # fmt: skip
    got = arrays(model(x))
    for sample, length in enumerate((6, 4, 6, 2)):
        alone = arrays(model.layers[-1](x[sample : sample + 1, :length]))
        np.testing.assert_allclose(got[sample : sample + 1], alone, **CLOSE)


@every_network
def test_features_that_are_all_alike_give_finite_gradients(network):
    layer = layer_of(network, kernel_initializer="ones", recurrent_initializer="ones")
    layer.build((None, None, 3))
    x = ops.convert_to_tensor(np.ones((2, 4, 3), "float32"))
    (d_x,) = arrays(gradient(lambda x: ops.sum(layer(x)))(x))
    assert np.isfinite(d_x).all()


# --- gradients ----------------------------------------------------------------------------------


@tensorflow_alone
@every_kind
def test_gradients_agree_with_finite_differences(network, options):
    layer = randomized(layer_of(network, 3, dtype="float64", return_sequences=True, **options))
    others = [weight.value for weight in layer.non_trainable_variables]
    x = data(2, 3).astype("float64")
    factors = np.random.default_rng(0).normal(size=(2, 3, 3))

    def weighted_sum(x, *trainable):
        y, _ = layer.stateless_call(trainable, others, x, training=True)
        return ops.sum(y * ops.convert_to_tensor(factors))

    loss = compiled(weighted_sum, MODES[0])
    tensors = [x, *weights_of(layer).values()]
    slopes = arrays(gradient(loss)(*map(ops.convert_to_tensor, tensors)))
    step = 1e-6
    for which, slope in enumerate(slopes):
        for index in itertools.islice(np.ndindex(*slope.shape), 0, None, 5):
            sides = []
            for sign in (1, -1):
                nudged = [np.array(tensor) for tensor in tensors]
                nudged[which][index] += sign * step
                sides.append(float(arrays(loss(*map(ops.convert_to_tensor, nudged)))))
            # A central difference is off by step² and by 1e-16/step.
            expected = (sides[0] - sides[1]) / (2 * step)
            assert slope[index] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@written_out
@pytest.mark.parametrize(
    ("network", "options", "unroll"),
    [
        ("LSTM", {"variant": "paper", "use_bias": False}, True),
        ("GRU", {"recurrent_dropout": 0.3, "dropout": 0.4}, True),
        ("SimpleRNN", {"recurrent_dropout": 0.3}, False),
    ],
    ids=str,
)
def test_training_has_the_derivatives_of_the_cell_in_kerass_loop(network, options, unroll):
    options = {**options, "seed": 5, "dtype": "float64"}
    layer = randomized(layer_of(network, 4, return_sequences=True, unroll=unroll, **options))
    # Keras's loop leaves the cell's derivatives to TensorFlow, the second ones as well.
    cell = cell_of(network, 4, **options)
    loop = keras.layers.RNN(cell, return_sequences=True, unroll=unroll, dtype="float64")
    loop.build((None, None, 3))
    loop.set_weights(layer.get_weights())
    x = data(3, 2).astype("float64")
    factors = np.random.default_rng(0).normal(size=(3, 2, 4))
    ours, theirs = (derivatives(each, x, factors) for each in (layer, loop))
    assert len(ours) == 2 * (1 + len(layer.trainable_weights))
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(other).max() > 0
        # Float64 carries 16 digits, of which two derivatives of two steps leave ten.
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)


@written_out
@every_kind
def test_graphs_for_inference_hold_no_derivatives(network, options):
    layer = randomized(layer_of(network, **options))

    def operations(training):
        traced = compiled(lambda x: layer(x, training=training), "graph")
        graph = traced.get_concrete_function(ops.convert_to_tensor(data())).graph.as_graph_def()
        bodies = [function.node_def for function in graph.library.function]
        return [node for nodes in [graph.node, *bodies] for node in nodes]

    def with_derivatives(nodes):
        return [node.name for node in nodes if "_gradient_op_type" in node.attr]

    assert with_derivatives(operations(training=True))
    assert not with_derivatives(operations(training=False))


# --- states -------------------------------------------------------------------------------------


@every_network
def test_stateful_layers_go_on_where_they_stopped(network):
    x = data()
    plain = randomized(layer_of(network, return_sequences=True))
    model = keras.Sequential([
        keras.Input(batch_shape=(4, 3, 3)),
        layer_of(network, return_sequences=True, stateful=True),
    ])  # fmt: skip
    layer = model.layers[-1]
    for weight, value in zip(layer.trainable_weights, plain.get_weights(), strict=True):
        weight.assign(value)
    # Calls, since on JAX Keras's `predict` leaves the states of its own layers, too, as they were.
    halves = np.concatenate([arrays(model(part)) for part in np.split(x, 2, 1)], 1)
    np.testing.assert_allclose(halves, arrays(plain(x)), **CLOSE)
    layer.reset_state()
    np.testing.assert_allclose(arrays(model(x[:, :3])), halves[:, :3], **CLOSE)


@every_network
def test_stateful_layers_train(network):
    model = keras.Sequential([
        keras.Input(batch_shape=(4, 6, 3)), layer_of(network, stateful=True), keras.layers.Dense(1)
    ])  # fmt: skip
    model.compile("sgd", "mse")
    x = data()
    losses = model.fit(x, x[:, 0, :1], batch_size=4, epochs=3, shuffle=False, verbose=0).history
    assert np.isfinite(losses["loss"]).all()


# --- in models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "options", "compilation"),
    [
        ("LSTM", {}, {}),
        ("GRU", {"variant": "paper"}, {"jit_compile": False}),
        ("SimpleRNN", {"recurrent_dropout": 0.1}, {"run_eagerly": True}),
    ],
    ids=str,
)
def test_fit_learns_what_came_first(network, options, compilation):
    x = np.random.default_rng(0).normal(size=(64, 5, 3)).astype("float32")
    y = (x[:, 0, 0] > 0).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((5, 3)), layer_of(network, 8, **options), keras.layers.Dense(1)
    ])  # fmt: skip
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    if BACKEND == "jax":
        compilation = {}  # whatever is not compiled as a whole is compiled piece by piece
    model.compile(keras.optimizers.Adam(0.05), loss, **compilation)
    history = model.fit(x, y, batch_size=32, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
@every_kind
def test_half_precision_normalizes_in_float32(network, options, policy):
    # PyTorch has no orthogonal matrices in float16.
    options = {"recurrent_initializer": "glorot_uniform", "return_sequences": True, **options}
    half, full = layer_of(network, dtype=policy, **options), layer_of(network, **options)
    for layer in (half, full):
        randomized(layer)
    # Pre-activations of some hundreds, whose squares float16 cannot hold.
    x = 100 * data(time=3)
    y = half(x)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    got = arrays(ops.cast(y, "float32"))
    assert np.isfinite(got).all()
    # Inputs, kernels and states are rounded to 8 (bfloat16) or 11 bits, and three steps pass the
    # errors on. Most outputs are closer by far; the mean says so.
    off = np.abs(got - arrays(full(x)))
    bits = 2**-8 if "bfloat16" in policy else 2**-11
    assert off.mean() < 4 * bits and off.max() < 60 * bits


@every_kind
def test_configuration_and_files_round_trip(network, options, tmp_path):
    layer = layer_of(
        network,
        4,
        epsilon=1e-4,
        activation="relu",
        use_bias=True,
        return_sequences=True,
        go_backwards=True,
        dropout=0.1,
        recurrent_dropout=0.2,
        gamma_initializer=keras.initializers.Constant(0.5),
        gamma_regularizer="l2",
        gamma_constraint="non_neg",
        kernel_regularizer="l1",
        seed=3,
        dtype="mixed_bfloat16",
        **options,
    )
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
    cell = cell_of(network, 4, epsilon=1e-4, **options)
    assert type(cell).from_config(cell.get_config()).get_config() == cell.get_config()

    model = keras.Sequential([
        keras.Input((None, 3)),
        keras.layers.Bidirectional(layer_of(network, 4, return_sequences=True, **options)),
        keras.layers.RNN(cell, return_sequences=True),
        layer_of(network, 4, **options),
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = data()
    np.testing.assert_array_equal(arrays(loaded(x)), arrays(model(x)))


def test_regularizers_and_constraints_reach_every_gamma_and_beta():
    layer = layer_of(
        "LSTM",
        4,
        variant="paper",
        gamma_initializer="ones",
        gamma_regularizer=keras.regularizers.L2(1.0),
        gamma_constraint="non_neg",
        beta_initializer=keras.initializers.Constant(2.0),
        beta_regularizer=keras.regularizers.L2(0.5),
        beta_constraint="unit_norm",
    )
    layer.build((None, None, 3))
    # 16 + 16 + 4 ones, and half of 4 · 2².
    assert float(arrays(sum(layer.losses))) == pytest.approx(36 + 8, rel=1e-6)
    constrained = {w.name for w in layer.trainable_weights if w.constraint is not None}
    assert constrained == {"kernel_gamma", "recurrent_gamma", "state_gamma", "state_beta"}


@every_network
def test_shapes_are_known_before_any_data(network):
    inputs = keras.Input((None, 3))
    states = 2 if network == "LSTM" else 1
    layer = layer_of(network, return_sequences=True, return_state=True)
    outputs, *last = layer(inputs)
    assert outputs.shape == (None, None, 5)
    assert [state.shape for state in last] == [(None, 5)] * states
    assert layer_of(network)(inputs).shape == (None, 5)


# --- what makes no sense ------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": 0}, "positive integer"),
        ({"epsilon": 0.0}, "`epsilon` must be a positive number"),
        ({"epsilon": "small"}, "`epsilon` must be a positive number"),
        ({"variant": "batch"}, "'gate' or 'paper'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(network, options, words):
    for make in (layer_of, cell_of):
        with pytest.raises(ValueError, match=words):
            make(network, **{"units": 5, **options})


def test_cudnn_is_refused_and_unknown_arguments_are_named():
    with pytest.raises(ValueError, match="no layer normalization"):
        layer_of("LSTM", use_cudnn=True)
    assert layer_of("GRU", use_cudnn=False).units == 5
    with pytest.raises(ValueError, match="gama"):
        layer_of("LSTM", gama_initializer="ones")


def test_inputs_without_a_time_axis_are_refused():
    with pytest.raises(ValueError, match="expected ndim=3"):
        layer_of("LSTM")(np.ones((2, 3)))
