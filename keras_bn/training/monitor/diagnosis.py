"""What is wrong with the gradients of a network, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from keras_bn.training.monitor.measurement import Measurement

VANISHING = 1e-3
"""Of the gradient at the last layer, what reaches the first. Zhang et al., 2021, AUTOTRAINER: An
Automatic DNN Training Problem Detection and Repair System (ICSE), call a gradient vanishing
below that ratio. A first layer then moves a thousand times less than the last."""
EXPLODING = 1e3
"""The same ratio upside down. Fresh networks that train well reach a few hundred of it: 140 for
keras.applications' ResNet50 and 400 for its EfficientNetB0, 16 samples of noise."""
OVERSTEPPING = 100.0
"""A kernel's gradient over the kernel, in norms: from here on a step at Keras's default learning
rate for SGD, 0.01, changes the kernel by more than itself, and training can diverge (You, Gitman
and Ginsburg, 2017, https://arxiv.org/abs/1708.03888, section 4)."""
MANY = 0.5
"""Share of dead units or saturated elements that is worth a word beside a vanishing gradient."""

Kind = Literal["vanishing", "exploding", "not finite"]


class GradientWarning(UserWarning):
    """Gradients vanish, explode, or are not finite."""


@dataclass(frozen=True)
class Finding:
    """Something wrong at one moment of training.

    Attributes:
        kind: "vanishing", "exploding" or "not finite".
        message: What it is, where, and what to try.
    """

    kind: Kind
    message: str


def diagnose(measurement: Measurement) -> list[Finding]:
    """What is wrong with the gradients of one measurement; nothing, if that is so."""
    when = f"after {measurement.epoch} epochs" if measurement.epoch else "before training"
    if measurement.epoch == 1:
        when = "after 1 epoch"
    where = _not_finite(measurement)
    if where:
        return [
            Finding(
                "not finite",
                f"not finite {when}: {where}. NaN and infinity spread to every weight with the "
                "next step. Try a lower learning rate, gradient clipping (the optimizer's "
                "`clipnorm` or `global_clipnorm`), normalization between the layers, and check "
                "the data for NaN",
            )
        ]
    return [*_vanishing(measurement, when), *_exploding(measurement, when)]


def _not_finite(measurement: Measurement) -> str | None:
    """The first thing that is NaN or infinite."""
    for name, layer in measurement.layers.items():
        for tensor, histogram in layer.histograms().items():
            if histogram.not_finite:
                total = histogram.not_finite + int(histogram.counts.sum())
                return f"{histogram.not_finite} of {total} values of the {tensor} of '{name}'"
    if measurement.loss is not None and not math.isfinite(measurement.loss):
        return f"the loss, {measurement.loss}"
    for name, norm in measurement.flow.items():
        if not math.isfinite(norm):
            return f"the gradient at the output of '{name}'"
    for name, weights in measurement.weights.items():
        if weights.gradient_norm is not None and not math.isfinite(weights.gradient_norm):
            return f"the gradient of the weights of '{name}'"
    return None


def _vanishing(measurement: Measurement, when: str) -> Iterator[Finding]:
    if len(measurement.flow) < 2:
        return
    (first, at_first), *_, (last, at_last) = measurement.flow.items()
    # Without any gradient at the end the loss is at its lowest. With weights of zero at the end,
    # as some networks begin with, none gets further yet.
    passes = all(one.kernel_norm != 0 for one in measurement.weights.values())
    if at_last > 0 and passes and at_first < VANISHING * at_last:
        yield Finding(
            "vanishing",
            f"vanishing gradients {when}: the gradient of the loss has the norm {at_last:.2g} at "
            f"the output of '{last}', the last layer, and {at_first:.2g} at that of '{first}', "
            f"the first: {_share(at_first / at_last)} of it. The first layers hardly learn."
            f"{_reasons(measurement)} Try batch normalization between the layers, ReLU or a kin "
            "of it instead of sigmoid and tanh, an initializer that fits the activation "
            '("he_normal" for ReLU, "glorot_uniform" for tanh), or residual connections',
        )


def _exploding(measurement: Measurement, when: str) -> Iterator[Finding]:
    advice = (
        "Try gradient clipping (the optimizer's `clipnorm` or `global_clipnorm`), a smaller "
        'initialization ("he_normal", "glorot_uniform"), normalization between the layers, '
        "targets and inputs of about unit scale, or a lower learning rate"
    )
    if len(measurement.flow) > 1:
        (first, at_first), *_, (last, at_last) = measurement.flow.items()
        if at_last > 0 and at_first > EXPLODING * at_last:
            yield Finding(
                "exploding",
                f"exploding gradients {when}: the gradient of the loss has the norm {at_last:.2g} "
                f"at the output of '{last}', the last layer, and {at_first:.2g} at that of "
                f"'{first}', the first: {at_first / at_last:.2g} times as much. {advice}",
            )
            return
    relative = {
        name: (one.kernel_gradient_norm / one.kernel_norm, one)
        for name, one in measurement.weights.items()
        if one.kernel_norm and one.kernel_gradient_norm is not None
    }
    if not relative:
        return
    name = max(relative, key=lambda name: relative[name][0])
    ratio, one = relative[name]
    if ratio > OVERSTEPPING:
        yield Finding(
            "exploding",
            f"exploding gradients {when}: the gradient of the kernel of '{name}' has the norm "
            f"{one.kernel_gradient_norm:.2g}, {ratio:.2g} times the kernel's "
            f"{one.kernel_norm:.2g}, so a step of SGD at a learning rate of 0.01 moves it by more "
            f"than itself. {advice}",
        )


def _share(ratio: float) -> str:
    return "nothing" if ratio == 0 else f"{ratio:.1g}"


def _reasons(measurement: Measurement) -> str:
    """The layers that most is dead or saturated in, as a sentence."""
    reasons = []
    for measure, things in (("dead", "units are dead"), ("saturated", "activations are saturated")):
        shares = {
            name: getattr(layer, measure)
            for name, layer in measurement.layers.items()
            if getattr(layer, measure) is not None
        }
        worst = max(shares, key=lambda name: shares[name], default=None)
        if worst is not None and shares[worst] >= MANY:
            reasons.append(f" {shares[worst]:.0%} of the {things} at '{worst}'.")
    return "".join(reasons)
