"""Layers around layers: what passes those inside passes the one around them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from keras import layers

from keras_bn.fold.absorb.rule import refusing_inside
from keras_bn.fold.affine import Affine, Refused, Shape
from keras_bn.fold.transmit.rule import Assignment, Call, Transmit, of_keras

# For Keras it is in training until it is told otherwise, as by a model in inference.
PIPELINE = of_keras(layers, "Pipeline")


def at_every_step(rule: Transmit) -> Transmit:
    """The rule for a TimeDistributed, out of the rule for the layer inside it."""

    def of_a_step(layer: Any, affine: Affine, call: Call) -> tuple[Any, Affine, Call]:
        if not affine.constant_along([0]):
            raise Refused(f"its scale and shift vary from step to step of '{layer.name}'")
        inputs, outputs = (
            tuple(shape[1:] for shape in shapes) for shapes in (call.inputs, call.outputs)
        )
        return layer.layer, affine.map(lambda array: array[0]), Call(inputs, outputs)

    def of_all(assignments: Iterator[Assignment]) -> Iterator[Assignment]:
        for sides in assignments:
            yield Assignment(*([_with_steps(affine) for affine in side] for side in sides))

    def backward(layer: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        with refusing_inside(layer):
            yield from of_all(rule.backward(*of_a_step(layer, affine, call), position))

    def forward(layer: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        with refusing_inside(layer):
            yield from of_all(rule.forward(*of_a_step(layer, affine, call), position))

    return Transmit((layers.TimeDistributed,), backward, forward)


def _with_steps(affine: Affine) -> Affine:
    return affine.map(lambda array: array[None])


def one_after_the_other(rules: Sequence[Transmit]) -> Transmit:
    """The rule for a Pipeline, out of the rules for the layers inside it."""

    def backward(layer: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        inside = list(zip(rules, layer.layers, _calls(layer, call), strict=True))
        before = affine
        with refusing_inside(layer):
            for rule, each, step in reversed(inside):
                ((before,), _) = next(rule.backward(each, before, step, 0))
        yield Assignment((before,), (affine,))

    def forward(layer: Any, affine: Affine, call: Call, position: int) -> Iterator[Assignment]:
        inside = zip(rules, layer.layers, _calls(layer, call), strict=True)
        behind = affine
        with refusing_inside(layer):
            for rule, each, step in inside:
                (_, (behind,)) = next(rule.forward(each, behind, step, 0))
        yield Assignment((affine,), (behind,))

    return Transmit(PIPELINE, backward, forward)


def _calls(pipeline: Any, call: Call) -> list[Call]:
    """The calls of the layers inside `pipeline`, each on what the one before it gives."""
    shapes: list[Shape] = [call.inputs[0]]
    for layer in pipeline.layers:
        shapes.append(layer.compute_output_shape((None, *shapes[-1]))[1:])
    return [Call((before,), (after,)) for before, after in itertools.pairwise(shapes)]
