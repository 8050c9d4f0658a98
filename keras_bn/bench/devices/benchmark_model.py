"""LiteRT's `benchmark_model`, for devices without Python: its command line and its output.

Sources: tflite/tools/benchmark/benchmark_model.cc and benchmark_tflite_model.cc in
github.com/google-ai-edge/LiteRT (tensorflow/lite/tools/benchmark before), litert/tools/
benchmark_litert_model.h for the program of the same name that runs LiteRT's CompiledModel, and
xla/tsl/util/stats_calculator.cc for the statistics and the tables of operations.

How it measures. Every pair of a model and a thread count is a *cell*.

1. Each cell runs once for its peak memory, watched by a thread of the program, and once with the
   profiler of operations. Both slow a model down, so neither run is timed.
2. Rounds of short runs follow, each a process of its own. In every round each cell runs once, in
   an order shuffled anew by the seed: drift and disturbances hit all models alike.

A sample is one invoke, in the whole microseconds that the program counts. It prints no list of
them, whatever its options, only statistics; but three invokes are known from the first, the last,
the extremes and the mean of them, which it prints (`first`, `curr`, `min`, `max`, `avg`), so every
process times three. Before them it invokes the model untimed for at least WARMUP_S, and then
prints, while caches cool and threads go to sleep: the first of the three brings them back, as the
runner's untimed invoke does, and the other two are the samples. Building the interpreter and the
first invoke of all are timed in each of these processes as well, and given as the medians over
them.
"""

from __future__ import annotations

import random
import re
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_bn.bench.child import LINES_KEPT, printable, quoted, signal_name
from keras_bn.bench.devices import android, elf
from keras_bn.bench.devices import shell as shells
from keras_bn.bench.devices.shell import Shell
from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError

NS_PER_US = 1000
US_PER_MS = 1000
# All that the program counts time in.
TIMER_RESOLUTION_NS = NS_PER_US
BYTES_PER_MB = 2**20  # it divides the kernel's kibibytes by 1024
# The program's own default: long enough for a governor to raise the clock.
WARMUP_S = 0.5
SAMPLES_PER_PROCESS = 2
# The mean is printed with six digits: three times half of the last of them, and rounding.
MEAN_IS_OFF_BY = 1.5e-5
# A device counts as cooled down when it is this close to its temperature before the run.
COOLED_WITHIN_C = 2.0
COOLING_PAUSE_S = 2.0
# In the run for the profile, which says nothing meanwhile.
PROFILED_INVOKES = 20
# Never the reason to end a run early: `timeout_s` is.
NO_LIMIT_S = 10**6
# A profile of ten thousand operations takes a third of it.
OUTPUT_BYTES = 8 * 2**20
# Percentages of the profile have three decimals each.
SHARES_SUM_TO_WITHIN = 0.01

# CPU_SETSIZE of sched.h, in Android's libc as in others.
CPUS_IN_A_MASK = 1024
# Of the .bazelrc of LiteRT and TensorFlow: --config=android_...
BAZEL_CONFIGS = {"arm64-v8a": "arm64", "armeabi-v7a": "arm"}

# Bounded, so that whatever a device sends stays a finite number.
COUNT = r"[0-9]{1,15}"
NUMBER = r"[0-9.]{1,15}(?:e[+-]0[0-9])?"
# "INFO: " before each line, and the source line in LiteRT's; neither in older versions.
PREFIX = r"^(?:[A-Z]+: )?(?:\[[^\]\n]*\] )?"
STATISTICS = (
    rf"count=(?P<count>{COUNT})(?: first=(?P<first>{COUNT}))? curr=(?P<last>{COUNT})"
    rf"(?:\(all same\)| min=(?P<least>{COUNT}) max=(?P<most>{COUNT}) avg=(?P<mean>{NUMBER}) "
    rf"std={COUNT})?(?: p5={COUNT} median={COUNT} p95={COUNT})? *$"
)
TIMED = re.compile(PREFIX + STATISTICS, re.MULTILINE)
INITIALIZED = re.compile(PREFIX + rf"Initialized session in ({NUMBER})ms\.", re.MULTILINE)
UNKNOWN_FLAGS = re.compile(PREFIX + r"Unconsumed cmdline flags: (.*)$", re.MULTILINE)
PEAK_MB = re.compile(
    rf"(?:Overall peak memory footprint \(MB\) via periodic monitoring|Peak memory): +({NUMBER})"
)
ADDED_MB = re.compile(
    r"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): "
    rf"init={NUMBER} overall=({NUMBER})|Overall footprint: +({NUMBER}) MB"
)
PROFILE = "Operator-wise Profiling Info for Regular Benchmark Runs:"
PROFILED = re.compile(r"^Timings \(microseconds\): " + STATISTICS, re.MULTILINE)
# Only the program that runs LiteRT's CompiledModel prints it.
COMPILED_MODEL = "BENCHMARK RESULTS"
PROFILE_COLUMNS = ("node type", "%", "times called", "Name")


@dataclass(frozen=True)
class Output:
    """What one process of the program printed; times in microseconds, memory in bytes.

    Attributes:
        init_us: Building the interpreter, its delegates and tensors.
        first_invoke_us: The first invoke, untimed by all else.
        samples_us: Of two or three timed invokes those after the first; none of more.
        peak_rss_bytes: Peak resident set of the process, if the run was asked for it.
        added_rss_bytes: How far that peak rose from the start of the program on, if it tells.
        profile: name, kind, mean_ms, share and calls of each operation, in the order they run.
        unknown_flags: Those of its command line that this version of the program does not know.
        is_compiled_model: Whether it is the program that runs LiteRT's CompiledModel.
    """

    init_us: float
    first_invoke_us: int
    samples_us: tuple[int, ...]
    peak_rss_bytes: int | None
    added_rss_bytes: int | None
    profile: tuple[dict[str, Any], ...]
    unknown_flags: tuple[str, ...]
    is_compiled_model: bool


def parse(text: str) -> Output:
    """Read what one run printed, on standard output and error together.

    Raises:
        ValueError: something that every complete run prints is missing or contradicts itself.

    Example:
        >>> output = parse('''INFO: Initialized session in 5.432ms.
        ... INFO: count=3 first=2500 curr=1700 min=1700 max=2500 avg=2000 std=356
        ... INFO: count=3 first=1700 curr=1640 min=1640 max=1700 avg=1663.33 std=27''')
        >>> output.init_us, output.first_invoke_us, output.samples_us
        (5432.0, 2500, (1650, 1640))
    """
    initialized = INITIALIZED.search(text)
    if initialized is None:
        raise ValueError("it does not say when it had initialized its session")
    timed = [_statistics(found) for found in TIMED.finditer(text)]
    if len(timed) != 2:
        raise ValueError(
            f"it holds {len(timed)} lines of statistics, and a run prints two: of the warm-up "
            "and of the timed invokes"
        )
    warmup, regular = timed
    unknown = UNKNOWN_FLAGS.search(text)
    return Output(
        init_us=float(initialized[1]) * US_PER_MS,
        first_invoke_us=warmup.first,
        samples_us=regular.after_the_first(),
        peak_rss_bytes=_bytes(PEAK_MB.search(text)),
        added_rss_bytes=_bytes(ADDED_MB.search(text)),
        profile=_profile(text.partition(PROFILE)[2]),
        unknown_flags=tuple(unknown[1].split()) if unknown else (),
        is_compiled_model=COMPILED_MODEL in text,
    )


@dataclass(frozen=True)
class _Statistics:
    count: int
    first: int
    last: int
    least: int
    most: int
    mean: float

    def after_the_first(self) -> tuple[int, ...]:
        """All values but the first, of two or three."""
        if self.count == 2:
            return (self.last,)
        if self.count != 3:
            return ()
        by_mean = round(3 * self.mean) - self.first - self.last
        if self.least < min(self.first, self.last):
            second = self.least
        elif self.most > max(self.first, self.last):
            second = self.most
        else:
            second = min(max(by_mean, self.least), self.most)
        if abs(second - by_mean) > 1 + MEAN_IS_OFF_BY * self.mean:
            raise ValueError(f"no second value makes the mean of three {self.mean:g}")
        return (second, self.last)


def _statistics(found: re.Match[str]) -> _Statistics:
    """One line of them; where all values are equal only the last is printed."""
    count, last = int(found["count"]), int(found["last"])
    first = last if found["first"] is None else int(found["first"])
    mean = float(last) if found["mean"] is None else float(found["mean"])
    extremes = (first, last) if found["least"] is None else (found["least"], found["most"])
    least, most = map(int, extremes)
    if count < 1 or not all(least <= each <= most for each in (first, last)):
        raise ValueError(f"its statistics contradict themselves: {found[0].strip()}")
    return _Statistics(count, first, last, least, most, mean)


def _bytes(found: re.Match[str] | None) -> int | None:
    if found is None:
        return None
    megabytes = next(group for group in found.groups() if group is not None)
    return round(float(megabytes) * BYTES_PER_MB)


def _profile(text: str) -> tuple[dict[str, Any], ...]:
    """The table "Run Order" of the model's main graph, which is the first; () without one.

    Operations within the bodies of loops and branches are counted in the operation that runs
    them: their own tables follow, with times that are part of its.
    """
    if not text:
        return ()
    _, _, table = text.partition(" Run Order =")
    _, _, table = table.partition("\n")
    table, _, rest = table.partition("\n\n")
    timings = PROFILED.search(rest)
    observed = re.search(r"^(\d+) nodes observed$", rest, re.MULTILINE)
    if timings is None or observed is None:
        raise ValueError("its profile of operations is cut off")
    head, *lines = (line.split("\t") for line in table.splitlines())
    columns = {name.strip(" []"): index for index, name in enumerate(head)}
    if not columns.keys() >= set(PROFILE_COLUMNS):
        raise ValueError(f"its profile of operations has the columns {list(columns)}")
    if len(lines) != int(observed[1]) or any(len(line) != len(head) for line in lines):
        raise ValueError(f"its profile of {observed[1]} operations holds {len(lines)}")
    kind, percent, calls, name = (columns[each] for each in PROFILE_COLUMNS)
    total_ms = _statistics(timings).mean / US_PER_MS
    operations: list[dict[str, Any]] = []
    for line in lines:
        cells = re.fullmatch(rf" *({NUMBER})%\t *({COUNT})", f"{line[percent]}\t{line[calls]}")
        if cells is None:
            raise ValueError(f"its profile of operations holds {line[percent]}, {line[calls]}")
        share = float(cells[1]) / 100
        operations.append(
            {
                "name": printable(line[name]),
                "kind": printable(line[kind].strip()),
                # Finer than the column [avg ms], which is rounded for every single call.
                "mean_ms": share * total_ms,
                "share": share,
                "calls": int(cells[2]),
            }
        )
    if operations and abs(sum(each["share"] for each in operations) - 1) > SHARES_SUM_TO_WITHIN:
        raise ValueError("the shares of its operations do not sum to 100 %")
    return tuple(operations)


# --- Measuring ---------------------------------------------------------------------------------


def measure(shell: Shell, request: Request) -> dict[str, Any]:
    """Run `request.benchmark_binary` on the device; the document has the fields of the runner's.

    Raises:
        ValueError: the binary is not a program for Android.
        DeviceError: the device is out of reach or full, the binary is for another one, the
            connection broke, or a run failed, crashed, was silent for `request.timeout_s`, or
            printed what cannot be understood.
    """
    assert request.benchmark_binary is not None
    device = android.facts(shell, request.timeout_s)
    _require_runnable(request.benchmark_binary, device, shell.name)
    if request.affinity and max(request.affinity) >= CPUS_IN_A_MASK:
        raise DeviceError(f"{shell.name} has no CPU {max(request.affinity)} to stay on.")
    names = shells.upload(
        shell,
        [request.benchmark_binary, *request.models],
        timeout_s=request.timeout_s,
        progress=request.progress,
    )
    program = _Program(shell, request, names)
    before = android.conditions(shell, request.timeout_s)
    cells = [(model, threads) for model in request.models for threads in request.threads]
    processes = -(-request.runs // SAMPLES_PER_PROCESS)
    steps = _Steps(request, len(cells) * (2 + processes))
    footprints, profiles = [], []
    for model, threads in cells:
        footprints.append(program.run(model, threads, "report_peak_memory_footprint"))
        steps.done(f"loaded {model}")
        invokes = min(request.runs, PROFILED_INVOKES)
        profiles.append(program.run(model, threads, "enable_op_profiling", runs=invokes))
        steps.done(f"profiled {model}")

    cooling = _Cooling(shell, request, before["temperature_c"])
    outputs: list[list[Output]] = [[] for _ in cells]
    order = list(range(len(cells)))
    shuffle = random.Random(request.seed).shuffle
    for number in range(processes):
        cooling.wait(steps)
        shuffle(order)
        samples = min(SAMPLES_PER_PROCESS, request.runs - number * SAMPLES_PER_PROCESS)
        for index in order:
            outputs[index].append(program.sample(*cells[index], samples))
            steps.done(f"round {number + 1} of {processes}")
    return {
        "environment": {
            "system": device["system"],
            "architecture": device["abis"].partition(",")[0],
            "board": device["board"],
            "cpu": device["cpu"],
            "cpus": len(request.affinity) if request.affinity else device["cpus"],
            "memory_bytes": device["memory_bytes"],
            "interpreter": f"benchmark_model, SHA-256 {program.name[:12]}",
            "xnnpack": request.xnnpack,
            "affinity": sorted(request.affinity) if request.affinity else None,
            "warmup": request.warmup,
            "warmup_s": WARMUP_S,
            "processes": processes,
            "seed": request.seed,
            "timer_resolution_ns": TIMER_RESOLUTION_NS,
            "cooldown_limit_s": request.cooldown_s,
            "cooldown_waited_s": round(cooling.waited_s, 3),
            "before": before,
            "after": android.conditions(shell, request.timeout_s),
        },
        "models": [
            {"model": model, "sha256": names[model], "size_bytes": Path(model).stat().st_size}
            for model in request.models
        ],
        "measurements": [
            {
                "model": model,
                "threads": threads,
                "samples_ns": [us * NS_PER_US for each in runs for us in each.samples_us],
                "preempted": None,
                "init_ns": round(statistics.median(each.init_us for each in runs) * NS_PER_US),
                "first_invoke_ns": round(
                    statistics.median(each.first_invoke_us for each in runs) * NS_PER_US
                ),
                "peak_rss_bytes": footprint.peak_rss_bytes,
                "runtime_rss_bytes": _started_with(footprint),
                "inputs": [],
                "profile": list(profile.profile),
            }
            for (model, threads), runs, footprint, profile in zip(
                cells, outputs, footprints, profiles, strict=True
            )
        ],
    }


def _require_runnable(binary: str, device: Mapping[str, Any], name: str) -> None:
    """See that `binary` is for this device, before it is sent there in vain.

    Raises:
        ValueError: it is not a program.
        DeviceError: it is one for another device.
    """
    program = elf.read(binary)
    abis = device["abis"].split(",")
    if program.abi not in abis:
        raise DeviceError(
            f"{binary} is built for {program.abi}, and {name} runs {' and '.join(abis)}. Build "
            f"benchmark_model with --config=android_{BAZEL_CONFIGS.get(abis[0], abis[0])}."
        )
    if program.linker is not None and not program.linker.startswith("/system/"):
        raise DeviceError(
            f"{binary} is built for Linux, not for Android: it asks for {program.linker}, which "
            f"{name} does not have. Build benchmark_model with --config=android_"
            f"{BAZEL_CONFIGS.get(abis[0], abis[0])}."
        )


class _Program:
    """The program on the device, ready to be run.

    Attributes:
        name: Of its file there, the SHA-256 of its content.
    """

    def __init__(self, shell: Shell, request: Request, names: Mapping[str, str]) -> None:
        assert request.benchmark_binary is not None
        self.shell = shell
        self.request = request
        self.names = names
        self.name = names[request.benchmark_binary]

    def sample(self, model: str, threads: int, samples: int) -> Output:
        """Run `model` for this many samples, in a process of its own."""
        output = self.run(model, threads, runs=1 + samples, warmup_s=WARMUP_S)
        what = self._what(model, threads)
        if len(output.samples_us) != samples:
            raise DeviceError(f"{what} timed other than {1 + samples} invokes.")
        if min(output.samples_us) == 0:
            raise DeviceError(
                f"{what} invoked it in less than the microsecond that it counts in. Measure a "
                "model that contains this one several times over."
            )
        return output

    def _what(self, model: str, threads: int) -> str:
        return f"{self.shell.name}: benchmark_model on {model}, threads: {threads}"

    def run(
        self, model: str, threads: int, *switches: str, runs: int = 1, warmup_s: float = 0.0
    ) -> Output:
        """Run `model` in a process of its own and read what it printed."""
        answer = shells.start(
            self.shell,
            self._script(model, threads, switches, runs, warmup_s),
            timeout_s=self.request.timeout_s,
            silence_advice=(
                f"It says nothing during {1 + self.request.warmup} invokes in a row, and the "
                f"profile's {PROFILED_INVOKES}: a model that needs longer than that for them needs "
                f"a larger timeout_s; otherwise {model} hangs."
            ),
            answer_bytes=OUTPUT_BYTES,
        )
        what = self._what(model, threads)
        lines = answer.stdout.splitlines()[-LINES_KEPT:]
        printed = quoted(printable(line.replace(self.names[model], model)) for line in lines)
        if answer.status:
            raise DeviceError(f"{what} {_end(answer.status)}.{printed}")
        try:
            output = parse(answer.stdout)
        except ValueError as error:
            raise DeviceError(f"{what} printed what makes no sense: {error}.{printed}") from None
        self._require_xnnpack_as_asked(output, what)
        return output

    def _script(
        self, model: str, threads: int, switches: Sequence[str], runs: int, warmup_s: float
    ) -> str:
        options = {
            "graph": self.names[model],
            "num_threads": threads,
            "use_xnnpack": str(self.request.xnnpack).lower(),
            # The first of them is the first invoke of all.
            "warmup_runs": 1 + self.request.warmup,
            "warmup_min_secs": warmup_s,
            "num_runs": runs,
            "min_secs": 0,
            "max_secs": NO_LIMIT_S,
            **dict.fromkeys(switches, "true"),
        }
        command = [f"./{self.name}", *(f"--{name}={value}" for name, value in options.items())]
        if self.request.affinity is not None:
            # toybox's taskset has no list of CPUs, only a mask.
            command[:0] = ["taskset", f"{sum(1 << cpu for cpu in self.request.affinity):x}"]
        return f"""cd {self.shell.folder} && chmod 700 {self.name} || exit
{shlex.join(command)} </dev/null 2>&1"""

    def _require_xnnpack_as_asked(self, output: Output, what: str) -> None:
        """See that the program did not ignore the switch."""
        if not any(each.startswith("--use_xnnpack") for each in output.unknown_flags):
            return
        if output.is_compiled_model and not self.request.xnnpack:
            raise DeviceError(
                f"{what} ran XNNPACK: the program built from //litert/tools:benchmark_model always "
                "does. Build //tflite/tools/benchmark:benchmark_model to measure without."
            )
        if self.request.xnnpack and not output.is_compiled_model:
            raise DeviceError(
                f"{what} ran the built-in kernels: this benchmark_model was built without XNNPACK. "
                "Build it with, or ask for that (--no-xnnpack; xnnpack=False)."
            )


def _end(status: int) -> str:
    """How a run ended, as the predicate of a sentence."""
    signal = signal_name(status - 128) if status > 128 else ""
    because = {
        "SIGILL": ": it was built for a newer CPU than the device has",
        "SIGKILL": ": the device ran out of memory, or was asked to stop it",
    }.get(signal, "")
    if signal:
        return f"was killed by {signal}{because}"
    return f"failed with exit status {status}"


def _started_with(output: Output) -> int | None:
    """The program's own peak before it loaded the model."""
    if output.peak_rss_bytes is None or output.added_rss_bytes is None:
        return None
    return max(0, output.peak_rss_bytes - output.added_rss_bytes)


class _Steps:
    """Counts what is done, for a progress bar."""

    def __init__(self, request: Request, total: int) -> None:
        self.progress = request.progress
        self.total = total
        self.count = 0

    def done(self, what: str) -> None:
        self.count += 1
        self.report(what)

    def report(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.count, self.total, what)


class _Cooling:
    """Waits between rounds until the device is as cool as before, within a total limit.

    As the runner does, but for the few seconds that asking for the temperature takes.
    """

    def __init__(self, shell: Shell, request: Request, start_c: float | None) -> None:
        self.shell = shell
        self.timeout_s = request.timeout_s
        self.limit_s = request.cooldown_s if start_c is not None else 0.0
        self.target_c = COOLED_WITHIN_C + (start_c or 0.0)
        self.waited_s = 0.0

    def wait(self, steps: _Steps) -> None:
        while self.waited_s < self.limit_s:
            now_c = android.conditions(self.shell, self.timeout_s)["temperature_c"]
            if now_c is None or now_c <= self.target_c:
                return
            steps.report(f"cooling down from {now_c:.0f} °C")
            pause_s = min(COOLING_PAUSE_S, self.limit_s - self.waited_s)
            time.sleep(pause_s)
            self.waited_s += pause_s
