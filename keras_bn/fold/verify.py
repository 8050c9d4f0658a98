"""Whether a folded model computes what the original computes, up to rounding.

Both models run on random inputs of several sizes. Where they differ by more than float32 usually
rounds, some models amplify every rounding, so the original is asked how much it does: it is run on
inputs that differ in their last bits, and in float64 if that does not explain it. Where outputs
saturate, as behind a softmax, few elements show anything at all, and one run alone would miss them
by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src.backend.common import dtypes

from keras_bn.errors import UnsupportedModelError
from keras_bn.graph.inputs import random_inputs
from keras_bn.graph.rebuild import Changes, rebuild
from keras_bn.graph.view import functional_graph

# Rows of the inputs are normal with these deviations, and each is judged by itself. Of large
# inputs, which models take long for, there is one row only, and of large images a part: the layers
# that fold compute the same everywhere in them.
_DEVIATIONS = (1.0, 0.01, 100.0)
_SIDE = 128
_LARGE = 3 * _SIDE * _SIDE

# Differences relative to a row's largest output that are not looked into: a hundred layers whose
# sums round by three times float32's 2⁻²⁴ each. Only above it is the original asked.
_USUAL = 2e-5

# Folding rounds the weights once more and sums in another order, which may double an error; the
# rest is for the luck of the draw.
_WORSE = 8.0

# Runs of the original on inputs that differ by up to the last bit of float32, 2⁻²³.
_DISTURBANCES = 4
_LAST_BIT = 2.0**-23

# A model whose outputs come this far apart may as well be one that draws random numbers.
_CHAOS = 1e-3


@dataclass(frozen=True)
class Verdict:
    """How far a folded model is from its original.

    Attributes:
        max_abs_error: Largest absolute difference on inputs of mean 0 and deviation 1; NaN where
            the original cannot be run on random inputs.
        error: Largest difference from the exact result, relative to the largest output.
        usual: How far rounding alone takes the original.
    """

    max_abs_error: float
    error: float = 0.0
    usual: float = _USUAL

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference."""
        return not self.error > max(_USUAL, _WORSE * self.usual)

    def __str__(self) -> str:
        return f"off by {self.error:.1e}, where rounding alone makes {self.usual:.1e}"


class Verifier:
    """Judges models that are to compute what `model` computes."""

    def __init__(self, model: keras.Model, readable: keras.Model) -> None:
        """`readable` computes the same as `model` and has a graph to read."""
        self.model = model
        self.readable = readable

    def __call__(self, folded: keras.Model) -> Verdict:
        """Compare `folded` with the original."""
        if self.original is None:
            return Verdict(math.nan)
        outputs = run(folded, self.inputs)
        max_abs_error = max(  # in the row of deviation 1
            float(np.max(np.abs(a[:1] - b[:1]), initial=0.0))
            for a, b in zip(self.original, outputs, strict=True)
        )
        error = _relative(self.original, outputs)
        if not error > _USUAL:
            return Verdict(max_abs_error, error)
        verdict = Verdict(max_abs_error, error, self.disturbed)
        if verdict.holds and (self.disturbed < _CHAOS or self.repeatable):
            return verdict  # without the exact result, which takes long
        if not self.repeatable:
            return Verdict(math.nan)
        if self.exact is None:
            return Verdict(max_abs_error, error, self.amplified)
        usual = max(_relative(self.exact, self.original), self.amplified)
        return Verdict(max_abs_error, _relative(self.exact, outputs), usual)

    @property
    def inputs(self) -> Any:
        """Random inputs, each row of a deviation of its own where they are numbers at all."""
        return self._tried[0]

    @property
    def original(self) -> list[np.ndarray] | None:
        """What the original computes; None where it cannot be run on random inputs."""
        return self._tried[1]

    @cached_property
    def _tried(self) -> tuple[Any, list[np.ndarray] | None]:
        try:
            inputs = random_inputs(self.readable, samples=1)
        except UnsupportedModelError:  # as of strings
            return None, None
        size = sum(array.size for array in tree.flatten(inputs))
        if size < _LARGE:
            inputs = random_inputs(self.readable, samples=len(_DEVIATIONS))

        def scaled(array: np.ndarray) -> np.ndarray:
            deviations = np.resize(_DEVIATIONS, len(array)).astype(array.dtype)
            return array * deviations.reshape(-1, *(1,) * (array.ndim - 1))

        inputs = _map_numbers(scaled, inputs)
        parts = tree.map_structure(_part, inputs)
        for some in (parts, inputs) if size > _LARGE else (inputs,):
            # A layer may raise anything at a size, or at values, that it cannot take.
            with suppress(Exception):
                return some, run(self.model, some)
        return inputs, None

    @cached_property
    def repeatable(self) -> bool:
        """Whether the original computes the same once more, as one that is random does not."""
        assert self.original is not None
        again = run(self.model, self.inputs)
        return all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(self.original, again, strict=True)
        )

    @cached_property
    def disturbed(self) -> float:
        """How far apart the original's outputs come for inputs that differ in their last bits."""
        return self._disturbed(seed=0)

    @cached_property
    def amplified(self) -> float:
        """The same, the largest of several such differences."""
        return max(self.disturbed, *map(self._disturbed, range(1, _DISTURBANCES)))

    def _disturbed(self, seed: int) -> float:
        assert self.original is not None
        rng = np.random.default_rng(seed)

        def disturbed(array: np.ndarray) -> np.ndarray:
            factors = 1 + _LAST_BIT * rng.uniform(-1, 1, array.shape)
            return (array * factors).astype(array.dtype)

        return _relative(self.original, run(self.model, _map_numbers(disturbed, self.inputs)))

    @cached_property
    def exact(self) -> list[np.ndarray] | None:
        """What the original computes in float64; None where it does not come in float64."""
        layers = self.readable._flatten_layers(include_self=False)
        in_float64 = {id(layer): {"dtype": "float64"} for layer in layers}
        try:
            with _float64():
                return run(rebuild(self.readable, Changes(config=in_float64)), self.inputs)
        except Exception:  # a layer of the user's may do without dtype policies
            return None


@contextmanager
def _float64() -> Iterator[None]:
    """Where layers of dtype float64 compute in float64.

    Except on TensorFlow, Keras's rules of promotion, which most layers ask, make float32 of it.
    JAX by itself makes float32 of every float64 array.
    """
    table = dtypes.BIT64_TO_BIT32_DTYPE
    before = table["float64"]
    with _jax_float64() if keras.backend.backend() == "jax" else nullcontext():
        table["float64"] = "float64"
        try:
            yield
        finally:
            table["float64"] = before


def _jax_float64() -> AbstractContextManager[Any]:
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before JAX 0.8

    return enable_x64()


def _map_numbers(change: Callable[[np.ndarray], np.ndarray], inputs: Any) -> Any:
    """`change` applied to every input that is a number and not an index."""

    def apply(array: np.ndarray) -> np.ndarray:
        index = array.dtype.kind != "f" or np.array_equal(array, np.round(array))
        return array if index else change(array)

    return tree.map_structure(apply, inputs)


def _part(array: np.ndarray) -> np.ndarray:
    """The first pixels of images; of arrays that hold none, all."""
    if array.ndim < 4:
        return array
    return array[(slice(None), *(slice(_SIDE),) * (array.ndim - 2))]


def run(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """What `model` computes, in float64; the states that some layers keep stay as they are."""
    graph = functional_graph(model)
    # A graph takes images of other sizes than it was made for, if all its layers do.
    call = model if graph is None else graph.call
    with keras.StatelessScope():
        outputs = call(inputs, training=False)
    return [
        np.asarray(keras.ops.convert_to_numpy(output), np.float64)
        for output in tree.flatten(outputs)
    ]


def _relative(reference: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """Largest difference in any row, relative to the row's largest value in `reference`.

    Infinite where one is finite and the other is not; what neither makes finite says nothing.
    """
    return max((_relative_rows(*pair) for pair in zip(reference, outputs, strict=True)), default=0)


def _relative_rows(reference: np.ndarray, output: np.ndarray) -> float:
    if not reference.size:
        return 0.0
    rows = reference.reshape(len(reference), -1) if reference.ndim else reference.reshape(1, 1)
    others = output.reshape(rows.shape)
    finite, others_finite = np.isfinite(rows), np.isfinite(others)
    if np.any(finite != others_finite):
        return math.inf
    difference = np.abs(np.where(finite, rows - others, 0.0))
    scale = np.max(np.abs(np.where(finite, rows, 0.0)), axis=1, keepdims=True)
    return float(np.max(difference / np.where(scale > 0, scale, 1.0)))
