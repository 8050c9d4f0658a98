"""Arithmetic on latency samples: arrays in, numbers out.

Intervals come from the circular block bootstrap (Politis & Romano 1992, "A circular
block-resampling procedure for stationary data"): runs of consecutive samples are drawn with
replacement from the samples laid on a circle, so that dependence over a few samples (caches,
frequency steps, other programs) stays in the resamples. Where the samples show no dependence the
blocks have length one, which is the ordinary bootstrap. The intervals assume that the samples
have one distribution over the whole run: a drift breaks them, and `drift` looks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from keras_bn.bench.result import Latency

CONFIDENCE = 0.95
# The share of resamples beyond an end is then 2.5 % give or take 0.35 %, √(0.025·0.975/2000).
RESAMPLES = 2000
# Numbers held at once while resampling: 8 MB, whatever the number of samples.
CHUNK = 1_000_000

# hyperfine's rule (src/outlier_detection.rs): ten standard deviations from the median, where
# 1.4826 times the median absolute deviation stands for the standard deviation of a normal
# distribution (Iglewicz & Hoaglin 1993, "How to Detect and Handle Outliers").
OUTLIER_MODIFIED_Z = 1.4826 * 10

# Samples beyond a quantile: with ten of them the interval of the 95th percentile (200 samples)
# and of the 99th (1000) covers it in 94 to 95 % of simulated runs, with half of that in 89 %.
SAMPLES_BEYOND_QUANTILE = 10

# The range of n samples misses the median when all fall on one side of it, which happens with
# probability 2 · ½ⁿ: below 5 % from n = 6 on.
SAMPLES_FOR_INTERVAL = 6


def summarize(samples_ms: npt.ArrayLike, *, seed: int = 0) -> Latency:
    """Every figure of `Latency` from timed invokes in milliseconds, in the order they ran.

    The standard deviation of a single sample is given as 0.

    Raises:
        ValueError: there are no samples, or one is not a positive finite number.

    Example:
        >>> summarize([1.0, 2.0, 3.0]).median
        2.0
    """
    samples = _series(samples_ms)
    p5, p95, p99 = np.quantile(samples, [0.05, 0.95, 0.99])
    return Latency(
        samples=tuple(samples.tolist()),
        median=float(np.median(samples)),
        mean=float(samples.mean()),
        std=float(samples.std(ddof=1)) if samples.size > 1 else 0.0,
        p5=float(p5),
        p95=float(p95),
        p99=float(p99),
        minimum=float(samples.min()),
        maximum=float(samples.max()),
        ci95=median_interval(samples, seed=seed),
        p5_ci95=quantile_interval(samples, 0.05, seed=seed),
        p95_ci95=quantile_interval(samples, 0.95, seed=seed),
        p99_ci95=quantile_interval(samples, 0.99, seed=seed),
    )


def median_interval(samples: npt.ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the median, in the unit of `samples`.

    Simulated, it covers the true median in 94 to 96 % of runs for independent samples from
    n = 10 on. Where neighbours correlate, blocks win back part of what the ordinary bootstrap
    loses: 87 % instead of 74 % for n = 100 and a lag-one correlation of 0.6, 85 % instead of 71 %
    for n = 50. Below n = 6 no interval of a median reaches 95 %.

    Example:
        >>> low, high = median_interval([5.0] * 10)
        >>> (low, high)
        (5.0, 5.0)
    """
    series = _series(samples)
    return _interval(_resampled_medians(series[np.newaxis], block_length(series), seed)[0])


def quantile_interval(
    samples: npt.ArrayLike, quantile: float, *, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of a quantile, in the unit of `samples`.

    None where fewer than ten samples are expected beyond the quantile: resampling then draws the
    same few of them over and over, and the interval is too narrow.

    Example:
        >>> quantile_interval(list(range(1, 200)), 0.95) is None
        True
    """
    series = _series(samples)
    if series.size * min(quantile, 1 - quantile) < SAMPLES_BEYOND_QUANTILE:
        return None
    length = block_length(series)
    return _interval(_resampled(series[np.newaxis], quantile, length, seed)[0])


def ratio_interval(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, *, paired: bool, seed: int = 0
) -> tuple[float, float, float]:
    """The ratio of two medians, with its 95 % bootstrap interval: (ratio, low, high).

    Args:
        numerator, denominator: Samples in the order they ran, in the same unit.
        paired: Whether sample i of both comes from the same round. Rounds are then resampled
            together, and what slows a whole round down cancels. Needs equal lengths.

    Raises:
        ValueError: a series is empty or not positive and finite, or `paired` and the lengths
            differ.

    Example:
        >>> ratio, low, high = ratio_interval([2.0, 2.2, 2.4], [1.0, 1.1, 1.2], paired=True)
        >>> ratio
        2.0
    """
    over, under = _series(numerator), _series(denominator)
    if paired:
        if over.size != under.size:
            raise ValueError(
                "Paired samples come from the same rounds, so both series have the same length; "
                f"received {over.size} and {under.size}. Pass paired=False for separate runs."
            )
        length = max(block_length(over), block_length(under))
        over_medians, under_medians = _resampled_medians(np.stack([over, under]), length, seed)
    else:
        over_medians = _resampled_medians(over[np.newaxis], block_length(over), seed)[0]
        under_medians = _resampled_medians(under[np.newaxis], block_length(under), seed + 1)[0]
    low, high = _interval(over_medians / under_medians)
    return float(np.median(over) / np.median(under)), low, high


def ratio_of_runs(
    numerator: Iterable[npt.ArrayLike], denominator: Iterable[npt.ArrayLike]
) -> tuple[float, float, float]:
    """The ratio of two latencies that were each measured in several runs: (ratio, low, high).

    What shifts a whole run is in none of its samples, so the runs are what is counted (Kalibera &
    Jones 2013, "Rigorous benchmarking in reasonable time"): each gives its median, and Welch's t
    interval of the difference of their mean logarithms is the 95 % interval of the ratio of their
    geometric means. It takes the logarithms of the medians as normal, of different variances.

    Args:
        numerator, denominator: One row of samples for each run, in the same unit.

    Raises:
        ValueError: fewer than two runs in one of them, or a time is not positive and finite.

    Example:
        >>> ratio, low, high = ratio_of_runs([[2.0], [2.1], [1.9]], [[1.0], [1.05], [0.95]])
        >>> round(ratio, 3), low < 2 < high
        (2.0, True)
    """
    over, under = (np.log([np.median(_series(run)) for run in x]) for x in (numerator, denominator))
    counts = np.array([over.size, under.size])
    if counts.min() < 2:
        raise ValueError(f"Expected at least two runs of each, received {counts.tolist()}.")
    squares = np.array([over.var(ddof=1), under.var(ddof=1)]) / counts
    difference, half_width = over.mean() - under.mean(), 0.0
    if squares.sum() > 0:
        freedom = squares.sum() ** 2 / (squares**2 / (counts - 1)).sum()
        half_width = _student_quantile(freedom) * np.sqrt(squares.sum())
    ends = (difference, difference - half_width, difference + half_width)
    ratio, low, high = (float(np.exp(end)) for end in ends)
    return ratio, low, high


def block_length(samples: npt.ArrayLike) -> int:
    """How many consecutive samples to keep together when resampling; 1 where they look independent.

    The length that minimises the error of the bootstrap variance for the circular block
    bootstrap (Politis & White 2004, "Automatic block-length selection for the dependent
    bootstrap"), written out for a first-order autoregression with the samples' lag-one
    correlation ρ: (√6·ρ / (1 − ρ²))^⅔ · n^⅓. Ranks stand for the samples, so that one outlier
    decides nothing; at most a quarter of the samples, so that a resample mixes a few blocks.
    """
    series = np.asarray(samples, dtype=np.float64)
    longest = max(1, series.size // 4)
    if series.size < 4 or np.ptp(series) == 0:
        return 1
    correlation = _rank_correlation(series[:-1], series[1:])
    if correlation <= 0:
        return 1
    if correlation >= 1:
        return longest
    length = (np.sqrt(6) * correlation / (1 - correlation**2)) ** (2 / 3) * series.size ** (1 / 3)
    return int(np.clip(round(length), 1, longest))


def outliers(samples: npt.ArrayLike) -> int:
    """How many samples are further from the median than hyperfine's modified Z-score allows.

    Where at least half the samples are equal the deviation is zero and every other sample counts.

    Example:
        >>> outliers([0.5, 0.30, 0.29, 0.31, 0.30])
        1
    """
    series = np.asarray(samples, dtype=np.float64)
    deviations = np.abs(series - np.median(series))
    return int(np.count_nonzero(deviations > OUTLIER_MODIFIED_Z * np.median(deviations)))


def drift(samples: npt.ArrayLike, *, seed: int = 0) -> float | None:
    """Relative change of the median from the first third of the run to the last, or None.

    None where the 95 % intervals of the two thirds overlap, or a third has fewer than the six
    samples that any 95 % interval of a median needs.

    Example:
        >>> drift([1.0, 1.1, 1.2] * 4 + [2.0, 2.2, 2.4] * 2)
        1.0
    """
    series = _series(samples)
    third = series.size // 3
    if third < SAMPLES_FOR_INTERVAL:
        return None
    first, last = series[:third], series[-third:]
    first_low, first_high = median_interval(first, seed=seed)
    last_low, last_high = median_interval(last, seed=seed)
    if first_low <= last_high and last_low <= first_high:
        return None
    return float(np.median(last) / np.median(first) - 1)


def _series(samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
    series = np.asarray(samples, dtype=np.float64)
    if series.ndim != 1 or series.size == 0 or not np.all(np.isfinite(series) & (series > 0)):
        raise ValueError(
            "Expected a sequence of positive finite times, one for each timed invoke; "
            f"received an array of shape {series.shape}: {np.array2string(series, threshold=6)}"
        )
    return series


def _rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    first, second = (np.argsort(np.argsort(x, kind="stable"), kind="stable") for x in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


def _resampled_medians(
    series: npt.NDArray[np.float64], length: int, seed: int
) -> npt.NDArray[np.float64]:
    return _resampled(series, 0.5, length, seed)


def _resampled(
    series: npt.NDArray[np.float64], quantile: float, length: int, seed: int
) -> npt.NDArray[np.float64]:
    """The quantile of RESAMPLES resamples of each row of `series`; all rows share each resample."""
    rng = np.random.default_rng(seed)
    size = series.shape[1]
    blocks = -(-size // length)
    rows = max(1, CHUNK // (blocks * length))
    found = []
    for start in range(0, RESAMPLES, rows):
        starts = rng.integers(size, size=(min(rows, RESAMPLES - start), blocks, 1))
        drawn = ((starts + np.arange(length)) % size).reshape(len(starts), -1)[:, :size]
        found.append(np.quantile(series[:, drawn], quantile, axis=-1))
    return np.concatenate(found, axis=1)


def _interval(resampled: npt.NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def _student_quantile(freedom: float) -> float:
    """The 97.5th percentile of Student's t distribution with `freedom` ≥ 1 degrees of freedom.

    With t = √ν · tan θ, the density of θ is cos θ to the power ν − 1 over its integral, which for a
    quarter turn is √π/2 · Γ(ν/2) / Γ((ν + 1)/2).
    """
    angle = np.linspace(0, np.pi / 2, 10_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])]) * angle[1] / 2
    logarithms = math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    found = np.interp(CONFIDENCE * math.sqrt(math.pi) / 2 * math.exp(logarithms), area, angle)
    return float(np.sqrt(freedom) * np.tan(found))
