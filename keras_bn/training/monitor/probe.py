"""One pass of a batch through a model and back, on each backend, with nothing in it moved.

The weights enter as tensors beside the model's variables (keras.StatelessScope), so whatever the
pass assigns (statistics, seeds of dropout, metrics) ends with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_bn.layers.moments import align_mask, moments
from keras_bn.training import processes
from keras_bn.training.monitor.activations import Activation
from keras_bn.training.monitor.watch import Seen, channel_axes, chosen, own_weights, watching
from keras_bn.training.recording import Recording

Tensor = Any

SAMPLED = 2**16
"""Elements of a tensor that its histogram is made of at most: shares are then within 0.5 % of the
whole tensor's (Dvoretzky, Kiefer and Wolfowitz's bound at 95 %, √(ln 40/(2·65536)) = 0.0053)."""

EAGER_RUNS = 3
"""Runs up to which TensorFlow computes the pass operation by operation. Tracing a graph of it takes
as long as five or six such runs, but those after it are several times faster
(tools/benchmarks/monitor.py)."""

Batch = tuple[Any, Any, Any]
"""Inputs, targets and sample weights; the last two may be None."""


@dataclass(frozen=True)
class Reading:
    """What a pass found, in arrays, each beside the layer it belongs to.

    Attributes:
        loss: The loss, or None where none could be computed.
        places: For each call of a watched layer, the call and what `_place` returns.
        flow: For each call of `Seen.gradient_flow`, √Σ(∂loss/∂outputs)².
        weights: For each layer with trainable weights of its own, the norms of the gradient by
            them, of that by their kernels, and of these.
    """

    loss: float | None
    places: list[tuple[Place, dict[str, Any]]]
    flow: list[tuple[Any, float | None]]
    weights: list[tuple[Any, tuple[float | None, float | None, float | None]]]

    def is_finite(self) -> bool:
        """Whether all norms of gradients are finite."""
        norms = [norm for _, norm in self.flow] + [norms[0] for _, norms in self.weights]
        return all(math.isfinite(norm) for norm in norms if norm is not None)


@dataclass(frozen=True)
class Place:
    """A call of a layer, apart from its tensors.

    Attributes:
        number: Among the calls of the pass.
        layer: The layer.
        activation: The activation beside it, if any.
    """

    number: int
    layer: Any
    activation: Activation | None


@dataclass(frozen=True)
class _Owner:
    layer: Any
    weights: list[int]  # numbers of the model's trainable variables
    kernels: list[int]  # those of them whose scale the outputs depend on


class Probe:
    """A batch's way through a model and back, run whenever this is called.

    Args:
        model: A built and compiled model.
        batch: In tensors of the backend.
        requested: The layers to watch; without any, those of `chosen`.
        runs: How often it is likely to be called; None if nobody knows.
    """

    def __init__(
        self, model: keras.Model, batch: Batch, requested: Sequence[Any], runs: int | None = None
    ) -> None:
        self._model, self._batch, self._requested = model, batch, requested
        self._runs = math.inf if runs is None else runs
        self._trainable = list(model.trainable_variables)
        self._others = [*model.non_trainable_variables, *model.metrics_variables]
        # What the pass came through.
        self._places: list[Place] = []
        self._flow: list[Place] = []
        self._owners: list[_Owner] = []
        run = {"tensorflow": self._with_a_tape, "jax": self._differentiated, "torch": self._eagerly}
        self._run: Callable[[Any], Any] = run[keras.backend.backend()]()

    def __call__(self) -> Reading:
        scale = _loss_scale(self._model)
        reading = self._read(scale)
        if scale != 1 and not reading.is_finite():
            # While the scale is too large for half precision, training skips steps and lowers it:
            # that says nothing about the network.
            reading = self._read(1.0)
        return reading

    def _read(self, scale: float) -> Reading:
        loss, places, by_outputs, by_weights, kernels = tree.map_structure(
            lambda one: None if one is None else np.asarray(ops.convert_to_numpy(one)),
            self._run(np.float32(scale)),
        )
        for place, one in zip(self._places, places, strict=True):
            one["gradient_norm"] = _norm([by_outputs[place.number]], scale)
        return Reading(
            None if loss is None else float(loss),
            list(zip(self._places, places, strict=True)),
            [(place.layer, _norm([by_outputs[place.number]], scale)) for place in self._flow],
            [
                (
                    owner.layer,
                    (
                        _norm([by_weights[number] for number in owner.weights], scale),
                        _norm([by_weights[number] for number in owner.kernels], scale),
                        _norm([kernels[number] for number in owner.kernels], 1.0),
                    ),
                )
                for owner in self._owners
            ],
        )

    def _forward(
        self,
        trainable: Sequence[Tensor],
        others: Sequence[Tensor],
        batch: Batch,
        passing: Callable[[int, Tensor], Tensor],
    ) -> tuple[Tensor | None, dict[int, dict[str, Tensor]]]:
        """The loss, and the tensors of the calls that are measured by their numbers."""
        model = self._model
        mapping = [
            *zip(self._trainable, trainable, strict=True),
            *zip(self._others, others, strict=True),
        ]
        with (
            keras.StatelessScope(mapping, collect_losses=True),
            watching(model, self._requested, passing) as seen,
        ):
            training = {"training": Recording()} if model._call_has_training_arg else {}
            y_pred = model(batch[0], **training)
            loss = _loss(model, batch, y_pred)
        self._sort_out(seen, y_pred)
        measured = {place.number for place in (*self._places, *self._flow)}
        return loss, {
            number: {
                "inputs": call.inputs,
                "mask": call.mask,
                "outputs": call.outputs,
                "activated": None if call.activation is None else call.activation[1],
            }
            for number, call in enumerate(seen.calls)
            if number in measured
        }

    def _sort_out(self, seen: Seen, y_pred: Any) -> None:
        def place(call: Any) -> Place:
            number = next(number for number, one in enumerate(seen.calls) if one is call)
            return Place(number, call.layer, call.activation and call.activation[0])

        self._places = [place(call) for call in chosen(seen.calls, self._requested, y_pred)]
        self._flow = [place(call) for call in seen.gradient_flow()]
        if self._owners:
            return
        numbers = {id(variable): number for number, variable in enumerate(self._trainable)}
        normalized = seen.normalized()
        scale_free = {id(call.layer) for call in seen.calls if id(call.outputs) in normalized}
        for layer in seen.in_order(self._model):
            weights = own_weights(layer)
            # A table of embeddings learns the few rows that a batch looks up.
            free = id(layer) in scale_free or isinstance(layer, keras.layers.Embedding)
            kernels = [] if free else [weight for weight in weights if len(weight.shape) > 1]
            if weights:
                self._owners.append(
                    _Owner(
                        layer,
                        [numbers[id(weight)] for weight in weights],
                        [numbers[id(weight)] for weight in kernels],
                    )
                )

    def _measured(
        self,
        loss: Tensor | None,
        tensors: dict[int, dict[str, Tensor]],
        by_outputs: dict[int, Tensor | None],
        trainable: Sequence[Tensor],
        others: Sequence[Tensor],
        by_weights: Sequence[Tensor | None],
    ) -> Any:
        """What is taken from the pass: few operations, since each is traced or called singly."""
        kernels = {number for owner in self._owners for number in owner.kernels}
        # By the tensors that went in: a compiled function takes a variable's value for constant.
        values = {id(one): value for one, value in zip(self._others, others, strict=True)}
        return (
            loss,
            [_place(place, tensors[place.number], values) for place in self._places],
            {number: _squares(gradient) for number, gradient in by_outputs.items()},
            [_squares(gradient) for gradient in by_weights],
            {number: _squares(trainable[number]) for number in kernels},
        )

    def _with_a_tape(self) -> Callable[[Any], Any]:
        import tensorflow as tf

        def run(scale: Any) -> Any:
            trainable = [tf.convert_to_tensor(variable.value) for variable in self._trainable]
            others = [tf.convert_to_tensor(variable.value) for variable in self._others]
            with tf.GradientTape() as tape:
                tape.watch(trainable)

                def passing(number: int, outputs: Tensor) -> Tensor:
                    tape.watch(outputs)
                    return outputs

                loss, tensors = self._forward(trainable, others, self._batch, passing)
                scaled = None if loss is None else tf.cast(loss, "float32") * scale
            targets = [{number: one["outputs"] for number, one in tensors.items()}, trainable]
            if scaled is None:
                by_outputs, by_weights = tree.map_structure(lambda one: None, targets)
            else:
                by_outputs, by_weights = tape.gradient(scaled, targets)
            return self._measured(loss, tensors, by_outputs, trainable, others, by_weights)

        if self._model.run_eagerly or self._runs <= EAGER_RUNS:
            return run
        return tf.function(run, autograph=False)

    def _differentiated(self) -> Callable[[Any], Any]:
        import jax

        def run(trainable: Any, others: Any, batch: Batch, scale: Any) -> Any:
            def forward(trainable: Any, nudges: dict[int, Tensor]) -> Any:
                def passing(number: int, outputs: Tensor) -> Tensor:
                    return outputs + nudges[number] if number in nudges else outputs

                loss, tensors = self._forward(trainable, others, batch, passing)
                scaled = 0.0 if loss is None else loss.astype("float32") * scale
                return scaled, (loss, tensors)

            # The gradient by a zero that is added to a tensor is that by the tensor.
            _, (_, shapes) = jax.eval_shape(forward, trainable, {})
            nudges = {
                number: jax.numpy.zeros(one["outputs"].shape, one["outputs"].dtype)
                for number, one in shapes.items()
            }
            gradient = jax.grad(forward, argnums=(0, 1), has_aux=True)
            (by_weights, by_outputs), (loss, tensors) = gradient(trainable, nudges)
            if loss is None:
                by_weights = [None] * len(by_weights)
                by_outputs = dict.fromkeys(by_outputs)
            return self._measured(loss, tensors, by_outputs, trainable, others, by_weights)

        model, batch = self._model, _over_devices(self._batch)
        if model.jit_compile and not model.run_eagerly:
            shardings = processes.result_shardings([])
            run = jax.jit(run, out_shardings=None if shardings is None else shardings[0])

        def run_on_the_model(scale: Any) -> Any:
            return run(
                [variable.value for variable in self._trainable],
                [variable.value for variable in self._others],
                batch,
                scale,
            )

        return run_on_the_model

    def _eagerly(self) -> Callable[[Any], Any]:
        import torch

        def passing(number: int, outputs: Tensor) -> Tensor:
            return outputs if outputs.requires_grad else outputs.detach().requires_grad_()

        def run(scale: Any) -> Any:
            trainable = [variable.value.detach().requires_grad_() for variable in self._trainable]
            others = [variable.value.detach() for variable in self._others]
            # What modules of PyTorch itself keep and draw goes past Keras's scope.
            buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
            with torch.random.fork_rng(), torch.enable_grad():
                loss, tensors = self._forward(trainable, others, self._batch, passing)
                targets = [*(one["outputs"] for one in tensors.values()), *trainable]
                if loss is None or not loss.requires_grad:
                    gradients = [None] * len(targets)
                else:
                    scaled = loss.float() * float(scale)
                    gradients = torch.autograd.grad(scaled, targets, allow_unused=True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
                by_outputs = dict(zip(tensors, gradients, strict=False))
                by_weights = gradients[len(tensors) :]
                return self._measured(loss, tensors, by_outputs, trainable, others, by_weights)

        return run


def as_tensors(batch: Batch) -> Batch:
    """`batch` in tensors of the backend, whichever it came in, in the precision `fit` gives it."""

    def tensor(one: Any) -> Any:
        if one is None or (hasattr(one, "dtype") and not hasattr(one, "__array__")):
            return one  # ragged and sparse tensors, which no array holds
        array = np.asarray(one.detach().cpu() if hasattr(one, "detach") else one)
        if np.issubdtype(array.dtype, np.floating):
            array = array.astype(keras.config.floatx())
        return array if keras.backend.backend() == "jax" else ops.convert_to_tensor(array)

    return tree.map_structure(tensor, batch)


def _over_devices(batch: Batch) -> Batch:
    """`batch` shared out over the devices of a keras.distribution, if there is one."""
    given = [part for part in batch if part is not None]
    parts = iter(next(processes.over_devices([given])))
    x, y, sample_weight = (None if part is None else next(parts) for part in batch)
    return x, y, sample_weight


def _loss(model: keras.Model, batch: Batch, y_pred: Any) -> Tensor | None:
    """The loss that `model` trains by, regularization included; None where there is none."""
    x, y, sample_weight = batch
    if y is None and model.loss is not None:
        return None  # inputs alone were given
    computes_its_own = type(model).compute_loss is not keras.Model.compute_loss
    if model.loss is None and not computes_its_own and not model.losses:
        return None  # as where train_step has losses of its own
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def _loss_scale(model: keras.Model) -> float:
    """What the optimizer multiplies the loss by, so that half-precision gradients are not lost."""
    if not isinstance(model.optimizer, keras.optimizers.Optimizer):
        return 1.0
    return float(ops.convert_to_numpy(model.optimizer.scale_loss(ops.ones(()))))


def _place(place: Place, tensors: dict[str, Tensor], values: dict[int, Tensor]) -> dict[str, Any]:
    """What is taken at a call of a watched layer.

    input, output, activation: Up to `SAMPLED` of the values, evenly spread (`_sample`).
    dead: Share of the units whose activation was at its floor for every sample and position.
    moments: Of a batch normalization, mean and variance of the batch, and the moving ones.
    """
    layer, activation = place.layer, place.activation
    inputs, outputs, activated = tensors["inputs"], tensors["outputs"], tensors["activated"]
    units = channel_axes(layer, len(outputs.shape))
    mask = _mask(tensors["mask"], outputs, units)
    taken: dict[str, Any] = {
        "input": _sample(inputs, _mask(tensors["mask"], inputs, units)),
        "output": _sample(outputs, mask),
        "activation": None if activated is None else _sample(activated, mask),
        "dead": None,
        "moments": None,
    }
    if activation is not None and activation.floor is not None:
        taken["dead"] = _dead(activated, activation.floor, units, mask)
    if isinstance(layer, keras.layers.BatchNormalization):
        x = ops.cast(inputs, "float32")
        batch = moments(x, [axis for axis in range(len(x.shape)) if axis not in units], mask)
        taken["moments"] = [
            batch.mean,
            batch.variance,
            values[id(layer.moving_mean)],
            values[id(layer.moving_variance)],
        ]
    return taken


def _dead(activated: Tensor, floor: float, units: Sequence[int], mask: Tensor | None) -> Tensor:
    off = ops.equal(activated, floor)
    if mask is not None:
        off = ops.logical_or(off, ops.logical_not(mask))
    others = [axis for axis in range(len(activated.shape)) if axis not in units]
    return ops.mean(ops.cast(ops.all(off, others), "float32"))


def _squares(tensor: Tensor | None) -> list[Tensor] | None:
    """A unit u and Σ(x/u)², which float32 holds where it would not hold Σx²."""
    if tensor is None:
        return None
    tensor = ops.convert_to_tensor(tensor)  # the gradient by a table of embeddings is sparse
    if keras.backend.backend() != "jax":
        return [1.0, ops.sum(ops.square(ops.cast(tensor, "float64")))]
    # JAX has no float64 unless it is told to.
    tensor = ops.cast(tensor, "float32")
    largest = ops.max(ops.abs(tensor))
    unit = ops.where(ops.logical_and(largest > 0, ops.isfinite(largest)), largest, 1)
    return [unit, ops.sum(ops.square(tensor / unit))]


def _norm(squares: Sequence[Any], scale: float) -> float | None:
    """√Σx² over all elements of several tensors, over `scale`; None where there are none."""
    present = [np.float64(unit) ** 2 * np.float64(total) for unit, total in filter(None, squares)]
    return float(np.sqrt(np.sum(present)) / scale) if present else None


def _mask(mask: Tensor | None, tensor: Tensor, units: Sequence[int]) -> Tensor | None:
    """`mask` as a boolean tensor of the rank of `tensor`; None where it does not fit that."""
    if mask is None:
        return None
    try:
        return ops.cast(align_mask(mask, tensor, units), "bool")
    except ValueError:
        return None  # a mask of the time steps before a convolution shortened them


def _sample(tensor: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Elements of `tensor` in float32, all or evenly spread ones, and which of them count."""
    size = math.prod(tensor.shape) if all(tensor.shape) else 0
    stride = -(-size // SAMPLED)
    # Without a common divisor no axis has a place that is never looked at.
    while math.gcd(stride, size) > 1 and size:
        stride += 1

    def some(whole: Tensor) -> Tensor:
        flat = ops.reshape(whole, (-1,))
        return flat[::stride] if stride > 1 else flat

    return {
        "values": ops.cast(some(tensor), "float32"),
        "kept": None if mask is None else some(ops.broadcast_to(mask, ops.shape(tensor))),
    }
