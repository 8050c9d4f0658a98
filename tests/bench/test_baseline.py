"""Runs beside a baseline: what is claimed, what is not, and what is refused."""

import numpy as np
import pytest

from keras_bn.bench.baseline import compared, read_limit, verdict

ENVIRONMENT = {
    "cpu": "Cortex-A72",
    "architecture": "aarch64",
    "xnnpack": True,
    "interpreter": "ai_edge_litert 2.3.0",
    "cpus": 4,
    "affinity": [0, 1, 2, 3],
    "system": "Linux 6.1",
    "before": {"governor": "performance", "temperature_c": 50.0},
}


def samples(median, count=50, spread=0.01, seed=0):
    return (median * np.random.default_rng(seed).normal(1, spread, count)).tolist()


def measured(
    series,
    name="net",
    threads=1,
    device="host",
    sha256="ab",
    inputs=None,
    repeats=5,
    **environment,
):
    return {
        "name": name,
        "device": device,
        "threads": threads,
        "sha256": sha256,
        "repeats": repeats,
        "latency_ms": {"samples": series, "median": float(np.median(series))},
        "inputs": ["serving x:0 float32 [1, 8]"] if inputs is None else inputs,
        "environment": {**ENVIRONMENT, **environment},
    }


def change(now, before, limit=0.05):
    [found] = compared([now], [before], limit=limit).changes
    return found


@pytest.mark.parametrize(
    "low, high, limit, expected",
    [
        (1.06, 1.09, 0.05, "slower"),
        (1.04, 1.09, 0.05, "inconclusive"),
        (0.97, 1.02, 0.05, "within the limit"),
        (1.05, 1.05, 0.05, "within the limit"),
        (0.80, 0.99, 0.05, "faster"),
        (0.90, 1.20, 0.05, "inconclusive"),
        (0.99, 1.01, 0.0, "inconclusive"),
        (1.001, 1.002, 0.0, "slower"),
    ],
)
def test_a_claim_needs_the_whole_interval(low, high, limit, expected):
    assert verdict(low, high, limit) == expected


def test_a_slower_run_is_told_with_its_interval():
    found = change(measured(samples(2.4)), measured(samples(2.0, seed=1), sha256="cd"))

    assert found.verdict == "slower"
    # Medians of ten samples with 1 % spread scatter by 0.4 %, means of five of them by 0.2 %.
    assert found.ratio == pytest.approx(1.2, rel=0.01)
    assert found.ci95[0] < found.ratio < found.ci95[1]
    assert found.ci95 == pytest.approx((1.2, 1.2), rel=0.02)
    assert (found.before_ms, found.now_ms) == pytest.approx((2.0, 2.4), rel=0.01)
    assert found.notes == ()


@pytest.mark.parametrize(
    "now, expected, note",
    [
        (samples(2.02), "within the limit", None),
        (samples(1.6), "faster", None),
        (samples(2.1, spread=0.2), "inconclusive", "raise --repeat or --runs in both, or measure"),
        (samples(2.4), "slower", "the file is the baseline's, byte by byte"),
    ],
    ids=["alike", "faster", "noisy", "same file"],
)
def test_verdicts_and_advice(now, expected, note):
    found = change(measured(now), measured(samples(2.0, seed=1)))
    assert found.verdict == expected
    assert not found.notes if note is None else found.notes[0].startswith(note)


def test_a_shift_of_whole_runs_is_no_change_of_the_model():
    """Each run is 20 % up or down: its samples are steady, and tell nothing of the next run."""
    rng = np.random.default_rng(3)
    now, before = (
        np.concatenate([samples(2.0 * factor, seed=n) for n, factor in enumerate(shifts)]).tolist()
        for shifts in rng.uniform(0.8, 1.2, (2, 5))
    )
    found = change(measured(now), measured(before))
    assert found.verdict == "inconclusive"
    assert found.ci95[1] / found.ci95[0] > 1.2
    single = change(measured(now, repeats=1), measured(before, repeats=1))
    assert single.ci95[1] / single.ci95[0] < found.ci95[1] / found.ci95[0]


def test_runs_and_not_samples_are_counted():
    """Ten times the samples in runs that differ: the interval stays as it is."""
    few, many = (
        measured(
            np.concatenate([samples(m, count, seed=n) for n, m in enumerate(medians)]).tolist()
        )
        for count, medians in ((20, (1.9, 2.0, 2.1, 2.0, 2.2)), (200, (1.9, 2.0, 2.1, 2.0, 2.2)))
    )
    before = measured(samples(2.0, seed=1))
    assert change(many, before).ci95 == pytest.approx(change(few, before).ci95, rel=0.01)


@pytest.mark.parametrize("runs", [(1, 5), (5, 1), (1, 1)])
def test_a_single_run_is_compared_and_said_to_be_one(runs):
    now, before = (
        measured(samples(median, seed=seed), repeats=repeats, sha256=str(seed))
        for median, seed, repeats in ((2.4, 0, runs[0]), (2.0, 1, runs[1]))
    )
    found = change(now, before)
    assert found.verdict == "slower"
    assert found.notes == (
        "a single run does not show what shifts whole runs; use --repeat 5 in both",
    )


def test_too_few_samples_of_single_runs_claim_nothing():
    five, fifty = measured(samples(9.0, 5), repeats=1), measured(samples(2.0), repeats=1)
    assert change(five, fifty).verdict == change(fifty, five).verdict == "inconclusive"


def test_samples_that_are_not_shared_evenly_are_those_of_one_run():
    found = change(measured(samples(2.4, 51)), measured(samples(2.0)))
    assert found.notes[0].startswith("a single run")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"cpu": "Cortex-A76"}, "CPU: Cortex-A76 now, Cortex-A72 in the baseline"),
        ({"architecture": "armv7l"}, "architecture: armv7l now, aarch64 in the baseline"),
        ({"xnnpack": False}, "use of XNNPACK: False now, True in the baseline"),
        (
            {"inputs": ["x float32 [1, 9]"]},
            "inputs: float32 [1, 9] now, float32 [1, 8] in the baseline",
        ),
    ],
    ids=["cpu", "architecture", "xnnpack", "inputs"],
)
def test_what_cannot_be_compared_is_not(changed, words):
    changes = compared([measured(samples(9.0), **changed)], [measured(samples(2.0))], limit=0.05)
    [found] = changes.changes
    assert (found.verdict, found.ratio, found.ci95) == ("not comparable", None, None)
    assert found.notes == (words,)
    [shortfall] = changes.shortfalls
    assert words in shortfall and "Save a baseline where" in shortfall


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"interpreter": "ai_edge_litert 2.4.0"}, "runtime: ai_edge_litert 2.4.0 now, ai_edge_li"),
        ({"cpus": 2}, "number of CPUs: 2 now, 4 in the baseline"),
        ({"affinity": [0]}, "CPUs stayed on: [0] now, [0, 1, 2, 3] in the baseline"),
        ({"before": {"governor": "ondemand"}}, "frequency governor: ondemand now, performance in"),
        ({"inputs": []}, None),  # the device does not tell
        ({"inputs": ["other name float32 [1, 8]"]}, None),
        ({"before": {"temperature_c": 70.0}}, None),
        ({"affinity": None}, None),
    ],
    ids=str,
)
def test_what_differs_otherwise_is_told(changed, words):
    found = change(measured(samples(2.0), **changed), measured(samples(2.0, seed=1)))
    assert found.verdict == "within the limit"
    assert not found.notes if words is None else found.notes[0].startswith(words)


def test_measurements_are_matched_by_name_device_and_threads():
    now = [
        measured(samples(2.0), "net", 1),
        measured(samples(2.0), "net", 4),
        measured(samples(2.0), "net", 1, device="adb:1"),
        measured(samples(2.0), "fresh", 1),
    ]
    before = [
        measured(samples(2.0), "gone", 2),
        measured(samples(4.0), "net", 4),
        measured(samples(2.0), "net", 1),
    ]
    changes = compared(now, before, limit=0.05)
    assert [(each.threads, each.verdict) for each in changes.changes] == [
        (1, "within the limit"),
        (4, "faster"),
    ]
    assert changes.missing == ("gone on host, 2 threads",)
    assert changes.new == ("net on adb:1, 1 thread", "fresh on host, 1 thread")
    assert changes.shortfalls == ()


def test_only_what_is_slower_beyond_doubt_falls_short():
    before = [measured(samples(2.0, seed=1), name) for name in ("slow", "noisy", "same")]
    now = [
        measured(samples(2.6), "slow"),
        measured(samples(2.1, spread=0.2), "noisy"),
        measured(samples(2.0), "same"),
    ]
    [shortfall] = compared(now, before, limit=0.05).shortfalls
    assert shortfall.startswith("slow on host, 1 thread became slower: 1.3")
    assert shortfall.endswith("where 1.05 is allowed.")


def test_nothing_in_common_falls_short():
    changes = compared([measured(samples(2.0), "a")], [measured(samples(2.0), "b")], limit=0.05)
    assert changes.shortfalls == (
        "Nothing to compare: measured were a on host, 1 thread; the baseline has "
        "b on host, 1 thread.",
    )


def test_the_same_distribution_is_rarely_called_slower_or_faster():
    """Each end of a 95 % interval misses in 2.5 % of the cases."""
    claims = {"slower": 0, "faster": 0}
    for seed in range(100):
        found = change(
            measured(samples(2.0, seed=2 * seed)), measured(samples(2.0, seed=2 * seed + 1)), 0.0
        )
        if found.verdict in claims:
            claims[found.verdict] += 1
    assert max(claims.values()) <= 8  # 2.5 expected of 100; 9 or more has a chance of 0.1 %


@pytest.mark.parametrize(
    "text, share", [("5%", 0.05), ("2.5%", 0.025), ("0%", 0.0), ("10 %", 0.1), ("150%", 1.5)]
)
def test_limits_are_percentages(text, share):
    assert read_limit(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text",
    ["", "5", "0.05", "1.05", "-5%", "5%%", "%", "five%", "nan%", "1e3%", "5 percent", "\u0665%"],
)
def test_anything_else_is_no_limit(text):
    with pytest.raises(ValueError, match=r"expected a percentage such as 5% or 2\.5%, received"):
        read_limit(text)
