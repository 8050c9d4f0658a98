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


def measured(series, name="net", threads=1, device="host", sha256="ab", inputs=None, **environment):
    return {
        "name": name,
        "device": device,
        "threads": threads,
        "sha256": sha256,
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
    assert found.ratio == pytest.approx(1.2, rel=0.01)  # medians of 50 samples with 1 % spread
    assert found.ci95[0] < found.ratio < found.ci95[1]
    assert found.ci95 == pytest.approx((1.2, 1.2), rel=0.015)
    assert (found.before_ms, found.now_ms) == pytest.approx((2.0, 2.4), rel=0.01)
    assert found.notes == ()


@pytest.mark.parametrize(
    "now, expected, note",
    [
        (samples(2.02), "within the limit", None),
        (samples(1.6), "faster", None),
        (samples(2.1, spread=0.2), "inconclusive", "raise --runs in both, or measure on a quieter"),
        (samples(9.0, count=5), "inconclusive", "it takes 6 runs in both for an interval"),
        (samples(2.4), "slower", "the file is the baseline's, byte by byte"),
    ],
    ids=["alike", "faster", "noisy", "few", "same file"],
)
def test_verdicts_and_advice(now, expected, note):
    found = change(measured(now), measured(samples(2.0, seed=1)))
    assert found.verdict == expected
    assert not found.notes if note is None else found.notes[0].startswith(note)


def test_neighbours_that_depend_on_each_other_widen_the_interval():
    """Two halves at 2.0 and 2.2: fifty samples that tell little more than two."""
    halves = samples(2.0, count=25) + samples(2.2, count=25)
    shuffled = np.random.default_rng(2).permutation(halves).tolist()
    before = measured(samples(2.0, seed=1))
    low, high = change(measured(halves), before).ci95
    free_low, free_high = change(measured(shuffled), before).ci95
    assert high - low > 1.05 * (free_high - free_low)


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
    """Both ends of a 95 % interval of independent samples: each misses in some 2.5 %."""
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
