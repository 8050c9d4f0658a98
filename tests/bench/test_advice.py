"""Each doubt is raised where it must be, and nowhere else."""

import re

import numpy as np
import pytest

from keras_bn.bench import advice, stats

QUIET = {
    "system": "Linux 6.1.0",
    "cpus": 4,
    "timer_resolution_ns": 40,
    "before": {"load_average": 0.3, "governor": "performance"},
}
STEADY = np.random.default_rng(0).normal(1, 0.01, 50)
INPUT = {"name": "x", "shape": [1, 8, 8, 3], "shape_signature": [-1, 8, 8, 3]}


def warnings(samples=STEADY, *, threads=1, preempted=0, inputs=(INPUT,), **environment):
    return advice.warnings(
        stats.summarize(samples),
        threads=threads,
        preempted=preempted,
        inputs=list(inputs),
        environment=QUIET | environment,
    )


def test_a_quiet_machine_is_not_warned_of():
    assert warnings() == ()


NOISY = np.random.default_rng(1).uniform(1, 3, 20)
OUTLIERS = np.where(np.arange(50) % 16 == 3, 9.0, STEADY)

BEFORE = QUIET["before"]
CASES = {
    "too few": ({"samples": [1.0] * 5}, "5 timed runs are too few .* Raise runs"),
    "outliers": ({"samples": OUTLIERS}, r"3 of 50 samples are outliers .*\(affinity\)"),
    "slower": ({"samples": STEADY * np.linspace(1, 1.1, 50)}, "[5-8]% slower .*cooldown_s"),
    "faster": ({"samples": STEADY * np.linspace(1.1, 1, 50)}, "[5-8]% faster .* Raise warmup"),
    "noisy": ({"samples": NOISY}, r"known to ±\d+% only"),
    "short": ({"samples": STEADY * 0.0039}, "39.. ns and the timer moves in steps of 40 ns"),
    "threads": ({"threads": 5}, "5 threads shared 4 CPUs"),
    "preempted": ({"preempted": 6}, "In 6 of 50 samples another program got the CPU"),
    "busy": (
        {"before": {"load_average": 4.1, "governor": None}},
        "load average 4.1 on 4 CPUs",
    ),
    "governor": (
        {"before": {"load_average": 0.3, "governor": "schedutil"}},
        "governor is schedutil.*tee",
    ),
    "governor of a phone": (
        {
            "system": "Android 14 (Linux 5.10)",
            "before": {"load_average": 0.3, "governor": "schedutil"},
        },
        "governor is schedutil.* a phone that is cool",
    ),
    "hot": (
        {"before": BEFORE | {"throttle_events": 7}, "after": {"throttle_events": 9}},
        r"slowed itself down 2 times.*cooldown_s",
    ),
    "low voltage now": (
        {"before": BEFORE | {"firmware_throttling": 0}, "after": {"firmware_throttling": 0x1}},
        "voltage was too low.*power supply",
    ),
    "low voltage meanwhile": (
        {
            "before": BEFORE | {"firmware_throttling": 0x40000},
            "after": {"firmware_throttling": 0x50000},
        },
        "voltage was too low",
    ),
    "slowed down meanwhile": (
        {
            "before": BEFORE | {"firmware_throttling": 0x10000},
            "after": {"firmware_throttling": 0x90000},
        },
        "firmware held the clock down",
    ),
    "open shape": (
        {"inputs": [{"name": "t", "shape": [1, 1], "shape_signature": [-1, -1]}]},
        r"Input t has unknown dimensions \[-1, -1\] and was measured at \[1, 1\]",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_doubt_is_the_only_one_and_gives_advice(case):
    arguments, pattern = CASES[case]
    [found] = warnings(**arguments)
    assert re.search(pattern, found)


@pytest.mark.parametrize(
    "arguments",
    [
        {"samples": [1.0] * 6},
        {"samples": np.where(np.arange(50) % 25 == 3, 9.0, STEADY)},  # 2 of 50
        {"samples": STEADY * 0.0042},  # above a hundred steps of the timer
        {"threads": 4},
        {"preempted": 5},
        {"before": {"load_average": 4.0, "governor": None}},
        {"inputs": [{"name": "x", "shape": [1, 8], "shape_signature": [-1, 8]}]},
        {"before": BEFORE | {"throttle_events": 7}, "after": {"throttle_events": 7}},
        {
            "before": BEFORE | {"firmware_throttling": 0xF0000},
            "after": {"firmware_throttling": 0xF0000},
        },
    ],
    ids=[
        "six",
        "two outliers",
        "long enough",
        "all CPUs",
        "one in ten",
        "busy",
        "open batch",
        "hot before",
        "throttled before",
    ],
)
def test_just_inside_a_limit_is_not_warned_of(arguments):
    assert warnings(**arguments) == ()
