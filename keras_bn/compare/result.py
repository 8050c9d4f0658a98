"""What a comparison found: the values that leave this package."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class OutputComparison:
    """One output of two models on the same data.

    Attributes:
        name: The output's name in the reference.
        max_abs_error: Largest absolute difference, in the output's units.
        snr_db: 10·log10(Σ reference² / Σ (reference − candidate)²); infinite when equal.
        cosine: Cosine similarity of the flattened outputs, in [−1, 1].
        top1_agreement: Share of samples whose arg-max over the last axis is the same, in
            [0, 1]; None where the output has fewer than two classes.
        peak: Largest absolute value of the reference, in the output's units.
        equal_infinities: How many elements are the same infinity in both outputs; they are left
            out of the figures above.

    A NaN in either output, or an infinity in one of them only, makes `max_abs_error` infinite,
    `snr_db` minus infinity and `cosine` 0.
    """

    name: str
    max_abs_error: float
    snr_db: float
    cosine: float
    top1_agreement: float | None
    peak: float = 1.0
    equal_infinities: int = 0

    @property
    def relative_error(self) -> float:
        """`max_abs_error` as a share of `peak`; infinite where the reference is all zeros."""
        if self.max_abs_error == 0:
            return 0.0
        return self.max_abs_error / self.peak if self.peak else math.inf


@dataclass(frozen=True)
class Comparison:
    """Two models on the same data, output by output; the summary is the worst output's.

    Attributes:
        outputs: One record for each output, in the reference's order.
        samples: Number of samples that were compared.
    """

    outputs: tuple[OutputComparison, ...]
    samples: int

    @property
    def max_abs_error(self) -> float:
        return max(output.max_abs_error for output in self.outputs)

    @property
    def relative_error(self) -> float:
        return max(output.relative_error for output in self.outputs)

    @property
    def snr_db(self) -> float:
        return min(output.snr_db for output in self.outputs)

    @property
    def cosine(self) -> float:
        return min(output.cosine for output in self.outputs)

    @property
    def top1_agreement(self) -> float | None:
        shares = [o.top1_agreement for o in self.outputs if o.top1_agreement is not None]
        return min(shares, default=None)
