"""The shape of results.json: checks of its records, and one for the whole.

Fields that are not named are allowed: they come from a newer keras-bn and are not drawn.
"""

from __future__ import annotations

from typing import Any

from keras_bn.checks import (
    count,
    each,
    fail,
    flag,
    mapping,
    number,
    optional,
    positive,
    record,
    share,
    text,
)

FORMAT = "keras-bn results"
VERSION = 1

DEEPEST = 8

# JSON has no infinity: an output that equals its reference has an infinite SNR.
EXTENDED = ("inf", "-inf", "nan")


def extended(value: Any, where: str) -> None:
    if value not in EXTENDED:
        number(value, where)


def anything(value: Any, where: str) -> None:
    """Any JSON value, drawn as text; objects within objects only as deep as reports show them."""
    if isinstance(value, dict):
        if where.count(".") > DEEPEST:
            fail(where, "objects nested less deeply", value)
        for key, item in value.items():
            anything(item, f"{where}.{key.replace('.', '_')}")


figures = {
    "max_abs_error": extended,
    "snr_db": extended,
    "cosine": extended,
    "top1_agreement": optional(share),
}

interval = each(positive, at_least=2, at_most=2)

latency = record(
    dict.fromkeys(("p5_ci95", "p95_ci95", "p99_ci95"), optional(interval)),
    samples=each(positive, at_least=1),
    median=positive,
    mean=positive,
    std=number,
    p5=positive,
    p95=positive,
    p99=positive,
    minimum=positive,
    maximum=positive,
    ci95=interval,
)

operation = record(name=text, kind=text, mean_ms=number, share=share, calls=count)

microcontroller = record(
    name=text,
    model=text,
    sha256=text,
    size_bytes=positive,
    ops=mapping(count),
    runs=flag,
    reason=optional(text),
    stopped_by=optional(text),
    arena_bytes=optional(count),
    outputs=each(
        record(
            name=text,
            dtype=text,
            max_abs_error=extended,
            max_steps=optional(count),
            snr_db=extended,
        )
    ),
    max_abs_error=optional(extended),
    snr_db=optional(extended),
    samples=count,
    environment=mapping(text),
)

against = record(
    limit=number,
    changes=each(
        record(
            name=text,
            device=text,
            threads=count,
            before_ms=positive,
            now_ms=positive,
            ratio=optional(positive),
            ci95=optional(each(positive, at_least=2, at_most=2)),
            verdict=text,
            notes=each(text),
        )
    ),
    missing=each(text),
    new=each(text),
)

results = record(
    {"microcontrollers": each(microcontroller), "against": optional(against)},
    title=text,
    created=text,
    environment=mapping(text),
    model=optional(
        record(
            name=text,
            parameters=optional(count),
            layers=optional(count),
            size_bytes=optional(count),
            accuracy=optional(share),
        )
    ),
    fold=optional(
        record(
            {"others": each(record({"into": text, "rule": text, "reason": text}, layer=text))},
            folded=each(record(layer=text, into=text, rule=text)),
            kept=each(record(layer=text, reason=text)),
            max_abs_error=extended,
        )
    ),
    conversions=each(
        record(
            name=text,
            file=text,
            quantize=text,
            size_bytes=positive,
            ops=mapping(count),
            float_ops=mapping(count),
            accuracy=optional(share),
            comparison=optional(
                record(
                    samples=count, outputs=each(record(name=text, **figures), at_least=1), **figures
                )
            ),
        )
    ),
    benchmarks=each(
        record(
            {"profile": each(operation), "repeats": count},
            name=text,
            model=text,
            sha256=text,
            size_bytes=positive,
            device=text,
            threads=count,
            latency_ms=latency,
            init_ms=optional(number),
            first_invoke_ms=optional(number),
            peak_rss_bytes=optional(count),
            runtime_rss_bytes=optional(count),
            inputs=each(text),
            preempted=optional(count),
            environment=mapping(anything),
            warnings=each(text),
        )
    ),
    speedups=each(
        record(
            name=text,
            baseline_name=text,
            device=text,
            threads=count,
            ratio=positive,
            ci95=interval,
        )
    ),
)


def check(value: Any) -> None:
    """Check a whole document.

    Raises:
        ValueError: it is not a results document, or not one that this version can read.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(
            f'it is not a results document: "format" must be {FORMAT!r}. `keras-bn run` and '
            "`keras-bn bench` write such files"
        )
    version = value.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(
            f"its version is {version!r} and this keras-bn reads version {VERSION}; "
            "use the keras-bn that wrote it, or measure again"
        )
    results(value, "results")
