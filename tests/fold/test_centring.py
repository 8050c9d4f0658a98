"""A layer normalization's centring, folded into the layer in front of it."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.fold.absorb.normalization import affine_end
from keras_bn.fold.affine import Affine, Refused
from keras_bn.fold.centring import centring
from keras_bn.graph.rebuild import Changes, rebuild
from tests.fold.absorb.absorption import assert_close, data, model_around, outputs


def end_of(normalization, rank):
    """What `normalization` does last, as the plan has it before anything moves."""
    end = affine_end(normalization, rank)
    return Affine.identity(rank) if end is None else end.affine


LINEAR = {
    "dense": (lambda **o: layers.Dense(6, **o), (5,)),
    "dense-no-bias": (lambda **o: layers.Dense(6, use_bias=False, **o), (5,)),
    "dense-sequence": (lambda **o: layers.Dense(6, **o), (4, 5)),
    "convolution": (lambda **o: layers.Conv2D(6, 2, padding="same", **o), (4, 3, 5)),
}
NORMALIZATIONS = {
    "keras": lambda **o: layers.LayerNormalization(center=False, epsilon=0.1, **o),
    "ours": lambda **o: keras_bn.layers.LayerNormalization(center=False, epsilon=0.1, **o),
    "no-gamma": lambda **o: layers.LayerNormalization(center=False, scale=False, **o),
    "beta": lambda **o: layers.LayerNormalization(epsilon=0.1, **o),
    "beta-alone": lambda **o: keras_bn.layers.LayerNormalization(scale=False, **o),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("make, shape", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("normalize", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_the_outputs_stay(make, shape, normalize, dtype):
    linear, normalization = make(dtype=dtype), normalize(dtype=dtype)
    model = model_around(linear, [shape], lambda x: normalization(linear(x)))
    plan = centring(linear, normalization, end_of(normalization, len(shape)))

    def weights():
        names = ("kernel", "bias") if linear.use_bias else ("kernel",)
        values = {name: getattr(linear, name) for name in names}
        return plan.change(
            {n: np.asarray(keras.ops.convert_to_numpy(v), np.float64) for n, v in values.items()}
        )

    changed = rebuild(
        model,
        Changes(
            weights={id(linear): weights, id(normalization): lambda: plan.weights},
            replaced={id(normalization): plan.stand_in},
        ),
    )
    new = changed.get_layer(normalization.name)
    kinds = [type(layer) for layer in new.layers] if normalization.center else [type(new)]
    addition = [layers.Rescaling] if normalization.center else []
    assert kinds == [layers.RMSNormalization, *addition]
    inputs = data(model)
    assert_close(outputs(model, inputs), outputs(changed, inputs), linear)


def test_the_product_has_no_mean_left():
    linear, normalization = layers.Dense(6), layers.LayerNormalization(center=False)
    model_around(linear, [(5,)], lambda x: normalization(linear(x)))
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(3.0, 1.0, (5, 6)), rng.normal(2.0, 1.0, 6)
    end = end_of(normalization, 1)
    changed = centring(linear, normalization, end).change({"kernel": kernel, "bias": bias})
    x = rng.normal(0.0, 2.0, (7, 5))
    z = x @ kernel + bias
    expected = z - z.mean(-1, keepdims=True)
    # Sums of a few products in float64.
    np.testing.assert_allclose(x @ changed["kernel"] + changed["bias"], expected, atol=1e-13)


def test_refusals():
    def refusal(linear, normalization, shape=(4, 5)):
        model_around(linear, [shape], lambda x: normalization(linear(x)))
        with pytest.raises(Refused) as refused:
            centring(linear, normalization, end_of(normalization, len(shape)))
        return str(refused.value)

    plain = {"center": False}
    assert "activation" in refusal(layers.Dense(6, "relu"), layers.LayerNormalization(**plain))
    assert "other axes" in refusal(layers.Dense(6), layers.LayerNormalization(axis=1, **plain))
    assert "other axes" in refusal(layers.Dense(6), layers.LayerNormalization(axis=(1, 2), **plain))
    assert "mix" in refusal(layers.Conv1D(10, 2, groups=5), layers.LayerNormalization(**plain))
    assert "DepthwiseConv1D" in refusal(
        layers.DepthwiseConv1D(2), layers.LayerNormalization(**plain)
    )
    assert "not a layer norm" in refusal(layers.Dense(6), layers.GroupNormalization(2, **plain))
