"""The errors this package raises of its own.

Wrong argument values raise `ValueError` or `TypeError`, as Keras does. Everything that a
model, its data, the converter or a device can cause is a `KerasBNError`, whose message says
what was expected, what was received and what to try.
"""

from __future__ import annotations

from typing import Any


class KerasBNError(Exception):
    """Base of every error that keras-bn raises about a model, its data, or a device."""


class UnsupportedModelError(KerasBNError):
    """The model cannot be read or rebuilt; the message names the layer and the reason."""


class CalibrationError(KerasBNError):
    """Calibration data is missing, has the wrong shape or dtype, or is not finite."""


class ConversionError(KerasBNError):
    """The converter refused the model; carries its message and the operations at fault."""


class ComparisonError(KerasBNError):
    """A result is further from its reference than allowed, or the two cannot be compared."""


class DeviceError(KerasBNError):
    """A device is unreachable, or a run on it failed; carries what the device printed.

    Attributes:
        results: What the other devices of the same benchmark measured.
    """

    results: tuple[Any, ...] = ()
