"""`keras-bn bench`: measure .tflite files side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from keras_bn.cli.terminal import Terminal, output_options

if TYPE_CHECKING:
    from keras_bn.bench.result import BenchmarkResult, MicrocontrollerResult

TFLM = "tflm"
# Runs of each side that a comparison with a baseline counts. With five, their spread is known well
# enough (t of 8 degrees of freedom: 2.3 standard errors, against 4.3 with two).
REPEATS = 5


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int]:
    """ "1,2,4" → [1, 2, 4]."""
    try:
        return [int(part) for part in value.split(",")] if value else []
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 1,2,4, received {value!r}") from None


def percentage(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> float | None:
    """ "5%" → 0.05."""
    from keras_bn.bench.baseline import read_limit

    try:
        return None if value is None else read_limit(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Measure latency and memory of .tflite files.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL.tflite...")
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("host",),
    show_default="host",
    metavar="DEVICE",
    help="Where to measure: host, ssh://user@board, adb or adb:SERIAL; or tflm. May be repeated.",
)
@click.option(
    "--python", metavar="PATH", help="Python on the other devices, if the one found will not do."
)
@click.option(
    "--benchmark-binary",
    metavar="FILE",
    help="LiteRT's benchmark_model, for Android devices without Python.",
)
@click.option(
    "--threads", default="1", show_default=True, callback=numbers, metavar="N,N", help="Counts."
)
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    metavar="N",
    help="Separate runs, each of --runs. [default: 5 with a baseline, else 1]",
)
@click.option("--warmup", type=click.IntRange(min=0), default=5, show_default=True)
@click.option("--xnnpack/--no-xnnpack", default=True, show_default=True, help="Its delegate.")
@click.option("--affinity", callback=numbers, metavar="CPU,CPU", help="Stay on these CPUs.")
@click.option(
    "--cooldown",
    type=click.FloatRange(min=0),
    default=0,
    metavar="SECONDS",
    help="At most so long.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Give up when nothing happened for so long.",
)
@click.option("--profile", is_flag=True, help="Time each operation as well, in a run of its own.")
@click.option("-o", "--output", metavar="RESULTS.json", help="Keep the results, for a report.")
@click.option("--save", metavar="BASELINE", help="Keep the results, to be measured against later.")
@click.option("--against", metavar="BASELINE", help="Compare with what --save kept.")
@click.option(
    "--fail-if-slower",
    "limit",
    callback=percentage,
    metavar="5%",
    help="Exit 1 if a model is slower than the baseline by more, beyond doubt.",
)
@output_options
def bench(
    models: tuple[str, ...],
    devices: tuple[str, ...],
    python: str | None,
    benchmark_binary: str | None,
    threads: list[int],
    runs: int,
    repeat: int | None,
    warmup: int,
    xnnpack: bool,
    affinity: list[int],
    cooldown: float,
    timeout: float,
    profile: bool,
    output: str | None,
    save: str | None,
    against: str | None,
    limit: float | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure latency and memory of .tflite files, interleaved round by round.

    `keras-bn devices` tells what there is to measure on. Nothing is ever installed on a device;
    models are sent once and kept there for 30 days after they were last used.

    The device tflm is the interpreter of TensorFlow Lite Micro on this machine: it tells whether
    the files run there and in how much memory, and times nothing. Exit 1 if one does not run.

    A baseline is measured, and measured against, in 5 separate runs (--repeat), whose spread the
    comparison counts. "Slower" is said where the whole 95 % interval of the ratio lies beyond the
    limit, and only that fails. Where the interval holds the limit the result is inconclusive: exit
    0, and the advice to raise --repeat. Measurements on another CPU cannot be compared: exit 1.
    With --save and --against, the baseline is kept as it was when the result falls short.

    \b
    Example:
      keras-bn bench float32.tflite int8.tflite --threads 1,2 -o results.json
      keras-bn bench int8.tflite --device host --device ssh://pi@raspberrypi.local
      keras-bn bench int8.tflite --against baseline.json --fail-if-slower 5%
      keras-bn report results.json -o report.html
    """
    if limit is not None and against is None:
        raise click.UsageError("--fail-if-slower needs --against BASELINE")
    measured_on = tuple(device for device in devices if device != TFLM)
    if not measured_on and (against or save):
        raise click.UsageError("a baseline holds latencies, and tflm has none")
    with Terminal(json=as_json, verbose=verbose) as terminal:
        from keras_bn.bench.api import benchmark, speedups
        from keras_bn.bench.baseline import compared
        from keras_bn.bench.micro import examine, require_package
        from keras_bn.cli.environment import versions
        from keras_bn.cli.tables import (
            benchmark_tables,
            change_tables,
            microcontroller_tables,
            profile_tables,
            warnings,
        )
        from keras_bn.errors import ComparisonError, DeviceError
        from keras_bn.files import require_writable
        from keras_bn.report import results as documents

        for path in filter(None, (output, save)):
            require_writable(path)
        before = None if against is None else documents.load(against)
        if TFLM in devices:
            require_package()
        failures: list[str] = []
        results: list[BenchmarkResult] = []
        tried: list[MicrocontrollerResult] = []
        with terminal.bar("measure") as advance:
            try:
                if measured_on:
                    results += benchmark(
                        models,
                        device=measured_on,
                        threads=threads,
                        runs=runs,
                        repeats=repeat or (REPEATS if against or save else 1),
                        warmup=warmup,
                        xnnpack=xnnpack,
                        affinity=affinity or None,
                        cooldown_s=cooldown,
                        profile=profile,
                        timeout_s=timeout,
                        python=python,
                        benchmark_binary=benchmark_binary,
                        progress=advance,
                    )
            except DeviceError as error:
                failures.append(str(error))
                results += error.results
            try:
                if TFLM in devices:
                    tried += examine(models, timeout_s=timeout, progress=advance)
            except DeviceError as error:
                failures.append(str(error))
                tried += error.results
        if failures and not results and not tried:
            raise DeviceError("\n".join(failures))
        gained = speedups(results)
        written = documents.document(
            title=f"Latency on {', '.join(measured_on)}" if measured_on else "Microcontrollers",
            environment=versions(),
            benchmarks=results,
            speedups=gained,
            microcontrollers=tried,
        )
        terminal.print(*benchmark_tables(results, gained), *profile_tables(results))
        terminal.print(*warnings(results))
        terminal.print(*microcontroller_tables(tried))
        slower: list[str] = []
        if before is not None:
            changes = compared(written["benchmarks"], before["benchmarks"], limit=limit or 0.0)
            written["against"] = asdict(changes)
            terminal.print(*change_tables(changes))
            slower += changes.shortfalls if limit is not None else ()
        for path in filter(None, (output, None if slower else save)):
            documents.save(written, path)
            terminal.print(f"wrote {path}")
        terminal.emit(written)
        if failures:
            raise DeviceError("\n".join(failures))
        broken = [f"{each.model} does not run: {each.reason}" for each in tried if not each.runs]
        if slower or broken:
            raise ComparisonError("\n".join([*slower, *broken]))
