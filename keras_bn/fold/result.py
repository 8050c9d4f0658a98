"""What folding did: the values that leave this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class FoldedLayer:
    """A scale and shift that is gone: `layer` was merged into `into` by the rule `rule`."""

    layer: str
    into: str
    rule: str


@dataclass(frozen=True)
class KeptLayer:
    """A scale and shift of which something stayed, and the reason, in words."""

    layer: str
    reason: str


@dataclass(frozen=True)
class FoldResult:
    """A folded model and the account of every normalization that the original had.

    Attributes:
        model: The folded model, an ordinary `keras.Model`. The original is unchanged.
        folded: One record for each normalization that is gone.
        kept: One record for each normalization that stayed.
        max_abs_error: Largest absolute difference between the outputs of the original and the
            folded model on random inputs, in the outputs' own units; NaN where the original
            cannot be run on random inputs, or was not to be verified.
        others: What became of the scales and shifts that are no batch normalization: Rescaling,
            Normalization, gamma and beta of layer normalizations, and constants.
    """

    model: keras.Model
    folded: list[FoldedLayer]
    kept: list[KeptLayer]
    max_abs_error: float
    others: list[FoldedLayer | KeptLayer] = field(default_factory=list)
