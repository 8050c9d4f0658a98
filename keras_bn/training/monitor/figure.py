"""Measurements of one or two trainings, drawn side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_bn.training.monitor.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = ((0.025, 0.975), (0.15, 0.85))
"""Quantiles between which the bands lie; the inner one is that of Ioffe and Szegedy's figure 1."""


@dataclass(frozen=True)
class Training:
    """What is drawn in one column.

    Attributes:
        title: Over the column.
        measurements: In the order of the training.
        in_batches: Whether the horizontal axis counts batches instead of epochs.
    """

    title: str
    measurements: Sequence[Measurement]
    in_batches: bool


def draw(trainings: Sequence[Training]) -> Figure:
    """A column for each training: the first and last layer's outputs, and the gradient norms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.0 + 5.0 * len(trainings), 9.0), dpi=130, layout="constrained")
    axes = figure.subplots(3, len(trainings), squeeze=False, sharey="row", sharex="col")
    for column, training in zip(axes.T, trainings, strict=True):
        names = list(training.measurements[-1].layers)
        for axis, name, which in zip(
            column, (names[0], names[-1]), ("first", "last"), strict=False
        ):
            _distribution(axis, training, name)
            axis.set_title(f"{name}, the {which} layer")
        _gradients(column[2], training)
        column[2].set_xlabel("batches" if training.in_batches else "epochs")
    return figure


def _moments_of(training: Training) -> list[int]:
    return [one.batch if training.in_batches else one.epoch for one in training.measurements]


def _distribution(axis: Any, training: Training, name: str) -> None:
    x = _moments_of(training)
    outputs = [one.layers[name].output for one in training.measurements]
    for (low, high), opacity in zip(BANDS, (0.2, 0.35), strict=True):
        axis.fill_between(
            x,
            [one.quantile(low) for one in outputs],
            [one.quantile(high) for one in outputs],
            alpha=opacity,
            color="C0",
            linewidth=0,
        )
    axis.plot(x, [one.quantile(0.5) for one in outputs], color="C0")


def _gradients(axis: Any, training: Training) -> None:
    x = _moments_of(training)
    for name in training.measurements[-1].layers:
        norms = [one.layers[name].gradient_norm for one in training.measurements]
        axis.plot(x, norms)
    axis.set_yscale("log")
