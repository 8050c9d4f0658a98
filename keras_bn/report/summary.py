"""The sentences on top of a report: only what the document's figures say."""

from __future__ import annotations

from collections import Counter
from typing import Any

from keras_bn.report import quantities as q
from keras_bn.report import selection

QUANTIZATION_WORDS = {"none": "float32", "dynamic": "dynamic-range"}
# Sizes this close are called the same; a file's metadata alone differs by more.
SAME_SIZE = 0.02
# So are speeds whose interval comes this close to 1: it would be written as 1.00.
SAME_SPEED = 0.005
# A summary of more is a table, and that one follows.
SENTENCES = 4


def sentences(document: dict[str, Any]) -> list[str]:
    """What the results come to: the conversions, the fastest first, microcontrollers, folding."""
    conversions = document["conversions"]
    baseline = next((c for c in conversions if c["quantize"] == "none"), None)
    found: list[str] = []
    if baseline is not None:
        others = [c for c in conversions if c is not baseline]
        others.sort(key=lambda c: _rank(c, baseline, document), reverse=True)
        found = [_conversion(c, baseline, document) for c in others]
    if not found:
        pairs = dict.fromkeys((s["name"], s["baseline_name"]) for s in document["speedups"])
        found = [_pair(*pair, document) for pair in pairs]
    if not found:
        found = [f"{c['name']} takes {q.size(c['size_bytes'])}." for c in conversions]
    if not found:
        for _, benchmarks in selection.by_device(document["benchmarks"]):
            found += [_alone(each) for each in selection.fewest_threads(benchmarks)]
    found = found[:SENTENCES]
    if document["microcontrollers"]:
        found.append(_microcontrollers(document["microcontrollers"]))
    if document["fold"] is not None:
        found.append(_fold(document["fold"]))
    return found


def words(conversion: dict[str, Any], document: dict[str, Any]) -> str:
    """ "float32", "int8", … or the file's name where several share a quantization."""
    alike = Counter(c["quantize"] for c in document["conversions"])
    if alike[conversion["quantize"]] > 1:
        return conversion["name"]
    return QUANTIZATION_WORDS.get(conversion["quantize"], conversion["quantize"])


def _rank(
    conversion: dict[str, Any], baseline: dict[str, Any], document: dict[str, Any]
) -> tuple[float, float]:
    gained = _speedups(conversion["name"], baseline["name"], document)
    return (gained[0]["ratio"] if gained else 0.0, -conversion["size_bytes"])


def _conversion(
    conversion: dict[str, Any], baseline: dict[str, Any], document: dict[str, Any]
) -> str:
    smaller = baseline["size_bytes"] / conversion["size_bytes"]
    names = words(conversion, document), words(baseline, document)
    gained = _speedups(conversion["name"], baseline["name"], document)
    quality = _quality(conversion, baseline)
    if len(gained) > 1:
        return f"{_compared(*names, smaller, None)}{quality}. {_everywhere(gained)}."
    return f"{_compared(*names, smaller, gained[0] if gained else None)}{quality}."


def _pair(name: str, baseline_name: str, document: dict[str, Any]) -> str:
    gained = _speedups(name, baseline_name, document)
    if len(gained) > 1:
        return f"{name} against {baseline_name}: {_everywhere(gained)}."
    return f"{_compared(name, baseline_name, None, gained[0])}."


def _everywhere(speedups: list[dict[str, Any]]) -> str:
    """ "With 1 thread it is 1.3× [1.2, 1.4] slower on host and 2.1× [2, 2.2] faster on adb:1"."""
    counts = {selection.threads(each) for each in speedups}
    found = []
    for each in speedups:
        speed = _speed(each["ratio"], *each["ci95"]) or "neither faster nor slower"
        threads = f" with {selection.threads(each)}" if len(counts) > 1 else ""
        found.append(f"{speed} on {each['device']}{threads}")
    told = f"{', '.join(found[:-1])} and {found[-1]}"
    return f"With {counts.pop()} it is {told}" if len(counts) == 1 else f"It is {told}"


def _compared(
    name: str, baseline: str, smaller: float | None, speedup: dict[str, Any] | None
) -> str:
    """ "int8 is 3.60× smaller and, on host with 1 thread, 1.40× [1.3, 1.5] faster than float32"."""
    size = None if smaller is None else _size(smaller)
    speed = None if speedup is None else _speed(speedup["ratio"], *speedup["ci95"])
    where = "" if speedup is None else f"on {speedup['device']} with {selection.threads(speedup)}"
    if size and speed:
        return f"{name} is {size} and, {where}, {speed} than {baseline}"
    if size:
        undecided = f", without a measurable difference in speed {where}" if speedup else ""
        return f"{name} is {size} than {baseline}{undecided}"
    if speed:
        same = "" if smaller is None else ", without a notable difference in size"
        return f"{name} is {speed} than {baseline} {where}{same}"
    kinds = [kind for kind, known in (("size", smaller), ("speed", speedup)) if known is not None]
    return f"{name} and {baseline} do not differ notably in {' and '.join(kinds)}"


def _size(smaller: float) -> str | None:
    if abs(smaller - 1) <= SAME_SIZE:
        return None
    return f"{q.factor(smaller)} smaller" if smaller > 1 else f"{q.factor(1 / smaller)} larger"


def _speed(ratio: float, low: float, high: float) -> str | None:
    """None where the interval reaches 1, so that neither can be said."""
    if low > 1 + SAME_SPEED:
        return f"{q.factor(ratio)} {_unbroken(q.factor_interval(low, high))} faster"
    if high < 1 - SAME_SPEED:
        return f"{q.factor(1 / ratio)} {_unbroken(q.factor_interval(1 / high, 1 / low))} slower"
    return None


def _unbroken(interval: str) -> str:
    return interval.replace(" ", "\u00a0")


def _quality(conversion: dict[str, Any], baseline: dict[str, Any]) -> str:
    ours, theirs = conversion["accuracy"], baseline["accuracy"]
    if ours is not None and theirs is not None:
        points = round(ours * 100, 1) - round(theirs * 100, 1)
        if abs(points) < 0.05:  # the same to the digit shown
            return f", at the same accuracy ({q.percent(ours)})"
        change = f"{abs(points):.1f} points {'higher' if points > 0 else 'lower'} accuracy"
        return f", at {change} ({q.percent(ours)} against {q.percent(theirs)})"
    comparison = conversion["comparison"]
    if comparison is None:
        return ""
    if comparison["top1_agreement"] is not None:
        return (
            f", and chooses the same class as the Keras model for "
            f"{q.percent(comparison['top1_agreement'])} of {comparison['samples']} samples"
        )
    return f", with {q.decibel(comparison['snr_db'])} dB between signal and error"


def _speedups(name: str, baseline_name: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    """This pair on every device that it was measured on, with the fewest threads there."""
    return [
        each
        for _, speedups in selection.by_device(document["speedups"])
        for each in selection.fewest_threads(speedups)
        if (each["name"], each["baseline_name"]) == (name, baseline_name)
    ]


def _alone(benchmark: dict[str, Any]) -> str:
    latency = benchmark["latency_ms"]
    unit = q.TimeUnit([latency["median"]])
    low, high = latency["ci95"]
    return (
        f"{benchmark['name']} takes {unit(latency['median'])} {unit.name} "
        f"{_unbroken(f'[{unit(low)}, {unit(high)}]')} on {benchmark['device']} with "
        f"{selection.threads(benchmark)}."
    )


def _microcontrollers(tried: list[dict[str, Any]]) -> str:
    running = [
        each["name"]
        + (f" ({q.size(each['arena_bytes'])} of RAM)" if each["arena_bytes"] is not None else "")
        for each in tried
        if each["runs"]
    ]
    stopped = [
        each["name"] + (f" ({each['stopped_by']})" if each["stopped_by"] else "")
        for each in tried
        if not each["runs"]
    ]
    told = [f"runs {', '.join(running)}"] if running else []
    told += [f"does not run {', '.join(stopped)}"] if stopped else []
    return f"TensorFlow Lite Micro {' and '.join(told)}."


def _fold(fold: dict[str, Any]) -> str:
    folded, kept = len(fold["folded"]), len(fold["kept"])
    if not folded and not kept:
        return "The model has no normalization to fold."
    if not folded:
        return f"None of the model's {kept} normalizations could be folded."
    share = f"All {folded}" if not kept else f"{folded} of {folded + kept}"
    if folded == 1 and not kept:
        share = "The model's only"
    plural = "normalization" if folded + kept == 1 else "normalizations"
    verb = "was" if folded == 1 else "were"
    change = q.scientific(fold["max_abs_error"])
    return f"{share} {plural} {verb} folded away; the outputs changed by {change} at most."
