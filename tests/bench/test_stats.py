"""Statistics against known values, scipy, exact theory, and simulation."""

import numpy as np
import pytest
import scipy.stats

from keras_bn.bench import stats


def test_summary_of_a_known_series():
    latency = stats.summarize([4.0, 1.0, 3.0, 2.0, 5.0])

    assert latency.samples == (4.0, 1.0, 3.0, 2.0, 5.0)  # in the order they ran
    assert (latency.median, latency.mean) == (3.0, 3.0)
    assert (latency.minimum, latency.maximum) == (1.0, 5.0)
    assert latency.std == pytest.approx(np.sqrt(2.5))
    # Linear between order statistics: place 0.05·(5 − 1) = 0.2 above the first, and so on.
    assert (latency.p5, latency.p95, latency.p99) == pytest.approx((1.2, 4.8, 4.96))


def test_summary_agrees_with_scipy():
    samples = np.random.default_rng(0).lognormal(0, 0.3, 237)
    latency = stats.summarize(samples)

    assert latency.median == pytest.approx(scipy.stats.mstats.mquantiles(samples, 0.5, 1, 1)[0])
    assert latency.p99 == pytest.approx(scipy.stats.mstats.mquantiles(samples, 0.99, 1, 1)[0])
    assert latency.std == pytest.approx(scipy.stats.tstd(samples))


def test_a_single_sample_has_no_spread():
    latency = stats.summarize([2.5])
    assert (latency.median, latency.std, latency.ci95) == (2.5, 0.0, (2.5, 2.5))


@pytest.mark.parametrize(
    "samples", [[], [1.0, -1.0], [0.0], [np.nan], [np.inf], [[1.0, 2.0]]], ids=str
)
def test_what_is_not_a_series_of_times_is_refused(samples):
    with pytest.raises(ValueError, match="positive finite times"):
        stats.summarize(samples)


# --- The interval of the median ----------------------------------------------------------------


@pytest.mark.parametrize("size", [20, 51, 200])
def test_interval_is_near_scipys_bootstrap(size):
    samples = np.random.default_rng(size).lognormal(0, 0.2, size)
    low, high = stats.median_interval(samples)
    oracle = scipy.stats.bootstrap(
        (samples,), np.median, method="percentile", n_resamples=2000, rng=np.random.default_rng(1)
    ).confidence_interval

    # Two bootstraps differ by the scatter of 2000 resamples' percentiles, some order statistics.
    width = oracle.high - oracle.low
    assert low == pytest.approx(oracle.low, abs=0.15 * width)
    assert high == pytest.approx(oracle.high, abs=0.15 * width)


def test_interval_is_near_the_exact_one_of_order_statistics():
    """Distribution-free theory: [x(l), x(u)] with binomial(n, ½) coverage of 95 %."""
    samples = np.sort(np.random.default_rng(3).gamma(9, 1.0, 101))
    lower = int(scipy.stats.binom.ppf(0.025, 101, 0.5))
    low, high = stats.median_interval(np.random.default_rng(4).permutation(samples))

    # Within two order statistics of the exact ends.
    assert samples[lower - 3] <= low <= samples[lower + 2]
    assert samples[101 - lower - 3] <= high <= samples[101 - lower + 2]


def coverage(size: int, correlation: float, runs: int) -> float:
    """How often the interval holds the true median, exp(0), of a lognormal autoregression."""
    rng = np.random.default_rng(size)
    covered = 0
    for run in range(runs):
        series = np.empty(size + 50)
        series[0] = rng.normal() / np.sqrt(1 - correlation**2)
        for index, shock in enumerate(rng.normal(size=size + 49), start=1):
            series[index] = correlation * series[index - 1] + shock
        low, high = stats.median_interval(np.exp(0.1 * series[50:]), seed=run)
        covered += low <= 1.0 <= high
    return covered / runs


# 400 runs tell a coverage of 95 % to ±1.1 %, one of 85 % to ±1.8 % (one standard error); the
# limits below leave three of these.
@pytest.mark.parametrize("size", [10, 20, 50])
def test_interval_covers_the_median_of_independent_samples(size):
    assert 0.915 <= coverage(size, 0.0, runs=400) <= 0.985


def test_blocks_keep_most_of_the_coverage_where_neighbours_correlate(monkeypatch):
    with_blocks = coverage(100, 0.6, runs=400)
    monkeypatch.setattr(stats, "block_length", lambda samples: 1)
    without = coverage(100, 0.6, runs=400)

    assert with_blocks >= 0.82
    assert without <= 0.80
    assert with_blocks - without >= 0.05


def test_quantiles_have_intervals_where_the_samples_suffice():
    rng = np.random.default_rng(0)
    few, more, many = (stats.summarize(rng.gamma(9, 1, size)) for size in (199, 200, 1000))
    assert few.p5_ci95 is few.p95_ci95 is few.p99_ci95 is None
    assert more.p99_ci95 is None
    for latency in (more, many):
        assert latency.p5_ci95[0] <= latency.p5 <= latency.p5_ci95[1] < latency.ci95[0]
        assert latency.ci95[1] < latency.p95_ci95[0] <= latency.p95 <= latency.p95_ci95[1]
    assert many.p95_ci95[0] < many.p99_ci95[0] <= many.p99 <= many.p99_ci95[1] <= many.maximum


def test_interval_covers_the_quantile_of_independent_samples():
    rng = np.random.default_rng(0)
    true = scipy.stats.gamma.ppf(0.95, 9)
    intervals = [stats.quantile_interval(rng.gamma(9, 1, 200), 0.95, seed=s) for s in range(150)]
    # 150 runs tell a coverage of 94 % to ±2 % (one standard error); three of these are left.
    assert sum(low <= true <= high for low, high in intervals) / 150 >= 0.88


def test_interval_is_the_same_for_the_same_seed():
    samples = np.random.default_rng(0).gamma(5, 1, 40)
    assert stats.median_interval(samples, seed=5) == stats.median_interval(samples, seed=5)
    assert stats.median_interval(samples, seed=5) != stats.median_interval(samples, seed=6)


def test_resampling_in_chunks_changes_only_the_draws(monkeypatch):
    samples = np.random.default_rng(0).gamma(5, 1, 300)
    whole = stats.median_interval(samples)
    monkeypatch.setattr(stats, "CHUNK", 1000)
    chunked = stats.median_interval(samples)
    width = whole[1] - whole[0]
    assert chunked == pytest.approx(whole, abs=0.15 * width)


# --- Blocks ------------------------------------------------------------------------------------


def test_block_length_follows_the_formula_for_an_autoregression():
    """ρ = 0.6, n = 4000: (√6 · 0.6 / 0.64)^⅔ · 4000^⅓ = 27.6, from an estimate of ρ."""
    rng = np.random.default_rng(0)
    series = np.empty(4000)
    series[0] = 0
    for index, shock in enumerate(rng.normal(size=3999), start=1):
        series[index] = 0.6 * series[index - 1] + shock
    assert 24 <= stats.block_length(series) <= 31


@pytest.mark.parametrize(
    "samples, length",
    [
        ([1.0], 1),
        ([1.0, 2.0, 1.0], 1),
        ([3.0] * 40, 1),  # equal: no order to keep
        ([1.0, 2.0] * 20, 1),  # alternating: negative correlation
        (list(range(1, 41)), 10),  # a trend: the longest allowed
    ],
    ids=["one", "three", "equal", "alternating", "trend"],
)
def test_block_length_of_special_series(samples, length):
    assert stats.block_length(samples) == length


# --- Ratios ------------------------------------------------------------------------------------


def test_paired_ratio_is_not_blurred_by_what_both_share():
    """Rounds differ threefold, the ratio within each is 2: only pairing tells."""
    rounds = np.random.default_rng(0).uniform(1, 3, 60)
    paired = stats.ratio_interval(2 * rounds, rounds, paired=True)
    separate = stats.ratio_interval(2 * rounds, rounds, paired=False)

    assert paired == pytest.approx((2.0, 2.0, 2.0))
    assert separate[0] == pytest.approx(2.0)
    assert separate[1] < 1.9 < 2.1 < separate[2]


def test_ratio_interval_covers_the_true_ratio():
    rng = np.random.default_rng(1)
    covered = 0
    for run in range(400):
        over, under = rng.lognormal(np.log(3), 0.2, 40), rng.lognormal(0, 0.1, 40)
        _, low, high = stats.ratio_interval(over, under, paired=True, seed=run)
        covered += low <= 3 <= high
    assert 0.915 <= covered / 400 <= 0.985


def test_pairs_need_equal_lengths():
    with pytest.raises(ValueError, match=r"received 3 and 2.*paired=False"):
        stats.ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0], paired=True)


# --- Ratios of several runs --------------------------------------------------------------------


def test_ratio_of_runs_is_welchs_interval_of_their_logarithms():
    rng = np.random.default_rng(0)
    over, under = rng.lognormal(0.5, 0.1, (6, 30)), rng.lognormal(0, 0.3, (4, 30))
    logs = [np.log(np.median(runs, axis=1)) for runs in (over, under)]
    oracle = scipy.stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)

    ratio, low, high = stats.ratio_of_runs(over, under)
    assert ratio == pytest.approx(np.exp(logs[0].mean() - logs[1].mean()))
    assert (low, high) == pytest.approx((np.exp(oracle.low), np.exp(oracle.high)), rel=1e-5)


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 3.7, 8, 30, 1000])
def test_students_quantile_is_scipys(freedom):
    # A trapezoidal rule of 10 000 steps.
    exact = scipy.stats.t.ppf(0.975, freedom)
    assert stats._student_quantile(freedom) == pytest.approx(exact, rel=1e-5)


def test_runs_that_agree_leave_no_interval():
    assert stats.ratio_of_runs([[2.0], [2.0]], [[1.0], [1.0]]) == pytest.approx((2.0, 2.0, 2.0))


def test_one_run_of_either_is_too_few():
    with pytest.raises(ValueError, match=r"at least two runs of each, received \[2, 1\]"):
        stats.ratio_of_runs([[2.0], [2.1]], [[1.0]])


def test_ratio_of_runs_covers_the_true_ratio_where_runs_shift():
    """Runs that shift by 5 %, which the samples of one run do not show: 95 % all the same."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        over, under = (
            median * np.exp(rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.01, (5, 20)))
            for median in (3, 1)
        )
        _, low, high = stats.ratio_of_runs(over, under)
        covered += low <= 3 <= high
    assert 0.915 <= covered / 400 <= 0.985


# --- Outliers and drift ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "samples, count",
    [
        # hyperfine's own cases (src/outlier_detection.rs), shifted to be times
        ([50.0], 0),
        ([1001.0, 1.0], 0),
        ([0.8, 1.0, 1.2], 0),
        ([0.8, 1.0, 1.2, 5.0], 1),
        ([10.0] * 7 + [100.0], 1),
        ([10.0] * 7 + [100.0, 100.0], 2),
    ],
    ids=str,
)
def test_outliers_are_those_of_hyperfines_rule(samples, count):
    assert stats.outliers(samples) == count


def test_outliers_lie_ten_standard_deviations_out():
    samples = np.random.default_rng(0).normal(100, 1, 1001)
    assert stats.outliers(samples) == 0
    assert stats.outliers([*samples, 108.0]) == 0
    assert stats.outliers([*samples, 112.0, 88.0]) == 2


def test_drift_is_the_change_between_the_outer_thirds():
    rng = np.random.default_rng(0)
    slower = np.linspace(1.0, 1.6, 60) * rng.normal(1, 0.01, 60)
    # Medians of the thirds: at 1/6 and 5/6 of the way, 1.1 and 1.5.
    assert stats.drift(slower) == pytest.approx(1.5 / 1.1 - 1, abs=0.03)
    assert stats.drift(slower[::-1]) == pytest.approx(1.1 / 1.5 - 1, abs=0.03)


def test_noise_alone_is_rarely_called_a_drift():
    rng = np.random.default_rng(0)
    found = [stats.drift(rng.gamma(25, 1, 50)) for _ in range(200)]
    # Disjoint 95 % intervals: some 0.6 % of pairs for large samples, more with 16 in each.
    assert sum(drift is not None for drift in found) <= 10


def test_too_few_samples_tell_no_drift():
    assert stats.drift([1.0] * 5 + [2.0] * 5 + [3.0] * 5) is None
    assert stats.drift([1.0] * 6 + [2.0] * 6 + [3.0] * 6) == 2.0
