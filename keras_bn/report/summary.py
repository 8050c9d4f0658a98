"""The sentences on top of a report: only what the document's figures say."""

from __future__ import annotations

from collections import Counter
from typing import Any

from keras_bn.report import quantities as q

QUANTIZATION_WORDS = {"none": "float32", "dynamic": "dynamic range"}
# Sizes this close are called the same; a file's metadata alone differs by more.
SAME_SIZE = 0.02
SENTENCES_PER_KIND = 4


def sentences(document: dict[str, Any]) -> list[str]:
    """What the results come to, the conversions first, then speed, then folding."""
    conversions = document["conversions"]
    baseline = next((c for c in conversions if c["quantize"] == "none"), None)
    found = []
    if baseline is not None:
        others = [c for c in conversions if c is not baseline]
        found = [_conversion(c, baseline, document) for c in others[:SENTENCES_PER_KIND]]
    if not found:
        found = [_speed_alone(s) for s in _one_thread_count(document["speedups"])]
        found = found[:SENTENCES_PER_KIND]
    if not found:
        found = [_plain(c) for c in conversions[:SENTENCES_PER_KIND]]
    if document["fold"] is not None:
        found.append(_fold(document["fold"]))
    return found


def words(conversion: dict[str, Any], document: dict[str, Any]) -> str:
    """ "float32", "int8", … or the file's name where several share a quantization."""
    alike = Counter(c["quantize"] for c in document["conversions"])
    if alike[conversion["quantize"]] > 1:
        return conversion["name"]
    return QUANTIZATION_WORDS.get(conversion["quantize"], conversion["quantize"])


def _conversion(conversion: dict[str, Any], baseline: dict[str, Any], document: Any) -> str:
    claims = [_size(baseline["size_bytes"] / conversion["size_bytes"])]
    speedup = _speedup(conversion["name"], baseline["name"], document)
    if speedup is not None:
        claims.append(_speed(speedup["ratio"], *speedup["ci95"]))
    compared = f"{words(conversion, document)} is {' and '.join(claims)}"
    # "is 3.6× smaller and 1.4× faster than float32", but "is of the same size as float32"
    compared += f" {'than' if _is_comparative(claims[-1]) else 'as'} {words(baseline, document)}"
    return f"{compared}{_quality(conversion, baseline)}."


def _is_comparative(claim: str) -> bool:
    return claim.endswith(("smaller", "larger", "faster", "slower"))


def _size(smaller: float) -> str:
    if abs(smaller - 1) <= SAME_SIZE:
        return "of the same size"
    return f"{q.factor(smaller)} smaller" if smaller > 1 else f"{q.factor(1 / smaller)} larger"


def _speed(ratio: float, low: float, high: float) -> str:
    if low > 1:
        return f"{q.factor(ratio)} {q.factor_interval(low, high)} faster"
    if high < 1:
        return f"{q.factor(1 / ratio)} {q.factor_interval(1 / high, 1 / low)} slower"
    return "within the measurement's uncertainty as fast"


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


def _speedup(name: str, baseline: str, document: dict[str, Any]) -> dict[str, Any] | None:
    return next(
        (
            s
            for s in _one_thread_count(document["speedups"])
            if s["name"] == name and s["baseline_name"] == baseline
        ),
        None,
    )


def _one_thread_count(speedups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the first device at its smallest thread count."""
    if not speedups:
        return []
    device = speedups[0]["device"]
    threads = min(s["threads"] for s in speedups if s["device"] == device)
    return [s for s in speedups if s["device"] == device and s["threads"] == threads]


def _speed_alone(speedup: dict[str, Any]) -> str:
    claim = _speed(speedup["ratio"], *speedup["ci95"])
    joint = "than" if _is_comparative(claim) else "as"
    return f"{speedup['name']} is {claim} {joint} {speedup['baseline_name']}."


def _plain(conversion: dict[str, Any]) -> str:
    return f"{conversion['name']} takes {q.size(conversion['size_bytes'])}."


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
