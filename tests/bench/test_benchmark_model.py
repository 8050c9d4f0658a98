"""The output of LiteRT's benchmark_model, of several versions, and of anything else."""

import json
import platform
import re
import struct
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_bn.bench.devices import elf
from keras_bn.bench.devices.benchmark_model import parse
from tests.bench import benchmark_model as stand_in

OPERATIONS = [
    ["CONV_2D", "[model/conv/Relu;model/conv/Conv2D]:0", 900, 1],
    ["Convolution (NHWC, QC8) GEMM", "Delegate/Convolution (NHWC, QC8) GEMM:2", 650, 13],
    ["SOFTMAX", "[StatefulPartitionedCall:0]:31", 50, 1],
]
VERSIONS = ["2019", "current", "litert"]


@pytest.fixture(scope="module")
def output_of(tmp_path_factory):
    """What a stand-in of a version prints, and what it measured."""
    folder = tmp_path_factory.mktemp("stand_in")
    script = stand_in.script(folder / "benchmark_model")

    def run(*flags, **behaviour):
        (folder / "runs.jsonl").unlink(missing_ok=True)
        model = stand_in.model(folder / "a.tflite", **behaviour)
        options = {"num_threads": 1, "num_runs": 3, "min_secs": 0, "warmup_runs": 4}
        command = [script, f"--graph={model}", "--warmup_min_secs=0.5", *flags]
        command += [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run(
            command,
            env={"STAND_IN": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout, json.loads((folder / "runs.jsonl").read_text())

    return run


@pytest.mark.parametrize("version", VERSIONS)
def test_figures_of_every_version(output_of, version):
    text, measured = output_of(
        "--report_peak_memory_footprint=true",
        version=version,
        init_us=7654,
        first_us=31234,
        started_kb=9000,
        added_kb=20480,
    )
    output = parse(text)

    assert output.samples_us == tuple(measured["timed"][1:])
    assert output.first_invoke_us == 31234
    assert output.init_us == 7654
    # The program prints megabytes of 2**20 bytes with six digits, or two decimals.
    assert output.added_rss_bytes == 20480 * 1024
    expected = None if version == "2019" else 29480 * 1024
    assert output.peak_rss_bytes == (expected and pytest.approx(expected, abs=0.005 * 2**20))


@pytest.mark.parametrize("version", ["2019", "current"])
def test_profile_of_every_version(output_of, version):
    text, _ = output_of("--enable_op_profiling=true", version=version, operations=OPERATIONS)
    profile = parse(text).profile

    assert [(each["kind"], each["name"], each["calls"]) for each in profile] == [
        (kind, name, calls) for kind, name, _, calls in OPERATIONS
    ]
    for each, (_, _, us, _) in zip(profile, OPERATIONS, strict=True):
        # Percentages have three decimals: half of the last is 5e-6 of the total.
        assert each["share"] == pytest.approx(us / 1600, abs=5.1e-6)
        assert each["mean_ms"] == pytest.approx(us / 1000, abs=1.6 * 5.1e-6)


def test_flags_that_the_program_does_not_know(output_of):
    text, _ = output_of("--use_xnnpack=false", "--enable_op_profiling=true", version="litert")
    assert parse(text).unknown_flags == ("--use_xnnpack=false", "--enable_op_profiling=true")
    assert parse(text).profile == ()


def statistics(warmup, timed, initialized="INFO: Initialized session in 6.418ms."):
    return f"INFO: STARTING!\n{initialized}\nINFO: {warmup}\n\nINFO: {timed}\n\n"


FIRST = "count=3 first=900 curr=800 min=800 max=900 avg=833.333 std=47 p5=800 median=800 p95=900"


@pytest.mark.parametrize(
    ("timed", "samples"),
    [
        ("count=1 curr=1041765", ()),
        ("count=2 curr=500(all same)", (500,)),
        ("count=2 curr=500(all same) p5=500 median=500 p95=500", (500,)),
        ("count=2 first=6510 curr=6449 min=6449 max=6510 avg=6479.5 std=30", (6449,)),
        ("count=3 curr=500(all same) p5=500 median=500 p95=500", (500, 500)),
        # 6510 + 6449 + 6480 = 19439
        ("count=3 first=6510 curr=6449 min=6449 max=6510 avg=6479.67 std=24", (6480, 6449)),
        # 99998 + 99997 + 99996, whose mean still shows its decimal
        ("count=3 first=99998 curr=99996 min=99996 max=99998 avg=99997 std=0", (99997, 99996)),
        # Six digits of the mean of 7000001, 7000005, 7000003: it is the largest that tells.
        ("count=3 first=7000001 curr=7000003 min=7000001 max=7000005 avg=7e+06 std=1",
         (7000005, 7000003)),
        ("count=3 first=7000000 curr=9000000 min=7000000 max=9000000 avg=8e+06 std=800000",
         (8000000, 9000000)),
        ("count=4 first=9 curr=8 min=7 max=9 avg=8 std=0", ()),
        ("count=2 first=2e3 curr=6449 min=6449 max=6510 avg=6479.5 std=30", None),
    ],
    ids=["one", "two same", "two same, percentiles", "two", "three same", "three", "0.1 s",
         "7 s, close", "7 s, apart", "four", "not whole"],
)  # fmt: skip
def test_forms_of_the_statistics(timed, samples):
    text = statistics(FIRST, timed)
    if samples is None:
        with pytest.raises(ValueError, match="holds 1 lines of statistics"):
            parse(text)
    else:
        assert parse(text).samples_us == samples
        assert parse(text).first_invoke_us == 900
        assert parse(text).init_us == pytest.approx(6418, abs=1e-9)  # milliseconds in decimal


# TensorFlow 2.21's own xla/tsl/util/stats_calculator.{h,cc} printed these, called from a program of
# a few lines that was linked with its libraries.
REAL_STATISTICS = {
    (1572, 1592, 1581): "count=3 first=1572 curr=1581 min=1572 max=1592 avg=1581.67 std=8 "
    "p5=1572 median=1581 p95=1592",
    (500, 500, 500): "count=3 curr=500(all same) p5=500 median=500 p95=500",
    (123456, 1041765, 654321): "count=3 first=123456 curr=654321 min=123456 max=1041765 "
    "avg=606514 std=376419 p5=123456 median=654321 p95=1041765",
    (7000001, 7000005, 7000003): "count=3 first=7000001 curr=7000003 min=7000001 max=7000005 "
    "avg=7e+06 std=1 p5=7000001 median=7000003 p95=7000005",
    (1041765,): "count=1 curr=1041765 p5=1041765 median=1041765 p95=1041765",
}
REAL_TABLES = Path(__file__).with_name("stats_calculator.txt").read_text()


@pytest.mark.parametrize("values", REAL_STATISTICS, ids=str)
def test_statistics_that_tensorflow_printed(values):
    """The stand-in prints the same, and every value but the first is read from it."""
    text = REAL_STATISTICS[values]
    assert stand_in.statistics(list(values), percentiles=True) == text
    assert parse(statistics(FIRST, text)).samples_us == values[1:]


def test_tables_that_tensorflow_printed(capsys):
    """The stand-in prints the same, and every operation is read from it."""
    stand_in.tables("title", {"version": "current"}, OPERATIONS, 2)
    assert capsys.readouterr().out.strip() == f"INFO: title\n{REAL_TABLES}".strip()

    text = f"{statistics(FIRST, FIRST)}Operator-wise Profiling Info for Regular Benchmark Runs:\n"
    profile = parse(text + REAL_TABLES).profile
    for each, (kind, name, us, calls) in zip(profile, OPERATIONS, strict=True):
        assert (each["kind"], each["name"], each["calls"]) == (kind, name, calls)
        # Percentages have three decimals: half of the last is 5e-6 of the total.
        assert each["mean_ms"] == pytest.approx(us / 1000, abs=1.6 * 5.1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not say when"),
        (statistics(FIRST, FIRST, initialized=""), "does not say when"),
        ("\0\x1b[2J" * 1000, "does not say when"),
        (statistics(FIRST, "count=0"), "holds 1 lines"),
        (statistics(FIRST, FIRST) + "INFO: count=1 curr=5\n", "holds 3 lines"),
        (statistics(FIRST, "count=0 curr=5"), "contradict themselves: INFO: count=0"),
        (statistics(FIRST, "count=2 first=9 curr=2 min=3 max=9 avg=6 std=1"), "contradict"),
        (statistics(FIRST, "count=2 first=9 curr=2 min=2 max=8 avg=6 std=1"), "contradict"),
        (statistics(FIRST, "count=3 first=9 curr=2 min=2 max=9 avg=8 std=1"), "no second value"),
        (statistics(FIRST, f"count=1 curr={'9' * 400}"), "holds 1 lines"),
        (statistics(FIRST, FIRST, "INFO: Initialized session in 1.2.3ms."), "convert"),
    ],
    ids=["empty", "no init", "noise", "none timed", "three", "zero", "below", "above", "mean",
         "vast", "no number"],
)  # fmt: skip
def test_what_is_not_its_output(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.fixture(scope="module")
def whole(output_of):
    return output_of("--enable_op_profiling=true", operations=OPERATIONS)[0]


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.data())
def test_anything_is_understood_or_refused(whole, data):
    """A part of the output is replaced, by anything or by another part of it."""
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    other = st.integers(0, len(whole)).map(lambda at: whole[at : at + 80])
    text = whole[:start] + data.draw(st.one_of(st.text(), other)) + whole[end:]
    try:
        output = parse(text)
    except ValueError:
        return
    json.dumps(asdict(output), allow_nan=False)
    assert output.init_us >= 0
    assert all(0 <= each["share"] <= 1.01 for each in output.profile)


def test_output_without_sense_is_refused_at_once():
    """No form of it makes the search take more than its length."""
    for text in ("[" * 10**6, "count=1 curr=" * 10**5, "Peak memory:" + " " * 10**6, "\n" * 10**6):
        with pytest.raises(ValueError, match="does not say when"):
            parse(text)
        with pytest.raises(ValueError, match="lines of statistics"):
            parse(f"Initialized session in 1ms.\n{text}")


def profiled(output_of, edit):
    text, _ = output_of("--enable_op_profiling=true", operations=OPERATIONS)
    head, title, tables = text.partition("Operator-wise")
    return parse(head + title + edit(tables)).profile


def test_tables_of_subgraphs_and_delegates_are_part_of_the_main_graph(output_of):
    def add(tables):
        within = tables.partition("\n")[2].replace("CONV_2D", "   MUL ")
        return (
            tables.replace("Runs:\n", "Runs:\nPrimary graph (name: main) profile:\n")
            + "Subgraph (index: 1, name: body) profile:\n" + within
            + "Delegate internal: \n" + within
        )  # fmt: skip

    assert [each["kind"] for each in profiled(output_of, add)] == [each[0] for each in OPERATIONS]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tables: tables[:200], "cut off"),
        (lambda tables: tables.replace("3 nodes observed", "4 nodes observed"), "of 4 operations"),
        (lambda tables: tables.replace("[avg ms]", "[median]").replace("[%]", "[p]"), "columns"),
        (lambda tables: re.sub("56.250%", "156.250%", tables), "sum to 100 %"),
        (lambda tables: re.sub("56.250%", "fifty %", tables), "holds +fifty %"),
        (lambda tables: re.sub("56.250%", "nan%", tables), "holds +nan%"),
        (lambda tables: re.sub("\t +13\t", f"\t{'9' * 99}\t", tables), "holds .*99"),
        (lambda tables: re.sub(r"\t *13\t", "\t", tables), "of 3 operations"),
    ],
    ids=["cut off", "a line lost", "columns", "shares", "no number", "NaN", "vast", "a cell lost"],
)
def test_profiles_that_make_no_sense(output_of, edit, message):
    with pytest.raises(ValueError, match=message):
        profiled(output_of, edit)


# --- Programs ----------------------------------------------------------------------------------


def elf_file(path, *, machine=183, bits=64, order="<", linker=None):
    """The headers of a program, as elf.h has them."""
    path_there = b"" if linker is None else linker.encode() + b"\0"
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]) + bytes(9)
    if bits == 64:
        size, entry = 64, 56
        segment = struct.pack(order + "IIQQQQQQ", 3, 4, size + entry, 0, 0, len(path_there), 0, 1)
        header = struct.pack(order + "HHIQQQIHHHHHH", 3, machine, 1, 0, size, 0, 0, size, entry,
                             1, 0, 0, 0)  # fmt: skip
    else:
        size, entry = 52, 32
        segment = struct.pack(order + "IIIIIIII", 3, size + entry, 0, 0, len(path_there), 0, 4, 1)
        header = struct.pack(order + "HHIIIIIHHHHHH", 3, machine, 1, 0, size, 0, 0, size, entry,
                             1, 0, 0, 0)  # fmt: skip
    if linker is None:
        segment = struct.pack(order + "I", 1) + segment[4:]  # PT_LOAD
    path.write_bytes(ident + header + segment + path_there)
    return path


@pytest.mark.parametrize(
    ("machine", "bits", "order", "abi"),
    [
        (183, 64, "<", "arm64-v8a"),
        (40, 32, "<", "armeabi-v7a"),
        (62, 64, "<", "x86_64"),
        (3, 32, "<", "x86"),
        (8, 32, ">", "machine 8, 32 bit"),
    ],
    ids=["arm64", "arm", "x86_64", "x86", "MIPS"],
)
def test_what_a_program_was_built_for(tmp_path, machine, bits, order, abi):
    path = tmp_path / "program"
    for linker in (None, "/system/bin/linker64"):
        elf_file(path, machine=machine, bits=bits, order=order, linker=linker)
        assert elf.read(path) == elf.Program(abi, linker)


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="ELF is Linux's format")
def test_a_program_of_this_machine():
    """Python is one, whatever built it."""
    program = elf.read("/proc/self/exe")
    assert program.abi == {"x86_64": "x86_64", "aarch64": "arm64-v8a"}[platform.machine()]
    assert program.linker is None or "/ld-" in program.linker


@pytest.mark.parametrize(
    "content",
    [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + b"\xff" * 100, b"TFL3" * 100],
    ids=["empty", "script", "magic alone", "damaged", "model"],
)
def test_what_is_no_program(tmp_path, content):
    path = tmp_path / "program"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a program for Android"):
        elf.read(path)
