"""Layer-normalised recurrent networks in float64 NumPy, a sample and a time step at a time."""

import numpy as np


def norm(z, epsilon):
    return (z - z.mean()) / np.sqrt(z.var() + epsilon)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def blocks(vector, count):
    return np.split(vector, count, axis=-1)


def lstm_step(w, x, h, c, variant, epsilon):
    kernels, recurrent_kernels = blocks(w["kernel"], 4), blocks(w["recurrent_kernel"], 4)
    if variant == "gate":
        gates = []
        for kernel, recurrent_kernel, gamma, bias in zip(
            kernels, recurrent_kernels, blocks(w["gamma"], 4), blocks(w["bias"], 4), strict=True
        ):
            gates.append(gamma * norm(x @ kernel + h @ recurrent_kernel, epsilon) + bias)
    else:
        from_input = w["kernel_gamma"] * norm(x @ w["kernel"], epsilon)
        from_state = w["recurrent_gamma"] * norm(h @ w["recurrent_kernel"], epsilon)
        gates = blocks(from_input + from_state + w["bias"], 4)
    i, f, g, o = gates
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    read = c
    if variant == "paper":
        read = w["state_gamma"] * norm(c, epsilon) + w["state_beta"]
    return sigmoid(o) * np.tanh(read), c


def gru_step(w, x, h, variant, epsilon, reset_after):
    units = len(h)
    kernel, recurrent_kernel = w["kernel"], w["recurrent_kernel"]
    if variant == "gate":
        z, r = (
            sigmoid(
                w["gamma"][at] * norm(x @ kernel[:, at] + h @ recurrent_kernel[:, at], epsilon)
                + w["bias"][at]
            )
            for at in (slice(units), slice(units, 2 * units))
        )
        at = slice(2 * units, None)
        state = (
            r * (h @ recurrent_kernel[:, at]) if reset_after else (r * h) @ recurrent_kernel[:, at]
        )
        new = np.tanh(w["gamma"][at] * norm(x @ kernel[:, at] + state, epsilon) + w["bias"][at])
    else:
        b_x, b_h = w["bias"] if reset_after else (w["bias"], np.zeros(3 * units))
        at = slice(2 * units)
        both = w["kernel_gamma"][at] * norm(x @ kernel[:, at], epsilon) + b_x[at]
        both += w["recurrent_gamma"][at] * norm(h @ recurrent_kernel[:, at], epsilon) + b_h[at]
        z, r = blocks(sigmoid(both), 2)
        at = slice(2 * units, None)
        seen = h if reset_after else r * h
        state = w["recurrent_gamma"][at] * norm(seen @ recurrent_kernel[:, at], epsilon) + b_h[at]
        state = r * state if reset_after else state
        new = np.tanh(w["kernel_gamma"][at] * norm(x @ kernel[:, at], epsilon) + b_x[at] + state)
    return z * h + (1 - z) * new


def simple_rnn_step(w, x, h, variant, epsilon):
    if variant == "gate":
        z = w["gamma"] * norm(x @ w["kernel"] + h @ w["recurrent_kernel"], epsilon)
    else:
        z = w["kernel_gamma"] * norm(x @ w["kernel"], epsilon)
        z += w["recurrent_gamma"] * norm(h @ w["recurrent_kernel"], epsilon)
    return np.tanh(z + w["bias"])


def run(
    network,
    weights,
    x,
    variant,
    epsilon,
    states,
    mask=None,
    backwards=False,
    state_first=False,
    **options,
):
    """Outputs in the order computed, and the last states.

    Args:
        network: "LSTM", "GRU" or "SimpleRNN".
        weights: Arrays by the names of the layer's weights; a missing bias counts as 0.
        x: (batch, time, features).
        states: (batch, units) each. A masked step leaves them, and repeats the last output.
        state_first: Whether masked steps before all others give the first state, instead of 0.
    """
    weights = {name: np.asarray(value, "float64") for name, value in weights.items()}
    columns = weights["kernel"].shape[1]
    weights.setdefault("bias", np.zeros(columns))
    weights.setdefault("state_beta", np.zeros(columns // 4))
    if weights["bias"].ndim < 2 and variant == "paper" and options.get("reset_after"):
        weights["bias"] = np.zeros((2, columns))
    x = np.asarray(x, "float64")
    outputs = np.zeros((*x.shape[:2], states[0].shape[1]))
    last = [np.array(state, "float64") for state in states]
    for sample in range(x.shape[0]):
        h, *c = (state[sample] for state in last)
        y = h if state_first else np.zeros_like(h)
        order = range(x.shape[1])
        for position, time in enumerate(reversed(order) if backwards else order):
            if mask is None or mask[sample, time]:
                if network == "LSTM":
                    h, *c = lstm_step(weights, x[sample, time], h, *c, variant, epsilon)
                elif network == "GRU":
                    h = gru_step(weights, x[sample, time], h, variant, epsilon, **options)
                else:
                    h = simple_rnn_step(weights, x[sample, time], h, variant, epsilon)
                y = h
            outputs[sample, position] = y
        for state, value in zip(last, (h, *c), strict=True):
            state[sample] = value
    return outputs, last
