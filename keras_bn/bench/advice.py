"""What makes a latency doubtful, and what to do about it: one sentence for each finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from keras_bn.bench import stats
from keras_bn.bench.result import Latency

# Beyond this share the 95th percentile describes disturbances rather than the model.
OUTLIER_SHARE = 0.05
# A change this small is within what medians of repeated runs differ by on a quiet machine.
DRIFT_SHARE = 0.05
# Half the interval's width, relative to the median: too wide to tell models 10 % apart.
INTERVAL_HALF_WIDTH_SHARE = 0.05
# A reading is off by up to one step of the timer: 1 % of a sample of a hundred steps.
TIMER_STEPS = 100
# A Raspberry Pi's flags (raspberrypi.com/documentation, vcgencmd get_throttled): the low bits hold
# now, the same bits 16 higher have held since it booted.
UNDER_VOLTAGE, SLOWED_DOWN, SINCE_BOOT = 0b0001, 0b1110, 16
# One timed invoke in ten lost the CPU: no longer an exception.
PREEMPTED_SHARE = 0.1


def warnings(
    latency: Latency,
    *,
    threads: int,
    preempted: int | None,
    inputs: list[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> tuple[str, ...]:
    """Every doubt about one measurement.

    Args:
        latency: Its statistics.
        threads: Interpreter threads.
        preempted: In how many timed invokes another program got the CPU.
        inputs: name, shape and shape_signature of the model's inputs, as the runner tells them.
        environment: What the runner reported of the machine.
    """
    return (
        *_of_samples(latency, environment["timer_resolution_ns"]),
        *_of_machine(len(latency.samples), threads, preempted, environment),
        *_of_throttling(environment["before"], environment.get("after", {})),
        *_of_inputs(inputs),
    )


def _of_samples(latency: Latency, timer_resolution_ns: int) -> Iterator[str]:
    count = len(latency.samples)
    if count < stats.SAMPLES_FOR_INTERVAL:
        yield (
            f"{count} timed runs are too few for a 95 % interval of the median, which takes at "
            f"least {stats.SAMPLES_FOR_INTERVAL}. Raise runs; 50 is the default."
        )
    outliers = stats.outliers(latency.samples)
    if outliers > OUTLIER_SHARE * count:
        yield (
            f"{outliers} of {count} samples are outliers (modified Z-score above "
            f"{stats.OUTLIER_MODIFIED_Z:.1f}). Close other programs, or stay on CPUs that they "
            "do not use (affinity). The median holds, the mean and p99 do not."
        )
    drift = stats.drift(latency.samples)
    if drift is not None and drift > DRIFT_SHARE:
        yield (
            f"It became {drift:.0%} slower during the run: throttling, or another load that "
            "started. Let the device cool between rounds (cooldown_s), improve its cooling, or "
            "lower its clock until the figures are stable."
        )
    if drift is not None and drift < -DRIFT_SHARE:
        yield (
            f"It became {-drift:.0%} faster during the run: the clock was still rising, or "
            "another load ended. Raise warmup."
        )
    low, high = latency.ci95
    half_width = (high - low) / 2 / latency.median
    if half_width > INTERVAL_HALF_WIDTH_SHARE:
        yield (
            f"The median is known to ±{half_width:.0%} only. Raise runs, or measure on a quieter "
            "machine."
        )
    if latency.median * 1e6 < TIMER_STEPS * timer_resolution_ns:
        yield (
            f"One invoke takes {latency.median * 1e6:.0f} ns and the timer moves in steps of "
            f"{timer_resolution_ns} ns: the samples are too short to tell small differences. "
            "Measure a model that contains this one several times over."
        )


def _of_machine(
    count: int, threads: int, preempted: int | None, environment: Mapping[str, Any]
) -> Iterator[str]:
    if threads > environment["cpus"]:
        yield (
            f"{threads} threads shared {environment['cpus']} CPUs. Ask for at most as many threads "
            "as CPUs, or widen affinity."
        )
    if preempted is not None and preempted > PREEMPTED_SHARE * count:
        yield (
            f"In {preempted} of {count} samples another program got the CPU. Close other programs, "
            "or stay on CPUs that they do not use (affinity)."
        )
    load, free = environment["before"]["load_average"], environment["cpus"] - threads
    if load is not None and load > max(free, 0) + 1:
        yield (
            f"The machine was busy before the run began: load average {load:g} on "
            f"{environment['cpus']} CPUs. Wait until it is idle."
        )
    governor = environment["before"]["governor"]
    if governor is not None and governor != "performance":
        if environment["system"].startswith("Android"):  # where sudo is for rooted phones only
            repeat = "compare models of one run, on a phone that is cool and not being charged."
        else:
            repeat = (
                "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
            )
        yield (
            f"The CPUs' frequency governor is {governor}, so the clock follows the load. For "
            f"figures that repeat: {repeat}"
        )


def _of_throttling(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    hot_before, hot_after = (each.get("throttle_events") for each in (before, after))
    if hot_before is not None and hot_after is not None and hot_after > hot_before:
        yield (
            f"The CPU was too hot and slowed itself down {hot_after - hot_before} times during the "
            "run. Let it cool between rounds (cooldown_s), or improve its cooling."
        )
    first, last = (each.get("firmware_throttling") for each in (before, after))
    if first is None or last is None:
        return
    # Now, at either end; or since it booted, but not yet before the run.
    flagged = first | last | (last & ~first) >> SINCE_BOOT
    if flagged & UNDER_VOLTAGE:
        yield (
            "The board's voltage was too low, so its clock was not the one it was asked for. Use "
            "the power supply that its maker names, and a short cable."
        )
    if flagged & SLOWED_DOWN:
        yield (
            "The board's firmware held the clock down. Let it cool between rounds (cooldown_s), "
            "or improve its cooling or its power supply."
        )


def _of_inputs(inputs: list[Mapping[str, Any]]) -> Iterator[str]:
    for each in inputs:
        if any(size < 0 for size in each["shape_signature"][1:]):
            yield (
                f"Input {each['name']} has unknown dimensions {each['shape_signature']} and was "
                f"measured at {each['shape']}, probably far below its use. Convert the model with "
                "the shape it will run at."
            )
