"""`keras-bn run`: the whole road for one model, into one folder."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keras_bn.cli.bench import numbers
from keras_bn.cli.models import MODES, load, model_options
from keras_bn.cli.terminal import Terminal, output_options

if TYPE_CHECKING:
    import keras
    import numpy as np

LABELS = "labels"
FILE_NAMES = {"none": "float32"}


@dataclass(frozen=True)
class Evaluation:
    """Held-out samples, by input name or as one array, and their classes where there are any."""

    samples: Any
    labels: np.ndarray | None


@dataclass(frozen=True)
class Settings:
    """What to do with the model.

    Attributes:
        modes: Conversions to make.
        threads, runs, warmup: Of the benchmark.
    """

    modes: Sequence[str]
    threads: Sequence[int] = (1,)
    runs: int = 50
    warmup: int = 5


def modes(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """ "none,int8" → ["none", "int8"]."""
    chosen = list(dict.fromkeys(value.split(",")))
    if unknown := [mode for mode in chosen if mode not in MODES]:
        raise click.BadParameter(
            f"expected some of {', '.join(MODES)}, received {', '.join(map(repr, unknown))}"
        )
    return chosen


@click.command(short_help="Fold, convert, compare, measure and report.")
@model_options
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Folder for all results.")
@click.option(
    "--calibration",
    metavar="DATA.npz",
    help="Samples like those the model will meet; int8 and int16x8 need them.",
)
@click.option(
    "--evaluation",
    metavar="TEST.npz",
    help=f"Held-out samples to compare on. An array '{LABELS}' beside them gives accuracies.",
)
@click.option(
    "--modes",
    default="none,float16,dynamic,int8",
    show_default=True,
    callback=modes,
    metavar="MODE,MODE",
    help=f"Some of {', '.join(MODES)}.",
)
@click.option("--threads", default="1", show_default=True, callback=numbers, metavar="N,N")
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), default=5, show_default=True)
@output_options
def run(
    model: str,
    imports: tuple[str, ...],
    output: str,
    calibration: str | None,
    evaluation: str | None,
    as_json: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Fold, convert, compare and benchmark MODEL (.keras or .h5); write a report.

    \b
    Example:
      keras-bn run model.keras --calibration train.npz --evaluation test.npz -o results
    """
    with Terminal(json=as_json, verbose=verbose) as terminal:
        from keras_bn.convert.process import ConverterProcess

        folder = make_folder(output)
        with ConverterProcess(verbose=verbose) as process:
            with terminal.steps() as step:
                step(f"load {model}")
                loaded = load(model, imports)
            failed = travel(
                loaded,
                Path(model),
                folder,
                Settings(**settings),
                calibration=calibration,
                evaluation=_read_evaluation(evaluation),
                terminal=terminal,
                process=process,
            )
    raise SystemExit(1 if failed else 0)


def make_folder(output: str) -> Path:
    """The folder `output`, made if need be."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "expected a folder, this is a file", output)
    folder.mkdir(parents=True, exist_ok=True)
    from keras_bn.files import require_writable

    require_writable(folder / "results.json")
    return folder


def travel(
    model: keras.Model,
    source: Path,
    folder: Path,
    settings: Settings,
    *,
    calibration: Any,
    evaluation: Evaluation | None,
    terminal: Terminal,
    process: Any,
) -> dict[str, Exception]:
    """Take `model`, saved at `source`, down the whole road into `folder`; print a summary.

    Returns:
        The modes that could not be converted, and why.
    """
    from keras_bn.bench.api import benchmark, speedups
    from keras_bn.cli.environment import versions
    from keras_bn.cli.tables import fold_summary, kept_tables, summary_table, warnings
    from keras_bn.compare.run import predict
    from keras_bn.files import replacing
    from keras_bn.pipeline import convert_all
    from keras_bn.report.html import render_html
    from keras_bn.report.results import ModelSummary, document, save

    name = FILE_NAMES | {mode: mode for mode in MODES if mode not in FILE_NAMES}
    failures: dict[str, Exception] = {}
    with terminal.steps() as step:
        conversions = convert_all(
            model,
            {mode: folder / f"{source.stem}-{name[mode]}.tflite" for mode in settings.modes},
            calibration=calibration,
            data=evaluation.samples if evaluation else None,
            process=process,
            progress=step,
            verbose=terminal.verbose,
            failures=failures,
        )
        if not conversions:
            raise next(iter(failures.values()))
        accuracies: dict[Any, float] = {}
        reference = None
        if evaluation is not None and evaluation.labels is not None:
            step("measure accuracy")
            labels = evaluation.labels
            reference = accuracy(predict(model, evaluation.samples), labels)
            for conversion in conversions:
                outputs = predict(conversion.path, evaluation.samples)
                accuracies[conversion.path] = accuracy(outputs, labels)
    with terminal.bar("measure latency") as advance:
        results = benchmark(
            [conversion.path for conversion in conversions],
            threads=settings.threads,
            runs=settings.runs,
            warmup=settings.warmup,
            progress=advance,
        )
    gained = speedups(results)
    written = document(
        title=model.name,
        environment=versions(),
        model=ModelSummary(
            source.name, model.count_params(), len(model.layers), source.stat().st_size, reference
        ),
        conversions=conversions,
        accuracies=accuracies,
        benchmarks=results,
        speedups=gained,
    )
    save(written, folder / "results.json")
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(render_html(written), encoding="utf-8")

    folded = conversions[0].fold
    if folded is not None:
        terminal.print(*kept_tables(folded), fold_summary(folded), "")
    terminal.print(summary_table(conversions, accuracies, reference, results, gained))
    terminal.print(*warnings(results))
    terminal.print(*(f"not converted to {mode}: {why}" for mode, why in failures.items()))
    terminal.print(
        f"wrote {len(conversions)} .tflite files, results.json and report.html to {folder}"
    )
    terminal.emit(written)
    return failures


def accuracy(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """Share of samples whose largest output is the labelled class.

    Raises:
        ComparisonError: the model has several outputs, or `labels` does not suit its classes.
    """
    import numpy as np

    from keras_bn.errors import ComparisonError

    if len(outputs) > 1:
        raise ComparisonError(
            f"expected one output to take accuracy on, the model has {', '.join(outputs)}; "
            f"leave '{LABELS}' out of the evaluation data"
        )
    (scores,) = outputs.values()
    classes = labels.argmax(-1) if labels.shape == scores.shape else labels.reshape(-1)
    if scores.ndim != 2 or scores.shape[1] < 2 or len(classes) != len(scores):
        raise ComparisonError(
            f"expected labels of shape ({len(scores)},), one class a sample, and an output of "
            f"shape (samples, classes); received labels of shape {labels.shape} and an output of "
            f"shape {scores.shape}"
        )
    return float(np.mean(scores.argmax(-1) == classes))


def _read_evaluation(path: str | None) -> Evaluation | None:
    """Samples and labels from an archive; any other file is samples alone."""
    if path is None:
        return None
    import numpy as np

    from keras_bn.errors import CalibrationError

    if not path.endswith(".npz"):
        return Evaluation(path, None)
    try:
        with np.load(path) as archive:
            arrays = dict(archive)
    except (ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CalibrationError(f"{path} is not an .npz archive of plain arrays: {error}") from error
    labels = arrays.pop(LABELS, None)
    samples = next(iter(arrays.values())) if len(arrays) == 1 else arrays
    return Evaluation(samples, labels)
