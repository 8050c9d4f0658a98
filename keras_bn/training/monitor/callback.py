"""The callback that watches normalizations and gradients while a model trains."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import keras

from keras_bn.errors import UnsupportedModelError
from keras_bn.files import replacing
from keras_bn.training import passes
from keras_bn.training.monitor.data import first_batch
from keras_bn.training.monitor.diagnosis import Finding, GradientWarning, diagnose
from keras_bn.training.monitor.events import EventWriter
from keras_bn.training.monitor.measurement import Measurement, measurement
from keras_bn.training.monitor.probe import Probe, as_tensors
from keras_bn.training.monitor.watch import NORMALIZATIONS


class NormalizationMonitor(keras.callbacks.Callback):
    """Watches what normalization does to activations and gradients while a model trains.

    Before training and after every epoch the same few samples, the probe, go through the model
    and back: batch normalizations normalize them by their own statistics, as in training, while
    everything else (dropout, noise) is in inference. For each watched layer are measured:

    - histograms of its input, its output, and of the activation after it;
    - the norm of the loss's gradient by its output, and for every layer by its weights;
    - the share of dead units where a ReLU follows, and of saturated activations where a sigmoid,
      tanh or another bounded function does;
    - for a batch normalization how far the probe's statistics are from the moving ones, which
      inference uses.

    Training is the same as without the monitor, to the bit: the pass moves no weight, statistic,
    seed, metric or optimizer variable. `LayerMeasurement` defines the measures, and
    `keras_bn.training.monitor.diagnosis` what counts as vanishing and exploding.

    Args:
        data: The probe: a tuple (x, y) or (x, y, sample_weight) of arrays, of which `batch_size`
            evenly spread samples are taken, or a tf.data.Dataset, PyDataset or iterable, of which
            the first batch is. Samples like those that the model trains on, classes mixed. x
            alone measures no gradients, unless the model's loss needs no targets.
        log_dir: Folder for TensorBoard; None writes nothing.
        frequency: "epoch" measures before the first epoch and after each. A number measures
            before training and whenever that many batches were trained on.
        layers: Layers, or names of layers, to watch. None watches every normalization, and in a
            model without any the convolutions and dense layers that an activation follows, which
            are where others have a normalization.
        batch_size: Samples to take of arrays.
        warn: Whether to issue a `GradientWarning`, once in a training for each kind of finding,
            when gradients vanish, explode or are not finite.

    Attributes:
        measurements: What was measured, one `Measurement` a time. A training that goes on at an
            `initial_epoch` adds to them; one that begins anew empties them.
        history: The single numbers among them as lists, by the tags that TensorBoard shows.
        findings: The diagnoses of all measurements, as pairs of a measurement and a `Finding`.

    Example:

    >>> import keras, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(64, 4)).astype("float32"), rng.integers(0, 2, 64)
    >>> model = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(8),
    ...     keras.layers.BatchNormalization(name="bn"), keras.layers.ReLU(),
    ...     keras.layers.Dense(2)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> monitor = NormalizationMonitor((x, y))
    >>> _ = model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor])
    >>> monitor.history["epoch"], len(monitor.history["bn/gradient_norm"])
    ([0, 1, 2, 3], 4)
    >>> layer = monitor.measurements[-1].layers["bn"]
    >>> print(f"{abs(layer.output.mean):.1f} {layer.output.deviation:.1f}")
    0.0 1.0
    """

    def __init__(
        self,
        data: Any,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        frequency: int | Literal["epoch"] = "epoch",
        layers: Sequence[str | keras.Layer] | None = None,
        batch_size: int = 32,
        warn: bool = True,
    ) -> None:
        super().__init__()
        if frequency != "epoch" and (
            isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1
        ):
            raise ValueError(
                '`frequency` must be "epoch", or a positive number of batches. '
                f"Received: frequency={frequency!r}"
            )
        if isinstance(layers, str) or (layers is not None and not len(layers)):
            raise ValueError(
                "`layers` must be several layers or names of layers, or None for all "
                f"normalizations. Received: layers={layers!r}"
            )
        self.log_dir, self.frequency, self.layers, self.warn = log_dir, frequency, layers, warn
        self.measurements: list[Measurement] = []
        self.findings: list[tuple[Measurement, Finding]] = []
        # Without this every batch would wait for the one before to be computed. With it Keras ends
        # batches in threads, on the backends that allow it, and in any order (CallbackList).
        self.async_safe = frequency == "epoch"
        self._counting = threading.Lock()
        self._batch = first_batch(data, batch_size)
        self._probe: Probe | None = None
        self._writer: EventWriter | None = None
        self._warned: set[str] = set()
        self._title = ""
        self._epoch = self._batches_before = self._batches = 0

    @property
    def history(self) -> dict[str, list[Any]]:
        """Lists of the measurements' numbers: "epoch", "batch", and by tags like "bn/distance"."""
        scalars = [one.scalars() for one in self.measurements]
        tags = dict.fromkeys(tag for one in scalars for tag in one)
        return {
            "epoch": [one.epoch for one in self.measurements],
            "batch": [one.batch for one in self.measurements],
            **{tag: [one.get(tag) for one in scalars] for tag in tags},
        }

    def plot(
        self, path: str | os.PathLike[str], *, beside: NormalizationMonitor | None = None
    ) -> None:
        """Draw the training to a PNG (or SVG, or PDF) file, beside another one if it is given.

        Rows: the distribution of the first and of the last watched layer's outputs, and the
        gradient's norm at each watched layer; along the epochs. Where `beside` watches the same
        network with (or without) normalization, the columns compare the two.

        Args:
            path: The file.
            beside: The other training's monitor.

        Raises:
            ValueError: One of them has measured nothing yet.
        """
        from keras_bn.training.monitor.figure import Training, draw

        monitors = [self] if beside is None else [self, beside]
        if not all(monitor.measurements for monitor in monitors):
            raise ValueError(
                "expected measurements to plot, but a monitor has none: pass it to "
                "`model.fit(..., callbacks=[monitor])` first"
            )
        figure = draw([
            Training(
                monitor._title,
                monitor.measurements,
                monitor.frequency != "epoch",
                "tab:blue" if monitor is self else "tab:orange",
            )
            for monitor in monitors
        ])  # fmt: skip
        with replacing(path) as temporary:
            figure.savefig(temporary)

    def on_train_begin(self, logs: Any = None) -> None:
        self.on_train_end()  # of a training that was interrupted

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._probe is None:
            self._begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        with self._counting:
            before = self._batches
            self._batches = max(before, self._batches_before + batch + 1)
        if self.frequency != "epoch" and self._batches // self.frequency > before // self.frequency:
            self._measure()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._batches_before = self._batches
        self._epoch = epoch + 1
        if self.frequency == "epoch":
            self._measure()

    def on_train_end(self, logs: Any = None) -> None:
        self._probe = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self, epoch: int) -> None:
        model = self.model
        passes.build(model, self._batch[0])
        requested = _found(model, self.layers)
        self._probe = Probe(model, as_tensors(self._batch), requested, self._runs(epoch))
        if self.log_dir is not None:
            self._writer = EventWriter(self.log_dir)
        earlier = [one for one in self.measurements if one.epoch <= epoch] if epoch else []
        self._batches = self._batches_before = max((one.batch for one in earlier), default=0)
        # The moment at which training goes on is measured again.
        self.measurements = [one for one in earlier if one.batch < self._batches]
        self.findings = [one for one in self.findings if one[0] in self.measurements]
        self._warned = set()
        self._epoch = epoch
        self._measure()

    def _runs(self, epoch: int) -> int | None:
        """How many measurements the training is to have; None if nobody knows."""
        epochs, steps = self.params["epochs"] - epoch, self.params["steps"]
        if self.frequency == "epoch":
            return epochs + 1
        return None if steps is None else epochs * steps // self.frequency + 1

    def _measure(self) -> None:
        model, probe = self.model, self._probe  # Keras's `model` brings JAX's state up to date
        if probe is None:
            return
        reading = probe()
        if not reading.places:
            raise UnsupportedModelError(
                f"expected layers to watch in '{model.name}', found none: it has no normalization, "
                "dense or convolution layer outside loops. Name those to watch with `layers`"
            )
        self._title = _title([place.layer for place, _ in reading.places])
        measured = measurement(model, reading, self._epoch, self._batches)
        self.measurements.append(measured)
        if self._writer is not None:
            step = measured.epoch if self.frequency == "epoch" else measured.batch
            self._writer.write(measured, step)
        for finding in diagnose(measured):
            self.findings.append((measured, finding))
            if self.warn and finding.kind not in self._warned:
                self._warned.add(finding.kind)
                warnings.warn(finding.message, GradientWarning, stacklevel=2)


def _title(layers: Sequence[Any]) -> str:
    kinds = {type(layer).__name__ for layer in layers if isinstance(layer, NORMALIZATIONS)}
    return f"With {' and '.join(sorted(kinds))}" if kinds else "Without normalization"


def _found(model: keras.Model, layers: Sequence[str | keras.Layer] | None) -> list[Any]:
    """The layers that were asked for by themselves or by name."""
    present = [layer for layer in model._flatten_layers() if layer is not model]
    found = []
    for wanted in layers or ():
        matches = [
            layer for layer in present if layer is wanted or wanted in (layer.name, layer.path)
        ]
        if not matches:
            raise ValueError(
                f"`layers` names {wanted!r}, which '{model.name}' does not have. It has: "
                f"{', '.join(layer.name for layer in present)}"
            )
        found += matches
    return found
