"""The oracle of every rule: the layer itself, beside an affine in NumPy."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
from keras import tree

from keras_bn.fold import absorb
from keras_bn.fold.affine import Affine, Refused
from keras_bn.graph.rebuild import Changes, rebuild
from tests.random_weights import randomize

# Rounding, relative to the largest output: 2⁻⁵³ ≈ 1e-16 and 2⁻²⁴ ≈ 6e-8 an operation. Sums over
# some hundred products and recurrent steps that amplify stay below a few hundred times that; the
# weights themselves are computed in float64 and rounded once.
TOLERANCES = {"float64": 1e-13, "float32": 2e-5}

DTYPES = pytest.mark.parametrize("dtype", TOLERANCES)


def random_affine(
    shape: Sequence[int], seed: int = 0, *, scales: bool = True, shifts: bool = True
) -> Affine:
    """Scales of both signs, one of them zero and one tiny, and shifts larger than the data."""
    rng = np.random.default_rng(seed)
    scale, shift = np.ones(shape), np.zeros(shape)
    if scales:
        scale = rng.uniform(0.3, 3.0, shape) * rng.choice([-1.0, 1.0], shape)
        if scale.size > 2:
            scale.flat[:2] = 0.0, 1e-9
    if shifts:
        shift = rng.normal(0.0, 3.0, shape)
    return Affine(scale, shift)


def positive(affine: Affine) -> Affine:
    """What passes a ReLU: the scale without signs, no shift."""
    return Affine(np.abs(affine.scale), np.zeros(affine.shape))


def model_around(
    layer: keras.Layer,
    shapes: Sequence[Sequence[int | None]],
    call: Callable[..., object] | None = None,
    input_dtype: str | None = None,
    seed: int = 0,
) -> keras.Model:
    """A model that calls `layer` on inputs of `shapes`, with random weights."""
    dtype = input_dtype or layer.dtype_policy.compute_dtype
    inputs = [keras.Input(tuple(shape), dtype=dtype) for shape in shapes]
    return randomize(keras.Model(inputs, (call or layer)(*inputs)), seed)


def data(model: keras.Model, length: int = 5, seed: int = 1) -> list[np.ndarray]:
    """Wide random inputs; axes of unknown length get `length`."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(0.0, 2.0, (3, *(size or length for size in x.shape[1:]))).astype(x.dtype)
        for x in model.inputs
    ]


def absorbed(model: keras.Model, layer: keras.Layer, *changes: absorb.Change) -> keras.Model:
    """The model with the changed weights in `layer`, which gains what it needs for them."""
    rule = absorb.rule_for(layer)

    def weights():
        values = rule.read(layer)
        for change in changes:
            values = {**values, **change(values)}
        return values

    config = {id(layer): rule.gains(layer)}
    return rebuild(model, Changes(weights={id(layer): weights}, config=config))


def assert_backward(
    model: keras.Model, layer: keras.Layer, affine: Affine, inputs: list[np.ndarray] | None = None
) -> keras.Model:
    """The layer takes in `affine`, which follows its first output; the other outputs stay."""
    inputs = data(model) if inputs is None else inputs
    change = absorb.rule_for(layer).backward(layer, affine)
    changed = absorbed(model, layer, change)
    first, *others = outputs(model, inputs)
    expected = [affine.scale * first + affine.shift, *others]
    assert_close(expected, outputs(changed, inputs), layer)
    return changed


def assert_forward(
    model: keras.Model,
    layer: keras.Layer,
    affine: Affine,
    arguments: Sequence[str],
    given: Sequence[str] = (),
    affected: Sequence[int] = (0,),
    inputs: list[np.ndarray] | None = None,
) -> keras.Model:
    """The layer takes in `affine`, which precedes it on the inputs numbered `affected`."""
    inputs = data(model) if inputs is None else inputs
    shape = model.inputs[affected[0]].shape[1:]
    reading = absorb.Reading(tuple(arguments), shape, (*arguments, *given))
    change = absorb.rule_for(layer).forward(layer, affine, reading)
    changed = absorbed(model, layer, change)
    before = [
        (affine.scale * x + affine.shift).astype(x.dtype) if i in affected else x
        for i, x in enumerate(inputs)
    ]
    assert_close(outputs(model, before), outputs(changed, inputs), layer)
    return changed


def outputs(model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    results = model(inputs, training=False)
    return [np.asarray(keras.ops.convert_to_numpy(y), np.float64) for y in tree.flatten(results)]


def assert_close(expected: list[np.ndarray], actual: list[np.ndarray], layer: keras.Layer) -> None:
    tolerance = TOLERANCES[layer.dtype_policy.compute_dtype]
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        assert one.shape == other.shape
        assert np.max(np.abs(one)) > 0.01, "a test on zeros shows nothing"
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * np.max(np.abs(one)))


def assert_refused(
    layer: keras.Layer,
    affine: Affine,
    reason: str,
    arguments: Sequence[str] | None = None,
    given: Sequence[str] = (),
    shape: Sequence[int | None] | None = None,
) -> None:
    """The built `layer` refuses `affine` behind it, or in front where `arguments` are given."""
    rule = absorb.rule_for(layer)
    with pytest.raises(Refused, match=reason) as refusal:
        if arguments is None:
            rule.backward(layer, affine)
        else:
            rule.forward(
                layer,
                affine,
                absorb.Reading(tuple(arguments), shape or affine.shape, (*arguments, *given)),
            )
    assert f"'{layer.name}'" in str(refusal.value)
