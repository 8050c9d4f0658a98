"""Measurements of one or two trainings, drawn side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from keras_bn.training.monitor.measurement import LayerMeasurement, Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = ((0.025, 0.975), (0.15, 0.85))
"""Quantiles between which the bands lie; the inner one is that of Ioffe and Szegedy's figure 1."""
COMPARABLE = 20
"""Two columns share a vertical axis unless one spans this many times what the other does: a line
is then all that would be left of the smaller."""


@dataclass(frozen=True)
class Training:
    """What is drawn in one column.

    Attributes:
        title: Over the column.
        measurements: In the order of the training.
        in_batches: Whether the horizontal axis counts batches instead of epochs.
        colour: Of its distributions.
    """

    title: str
    measurements: Sequence[Measurement]
    in_batches: bool
    colour: str

    @property
    def names(self) -> list[str]:
        return list(self.measurements[-1].layers)

    @property
    def x(self) -> list[int]:
        return [one.batch if self.in_batches else one.epoch for one in self.measurements]

    def of(self, name: str, measure: Callable[[LayerMeasurement], Any]) -> list[Any]:
        """A measure of one layer through the training."""
        return [measure(one.layers[name]) for one in self.measurements]

    def has(self, measure: str) -> bool:
        return any(
            getattr(layer, measure) is not None
            for one in self.measurements
            for layer in one.layers.values()
        )


def draw(trainings: Sequence[Training]) -> Figure:
    """A column for each training: distributions, gradients, dead and saturated shares."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows: list[tuple[Callable[[Any, Training], None], float]] = [
        (partial(_distribution, position=0, which="First"), 1.0),
        (partial(_distribution, position=-1, which="Last"), 1.0),
        (_gradients, 1.0),
    ]
    for measure, title in (("dead", "Dead units"), ("saturated", "Saturated activations")):
        if any(training.has(measure) for training in trainings):
            rows.append((_shares(measure, title), 0.6))

    heights = [height for _, height in rows]
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(
            figsize=(0.2 + 4.4 * len(trainings), 0.8 + 2.3 * sum(heights)),
            dpi=150,
            layout="constrained",
        )
        columns = []
        for part, training in zip(
            figure.subfigures(1, len(trainings), squeeze=False)[0], trainings, strict=True
        ):
            part.suptitle(training.title, fontsize=12, fontweight="bold", color=training.colour)
            column = part.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
            for axes, (draw_one, _) in zip(column, rows, strict=True):
                axes.grid(axis="y", color="0.92", linewidth=0.8)
                axes.set_axisbelow(True)
                draw_one(axes, training)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            column[-1].set_xlabel("batches trained on" if training.in_batches else "epochs trained")
            columns.append(column)
        for row in zip(*columns, strict=True):
            _share_axis(row)
    return figure


def _distribution(axes: Any, training: Training, position: int, which: str) -> None:
    name = training.names[position]
    for (low, high), opacity in zip(BANDS, (0.18, 0.38), strict=True):
        axes.fill_between(
            training.x,
            training.of(name, _quantile(low)),
            training.of(name, _quantile(high)),
            color=training.colour,
            alpha=opacity,
            linewidth=0,
            label=f"{high - low:.0%} of the values",
        )
    medians = training.of(name, _quantile(0.5))
    axes.plot(
        training.x,
        medians,
        _marker(training),
        color=training.colour,
        markersize=4,
        label="median",
    )
    axes.set_title(f"{which} layer: output of {name}", loc="left", fontsize=9)
    if position == 0:
        axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper right", borderaxespad=0)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.15 * (high - low))


def _quantile(share: float) -> Callable[[LayerMeasurement], float]:
    return lambda layer: layer.output.quantile(share)


def _gradients(axes: Any, training: Training) -> None:
    first, last = training.names[0], training.names[-1]
    shades = f"light: {first} … dark: {last}" if first != last else first
    title = f"Norm of the gradient at each layer's output\n{shades}"
    axes.set_title(title, loc="left", fontsize=9)
    norms = {
        name: [
            norm if norm and math.isfinite(norm) else math.nan
            for norm in training.of(name, lambda layer: layer.gradient_norm)
        ]
        for name in training.names
    }
    if all(math.isnan(norm) for one in norms.values() for norm in one):
        axes.text(0.5, 0.5, "no gradients", ha="center", transform=axes.transAxes, color="0.5")
        return
    axes.set_yscale("log")
    _lines(axes, training, norms)


def _shares(measure: str, title: str) -> Callable[[Any, Training], None]:
    def draw_one(axes: Any, training: Training) -> None:
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylim(-0.05, 1.05)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        if not training.has(measure):
            text = "no such activation"
            axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, color="0.5")
            return
        shares = {
            name: [
                math.nan if share is None else share
                for share in training.of(name, lambda layer: getattr(layer, measure))
            ]
            for name in training.names
        }
        _lines(axes, training, shares)

    return draw_one


def _lines(axes: Any, training: Training, values: dict[str, list[float]]) -> None:
    """A line for each layer, the darker the deeper it is."""
    import matplotlib

    shades = matplotlib.colormaps["viridis_r"]
    deepest = max(len(values) - 1, 1)
    for depth, one in enumerate(values.values()):
        shade = shades(0.12 + 0.88 * depth / deepest)
        ends = depth in (0, len(values) - 1)
        axes.plot(
            training.x,
            one,
            _marker(training),
            color=shade,
            linewidth=1.8 if ends else 0.9,
            markersize=3,
            zorder=3 if ends else 2,
        )


def _marker(training: Training) -> str:
    """A line alone shows nothing of a training that was measured once."""
    return "o-" if len(training.measurements) < 12 else "-"


def _share_axis(row: Sequence[Any]) -> None:
    limits = [axes.get_ylim() for axes in row]
    spans = [high - low for low, high in limits]
    linear = row[0].get_yscale() == "linear"
    if linear and max(spans) > COMPARABLE * min(spans):
        return
    common = min(low for low, _ in limits), max(high for _, high in limits)
    for axes in row:
        if axes.get_yscale() == row[0].get_yscale():
            axes.set_ylim(common)
