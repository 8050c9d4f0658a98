"""Two models, one set of samples: how far apart are their outputs?"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from keras_bn.compare.result import Comparison, OutputComparison
from keras_bn.compare.run import KerasRunnable, LiteRunnable, Outputs, Runnable, open_model, run
from keras_bn.errors import ComparisonError
from keras_bn.samples import Samples, random_samples, random_samples_of, read_samples

if TYPE_CHECKING:
    import keras

# Enough random samples for a stable signal-to-noise ratio at a second or two for large models.
RANDOM_SAMPLES = 16

Item = TypeVar("Item")


def compare(
    reference: keras.Model | str | os.PathLike[str],
    candidate: keras.Model | str | os.PathLike[str],
    data: Any = None,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> Comparison:
    """How far the outputs of `candidate` are from those of `reference` on the same samples.

    Inputs and outputs of the two are matched by name where the names are the same, else by
    order. Quantized inputs and outputs are compared in real units. A `.tflite` candidate runs
    its first sample twice: a file whose second answer differs is refused.

    Args:
        reference, candidate: Keras models, or paths to `.keras`, `.h5` or `.tflite` files.
        data: Samples in any form that `keras_bn.samples.read_samples` takes. None compares on
            random samples (`keras_bn.samples.random_samples`), which shows numerical errors but
            says little about accuracy on real data.
        samples: At most this many samples of `data`, or this many random ones. Default: all of
            `data`, 16 random ones.
        seed: Of the random samples.

    Returns:
        A `Comparison` with one record for each output of the reference.

    Raises:
        ComparisonError: The two have different inputs or outputs, the samples do not suit them,
            a file cannot be run, or it does not repeat its own answer.
        OSError: There is no such file.

    Example:
        >>> import keras
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(3)(x))
        >>> compare(model, model).max_abs_error
        0.0
    """
    first, second = open_model(reference), open_model(candidate)
    if data is None:
        chosen = _random_samples(first, second, samples or RANDOM_SAMPLES, seed)
    else:
        chosen = read_samples(data, first.specs, limit=samples, error=ComparisonError)
    return compare_with_outputs(run(first, chosen), second, chosen)


def compare_with_outputs(expected: Outputs, candidate: Runnable, samples: Samples) -> Comparison:
    """Compare `candidate` with outputs that a reference already gave for `samples`.

    Args:
        expected: The reference's outputs by name, as from `keras_bn.compare.run.predict`.
        candidate: A model from `keras_bn.compare.run.open_model`.
        samples: What the reference was called with, by input name.

    Raises:
        ComparisonError: As for `compare`.
    """
    inputs = _matched(samples, [spec.name for spec in candidate.specs], "inputs")
    checked = read_samples(inputs, candidate.specs, error=ComparisonError)
    if isinstance(candidate, LiteRunnable):
        _require_repeatable(candidate, checked)
    actual = _matched(run(candidate, checked), list(expected), "outputs")
    count = len(next(iter(samples.values())))
    records = (compare_arrays(name, expected[name], actual[name]) for name in expected)
    return Comparison(tuple(records), count)


def compare_arrays(name: str, reference: np.ndarray, candidate: np.ndarray) -> OutputComparison:
    """How far two arrays of one shape are apart, computed in float64.

    Raises:
        ComparisonError: The shapes differ.

    Example:
        >>> record = compare_arrays("y", np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]]))
        >>> record.max_abs_error, round(record.snr_db, 1)
        (0.5, 20.0)
    """
    if reference.shape != candidate.shape:
        raise ComparisonError(
            f"Expected output {name!r} of shape {reference.shape}, as in the reference; the "
            f"candidate's is {candidate.shape}."
        )
    expected, actual = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    equal_infinities = np.isinf(expected) & (expected == actual)
    keep = ~equal_infinities
    broken = bool((~np.isfinite(expected) | ~np.isfinite(actual))[keep].any())
    r, c = expected[keep], actual[keep]
    finite = r[np.isfinite(r)]
    return OutputComparison(
        name=name,
        max_abs_error=math.inf if broken else float(np.abs(r - c).max(initial=0.0)),
        snr_db=-math.inf if broken else _snr_db(r, c),
        cosine=0.0 if broken else _cosine(r, c),
        top1_agreement=_top1_agreement(expected, actual),
        peak=float(np.abs(finite).max(initial=0.0)),
        equal_infinities=int(np.count_nonzero(equal_infinities)),
    )


def _snr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    noise = float(np.sum((reference - candidate) ** 2))
    signal = float(np.sum(reference**2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _cosine(reference: np.ndarray, candidate: np.ndarray) -> float:
    norms = float(np.linalg.norm(reference) * np.linalg.norm(candidate))
    if norms == 0:  # a zero vector has no direction: alike only when both are zero
        return 1.0 if np.array_equal(reference, candidate) else 0.0
    return float(np.clip(np.dot(reference, candidate) / norms, -1.0, 1.0))


def _top1_agreement(reference: np.ndarray, candidate: np.ndarray) -> float | None:
    if reference.ndim < 2 or reference.shape[-1] < 2 or reference.size == 0:
        return None
    known = ~(np.isnan(reference).any(-1) | np.isnan(candidate).any(-1))
    return float(np.mean(known & (reference.argmax(-1) == candidate.argmax(-1))))


def _require_repeatable(model: LiteRunnable, samples: Samples) -> None:
    """Refuse a file that keeps state from one call to the next, as a faulty recurrent op does."""
    first_sample = {name: array[:1] for name, array in samples.items()}
    once, again = run(model, first_sample), run(model, first_sample)
    changed = [n for n in once if not np.array_equal(once[n], again[n], equal_nan=True)]
    if changed:
        raise ComparisonError(
            "Expected the same answer when the same sample is run twice; outputs "
            f"{', '.join(map(repr, changed))} changed, so the file keeps state between calls."
        )


def _matched(named: Mapping[str, Item], names: Sequence[str], what: str) -> dict[str, Item]:
    """`named` under `names`: the same names, else the same order."""
    if set(named) == set(names):
        return {name: named[name] for name in names}
    if len(named) != len(names):
        raise ComparisonError(
            f"Expected two models with the same {what}; one has {_listed(named)}, the other "
            f"{_listed(names)}."
        )
    return dict(zip(names, named.values(), strict=True))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _random_samples(reference: Runnable, candidate: Runnable, count: int, seed: int) -> Samples:
    """Random samples for both: a Keras model knows best what it takes, its vocabulary say."""
    for runnable in (reference, candidate):
        if isinstance(runnable, KerasRunnable):
            samples = random_samples(runnable.model, count, seed=seed)
            return _matched(samples, [spec.name for spec in reference.specs], "inputs")
    return random_samples_of(reference.specs, count, seed=seed)
