"""Embeddings: the output is rows of a table, so the table takes the affine in."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_bn.fold.absorb import algebra
from keras_bn.fold.absorb.rule import Absorb, Arrays, Change, array, nothing, over_channels
from keras_bn.fold.affine import Affine


def _read(layer: Any) -> Arrays:
    return {"embeddings": array(layer.embeddings)}


def _backward(layer: Any, affine: Affine) -> Change:
    s, t = over_channels(layer, affine, -1, layer.output_dim)
    return lambda weights: {"embeddings": algebra.embedding_backward(weights["embeddings"], s, t)}


# BN(Embedding(i)) -> Embedding(i); its inputs are indices, which no affine precedes
RULES = (Absorb((layers.Embedding,), _read, _backward, None, nothing),)
