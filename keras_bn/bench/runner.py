"""Measures `.tflite` models on the machine it runs on and prints one JSON document.

This one file is all that a device needs besides the models: it uses the standard library,
numpy and an interpreter (`ai_edge_litert`, or `tflite_runtime` where only that exists, as on
32-bit ARM), and the syntax of Python 3.7. It runs on Linux and macOS:

    python3 runner.py --threads 1,2 --runs 50 model.tflite other.tflite > measured.json

How it measures. Every pair of a model and a thread count is a *cell*.

1. Each cell runs once in a fresh process of its own, its probe. Building the interpreter with
   its tensors, and the first invoke, are timed there, each for the first time in that process,
   and the peak resident set of that process belongs to this model and to no other. A model that
   crashes the interpreter crashes its probe, so the report can name it.
2. All cells are then loaded into one process and invoked `--warmup` times.
3. `--runs` rounds follow. In every round each cell gives one sample, in an order shuffled
   anew by `--seed`: drift and disturbances hit all models alike, none always follows the same
   one, and sample i of every cell comes from round i. Immediately before the timed invoke its
   own cell is invoked untimed for at least SETTLE_NS, so that the caches hold its weights again
   and the thread pool of the model before has gone from spinning to sleep.

Standard output carries one JSON document, {"error": {...}} if the run failed (exit status 1).
Standard error carries lines `@progress {"done": 3, "total": 90, "what": "..."}` and whatever
the interpreter prints. With `--watch-stdin` the process ends when its standard input closes:
the parent holds the other end, so it, or the ssh connection in between, cannot leave without it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

# Python puts this file's folder on the path; nothing is imported from there, and a neighbour
# must not shadow a library.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]

import numpy as np  # noqa: E402

SCHEMA = 1
SYS = Path("/sys")
PROC = Path("/proc")

# Idle workers of the interpreter's thread pools were seen to spin for 0.3 ms after an invoke
# (LiteRT 2.3 on x86-64, with and without XNNPACK: CPU time of a process that only sleeps).
# Invoking fills the pause better than sleeping, which lets the core drop into an idle state.
SETTLE_NS = 1_000_000
# A zone counts as cooled down when it is this close to its temperature before the run.
COOLED_WITHIN_C = 2.0
# The silence between two progress lines stays far below any sensible timeout.
PROGRESS_EVERY_NS = 100_000_000


class RunError(Exception):
    """The run cannot go on; `model` is the file at fault, None where no one model is."""

    def __init__(self, message: str, model: str | None = None) -> None:
        super().__init__(message)
        self.model = model


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    # The default action ends the process at once, inside native code too, and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.watch_stdin:
        threading.Thread(target=exit_when_stdin_closes, daemon=True).start()
    stdout = take_stdout()
    try:
        document = (
            probe(options)
            if options.probe
            else profile(options)
            if options.profile_alone
            else measure(options)
        )
    except RunError as error:
        document = {"schema": SCHEMA, "error": {"message": str(error), "model": error.model}}
    with stdout:
        json.dump(document, stdout, allow_nan=False)
        stdout.write("\n")
    return 1 if "error" in document else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help=".tflite files")
    parser.add_argument("--threads", type=integers, default=[1], help="e.g. 1,2,4")
    parser.add_argument("--runs", type=int, default=50, help="timed invokes of each model")
    parser.add_argument("--warmup", type=int, default=5, help="untimed invokes before them")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs and the order")
    parser.add_argument("--no-xnnpack", action="store_true", help="built-in kernels only")
    parser.add_argument("--affinity", type=integers, default=None, help="CPUs to stay on")
    parser.add_argument(
        "--cooldown-s",
        type=float,
        default=0.0,
        help="wait between rounds, this long in all, until as cool as before the run",
    )
    parser.add_argument("--watch-stdin", action="store_true", help="end when stdin closes")
    parser.add_argument("--profile", action="store_true", help="time each operation as well")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--profile-alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def exit_when_stdin_closes() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def take_stdout() -> TextIO:
    """The real standard output; what native code prints there goes to standard error instead."""
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stdout


# --- Measuring ---------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    pin(options.affinity)
    steps = 1 + options.warmup + options.runs + options.profile
    progress = Progress(len(options.models) * len(options.threads) * steps)
    models = [describe_file(path) for path in options.models]
    before = conditions()
    cells = [(model, threads) for model in options.models for threads in options.threads]
    probes = []
    for model, threads in cells:
        progress.report("loading " + model, always=True)
        probes.append(run_alone("--probe", options, model, threads))
        progress.step("loaded " + model)

    interpreters = [load(model, threads, options) for model, threads in cells]
    for interpreter, (model, _) in zip(interpreters, cells):  # noqa: B905 (strict= is 3.10)
        for _ in range(options.warmup):
            interpreter.invoke()
            progress.step("warming up " + model)

    cooling = Cooling(options.cooldown_s, before["temperature_c"], progress)
    samples_ns, preempted = rounds(interpreters, options, progress, cooling)
    environment = machine()
    environment.update(
        interpreter=runtime(),
        xnnpack=not options.no_xnnpack,
        affinity=sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        warmup=options.warmup,
        seed=options.seed,
        timer_resolution_ns=timer_resolution_ns(),
        cooldown_limit_s=options.cooldown_s,
        cooldown_waited_s=round(cooling.waited_s, 3),
        before=before,
        after=conditions(),
    )
    if options.profile:
        del interpreters
        for found, (model, threads) in zip(probes, cells):  # noqa: B905 (strict= is 3.10)
            progress.report("profiling " + model, always=True)
            found.update(run_profile(options, model, threads))
            progress.step("profiled " + model)
    return {
        "schema": SCHEMA,
        "environment": environment,
        "models": models,
        "measurements": [
            dict(
                model=model,
                threads=threads,
                samples_ns=samples_ns[index],
                preempted=preempted[index],
                **probes[index],
            )
            for index, (model, threads) in enumerate(cells)
        ],
    }


def rounds(
    interpreters: list[Any], options: argparse.Namespace, progress: Progress, cooling: Cooling
) -> tuple[list[list[int]], list[int]]:
    """One timed invoke of every cell per round: samples in ns, and how many were preempted."""
    samples_ns: list[list[int]] = [[] for _ in interpreters]
    preempted = [0 for _ in interpreters]
    order = list(range(len(interpreters)))
    shuffle = random.Random(options.seed).shuffle
    clock = time.perf_counter_ns
    gc.collect()
    gc.disable()
    for number in range(options.runs):
        cooling.wait()
        shuffle(order)
        for index in order:
            invoke = interpreters[index].invoke
            settled = clock() + SETTLE_NS
            invoke()
            while clock() < settled:
                invoke()
            switches = involuntary_switches()
            start = clock()
            invoke()
            stop = clock()
            samples_ns[index].append(stop - start)
            preempted[index] += involuntary_switches() > switches
            progress.step(f"round {number + 1} of {options.runs}")
    gc.enable()
    return samples_ns, preempted


def involuntary_switches() -> int:
    """How often the scheduler has taken the CPU away from this process to run another."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def pin(cpus: list[int] | None) -> None:
    """Stay on `cpus`; threads and processes started later inherit it."""
    if cpus is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise RunError(f"affinity needs Linux; leave it out on {platform.system()}")
    try:
        os.sched_setaffinity(0, cpus)
    except (OSError, ValueError) as error:
        raise RunError(
            f"cannot stay on CPUs {cpus}: {error}; this process may use "
            f"{sorted(os.sched_getaffinity(0))}"
        ) from None


class Cooling:
    """Waits between rounds until the machine is as cool as before, within a total limit."""

    def __init__(self, limit_s: float, start_c: float | None, progress: Progress) -> None:
        self.limit_s = limit_s if start_c is not None else 0.0
        self.target_c = COOLED_WITHIN_C + (start_c or 0.0)
        self.progress = progress
        self.waited_s = 0.0

    def wait(self) -> None:
        while self.waited_s < self.limit_s:
            now_c = hottest(temperatures_c())
            if now_c is None or now_c <= self.target_c:
                return
            self.progress.report(f"cooling down from {now_c:.0f} °C", always=True)
            pause_s = min(0.5, self.limit_s - self.waited_s)
            time.sleep(pause_s)
            self.waited_s += pause_s


class Progress:
    def __init__(self, total: int) -> None:
        self.done = 0
        self.total = total
        self.reported_ns = 0

    def step(self, what: str) -> None:
        self.done += 1
        self.report(what, always=self.done == self.total)

    def report(self, what: str, always: bool = False) -> None:
        now_ns = time.perf_counter_ns()
        if always or now_ns - self.reported_ns >= PROGRESS_EVERY_NS:
            self.reported_ns = now_ns
            line = json.dumps({"done": self.done, "total": self.total, "what": what})
            sys.stderr.write("@progress " + line + "\n")
            sys.stderr.flush()


# --- One model ---------------------------------------------------------------------------------


def load(path: str, threads: int, options: argparse.Namespace) -> Any:
    """An interpreter with its tensors allocated and its inputs filled."""
    interpreter = build(path, threads, options)
    fill_inputs(interpreter, path, options.seed)
    return interpreter


def build(path: str, threads: int, options: argparse.Namespace) -> Any:
    module = interpreter_module()
    resolvers = module.OpResolverType
    resolver = resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES if options.no_xnnpack else resolvers.AUTO
    try:
        interpreter = module.Interpreter(
            model_path=path, num_threads=threads, experimental_op_resolver_type=resolver
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise RunError(f"the interpreter refused {path}: {error}", path) from None
    return interpreter


def fill_inputs(interpreter: Any, path: str, seed: int) -> list[dict[str, Any]]:
    """Random inputs, and a line for each that says what it is.

    An unknown dimension is 1, as the interpreter allocates it.
    """
    rng = np.random.RandomState(seed)
    described = []
    for detail in interpreter.get_input_details():
        value = random_input(detail, path, rng)
        interpreter.set_tensor(detail["index"], value)
        shape = list(value.shape)
        described.append(
            {
                "name": str(detail["name"]),
                "dtype": value.dtype.name,
                "shape": shape,
                "shape_signature": [int(size) for size in detail.get("shape_signature", shape)],
            }
        )
    return described


def random_input(detail: dict[str, Any], path: str, rng: Any) -> Any:
    """A value for the input that the interpreter describes by `detail`.

    Floats are standard normal; quantized and other 8- and 16-bit integers take every value
    alike; wider integers are 0 or 1, because they are mostly indices and any table has those.
    """
    shape, dtype = tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"])
    if dtype.kind in "fc":
        value = rng.standard_normal(shape)
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = (limits.min, limits.max + 1) if dtype.itemsize <= 2 else (0, 2)
        value = rng.randint(low, high, shape)
    elif dtype.kind == "b":
        value = rng.randint(0, 2, shape)
    else:
        raise RunError(
            "input {} of {} holds {}; numbers and booleans can be measured".format(
                detail["name"], path, dtype
            ),
            path,
        )
    return np.asarray(value).astype(dtype)


def invoke(interpreter: Any, path: str) -> None:
    try:
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise RunError(f"running {path} failed: {error}", path) from None


def probe(options: argparse.Namespace) -> dict[str, Any]:
    """What only a fresh process can tell of one model at one thread count."""
    (path,), (threads,) = options.models, options.threads
    interpreter_module()
    runtime_rss_bytes = rss_bytes("VmRSS")
    start = time.perf_counter_ns()
    interpreter = build(path, threads, options)
    init_ns = time.perf_counter_ns() - start
    inputs = fill_inputs(interpreter, path, options.seed)
    start = time.perf_counter_ns()
    invoke(interpreter, path)
    first_invoke_ns = time.perf_counter_ns() - start
    interpreter.invoke()
    return {
        "init_ns": init_ns,
        "first_invoke_ns": first_invoke_ns,
        "peak_rss_bytes": rss_bytes("VmHWM"),
        "runtime_rss_bytes": runtime_rss_bytes,
        "inputs": inputs,
    }


def run_alone(what: str, options: argparse.Namespace, model: str, threads: int) -> dict[str, Any]:
    """The document of this file in a fresh process, for one cell."""
    command = [sys.executable, __file__, what, "--watch-stdin", "--seed", str(options.seed)]
    command += ["--threads", str(threads)] + ["--no-xnnpack"] * options.no_xnnpack
    command += ["--", model]
    # The pipe stays open until the process has answered: it closes when this one dies.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        answer = child.stdout.read() if child.stdout else b""
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise RunError(f"{model} crashed the interpreter ({name})", model)
    try:
        document = json.loads(answer)
    except ValueError:
        raise RunError(
            f"loading {model} ended with exit status {child.returncode}", model
        ) from None
    if "error" in document:
        raise RunError(**document["error"])
    return document


def describe_file(path: str) -> dict[str, Any]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", path) from None
    return {
        "model": path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }


# --- Profile -----------------------------------------------------------------------------------


def run_profile(options: argparse.Namespace, model: str, threads: int) -> dict[str, Any]:
    """The operations of one cell, or why they could not be timed: the rest holds without them."""
    try:
        return dict(profile_problem=None, **run_alone("--profile-alone", options, model, threads))
    except RunError as error:
        return {"profile": [], "profile_problem": str(error)}


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Each operation of a model and the mean time of an invoke spent in it."""
    (path,), (threads,) = options.models, options.threads
    known = f"ai_edge_litert {PROFILED_VERSION}."
    if not runtime().startswith(known):
        raise RunError(f"operations are timed with {known}x; this is {runtime()}", path)
    interpreter = build(path, threads, options)
    rng = np.random.RandomState(options.seed)
    inputs = {
        str(detail["name"]): random_input(detail, path, rng)
        for detail in interpreter.get_input_details()
    }
    try:
        compiled = CompiledModel(path, inputs, threads, xnnpack=not options.no_xnnpack)
        compiled.profiled_invoke()  # prepares weights
        return {"profile": means([compiled.profiled_invoke() for _ in range(PROFILED_INVOKES)])}
    except (OSError, AttributeError) as error:  # no library, or not with these functions
        raise RunError(f"LiteRT's profiler cannot be reached: {error}", path) from None


def means(invokes: list[list[tuple[str, int]]]) -> list[dict[str, Any]]:
    """The profile, from kind and time in microseconds of each operation in each invoke.

    The mean is that of the middle half of the invokes: another program's turn stays out of it,
    and it tells parts of the profiler's step of 1 µs, which a median would not.
    """
    kinds = [kind for kind, _ in invokes[0]]
    if any([kind for kind, _ in invoke] != kinds for invoke in invokes):
        raise RunError("the operations differ from one invoke to the next")
    times = np.sort([[time_us for _, time_us in invoke] for invoke in invokes], axis=0)
    quarter = len(invokes) // 4
    mean_us = times[quarter : len(invokes) - quarter].mean(axis=0).tolist()
    if sum(mean_us) < len(kinds):
        raise RunError("its operations take less than the profiler's step of 1 µs on average")
    return [
        {
            "name": f"{kind}:{place}",
            "kind": kind,
            "mean_ms": time_us / 1000,
            "share": time_us / sum(mean_us),
            "calls": 1,
        }
        for place, (kind, time_us) in enumerate(zip(kinds, mean_us))  # noqa: B905
    ]


# LiteRT's Python API has no profiler; the C API of the library in its wheel has (litert/c/*.h).
# Its functions and structures change from one minor version to the next: these are of this one.
PROFILED_VERSION = "2.3"
PROFILED_INVOKES = 20
# Of LiteRtProfilerEventType: an operation of the interpreter, or of a delegate.
OPERATION_EVENTS = (1 << 1, 1 << 2, 1 << 3)
CPU_ACCELERATOR = 1  # kLiteRtHwAcceleratorCpu
WRITE = 1  # kLiteRtTensorBufferLockModeWrite
BUILTIN_KERNELS = 2  # kLiteRtCpuKernelModeBuiltin; XNNPACK's are the default
# LiteRtRankedTensorType: an element type and a layout of at most 8 dimensions, 72 bytes.
TENSOR_TYPE_BYTES = 256


class Event(ctypes.Structure):
    """ProfiledEventData. Of an operation, metadata1 is its node, metadata2 its subgraph."""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("event_type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("metadata1", ctypes.c_uint64),
        ("metadata2", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


class CompiledModel:
    """A model in LiteRT's compiled-model API, with its profiler. It lives as long as the process.

    It runs the interpreter and the kernels that `build` does. Operations inside a loop or a branch
    are part of the operation that holds them (WHILE, IF), which is timed as a whole.
    """

    def __init__(self, path: str, inputs: dict[str, Any], threads: int, *, xnnpack: bool) -> None:
        import ai_edge_litert

        folder = Path(ai_edge_litert.__file__).parent
        suffix = ".dylib" if platform.system() == "Darwin" else ".so"
        self.library = ctypes.CDLL(str(folder / ("libLiteRt" + suffix)))
        self.environment = self.made("LiteRtCreateEnvironment", 0, None)
        model = self.made("LiteRtCreateModelFromFile", self.environment, os.fsencode(path))
        options = self.made("LiteRtCreateOptions")
        self.call("LiteRtSetOptionsHardwareAccelerators", options, CPU_ACCELERATOR)
        kernels = "" if xnnpack else f"kernel_mode = {BUILTIN_KERNELS}\n"
        self.add(options, b"runtime_options_string", "enable_profiling = true\n")
        self.add(options, b"xnnpack", f"num_threads = {threads}\n{kernels}")
        self.model = self.made("LiteRtCreateCompiledModel", self.environment, model, options)
        self.profiler = self.made("LiteRtCompiledModelGetProfiler", self.model)

        signature = self.made("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
        self.inputs = self.buffers(signature, "Input")
        self.outputs = self.buffers(signature, "Output")
        for index, buffer in enumerate(self.inputs):
            tensor = self.tensor(signature, "Input", index)
            name = self.made("LiteRtGetTensorName", tensor)
            value = np.ascontiguousarray(inputs[ctypes.string_at(name).decode()])
            memory = self.made("LiteRtLockTensorBuffer", ctypes.c_void_p(buffer), after=[WRITE])
            ctypes.memmove(memory, value.ctypes.data, value.nbytes)
            self.call("LiteRtUnlockTensorBuffer", ctypes.c_void_p(buffer))

    def profiled_invoke(self) -> list[tuple[str, int]]:
        """Kind, and time in microseconds, of each operation in the order they ran."""
        self.call("LiteRtResetProfiler", self.profiler)
        self.call("LiteRtStartProfiler", self.profiler)
        self.call(
            "LiteRtRunCompiledModel",
            self.model,
            ctypes.c_size_t(0),
            ctypes.c_size_t(len(self.inputs)),
            self.inputs,
            ctypes.c_size_t(len(self.outputs)),
            self.outputs,
        )
        self.call("LiteRtStopProfiler", self.profiler)
        count = ctypes.c_int()
        self.call("LiteRtGetNumProfilerEvents", self.profiler, ctypes.byref(count))
        events = (Event * count.value)()
        self.call("LiteRtGetProfilerEvents", self.profiler, count, events)
        return [
            (event.tag.decode(errors="replace"), event.elapsed_us)
            for event in events
            if event.event_type in OPERATION_EVENTS and event.metadata2 == 0
        ]

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            raise RunError(f"LiteRT's profiler failed: {name} gave status {status}")

    def made(self, name: str, *arguments: Any, after: Sequence[Any] = ()) -> Any:
        """What the function writes through the pointer that follows `arguments`."""
        result = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(result), *after)
        return result

    def add(self, options: Any, kind: bytes, text: str) -> None:
        """Add options that travel as text; the library frees the copy that it is given."""
        c = ctypes.CDLL(None)
        c.strdup.restype = ctypes.c_void_p
        copy, free = ctypes.c_void_p(c.strdup(text.encode())), ctypes.cast(c.free, ctypes.c_void_p)
        added = self.made("LiteRtCreateOpaqueOptions", kind, copy, free)
        self.call("LiteRtAddOpaqueOptions", options, added)

    def tensor(self, signature: Any, kind: str, index: int) -> Any:
        return self.made(
            f"LiteRtGetSignature{kind}TensorByIndex", signature, ctypes.c_size_t(index)
        )

    def buffers(self, signature: Any, kind: str) -> Any:
        """An array of buffers, one for each input or output."""
        count = ctypes.c_size_t()
        self.call(f"LiteRtGetNumSignature{kind}s", signature, ctypes.byref(count))
        array = (ctypes.c_void_p * count.value)()
        for index in range(count.value):
            tensor_type = ctypes.create_string_buffer(TENSOR_TYPE_BYTES)
            tensor = self.tensor(signature, kind, index)
            self.call("LiteRtGetRankedTensorType", tensor, tensor_type)
            requirements = self.made(
                f"LiteRtGetCompiledModel{kind}BufferRequirements",
                self.model,
                ctypes.c_size_t(0),
                ctypes.c_size_t(index),
            )
            array[index] = self.made(
                "LiteRtCreateManagedTensorBufferFromRequirements",
                self.environment,
                tensor_type,
                requirements,
            )
        return array


# --- The machine -------------------------------------------------------------------------------


def interpreter_module() -> Any:
    try:
        import ai_edge_litert.interpreter as module
    except ImportError:
        try:
            import tflite_runtime.interpreter as module
        except ImportError:
            raise RunError(
                f"this Python ({sys.executable}) has neither ai_edge_litert nor tflite_runtime; "
                "install one of them, e.g. pip install ai-edge-litert"
            ) from None
    return module


def runtime() -> str:
    package = interpreter_module().__name__.partition(".")[0]
    return "{} {}".format(package, getattr(sys.modules[package], "__version__", "(no version)"))


def machine() -> dict[str, Any]:
    """What does not change while the run lasts."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "board": first_line(PROC / "device-tree" / "model"),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def conditions() -> dict[str, Any]:
    """What may change while the run lasts; None or empty where the machine does not tell."""
    temperature_by_zone_c = temperatures_c()
    return {
        "load_average": round(os.getloadavg()[0], 2),
        "governor": governor(),
        "frequency_mhz": frequency_mhz(),
        "temperature_c": hottest(temperature_by_zone_c),
        "temperature_by_zone_c": temperature_by_zone_c,
        "throttle_events": throttle_events(),
        "firmware_throttling": firmware_throttling(),
    }


def cpu_model() -> str:
    # "model name" on x86, "Hardware" or "Model" on ARM kernels that tell.
    for key in ("model name", "Hardware", "Model"):
        for line in lines(PROC / "cpuinfo"):
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def governor() -> str | None:
    """The CPUs' frequency governors, e.g. "performance", or "powersave, schedutil"."""
    files = SYS.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({first_line(file) or "unknown" for file in files})) or None


def frequency_mhz() -> float | None:
    """Mean over the CPUs; kHz in cpufreq, MHz in x86's cpuinfo."""
    files = SYS.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [int(text) / 1000 for text in map(first_line, files) if text and text.isdigit()]
    if not values:
        values = [
            float(line.partition(":")[2])
            for line in lines(PROC / "cpuinfo")
            if line.startswith("cpu MHz")
        ]
    return round(sum(values) / len(values), 1) if values else None


def throttle_events() -> int | None:
    """How often an x86 kernel has slowed a core down because it was hot, since it booted."""
    files = SYS.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [int(text) for text in map(first_line, files) if text and text.isdigit()]
    return sum(counts) if counts else None


def firmware_throttling() -> int | None:
    """A Raspberry Pi's flags, as `vcgencmd get_throttled` prints them: power, clock, heat."""
    text = first_line(SYS / "devices/platform/soc/soc:firmware/get_throttled")
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def temperatures_c() -> dict[str, float]:
    """Degrees Celsius by thermal zone; the kernel gives thousandths."""
    found = {}
    for zone in sorted(SYS.glob("class/thermal/thermal_zone*")):
        text = first_line(zone / "temp")
        if text and text.lstrip("-").isdigit():
            kind = first_line(zone / "type") or "unknown"
            found[f"{zone.name} ({kind})"] = int(text) / 1000
    return found


def hottest(temperature_by_zone_c: dict[str, float]) -> float | None:
    return max(temperature_by_zone_c.values(), default=None)


def rss_bytes(field: str) -> int:
    """VmRSS, the resident set now, or VmHWM, its peak, of this process alone.

    getrusage's ru_maxrss would not do on Linux: the parent's peak is inherited through exec.
    """
    for line in lines(PROC / "self" / "status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024  # the kernel's "kB" is 1024 bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, where it is in bytes


def timer_resolution_ns() -> int:
    """The shortest time that can be told: smallest difference of two successive readings."""
    readings = [time.perf_counter_ns() for _ in range(1000)]
    return int(min(step for step in np.diff(readings) if step > 0))


def first_line(path: Path) -> str | None:
    return next(iter(lines(path)), None)


def lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").replace("\0", "").splitlines()
    except OSError:  # absent, or present and not readable, as some thermal zones are
        return []


if __name__ == "__main__":
    sys.exit(main())
