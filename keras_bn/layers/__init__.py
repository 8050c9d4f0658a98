"""Normalization layers that are right while training, drop-ins for Keras's own."""

from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.instance_normalization import InstanceNormalization
from keras_bn.layers.layer_norm_cells import (
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormSimpleRNNCell,
)
from keras_bn.layers.layer_norm_recurrent import LayerNormGRU, LayerNormLSTM, LayerNormSimpleRNN
from keras_bn.layers.layer_normalization import LayerNormalization

__all__ = [
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LayerNormSimpleRNN",
    "LayerNormSimpleRNNCell",
    "LayerNormalization",
]
