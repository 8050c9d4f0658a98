"""Measurements as TensorBoard reads them, written by TensorFlow's summary writer."""

from __future__ import annotations

import os

import numpy as np

from keras_bn.training.monitor.measurement import Histogram, Measurement

BUCKETS = 30
"""Of a histogram, as many as `tf.summary.histogram` makes by default."""


class EventWriter:
    """Writes one event for each measurement to a folder.

    `tf.summary.histogram` and `tf.summary.scalar` need the TensorBoard package where the model
    trains. The writer does not: it takes the same protocol buffers, filled in here.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(os.fspath(log_dir))

    def write(self, measurement: Measurement, step: int) -> None:
        """Add `measurement`, at once readable, at `step` of TensorBoard's axis."""
        import tensorflow as tf

        # Names of the plugins and classes of data: tensorboard/plugins/*/metadata.py.
        scalar, histogram = (
            tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": name}, data_class=data_class)
            for name, data_class in (
                ("scalars", "DATA_CLASS_SCALAR"),
                ("histograms", "DATA_CLASS_TENSOR"),
            )
        )
        summary = tf.compat.v1.Summary()
        for tag, value in measurement.scalars().items():
            tensor = tf.make_tensor_proto(np.float32(value))
            summary.value.add(tag=tag, metadata=scalar, tensor=tensor)
        for name, layer in measurement.layers.items():
            for tensor_name, one in layer.histograms().items():
                tensor = tf.make_tensor_proto(buckets(one))
                summary.value.add(tag=f"{name}/{tensor_name}", metadata=histogram, tensor=tensor)
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def buckets(histogram: Histogram) -> np.ndarray:
    """Rows (left, right, count), as TensorBoard's histograms are."""
    width = len(histogram.counts) // BUCKETS
    counts = histogram.counts.reshape(BUCKETS, width).sum(1)
    limits = histogram.edges[::width]
    return np.stack([limits[:-1], limits[1:], counts], axis=1).astype("float64")
