"""A stand-in for LiteRT's benchmark_model: the same command line, and the same words on the output.

It invents its figures: the "model" that --graph names is a JSON object behind the eight bytes that
every `.tflite` file begins with, which says what to print, and how to fail. What it did is appended
to the file runs.jsonl in the folder of the stand-in device.

The words come from tflite/tools/benchmark/benchmark_model.cc, benchmark_tflite_model.cc and
profiling/profile_summary_formatter.cc, xla/tsl/util/stats_calculator.{h,cc}, and, for the program
of the same name that runs a CompiledModel, litert/tools/benchmark_litert_model.h, all of
github.com/google-ai-edge/LiteRT and tensorflow/tensorflow. C++ prints numbers as "%g" does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import struct
import sys
import time
from pathlib import Path

IDENTIFIER = b"\x1c\x00\x00\x00TFL3"
COMMON_FLAGS = {
    "graph", "num_runs", "min_secs", "max_secs", "run_delay", "num_threads", "warmup_runs",
    "warmup_min_secs", "verbose", "report_peak_memory_footprint",
}  # fmt: skip
FLAGS = {
    "2019": COMMON_FLAGS | {"use_xnnpack", "enable_op_profiling"},
    "current": COMMON_FLAGS | {"use_xnnpack", "enable_op_profiling"},
    "bare": COMMON_FLAGS | {"enable_op_profiling"},
    "litert": COMMON_FLAGS | {"use_cpu", "use_gpu", "use_profiler"},
}

# --- What tests write with it ------------------------------------------------------------------


def model(path: Path, **behaviour: object) -> Path:
    """A "model" file that makes the stand-in behave so; see `main` for the fields."""
    path.write_bytes(IDENTIFIER + json.dumps(behaviour).encode())
    return path


CODE = {
    # execve(path, argv, envp), and exit(127) if that fails; both find argc, argv and envp on the
    # stack and the path behind the code.
    "x86_64": bytes.fromhex(
        "488b0c24"  # mov rcx, [rsp]
        "488d742408"  # lea rsi, [rsp + 8]
        "488d54cc10"  # lea rdx, [rsp + 8 * rcx + 16]
        "488d3d13000000"  # lea rdi, [rip + 19]
        "b83b000000"  # mov eax, 59
        "0f05"  # syscall
        "bf7f000000"  # mov edi, 127
        "b83c000000"  # mov eax, 60
        "0f05"  # syscall
    ),
    "aarch64": struct.pack(
        "<10I",
        0xF94003E3,  # ldr x3, [sp]
        0x910023E1,  # add x1, sp, 8
        0x8B236FE2,  # add x2, sp, x3, lsl 3
        0x91004042,  # add x2, x2, 16
        0x100000C0,  # adr x0, pc + 24
        0xD2801BA8,  # mov x8, 221
        0xD4000001,  # svc 0
        0xD2800FE0,  # mov x0, 127
        0xD2800BA8,  # mov x8, 93
        0xD4000001,  # svc 0
    ),
}
MACHINES = {"x86_64": 62, "aarch64": 183}
ADDRESS = 0x400000


def program(path: Path, script: Path, machine: str) -> Path:
    """A real ELF program for this machine that becomes the executable `script`."""
    code = CODE[machine] + os.fsencode(script) + b"\0"
    start = 64 + 56
    size = start + len(code)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, MACHINES[machine], 1, ADDRESS + start, 64, 0, 0,
                          64, 56, 1, 64, 0, 0)  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, ADDRESS, ADDRESS, size, size, 4096)
    path.write_bytes(header + segment + code)
    return path


def script(path: Path) -> Path:
    """This file as a program of its own; it starts faster without Python's site packages."""
    path.write_text(f"#!{sys.executable} -SE\n{Path(__file__).read_text()}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# --- The program -------------------------------------------------------------------------------


def main() -> int:
    flags = dict(each.removeprefix("--").partition("=")[::2] for each in sys.argv[1:])
    say(0, "STARTING!")
    content = Path(flags["graph"]).read_bytes()
    if content[:8] != IDENTIFIER:
        say(2, "Failed to load model " + flags["graph"])
        say(2, "Benchmarking failed.")
        return 1
    behaviour = {
        # Or "2019", without prefixes and percentiles, "litert", or "bare", without XNNPACK.
        "version": "current",
        "init_us": 5432,
        "first_us": 20500,
        "latency_us": 1500,
        "spread_us": 100,
        "started_kb": 9000,
        "added_kb": 20480,
        "operations": [],  # of kind, output, µs an invoke, calls
        "fault": None,
        "fault_at": 0,  # which of the device's runs of any model it strikes first
        **json.loads(content[8:]),
    }
    global prefixed
    prefixed = behaviour["version"] != "2019"
    log = Path(os.environ["STAND_IN"]) / "runs.jsonl"
    runs_before = len(log.read_text().splitlines()) if log.exists() else 0
    fault = behaviour["fault"] if runs_before >= behaviour["fault_at"] else None
    if unknown := flags.keys() - FLAGS[behaviour["version"]]:
        given = [each for each in sys.argv[1:] if each[2:].partition("=")[0] in unknown]
        say(1, "Unconsumed cmdline flags: " + " ".join(given))

    say(0, "Log parameter values verbosely: [0]")
    say(0, f"Min num runs: [{flags['num_runs']}]")
    say(0, f"Num threads: [{flags['num_threads']}]")
    say(0, f"Graph: [{flags['graph']}]")
    say(0, f"Loaded model {flags['graph']}")
    say(0, "Created TensorFlow Lite XNNPACK delegate for CPU.")
    if fault in ("SIGILL", "SIGSEGV", "SIGKILL"):
        os.kill(os.getpid(), getattr(signal, fault))
    if fault == "refused":
        say(2, "Op builtin_code out of range: 209. Are you using old TFLite binary?")
        say(2, "Benchmarking failed.")
        return 1
    say(0, f"The input model file size (MB): {len(content) / 1e6:g}")
    say(0, f"Initialized session in {behaviour['init_us'] / 1e3:g}ms.")
    warmup = [behaviour["first_us"]] + [latency(behaviour)] * (int(flags["warmup_runs"]) - 1)
    timed = [latency(behaviour) for _ in range(int(flags["num_runs"]))]
    announce(flags["warmup_runs"], flags["warmup_min_secs"])
    with log.open("a") as file:
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        record = {"flags": flags, "timed": timed, "cpus": cpus}
        file.write(json.dumps(record) + "\n")
    if fault == "hang":
        time.sleep(600)
    say(0, statistics(warmup, percentiles=behaviour["version"] != "2019") + "\n")
    if fault == "stops":
        return 0
    if fault == "endless":
        while True:
            say(0, "x" * 1000)
    announce(flags["num_runs"], flags["min_secs"])
    say(0, statistics(timed, percentiles=behaviour["version"] != "2019") + "\n")
    summary(behaviour, flags, warmup, timed)
    if flags.get("enable_op_profiling") == "true" and behaviour["version"] != "litert":
        profile(behaviour, timed, cut_off=fault == "cut off")
    return 0


prefixed = True


def say(severity: int, text: str) -> None:
    prefix = ("INFO: ", "WARN: ", "ERROR: ")[severity] if prefixed else ""
    print(prefix + text, file=sys.stderr if severity == 2 else sys.stdout, flush=True)


def latency(behaviour: dict) -> int:
    return behaviour["latency_us"] + random.randint(0, behaviour["spread_us"])


def announce(runs: str, seconds: str) -> None:
    say(
        0,
        f"Running benchmark for at least {runs} iterations and at least {float(seconds):g} seconds "
        "but terminate if exceeding 150 seconds.",
    )


def statistics(values: list[int], *, percentiles: bool) -> str:
    """Stat::OutputToStream and StatWithPercentiles::OutputToStream."""
    count, ordered = len(values), sorted(values)
    if ordered[0] == ordered[-1]:
        text = f"count={count} curr={values[-1]}" + ("(all same)" if count > 1 else "")
    else:
        mean = sum(values) / count
        deviation = int((sum(each * each for each in values) / count - mean * mean) ** 0.5)
        text = (
            f"count={count} first={values[0]} curr={values[-1]} min={ordered[0]} "
            f"max={ordered[-1]} avg={mean:g} std={deviation}"
        )
    if percentiles:
        p5, median, p95 = (ordered[count * each // 100] for each in (5, 50, 95))
        text += f" p5={p5} median={median} p95={p95}"
    return text


def summary(behaviour: dict, flags: dict, warmup: list[int], timed: list[int]) -> None:
    mean_warmup, mean = sum(warmup) / len(warmup), sum(timed) / len(timed)
    added_mb = behaviour["added_kb"] / 1024
    peak_mb = (behaviour["started_kb"] + behaviour["added_kb"]) / 1024
    watched = flags.get("report_peak_memory_footprint") == "true"
    if behaviour["version"] == "litert":
        source = "[benchmark_litert_model.h:92] "
        say(0, source + "\n========== BENCHMARK RESULTS ==========")
        say(0, f"{source}Model initialization: {behaviour['init_us'] / 1000:.2f} ms")
        say(0, f"{source}Warmup (first):       {warmup[0] / 1000:.2f} ms")
        say(0, f"{source}Inference (avg):      {mean / 1000:.2f} ms ({len(timed)} runs)")
        say(0, f"{source}Overall footprint:    {added_mb:.2f} MB")
        if watched:
            say(0, f"{source}Peak memory:          {peak_mb:.2f} MB")
        else:
            say(0, source + "Peak memory usage not available. (peak_mem_mb <= 0)")
        return
    say(
        0,
        f"Inference timings in us: Init: {behaviour['init_us']}, First inference: {warmup[0]}, "
        f"Warmup (avg): {mean_warmup:g}, Inference (avg): {mean:g}",
    )
    say(
        0,
        "Note: as the benchmark tool itself affects memory footprint, the following is only "
        "APPROXIMATE to the actual memory footprint of the model at runtime. Take the information "
        "at your discretion.",
    )
    if behaviour["version"] == "2019":
        say(0, f"Peak memory footprint (MB): init={added_mb / 2:g} overall={added_mb:g}")
        return
    say(
        0,
        "Memory footprint delta from the start of the tool (MB): "
        f"init={added_mb / 2:g} overall={added_mb:g}",
    )
    if watched:
        say(0, f"Overall peak memory footprint (MB) via periodic monitoring: {peak_mb:g}")
        say(0, "Memory status at the end of exeution:")
        say(0, f"- VmRSS              : {int(peak_mb)} MB")


def profile(behaviour: dict, timed: list[int], *, cut_off: bool) -> None:
    preparing = [["ModifyGraphWithDelegate", "ModifyGraphWithDelegate/0", 6348, 1],
                 ["AllocateTensors", "AllocateTensors/0", 5061, 1]]  # fmt: skip
    tables("Profiling Info for Benchmark Initialization:", behaviour, preparing, 1)
    title = "Operator-wise Profiling Info for Regular Benchmark Runs:"
    tables(title, behaviour, behaviour["operations"], len(timed), cut_off=cut_off)


def tables(
    title: str, behaviour: dict, operations: list, runs: int, *, cut_off: bool = False
) -> None:
    """ProfileSummaryDefaultFormatter::HandleOutput and StatsCalculator::GetOutputString."""
    say(0, title)
    total = sum(us for _, _, us, _ in operations)
    started = behaviour["version"] == "2019"  # older versions print when a node started
    width = 24 if started else 40

    def row(cells: list[str], widths: list[int]) -> str:
        padded = zip(cells[: len(widths)], widths, strict=True)
        return "".join(f"\t{cell:>{size}}" for cell, size in padded) + "".join(
            "\t" + cell for cell in cells[len(widths) :]
        )

    def nodes(name: str, some: list) -> None:
        print(f"{'=' * 30} {name} {'=' * 30}")
        head = ["[node type]", "[start]", "[first]", "[avg ms]", "[%]", "[cdf%]", "[mem KB]",
                "[times called]", "[Name]"]  # fmt: skip
        widths = [width, 17, 9, 9, 8, 8, 10, 9]
        if not started:
            del head[1], widths[1]
        print(row(head, widths))
        sum_us, cdf = 0, 0.0
        for kind, output, us, calls in some:
            share = us * 100 / total
            cdf += share
            cells = [kind, f"{sum_us / 1000:.3f}", f"{us / calls / 1000:.3f}",
                     f"{us / calls / 1000:.3f}", f"{share:.3f}%", f"{cdf:.3f}%", "0.000",
                     str(calls), output]  # fmt: skip
            if not started:
                del cells[1]
            print(row(cells, widths))
            sum_us += us
        print()

    nodes("Run Order", operations)
    if cut_off:
        sys.exit(0)
    nodes("Top by Computation Time", sorted(operations, key=lambda each: -each[2])[:10])
    print(f"Number of nodes executed: {len(operations)}")
    print(f"{'=' * 30} Summary by node type {'=' * 30}")
    widths = [width, 9, 10, 11, 11, 10, 10]
    print(row(["[Node type]", "[count]", "[avg ms]", "[avg %]", "[cdf %]", "[mem KB]",
               "[times called]"], widths))  # fmt: skip
    widths[-1] = 9
    cdf = 0.0
    for kind in dict.fromkeys(each[0] for each in operations):
        same = [each for each in operations if each[0] == kind]
        us = sum(each[2] for each in same)
        cdf += us * 100 / total
        cells = [kind, str(len(same)), f"{us / 1000:.3f}", f"{us * 100 / total:.3f}%",
                 f"{cdf:.3f}%", "0.000", str(sum(each[3] for each in same))]  # fmt: skip
        print(row(cells, widths))
    print()
    print("Timings (microseconds): " + statistics([total] * runs, percentiles=False))
    print("Memory (bytes): count=0")
    print(f"{len(operations)} nodes observed")
    print("\n\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
