"""Normalization layers that are right while training, drop-ins for Keras's own."""

from keras_bn.layers.batch_normalization import BatchNormalization

__all__ = ["BatchNormalization"]
