"""Layer-normalised recurrent layers: a cell of layer_norm_cells.py over a sequence."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import ops, tree

# The loop over time steps of Keras's own recurrent layers on each backend, which is not public.
from keras.src.backend import rnn as time_loop

from keras_bn.layers.layer_norm_cells import (
    LayerNormCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormSimpleRNNCell,
)
from keras_bn.layers.loop_product import product_with
from keras_bn.layers.moments import Tensor, unmasked


class _LayerNormRNN(keras.layers.RNN):
    """A cell over a sequence, with the product of the kernel and the inputs before the loop."""

    cell_class: ClassVar[type[LayerNormCell]]

    def __init__(
        self,
        units: int,
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        activity_regularizer: Any = None,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
        use_cudnn: bool | str = "auto",
        **cell_options: Any,
    ) -> None:
        if use_cudnn not in ("auto", False):
            raise ValueError(
                "cuDNN has no layer normalization inside its recurrent kernels: `use_cudnn` must "
                f"be 'auto' or False. Received: use_cudnn={use_cudnn!r}"
            )
        super().__init__(
            self.cell_class(units, trainable=trainable, dtype=dtype, **cell_options),
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            unroll=unroll,
            zero_output_for_mask=zero_output_for_mask,
            activity_regularizer=activity_regularizer,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def inner_loop(
        self, sequences: Tensor, initial_state: list[Tensor], mask: Any, training: bool = False
    ) -> Any:
        sequences = _time_first(sequences)  # shorter than its products with the kernel
        mask = None if mask is None else _time_first(ops.cast(tree.flatten(mask)[0], "bool"))
        if self.go_backwards:
            # Not left to the loop: on PyTorch, Keras 3.15 cannot unroll a masked one backwards.
            sequences = ops.flip(sequences, 0)
            mask = None if mask is None else ops.flip(mask, 0)
        if mask is not None:
            mask = ops.expand_dims(mask, -1)
            # Masked steps leave the state as it is, but a NaN in them would reach the gradients.
            sequences = unmasked(sequences, mask)
        blocks = self.cell.loop_blocks()
        if training and keras.backend.backend() == "tensorflow":
            blocks = [block._replace(product=product_with(block.kernel)) for block in blocks]

        def step(projected: Tensor, states: Any) -> tuple[Tensor, list[Tensor]]:
            states = list(states)
            if self.stateful and keras.backend.backend() == "torch":
                # These may be the state variables, which are overwritten before the gradients.
                states = [ops.copy(state) for state in states]
            return self.cell.step(projected, states, blocks, training)

        last_output, outputs, states = time_loop(
            step,
            self.cell.project(sequences, training),
            initial_state,
            mask=mask,
            unroll=self.unroll,
            input_length=sequences.shape[0],
            time_major=True,
            zero_output_for_mask=self.zero_output_for_mask,
            return_all_outputs=self.return_sequences,
        )
        return last_output, _time_first(outputs), states

    @property
    def units(self) -> int:
        return self.cell.units

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["cell"]
        of_the_layer = ("name", "trainable", "dtype", "build_config")
        cell = {k: v for k, v in self.cell.get_config().items() if k not in of_the_layer}
        return {**config, **cell}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _LayerNormRNN:
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_bn")
class LayerNormLSTM(_LayerNormRNN):
    """Long short-term memory with layer normalization inside each step, over a sequence.

    The mathematics is that of `LayerNormLSTMCell`, the arguments are the cell's and those of
    `keras.layers.LSTM`. Every sample and time step is normalized by itself, so a sequence gives the
    same outputs in any batch, at any length, in training and in inference. Masked steps leave
    the state as it is and pass back zero gradients, even where they hold NaN.

    The kernel's product with the inputs is computed for all time steps at once.

    Args:
        units: Size of the output.
        activation, recurrent_activation, use_bias: As in `keras.layers.LSTM`.
        return_sequences: Whether to return every step's output, not only the last.
        return_state: Whether to return the last states as well.
        go_backwards: Whether to begin at the end. Outputs are then in the order computed.
        stateful: Whether the next batch goes on from the last state of this one.
        unroll: Whether to write the steps out instead of looping.
        zero_output_for_mask: Whether the output of a masked step is 0, not the previous one.
        activity_regularizer, name, trainable, dtype: As in every layer.
        use_cudnn: "auto" or False, since cuDNN has no such kernel.
        **kwargs: The other arguments of `LayerNormLSTMCell`.

    Call arguments:
        sequences: (batch, time, features).
        initial_state: The states [h, c] to begin with, (batch, units) each; zeros if None.
        mask: Boolean (batch, time), True at the steps that count.
        training: Whether to apply dropout.

    Output shape:
        (batch, units), or (batch, time, units) with `return_sequences`; with `return_state`
        followed by the last h and c, (batch, units) each.

    Example:

    >>> import numpy as np
    >>> layer = LayerNormLSTM(4, return_sequences=True)
    >>> tuple(layer(np.ones((2, 5, 3))).shape)
    (2, 5, 4)

    Reference:
        Ba, Kiros and Hinton, 2016, Layer Normalization, https://arxiv.org/abs/1607.06450
    """

    cell_class = LayerNormLSTMCell

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_bn")
class LayerNormGRU(_LayerNormRNN):
    """Gated recurrent units with layer normalization inside each step, over a sequence.

    The mathematics is that of `LayerNormGRUCell`, the arguments are the cell's and those of
    `keras.layers.GRU`. Every sample and time step is normalized by itself, so a sequence gives the
    same outputs in any batch, at any length, in training and in inference. Masked steps leave
    the state as it is and pass back zero gradients, even where they hold NaN.

    The kernel's product with the inputs is computed for all time steps at once.

    Args:
        units: Size of the output.
        activation, recurrent_activation, use_bias: As in `keras.layers.GRU`.
        return_sequences: Whether to return every step's output, not only the last.
        return_state: Whether to return the last state as well.
        go_backwards: Whether to begin at the end. Outputs are then in the order computed.
        stateful: Whether the next batch goes on from the last state of this one.
        unroll: Whether to write the steps out instead of looping.
        zero_output_for_mask: Whether the output of a masked step is 0, not the previous one.
        activity_regularizer, name, trainable, dtype: As in every layer.
        use_cudnn: "auto" or False, since cuDNN has no such kernel.
        **kwargs: The other arguments of `LayerNormGRUCell`.

    Call arguments:
        sequences: (batch, time, features).
        initial_state: The state [h] to begin with, (batch, units); zeros if None.
        mask: Boolean (batch, time), True at the steps that count.
        training: Whether to apply dropout.

    Output shape:
        (batch, units), or (batch, time, units) with `return_sequences`; with `return_state`
        followed by the last h, (batch, units).

    Example:

    >>> import numpy as np
    >>> layer = LayerNormGRU(4, return_sequences=True)
    >>> tuple(layer(np.ones((2, 5, 3))).shape)
    (2, 5, 4)

    Reference:
        Ba, Kiros and Hinton, 2016, Layer Normalization, https://arxiv.org/abs/1607.06450
    """

    cell_class = LayerNormGRUCell

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_bn")
class LayerNormSimpleRNN(_LayerNormRNN):
    """A simple recurrent network with layer normalization inside each step, over a sequence.

    The mathematics is that of `LayerNormSimpleRNNCell`, the arguments are the cell's and those
    of `keras.layers.SimpleRNN`. Every sample and time step is normalized by itself, so a sequence
    gives the same outputs in any batch, at any length, in training and in inference. Masked steps
    leave the state as it is and pass back zero gradients, even where they hold NaN.

    The kernel's product with the inputs is computed for all time steps at once.

    Args:
        units: Size of the output.
        activation, use_bias: As in `keras.layers.SimpleRNN`.
        return_sequences: Whether to return every step's output, not only the last.
        return_state: Whether to return the last state as well.
        go_backwards: Whether to begin at the end. Outputs are then in the order computed.
        stateful: Whether the next batch goes on from the last state of this one.
        unroll: Whether to write the steps out instead of looping.
        zero_output_for_mask: Whether the output of a masked step is 0, not the previous one.
        activity_regularizer, name, trainable, dtype: As in every layer.
        use_cudnn: "auto" or False, since cuDNN has no such kernel.
        **kwargs: The other arguments of `LayerNormSimpleRNNCell`.

    Call arguments:
        sequences: (batch, time, features).
        initial_state: The state [h] to begin with, (batch, units); zeros if None.
        mask: Boolean (batch, time), True at the steps that count.
        training: Whether to apply dropout.

    Output shape:
        (batch, units), or (batch, time, units) with `return_sequences`; with `return_state`
        followed by the last h, (batch, units).

    Example:

    >>> import numpy as np
    >>> layer = LayerNormSimpleRNN(4, return_sequences=True)
    >>> tuple(layer(np.ones((2, 5, 3))).shape)
    (2, 5, 4)

    Reference:
        Ba, Kiros and Hinton, 2016, Layer Normalization, https://arxiv.org/abs/1607.06450
    """

    cell_class = LayerNormSimpleRNNCell

    def __init__(
        self, units: int, activation: Any = "tanh", use_bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(units, activation=activation, use_bias=use_bias, **kwargs)


def _time_first(sequences: Tensor) -> Tensor:
    """(batch, time, …) -> (time, batch, …) and back"""
    return ops.swapaxes(sequences, 0, 1)
