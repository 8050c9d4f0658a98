"""Random graphs of every layer that folding knows: what comes out computes what went in."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from keras import tree

import keras_bn
from tests.fold.random_graphs import (
    batch_norms,
    build,
    data,
    decisions,
    fit_statistics,
    following,
    random_graph,
)

pytestmark = [
    pytest.mark.backend("tensorflow", because="elsewhere Keras computes float64 in float32"),
    # Keras says of layers behind an Embedding that they do not pass its mask on.
    pytest.mark.filterwarnings("ignore:Layer .* does not support masking:UserWarning"),
]


def sampled(examples):
    # A graph takes tenths of a second to build, which Hypothesis would call slow.
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


def outputs(model, inputs):
    return [np.asarray(y, np.float64) for y in tree.flatten(model(inputs, training=False))]


def error(reference, others):
    """The largest difference in any output, relative to that output's largest value."""
    return max(
        np.max(np.abs(a - b)) / np.max(np.abs(a), initial=1e-30)
        for a, b in zip(reference, others, strict=True)
    )


def representable(values):
    """Whether float32 has room for the outputs: products of products may leave it."""
    return all(np.all(np.isfinite(value)) and np.max(np.abs(value)) < 1e30 for value in values)


@sampled(60)
@given(decisions)
def test_in_float64_nothing_but_rounding_changes(decisions):
    # float64 has no rounding to hide behind. Statistics are arbitrary: means up to 100 deviations,
    # deviations over four decades, gammas of both signs, zero, tiny and huge.
    graph = random_graph(following(decisions))
    note(repr(graph))
    model = build(graph, "float64")
    inputs = data(graph)
    before = [np.array(weight) for weight in model.weights]
    expected = outputs(model, inputs)
    # What `verify` would find is what this test is to find.
    result = keras_bn.fold(model, verify=False)

    # Attention with large scores makes 1e4 times the rounding out of them; 1e-9 is 1e3 times that.
    assert error(expected, outputs(result.model, inputs)) < 1e-9 or not representable(expected)

    norms = {layer.name for layer in batch_norms(model)}
    records = [record.layer.rsplit("/", 1)[-1] for record in (*result.folded, *result.kept)]
    assert len(records) == len(list(batch_norms(model)))
    assert set(records) == norms
    kept = {record.layer.rsplit("/", 1)[-1] for record in result.kept}
    assert {layer.name for layer in batch_norms(result.model)} <= kept

    assert [t.name for t in result.model.inputs] == [t.name for t in model.inputs]
    assert [t.shape for t in result.model.outputs] == [t.shape for t in model.outputs]
    assert [t.dtype for t in result.model.outputs] == [t.dtype for t in model.outputs]
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@sampled(25)
@given(decisions)
def test_in_float32_folding_costs_no_accuracy(decisions):
    # As after training, the statistics are those of what the normalizations meet.
    graph = random_graph(following(decisions))
    note(repr(graph))
    exact, model, inputs = build(graph, "float64"), build(graph), data(graph)
    fit_statistics(exact, inputs)
    for wide, narrow in zip(exact.weights, model.weights, strict=True):
        narrow.assign(keras.ops.cast(wide, narrow.dtype))
        wide.assign(keras.ops.cast(narrow, wide.dtype))
    expected = outputs(exact, inputs)
    original = outputs(model, inputs)
    if not (representable(expected) and representable(original)):
        return
    folded = keras_bn.fold(model).model
    # Folding rounds every weight once more, and subtracts means behind a product instead of in
    # front of it, which may cost as many times the rounding as there are deviations in a mean.
    # 6e-6 is what a hundred roundings of 2⁻²⁴ make where the original has the luck of none.
    assert error(expected, outputs(folded, inputs)) < 16 * error(expected, original) + 6e-6
