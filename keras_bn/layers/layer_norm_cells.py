"""Recurrent cells with layer normalization inside the step.

A step is made of parts that need not all be done at every step, which is what the layers of
layer_norm_recurrent.py live on:

    project(inputs)                  W·x, for one time step or for the whole sequence
    loop_blocks()                    the weights as the loop takes them
    step(projected, states, blocks)  R·h, the gates, the new states

The mean over a gate's units is linear in the kernels, so it is taken out of these, before the
loop as well: if W̄ and R̄ are the kernels with each row's mean over the gate's columns subtracted,
W̄x + R̄h is Wx + Rh with its mean over the gate's units subtracted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple

import keras
from keras import ops

from keras_bn.layers.moments import Tensor, computing_dtype, standardized_in_one

Variant = Literal["gate", "paper"]


class Block(NamedTuple):
    """The weights of gates that are computed together, as the loop takes them."""

    kernel: Tensor  # (units, columns), its mean taken out
    gamma: Tensor  # (gates, units) to normalize each gate, (columns,) to normalize all as one
    bias: Tensor | None  # of the shape of gamma
    product: Callable[[Tensor, Tensor], Tensor] = ops.matmul  # of the state and the kernel


class LayerNormCell(keras.layers.Layer):
    """What the three cells share. Stands before Keras's cell in the order of inheritance."""

    blocks: ClassVar[tuple[int, ...]]  # gates computed together; variant "paper" makes them one
    epsilon: float
    variant: Variant
    gamma_initializer: Any
    gamma_regularizer: Any
    gamma_constraint: Any

    def __init__(
        self,
        units: int,
        *args: Any,
        epsilon: float = 1e-3,
        variant: Variant = "gate",
        gamma_initializer: Any = "ones",
        gamma_regularizer: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(epsilon, Real) or not epsilon > 0:
            raise ValueError(f"`epsilon` must be a positive number. Received: epsilon={epsilon!r}")
        if variant not in ("gate", "paper"):
            raise ValueError(f"`variant` must be 'gate' or 'paper'. Received: variant={variant!r}")
        super().__init__(units, *args, **kwargs)
        self.epsilon = float(epsilon)
        self.variant = variant
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        columns = sum(self.blocks) * self.units
        self.kernel = self.add_weight(
            shape=(input_shape[-1], columns),
            name="kernel",
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, columns),
            name="recurrent_kernel",
            initializer=self.recurrent_initializer,
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self._bias_shape(),
                name="bias",
                initializer=self._initial_bias,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                autocast=False,
            )
        if self.variant == "gate":
            self.gamma = self._add_gamma("gamma", columns)
        else:
            self.kernel_gamma = self._add_gamma("kernel_gamma", columns)
            self.recurrent_gamma = self._add_gamma("recurrent_gamma", columns)

    def _bias_shape(self) -> tuple[int, ...]:
        return (sum(self.blocks) * self.units,)

    def _initial_bias(self, shape: Any, dtype: Any = None) -> Tensor:
        return self.bias_initializer(shape, dtype=dtype)

    def _add_gamma(self, name: str, size: int) -> Any:
        return self.add_weight(
            shape=(size,),
            name=name,
            initializer=self.gamma_initializer,
            regularizer=self.gamma_regularizer,
            constraint=self.gamma_constraint,
            autocast=False,
        )

    def call(self, inputs: Tensor, states: Any, training: bool = False) -> tuple[Tensor, Any]:
        nested = isinstance(states, (list, tuple))
        projected = self.project(inputs, training)
        output, new_states = self.step(
            projected, list(states) if nested else [states], self.loop_blocks(), training
        )
        return output, new_states if nested else new_states[0]

    def project(self, inputs: Tensor, training: bool = False) -> Tensor:
        """The share of the input in a step, for one time step or for all.

        Args:
            inputs: (batch, features) or (time, batch, features).
            training: Whether to drop inputs out.

        Returns:
            (batch, columns) or (time, batch, columns): W̄x, and in variant "paper" γ·norm(Wx) + b.
        """
        masks = None
        if training and 0 < self.dropout < 1:
            # One mask for all time steps, as in Keras.
            masks = self.get_dropout_mask(inputs[0] if len(inputs.shape) == 3 else inputs)
        kernel = _joined([self._centred(part) for part in self._cut(self.kernel)])
        projected = _product(inputs, kernel, masks)
        if self.variant == "gate":
            return projected
        bias, _ = self._kernel_and_recurrent_bias()
        parts = zip(
            self._cut(projected), self._cut(self.kernel_gamma), self._cut(bias), strict=True
        )
        return _joined([self._normalized(*part) for part in parts])

    def loop_blocks(self) -> list[Block]:
        """The weights of every step: what can be done with them is done before the loop."""
        if self.variant == "gate":
            gamma, bias = self.gamma, self.bias
        else:
            gamma, (_, bias) = self.recurrent_gamma, self._kernel_and_recurrent_bias()

        def shaped(vector: Tensor | None) -> Tensor | None:
            each_gate = self.variant == "gate" and vector is not None
            return ops.reshape(vector, (-1, self.units)) if each_gate else vector

        return [
            Block(self._centred(kernel), shaped(gamma), shaped(bias))
            for kernel, gamma, bias in zip(
                self._cut(self.recurrent_kernel), self._cut(gamma), self._cut(bias), strict=True
            )
        ]

    def step(
        self, projected: Tensor, states: list[Tensor], blocks: list[Block], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """One time step.

        Args:
            projected: (batch, columns), from `project`.
            states: (batch, units) each.
            blocks: From `loop_blocks`.
            training: Whether to drop states out.

        Returns:
            The output (batch, units), and the new states.
        """
        raise NotImplementedError

    def _kernel_and_recurrent_bias(self) -> tuple[Any, Any]:
        """What variant "paper" adds to its two normalized products."""
        return self.bias, None

    def _recurrent_masks(self, h: Tensor, training: bool) -> Any:
        """What drops the state out: None, a tensor, or a list of one for each gate."""
        if training and 0 < self.recurrent_dropout < 1:
            return self.get_recurrent_dropout_mask(h)
        return None

    def _cut(self, weight: Any) -> list[Any]:
        """`weight` cut along its last axis into blocks."""
        if weight is None or len(self.blocks) == 1:
            return [weight] * len(self.blocks)
        weight, sizes = ops.convert_to_tensor(weight), [self.units * gates for gates in self.blocks]
        if keras.backend.backend() == "torch":
            # Keras's split counts the sizes on the GPU, and waits for it to read them back.
            return list(weight.split(sizes, -1))
        return ops.split(weight, list(accumulate(sizes[:-1])), axis=-1)

    def _centred(self, kernel: Tensor) -> Tensor:
        """`kernel` of a block less each row's mean over what is normalized as one."""
        rows, columns = kernel.shape
        size = self.units if self.variant == "gate" else columns
        each = ops.reshape(kernel, (rows, columns // size, size))
        return ops.reshape(each - ops.mean(each, -1, keepdims=True), (rows, columns))

    def _normalized(self, centred: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
        """γ·z/√(mean z² + ε) + bias over the last axis of γ, along which z has mean 0.

        In float32 at least, since squares of half-precision values overflow.
        """
        z = ops.cast(centred, computing_dtype(centred.dtype))
        if len(gamma.shape) == 2:
            z = ops.reshape(z, (-1, *gamma.shape))
        if keras.backend.backend() == "torch":
            # Each operation costs a launch, at every time step; this one subtracts a mean of 0.
            z = standardized_in_one(z, 1, self.epsilon)
        else:
            z = z * ops.rsqrt(ops.mean(ops.square(z), -1, keepdims=True) + self.epsilon)
        z = z * ops.cast(gamma, z.dtype)
        z = z if bias is None else z + ops.cast(bias, z.dtype)
        return ops.cast(z, self.compute_dtype)

    def _pre_activations(self, projected: Tensor, product: Tensor, block: Block) -> Tensor:
        """What a block's gates are functions of, from the shares of the input and the state."""
        if self.variant == "gate":
            return self._normalized(projected + product, block.gamma, block.bias)
        return projected + self._normalized(product, block.gamma, block.bias)

    def _normalized_with_mean(self, x: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
        x = ops.cast(x, computing_dtype(x.dtype))
        return self._normalized(x - ops.mean(x, -1, keepdims=True), gamma, bias)

    def _gates(self, z: Tensor) -> list[Tensor]:
        """(batch, gates·units) or (batch, gates, units) -> (batch, units) of each gate"""
        return ops.unstack(ops.reshape(z, (-1, self.blocks[0], self.units)), axis=1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "variant": self.variant,
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
        }


@keras.saving.register_keras_serializable(package="keras_bn")
class LayerNormLSTMCell(LayerNormCell, keras.layers.LSTMCell):
    """One step of a long short-term memory with layer normalization inside.

    With norm(z) = (z − mean z)/√(var z + ε) over the units of one sample, `variant="gate"` is

        z_g = γ_g·norm(W_g·x + R_g·h) + b_g        for each gate g of i, f, c, o
        c ← σ(z_f)·c + σ(z_i)·tanh(z_c)
        h ← σ(z_o)·tanh(c)

    the mathematics of LiteRT's layer-normalised LSTM operation, and `variant="paper"`

        z = γ_x·norm(W·x) + γ_h·norm(R·h) + b      over the units of all four gates
        c ← σ(z_f)·c + σ(z_i)·tanh(z_c)
        h ← σ(z_o)·tanh(γ_c·norm(c) + β_c)

    Nothing is shared between samples or time steps, so training and inference are the same
    computation, for any batch size and length.

    Args:
        units: Size of the output and of each state.
        *args, **kwargs: Those of `keras.layers.LSTMCell`: `activation`, `recurrent_activation`,
            `use_bias` (b, and β_c), initializers, regularizers and constraints of the kernels
            and of b, `unit_forget_bias`, `dropout`, `recurrent_dropout`, `seed`.
        epsilon: Added to the variances. Positive.
        variant: "gate" or "paper".
        gamma_initializer, gamma_regularizer, gamma_constraint: For every γ.
        beta_initializer, beta_regularizer, beta_constraint: For β_c.

    Call arguments:
        inputs: (batch, features).
        states: [h, c], each (batch, units).
        training: Whether to apply `dropout` and `recurrent_dropout`.

    Weights:
        `kernel` (features, 4·units), `recurrent_kernel` (units, 4·units) and `bias` (4·units,)
        as in `keras.layers.LSTMCell`, gates in the order i, f, c, o; then `gamma` (4·units,), or
        `kernel_gamma` and `recurrent_gamma` (4·units,), `state_gamma` and `state_beta` (units,).

    Returns:
        h and [h, c].

    Example:

    >>> import numpy as np
    >>> cell = LayerNormLSTMCell(4)
    >>> h, (_, c) = cell(np.ones((2, 3)), [np.zeros((2, 4)), np.zeros((2, 4))])
    >>> tuple(h.shape), tuple(c.shape)
    ((2, 4), (2, 4))

    Reference:
        Ba, Kiros and Hinton, 2016, Layer Normalization, https://arxiv.org/abs/1607.06450,
        equations 20 to 22 of the supplement for "paper".
    """

    blocks = (4,)

    def __init__(
        self,
        units: int,
        *args: Any,
        beta_initializer: Any = "zeros",
        beta_regularizer: Any = None,
        beta_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, *args, **kwargs)
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        super().build(input_shape)
        if self.variant == "gate":
            return
        self.state_gamma = self._add_gamma("state_gamma", self.units)
        self.state_beta = None
        if self.use_bias:
            self.state_beta = self.add_weight(
                shape=(self.units,),
                name="state_beta",
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )

    def _initial_bias(self, shape: Any, dtype: Any = None) -> Tensor:
        if not self.unit_forget_bias:
            return super()._initial_bias(shape, dtype)
        i, c, o = (self.bias_initializer((self.units,), dtype=dtype) for _ in range(3))
        return ops.concatenate([i, ops.ones_like(i), c, o])

    def step(
        self, projected: Tensor, states: list[Tensor], blocks: list[Block], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        h, c = states
        (block,) = blocks
        z = _product(h, block.kernel, self._recurrent_masks(h, training), block.product)
        i, f, g, o = self._gates(self._pre_activations(projected, z, block))
        c = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        read = c
        if self.variant == "paper":
            read = self._normalized_with_mean(c, self.state_gamma, self.state_beta)
        h = self.recurrent_activation(o) * self.activation(read)
        return h, [h, c]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
        }


@keras.saving.register_keras_serializable(package="keras_bn")
class LayerNormGRUCell(LayerNormCell, keras.layers.GRUCell):
    """One step of a gated recurrent unit with layer normalization inside.

    With norm(z) = (z − mean z)/√(var z + ε) over the units of one sample, `variant="gate"` is

        z = σ(γ_z·norm(W_z·x + R_z·h) + b_z)
        r = σ(γ_r·norm(W_r·x + R_r·h) + b_r)
        n = tanh(γ_n·norm(W_n·x + r⊙(R_n·h)) + b_n)
        h ← z⊙h + (1 − z)⊙n

    and `variant="paper"`, with norm over the units of z and r together, and over those of n

        [z, r] = σ(γ_x·norm(W·x) + b_x + γ_h·norm(R·h) + b_h)
        n = tanh(γ_xn·norm(W_n·x) + b_xn + r⊙(γ_hn·norm(R_n·h) + b_hn))

    With `reset_after=False` the reset gate comes before the product, R_n·(r⊙h), and there is no
    b_h. The update gate is Keras's: it keeps h where z is 1, the paper's where it is 0.

    Args:
        units: Size of the output and of the state.
        *args, **kwargs: Those of `keras.layers.GRUCell`: `activation`, `recurrent_activation`,
            `use_bias`, initializers, regularizers and constraints of the kernels and biases,
            `dropout`, `recurrent_dropout`, `reset_after`, `seed`.
        epsilon: Added to the variances. Positive.
        variant: "gate" or "paper".
        gamma_initializer, gamma_regularizer, gamma_constraint: For every γ.

    Call arguments:
        inputs: (batch, features).
        states: h, (batch, units), alone or in a list.
        training: Whether to apply `dropout` and `recurrent_dropout`.

    Weights:
        `kernel` (features, 3·units) and `recurrent_kernel` (units, 3·units) as in
        `keras.layers.GRUCell`, gates in the order z, r, n; `bias` (3·units,), or the b_x and b_h
        of "paper" with `reset_after` (2, 3·units); then `gamma` (3·units,), or `kernel_gamma`
        and `recurrent_gamma` (3·units,).

    Returns:
        h, and h as `states` had it.

    Example:

    >>> import numpy as np
    >>> h, _ = LayerNormGRUCell(4)(np.ones((2, 3)), np.zeros((2, 4)))
    >>> tuple(h.shape)
    (2, 4)

    Reference:
        Ba, Kiros and Hinton, 2016, Layer Normalization, https://arxiv.org/abs/1607.06450,
        the supplement's gated recurrent unit for "paper".
    """

    blocks = (2, 1)

    def _bias_shape(self) -> tuple[int, ...]:
        two = self.variant == "paper" and self.reset_after
        return (2, 3 * self.units) if two else (3 * self.units,)

    def _kernel_and_recurrent_bias(self) -> tuple[Any, Any]:
        if self.bias is None or len(self.bias.shape) == 1:
            return self.bias, None
        return self.bias[0], self.bias[1]

    def loop_blocks(self) -> list[Block]:
        gates, candidate = super().loop_blocks()
        if self.variant == "gate" and self.reset_after:
            # The reset gate weighs the product unit by unit before any mean is taken of it.
            candidate = candidate._replace(kernel=self._cut(self.recurrent_kernel)[1])
        return [gates, candidate]

    def step(
        self, projected: Tensor, states: list[Tensor], blocks: list[Block], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        (h,) = states
        gates, candidate = blocks
        x_gates, x_candidate = self._cut(projected)
        masks = self._recurrent_masks(h, training)

        z = _product(h, gates.kernel, masks and masks[:2], gates.product)
        z = self._pre_activations(x_gates, z, gates)
        update, reset = self._gates(self.recurrent_activation(z))

        seen = h if self.reset_after else reset * h
        new = _product(seen, candidate.kernel, masks and masks[2:], candidate.product)
        if self.variant == "paper":
            new = self._normalized(new, candidate.gamma, candidate.bias)
        new = x_candidate + (reset * new if self.reset_after else new)
        if self.variant == "gate":
            new = self._normalized_with_mean(new, candidate.gamma, candidate.bias)[:, 0]
        h = update * h + (1 - update) * self.activation(new)
        return h, [h]


@keras.saving.register_keras_serializable(package="keras_bn")
class LayerNormSimpleRNNCell(LayerNormCell, keras.layers.SimpleRNNCell):
    """One step of a simple recurrent network with layer normalization inside.

    With norm(z) = (z − mean z)/√(var z + ε) over the units of one sample,

        h ← tanh(γ·norm(W·x + R·h) + b)                 variant="gate"
        h ← tanh(γ_x·norm(W·x) + γ_h·norm(R·h) + b)     variant="paper"

    The first is the paper's own for this network (equation 4); the second treats the two
    products as the paper does in its LSTM and GRU.

    Args:
        units: Size of the output and of the state.
        *args, **kwargs: Those of `keras.layers.SimpleRNNCell`: `activation`, `use_bias`,
            initializers, regularizers and constraints of the kernels and of b, `dropout`,
            `recurrent_dropout`, `seed`.
        epsilon: Added to the variances. Positive.
        variant: "gate" or "paper".
        gamma_initializer, gamma_regularizer, gamma_constraint: For every γ.

    Call arguments:
        inputs: (batch, features).
        states: h, (batch, units), alone or in a list.
        training: Whether to apply `dropout` and `recurrent_dropout`.

    Weights:
        `kernel` (features, units), `recurrent_kernel` (units, units), `bias` (units,); then
        `gamma` (units,), or `kernel_gamma` and `recurrent_gamma` (units,).

    Returns:
        h, and h as `states` had it.

    Example:

    >>> import numpy as np
    >>> h, _ = LayerNormSimpleRNNCell(4)(np.ones((2, 3)), np.zeros((2, 4)))
    >>> tuple(h.shape)
    (2, 4)

    Reference:
        Ba, Kiros and Hinton, 2016, Layer Normalization, https://arxiv.org/abs/1607.06450.
    """

    blocks = (1,)

    def step(
        self, projected: Tensor, states: list[Tensor], blocks: list[Block], training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        (h,) = states
        (block,) = blocks
        z = _product(h, block.kernel, self._recurrent_masks(h, training), block.product)
        (z,) = self._gates(self._pre_activations(projected, z, block))
        h = self.activation(z)
        return h, [h]


def _product(
    x: Tensor,
    kernel: Tensor,
    masks: Any,
    product: Callable[[Tensor, Tensor], Tensor] = ops.matmul,
) -> Tensor:
    """x·kernel with x dropped out: by one mask, or by one for each of as many blocks of columns."""
    if not isinstance(masks, list):
        return product(x if masks is None else x * masks, kernel)
    parts = ops.split(kernel, len(masks), axis=-1)
    return _joined([ops.matmul(x * mask, part) for mask, part in zip(masks, parts, strict=True)])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, -1)
