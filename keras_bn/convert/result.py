"""What a conversion produced: the values that leave this package."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_bn.compare.result import Comparison
    from keras_bn.fold.result import FoldResult


@dataclass(frozen=True)
class Conversion:
    """A `.tflite` file, what is in it, and how far it is from the model it came from.

    Attributes:
        path: The file.
        size_bytes: Its size.
        quantize: "none", "float16", "dynamic", "int8" or "int16x8".
        ops: How often each LiteRT operation occurs, by name.
        float_ops: Those operations of an "int8" or "int16x8" file that compute in float.
        comparison: The file against the Keras model that was passed in; None where the file
            needs the flex delegate, without which it cannot be run here.
        fold: What folding did before the conversion; None where it was not asked for.
    """

    path: Path
    size_bytes: int
    quantize: str
    ops: Counter[str]
    float_ops: Counter[str]
    comparison: Comparison | None
    fold: FoldResult | None
