"""results.json: everything that a report shows, built from result values, checked when read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_bn.files import replacing
from keras_bn.report import schema

if TYPE_CHECKING:
    from keras_bn.bench.result import BenchmarkResult, MicrocontrollerResult, Speedup
    from keras_bn.compare.result import Comparison
    from keras_bn.convert.result import Conversion
    from keras_bn.fold.result import FoldResult

# Of ten million timed invokes. Reading takes several times as much memory.
LARGEST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ModelSummary:
    """The Keras model that everything else came from.

    Attributes:
        name: As the reader knows it.
        parameters, layers: Their numbers.
        size_bytes: Of the `.keras` file.
        accuracy: On the data that the conversions' accuracies were taken on, in [0, 1].
    """

    name: str
    parameters: int | None = None
    layers: int | None = None
    size_bytes: int | None = None
    accuracy: float | None = None


def document(
    *,
    title: str,
    environment: Mapping[str, str],
    created: datetime | None = None,
    model: ModelSummary | None = None,
    fold: FoldResult | None = None,
    conversions: Sequence[Conversion] = (),
    accuracies: Mapping[str | os.PathLike[str], float] | None = None,
    benchmarks: Sequence[BenchmarkResult] = (),
    speedups: Sequence[Speedup] = (),
    microcontrollers: Sequence[MicrocontrollerResult] = (),
) -> dict[str, Any]:
    """The results document, in JSON's own types; whatever is not passed is not reported.

    Files appear under a short name, the same one in every section: the name of the file without
    its suffix, with its folder in front where two files share that.

    Args:
        title: The report's heading.
        environment: Versions of keras-bn and the libraries, and whatever else tells how the
            results came about; shown as it is.
        created: When; now if None.
        model: The Keras model.
        fold: What folding did; that of the first conversion that has one if None.
        conversions: The `.tflite` files; the first with quantize "none" is what the others are
            compared against.
        accuracies: Accuracy in [0, 1] by the path of a conversion.
        benchmarks: Measurements, of the same files or of any.
        speedups: Of these measurements.
        microcontrollers: What TensorFlow Lite Micro did with these files, or with any.

    Raises:
        ValueError: a value is out of its range, or `accuracies` names a file that is not among
            `conversions`.

    Example:
        >>> written = document(title="A model", environment={"keras_bn": "0.1.0"})
        >>> written["conversions"]
        []
    """
    files = [conversion.path for conversion in conversions]
    measured = [result.model for result in benchmarks]
    compared = [path for each in speedups for path in (each.model, each.baseline)]
    tried = [result.model for result in microcontrollers]
    names = _names([*files, *measured, *compared, *tried])
    accuracy = {_key(path): value for path, value in (accuracies or {}).items()}
    if unknown := accuracy.keys() - {_key(path) for path in files}:
        raise ValueError(
            f"accuracies names {sorted(unknown)}, which are not among the conversions' files: "
            f"{sorted(map(_key, files))}"
        )
    if fold is None:
        fold = next((c.fold for c in conversions if c.fold is not None), None)
    written = {
        "format": schema.FORMAT,
        "version": schema.VERSION,
        "title": title,
        "created": (created or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
        "environment": dict(environment),
        "model": None if model is None else asdict(model),
        "fold": None if fold is None else _fold(fold),
        "conversions": [
            {
                "name": names[_key(each.path)],
                "file": os.fspath(each.path),
                "quantize": each.quantize,
                "size_bytes": each.size_bytes,
                "ops": dict(each.ops),
                "float_ops": dict(each.float_ops),
                "accuracy": accuracy.get(_key(each.path)),
                "comparison": comparison_to_json(each.comparison),
            }
            for each in conversions
        ],
        "benchmarks": [{"name": names[_key(each.model)], **asdict(each)} for each in benchmarks],
        "speedups": [
            {
                "name": names[_key(each.model)],
                "baseline_name": names[_key(each.baseline)],
                **asdict(each),
            }
            for each in speedups
        ],
        "microcontrollers": [
            {"name": names[_key(each.model)], **microcontroller_to_json(each)}
            for each in microcontrollers
        ],
        "against": None,
    }
    written = json.loads(json.dumps(written, allow_nan=False))
    schema.check(written)
    return written


def save(document: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `document` to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the results document at `path`; what older versions did not write is empty.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is not JSON, not a results document, of another version, or damaged; the
            message names the place and what was expected there.
    """
    with Path(path).open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    try:
        if len(content) > LARGEST_BYTES:
            raise ValueError(f"it has more than {LARGEST_BYTES} bytes, which no results have")
        loaded = json.loads(content, parse_constant=_refuse_constant)
        schema.check(loaded)
    except RecursionError:
        raise ValueError(f"{os.fspath(path)} cannot be read: it is nested too deeply.") from None
    except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{os.fspath(path)} cannot be read: {error}.") from None
    loaded.setdefault("microcontrollers", [])
    loaded.setdefault("against", None)
    if loaded["fold"] is not None:
        loaded["fold"].setdefault("others", [])
    for benchmark in loaded["benchmarks"]:
        benchmark.setdefault("profile", [])
        benchmark.setdefault("repeats", 1)
    return loaded


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _fold(fold: FoldResult) -> dict[str, Any]:
    return {
        "folded": [asdict(layer) for layer in fold.folded],
        "kept": [asdict(layer) for layer in fold.kept],
        "others": [asdict(layer) for layer in fold.others],
        "max_abs_error": _extended(fold.max_abs_error),
    }


def comparison_to_json(comparison: Comparison | None) -> dict[str, Any] | None:
    """A comparison in JSON's own types, infinities by name; None stays None."""
    if comparison is None:
        return None
    figures = ("max_abs_error", "snr_db", "cosine", "top1_agreement")

    def written(source: Any) -> dict[str, Any]:
        return {name: _extended(getattr(source, name)) for name in figures}

    return {
        "samples": comparison.samples,
        **written(comparison),
        "outputs": [{"name": each.name, **written(each)} for each in comparison.outputs],
    }


def microcontroller_to_json(result: MicrocontrollerResult) -> dict[str, Any]:
    """A result in JSON's own types, infinities by name."""
    written = asdict(result)
    written |= {"max_abs_error": result.max_abs_error, "snr_db": result.snr_db}
    for figures in (written, *written["outputs"]):
        for name in ("max_abs_error", "snr_db"):
            figures[name] = _extended(figures[name])
    return written


def _extended(value: float | None) -> float | str | None:
    """JSON's own number, or the name of one that JSON lacks."""
    return value if value is None or math.isfinite(value) else str(float(value))


def _key(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (resolve would follow links to one shared name)


def _names(paths: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """A short name for each file, different for different files."""
    keys = dict.fromkeys(map(_key, paths))
    for name in (_stem, _folder_and_stem):
        names = {key: name(key) for key in keys}
        if len(set(names.values())) == len(names):
            return names
    return {key: key for key in keys}


def _stem(key: str) -> str:
    return Path(key).stem


def _folder_and_stem(key: str) -> str:
    return f"{Path(key).parent.name}/{Path(key).stem}"
