"""Callbacks for `keras.Model.fit`."""

from keras_bn.training.monitor.callback import NormalizationMonitor
from keras_bn.training.monitor.diagnosis import GradientWarning

__all__ = ["GradientWarning", "NormalizationMonitor"]
