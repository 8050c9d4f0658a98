"""`keras-bn bench`: measure .tflite files side by side."""

from __future__ import annotations

import click

from keras_bn.cli.terminal import Terminal, output_options


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int]:
    """ "1,2,4" → [1, 2, 4]."""
    try:
        return [int(part) for part in value.split(",")] if value else []
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 1,2,4, received {value!r}") from None


@click.command(short_help="Measure latency and memory of .tflite files.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL.tflite...")
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("host",),
    show_default="host",
    metavar="DEVICE",
    help="Where to measure: host, ssh://user@board, adb or adb:SERIAL. May be repeated.",
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
@click.option("-o", "--output", metavar="RESULTS.json", help="Keep the results, for a report.")
@output_options
def bench(
    models: tuple[str, ...],
    devices: tuple[str, ...],
    python: str | None,
    benchmark_binary: str | None,
    threads: list[int],
    runs: int,
    warmup: int,
    xnnpack: bool,
    affinity: list[int],
    cooldown: float,
    timeout: float,
    output: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure latency and memory of .tflite files, interleaved round by round.

    `keras-bn devices` tells what there is to measure on. Nothing is ever installed on a device;
    models are sent once and kept there for 30 days after they were last used.

    \b
    Example:
      keras-bn bench float32.tflite int8.tflite --threads 1,2 -o results.json
      keras-bn bench int8.tflite --device host --device ssh://pi@raspberrypi.local
      keras-bn report results.json -o report.html
    """
    with Terminal(json=as_json, verbose=verbose) as terminal:
        from keras_bn.bench.api import benchmark, speedups
        from keras_bn.cli.environment import versions
        from keras_bn.cli.tables import benchmark_tables, warnings
        from keras_bn.errors import DeviceError
        from keras_bn.files import require_writable
        from keras_bn.report.results import document, save

        if output:
            require_writable(output)
        failure = None
        with terminal.bar("measure") as advance:
            try:
                results = benchmark(
                    models,
                    device=devices,
                    threads=threads,
                    runs=runs,
                    warmup=warmup,
                    xnnpack=xnnpack,
                    affinity=affinity or None,
                    cooldown_s=cooldown,
                    timeout_s=timeout,
                    python=python,
                    benchmark_binary=benchmark_binary,
                    progress=advance,
                )
            except DeviceError as error:
                if not error.results:
                    raise
                failure, results = error, list(error.results)
        gained = speedups(results)
        written = document(
            title=f"Latency on {', '.join(devices)}",
            environment=versions(),
            benchmarks=results,
            speedups=gained,
        )
        terminal.print(*benchmark_tables(results, gained), *warnings(results))
        if output:
            save(written, output)
            terminal.print(f"wrote {output}")
        terminal.emit(written)
        if failure is not None:
            raise failure
