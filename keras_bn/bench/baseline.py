"""Measurements beside those of an earlier call: what became slower, and what cannot be told.

What shifts a whole run (where the memory of a process comes to lie, other programs, temperature) is
in none of its samples, so each side is measured in several runs, and these are what is counted
(`stats.ratio_of_runs`). Of single runs only what varies within them is known
(`stats.ratio_interval`); the notes then say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_bn.bench import stats

# Measurements are compared only where these agree; what differs otherwise is said.
SAME = {"cpu": "CPU", "architecture": "architecture", "xnnpack": "use of XNNPACK"}
TOLD = {
    "interpreter": "runtime",
    "cpus": "number of CPUs",
    "affinity": "CPUs stayed on",
    "system": "operating system",
    "before.governor": "frequency governor",
}

SLOWER, FASTER, WITHIN, INCONCLUSIVE, INCOMPARABLE = (
    "slower",
    "faster",
    "within the limit",
    "inconclusive",
    "not comparable",
)


@dataclass(frozen=True)
class Change:
    """One model on one device at one thread count, now and in the baseline.

    Attributes:
        name, device, threads: Which measurement.
        before_ms, now_ms: Median latencies, of several runs the geometric mean of their medians.
        ratio: Latency now over that of the baseline: above 1, it became slower. None if the two
            cannot be compared.
        ci95: 95 % interval of the ratio.
        verdict: "slower" (the whole interval is beyond the limit), "faster" (the whole interval is
            below 1), "within the limit" (the whole interval is), "inconclusive" (the limit is
            inside), or "not comparable".
        notes: What differs between the two runs, and what to try.
    """

    name: str
    device: str
    threads: int
    before_ms: float
    now_ms: float
    ratio: float | None
    ci95: tuple[float, float] | None
    verdict: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    """What a run shows against its baseline.

    Attributes:
        limit: From which share on slower counts: 0.05 for 5 %.
        changes: One for each measurement that both have.
        missing: Measurements of the baseline that were not repeated.
        new: Measurements that the baseline lacks.
    """

    limit: float
    changes: tuple[Change, ...]
    missing: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What keeps this run from being as fast as asked, one sentence each; () for nothing."""
        if not self.changes:
            return (
                "Nothing to compare: measured were {}; the baseline has {}.".format(
                    *(", ".join(each) or "nothing" for each in (self.new, self.missing))
                ),
            )
        return tuple(filter(None, (_shortfall(change, self.limit) for change in self.changes)))


def read_limit(text: str) -> float:
    """
    Raises:
        ValueError: it is not a percentage.

    Example:
        >>> read_limit("5%")
        0.05
    """
    if not re.fullmatch(r"[0-9]{1,4}([.][0-9]+)? ?%", text):
        raise ValueError(f"expected a percentage such as 5% or 2.5%, received {text!r}")
    return float(text.rstrip("% ")) / 100


def compared(
    now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], *, limit: float
) -> Changes:
    """Compare measurements with those of a baseline.

    Measurements belong together when the model's name, device and thread count are the same. The
    file's contents may differ: it is new builds that are compared.

    Args:
        now, before: The "benchmarks" of two results documents.
        limit: From which share on slower counts.
    """
    then = {_key(each): each for each in before}
    today = {_key(each): each for each in now}
    return Changes(
        limit,
        tuple(_change(each, then[key], limit) for key, each in today.items() if key in then),
        missing=tuple(_words(key) for key in then if key not in today),
        new=tuple(_words(key) for key in today if key not in then),
    )


def verdict(low: float, high: float, limit: float) -> str:
    """What the interval [low, high] of a ratio, now over before, allows to say.

    Example:
        >>> verdict(1.06, 1.09, 0.05), verdict(1.01, 1.04, 0.05), verdict(1.01, 1.09, 0.05)
        ('slower', 'within the limit', 'inconclusive')
    """
    if low > 1 + limit:
        return SLOWER
    if high < 1:
        return FASTER
    return WITHIN if high <= 1 + limit else INCONCLUSIVE


def _shortfall(change: Change, limit: float) -> str | None:
    which = _words((change.name, change.device, change.threads))
    if change.verdict == INCOMPARABLE:
        return (
            f"{which} cannot be compared with the baseline ({'; '.join(change.notes)}). Save a "
            "baseline where, and as, it is measured now."
        )
    if change.verdict == SLOWER and change.ratio is not None and change.ci95 is not None:
        low, high = change.ci95
        return (
            f"{which} became slower: {change.ratio:.3f} times the baseline's latency, 95 % "
            f"interval [{low:.3f}, {high:.3f}], where {1 + limit:g} is allowed."
        )
    return None


def _change(now: Mapping[str, Any], before: Mapping[str, Any], limit: float) -> Change:
    series = _runs(now), _runs(before)
    now_ms, before_ms = (_typical(runs) for runs in series)
    which = (now["name"], now["device"], now["threads"], before_ms, now_ms)
    if differences := tuple(_differences(now, before, SAME)):
        return Change(*which, ratio=None, ci95=None, verdict=INCOMPARABLE, notes=differences)
    notes = [*_differences(now, before, TOLD)]
    several = min(map(len, series)) > 1
    if several:
        ratio, low, high = stats.ratio_of_runs(*series)
    else:
        ratio, low, high = stats.ratio_interval(*map(np.ravel, series), paired=False)
        notes.append("a single run does not show what shifts whole runs; use --repeat 5 in both")
    found = verdict(low, high, limit)
    if not several and min(np.size(runs) for runs in series) < stats.SAMPLES_FOR_INTERVAL:
        found = INCONCLUSIVE
    if found == INCONCLUSIVE:
        notes.append("raise --repeat or --runs in both, or measure on a quieter machine")
    if found == SLOWER and now["sha256"] == before["sha256"]:
        notes.append("the file is the baseline's, byte by byte: the machine became slower")
    return Change(*which, ratio, (low, high), found, tuple(notes))


def _runs(measured: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """A row of samples for each run."""
    samples, repeats = np.array(measured["latency_ms"]["samples"]), measured["repeats"]
    return samples.reshape(repeats if repeats and not samples.size % repeats else 1, -1)


def _typical(runs: npt.NDArray[np.float64]) -> float:
    return float(np.exp(np.log(np.median(runs, axis=1)).mean()))


def _differences(
    now: Mapping[str, Any], before: Mapping[str, Any], fields: Mapping[str, str]
) -> Iterator[str]:
    """What both runs tell of `fields`, where it is not the same."""
    for field, words in fields.items():
        today, then = (_looked_up(each["environment"], field) for each in (now, before))
        if today != then and None not in (today, then):
            yield f"{words}: {today} now, {then} in the baseline"
    today, then = (_shapes(each["inputs"]) for each in (now, before))
    if fields is SAME and today and then and today != then:
        yield f"inputs: {', '.join(today)} now, {', '.join(then)} in the baseline"


def _looked_up(environment: Mapping[str, Any], field: str) -> Any:
    found: Any = environment
    for name in field.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _shapes(inputs: Sequence[str]) -> list[str]:
    """Dtype and shape of each input, without its name, which differs between conversions."""
    return [" ".join(re.split(" (?=[^ ]+ \\[)", each)[-1:]) for each in inputs]


def _key(measured: Mapping[str, Any]) -> tuple[str, str, int]:
    return measured["name"], measured["device"], measured["threads"]


def _words(key: tuple[str, str, int]) -> str:
    name, device, threads = key
    return f"{name} on {device}, {threads} thread{'s' * (threads > 1)}"
