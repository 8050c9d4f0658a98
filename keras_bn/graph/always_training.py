"""A layer that is in training for good, as some code has it."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("keras_bn")
class AlwaysTraining(keras.Layer):
    """Calls `layer` with training=True, whatever the model around it is told.

    A Functional model passes its own `training` argument on to every layer. Where the code of a
    model made a call with training=True, this layer goes on making it.

    Args:
        layer: The layer to call.
    """

    def __init__(self, layer: keras.Layer, **options: Any) -> None:
        super().__init__(**options)
        self.layer = layer
        self.supports_masking = layer.supports_masking

    def call(self, inputs: Any, **options: Any) -> Any:
        return self.layer(inputs, **options, training=True)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AlwaysTraining:
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
