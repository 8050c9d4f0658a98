"""Real runs of the real interpreter in a child process, and every way they can fail."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from keras_bn.bench import stats
from keras_bn.bench.api import benchmark, speedups
from keras_bn.errors import DeviceError
from tests.bench.stand_in import REPEATED, install_python, model

QUICK = {"runs": 3, "warmup": 1}


def running(marker: Path | str) -> list[int]:
    """Processes with `marker` in their command line, this one excepted."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(marker).encode() in command and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def eventually_none_running(marker: Path | str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not running(marker):
            return True
        time.sleep(0.05)
    return False


def test_every_model_is_measured_with_every_thread_count(models):
    results = benchmark([models.small, models.large], threads=(1, 2), runs=4, warmup=1)

    small, large = str(models.small), str(models.large)
    assert [(r.model, r.threads) for r in results] == [
        (small, 1),
        (small, 2),
        (large, 1),
        (large, 2),
    ]
    for result in results:
        assert len(result.latency_ms.samples) == 4
        assert result.latency_ms == stats.summarize(result.latency_ms.samples)
        assert result.device == "host"
        assert result.init_ms > 0
        assert result.first_invoke_ms > 0
        assert 0 <= result.preempted <= 4


@pytest.mark.parametrize(
    "xnnpack, kind", [(True, "Fully Connected (NC, F32) GEMM"), (False, "FULLY_CONNECTED")]
)
def test_operations_are_timed_when_asked(models, xnnpack, kind):
    [result] = benchmark(models.large, profile=True, xnnpack=xnnpack, **QUICK)

    matmul = max(result.profile, key=lambda operation: operation.mean_ms)
    assert (matmul.kind, matmul.calls) == (kind, 1)
    assert matmul.share > 0.5  # 512² multiplications, and little else
    assert sum(operation.share for operation in result.profile) == pytest.approx(1)
    assert len({operation.name for operation in result.profile}) == len(result.profile)
    assert not any(warning.startswith("No profile") for warning in result.warnings)


def test_a_file_without_a_profile_says_why(models):
    """Its outputs have no shape before it runs, and buffers for them cannot be made."""
    [result] = benchmark(models.open_shape, profile=True, **QUICK)
    assert result.profile == ()
    assert any(warning.startswith("No profile: ") for warning in result.warnings)
    assert len(result.latency_ms.samples) == QUICK["runs"]


def test_file_facts_are_those_of_the_file(models):
    [result] = benchmark(models.small, **QUICK)

    sha256 = subprocess.run(["sha256sum", models.small], capture_output=True, text=True, check=True)
    assert result.sha256 == sha256.stdout.split()[0]
    assert result.size_bytes == models.small.stat().st_size


def test_memory_is_that_of_a_process_with_one_model(models):
    """The large model's megabyte of weights does not count for the small one."""
    small, large = benchmark([models.large, models.small], **QUICK)[::-1]

    # Python, numpy and the interpreter alone: more than 10 MB anywhere, far less than a GB.
    for result in (small, large):
        assert 10e6 < result.runtime_rss_bytes < result.peak_rss_bytes < 1e9
    weights_bytes = 4 * 512 * 512
    own_small = small.peak_rss_bytes - small.runtime_rss_bytes
    own_large = large.peak_rss_bytes - large.runtime_rss_bytes
    # XNNPACK packs the weights into memory of its own; half allows for what both vary by.
    assert own_large - own_small > weights_bytes / 2


def test_environment_tells_how_it_was_measured(models):
    [result] = benchmark(models.small, runs=2, warmup=4, seed=7, affinity=[0], xnnpack=False)

    facts = result.environment
    assert facts["affinity"] == [0]
    assert facts["cpus"] == 1
    assert facts["xnnpack"] is False
    assert (facts["warmup"], facts["seed"]) == (4, 7)
    assert facts["interpreter"].startswith("ai_edge_litert 2")
    assert facts["timer_resolution_ns"] >= 1
    assert facts["before"].keys() == facts["after"].keys()


def test_progress_counts_to_its_total(models):
    steps = []
    benchmark(models.small, **QUICK, progress=lambda *step: steps.append(step))

    done, totals, whats = zip(*steps, strict=True)
    assert set(totals) == {1 + 1 + 3}  # one probe, one warm-up, three runs
    assert list(done) == sorted(done)
    assert done[-1] == 5
    assert whats[0] == f"loading {models.small}"


def test_integer_inputs_are_valid_indices(models):
    """Any table has an entry 0 and, in all but degenerate cases, 1: gather stays in bounds."""
    [result] = benchmark(models.indices, **QUICK)

    assert "int32 [1, 5]" in result.inputs[0]
    assert len(result.latency_ms.samples) == 3


def test_open_dimensions_are_one_and_warned_of(models):
    [result] = benchmark(models.open_shape, **QUICK)

    assert "[1, 1, 3]" in result.inputs[0]
    assert [w for w in result.warnings if "unknown dimensions [-1, -1, 3]" in w]


def test_speedup_is_of_the_first_model_over_the_others(models):
    results = benchmark([models.large, models.small], threads=[1, 2], runs=8)
    found = speedups(results)

    by_key = {(r.model, r.threads): r.latency_ms for r in results}
    assert [s.threads for s in found] == [1, 2]
    for speedup in found:
        assert (speedup.baseline, speedup.model) == (str(models.large), str(models.small))
        large = by_key[speedup.baseline, speedup.threads]
        small = by_key[speedup.model, speedup.threads]
        assert speedup.ratio == pytest.approx(large.median / small.median, rel=1e-12)
        assert speedup.ci95[0] <= speedup.ratio <= speedup.ci95[1]


def test_xnnpack_can_be_left_out(models):
    """The interpreter announces the delegate on standard error when it creates it."""

    def announced(*options):
        runner = Path(stats.__file__).with_name("runner.py")
        command = [sys.executable, runner, "--runs", "1", *options, models.small]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert len(json.loads(done.stdout)["measurements"][0]["samples_ns"]) == 1
        return "XNNPACK delegate" in done.stderr

    assert announced()
    assert not announced("--no-xnnpack")


# --- Failures ----------------------------------------------------------------------------------


def test_a_damaged_file_is_named(models, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    content = models.large.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])

    with pytest.raises(DeviceError, match=r"refused .*damaged\.tflite"):
        benchmark([models.small, damaged], **QUICK)


def stub_interpreter(folder: Path, monkeypatch, body: str) -> None:
    """Put a package in front of the real ai_edge_litert, as the child will find it."""
    package = folder / "stub" / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0'\n")
    (package / "interpreter.py").write_text(textwrap.dedent(body))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


CRASHING = """
    import os
    from enum import Enum
    OpResolverType = Enum("OpResolverType", "AUTO BUILTIN_WITHOUT_DEFAULT_DELEGATES")
    class Interpreter:
        def __init__(self, **options):
            os.write(1, b"native code prints on standard output\\n")
            os.write(2, b"assertion failed: rank == 4\\n")
            os.abort()
"""


def test_a_crash_of_the_interpreter_names_the_model_and_what_it_printed(
    models, tmp_path, monkeypatch
):
    stub_interpreter(tmp_path, monkeypatch, CRASHING)

    with pytest.raises(DeviceError, match=r"small\.tflite crashed .*SIGABRT") as caught:
        benchmark(models.small, **QUICK)
    assert "assertion failed: rank == 4" in str(caught.value)
    assert "native code prints" in str(caught.value)


SILENT_FOR_GOOD = """
    import os, sys, time
    from enum import Enum
    OpResolverType = Enum("OpResolverType", "AUTO BUILTIN_WITHOUT_DEFAULT_DELEGATES")
    class Interpreter:
        def __init__(self, **options):
            if "--probe" not in sys.argv:
                os.closerange(1, 100)
                time.sleep(60)
        def allocate_tensors(self): pass
        def get_input_details(self): return []
        def invoke(self): pass
"""


def test_a_process_that_closes_its_outputs_and_stays_is_given_up(models, tmp_path, monkeypatch):
    stub_interpreter(tmp_path, monkeypatch, SILENT_FOR_GOOD)
    marked = tmp_path / "model.tflite"
    marked.write_bytes(models.small.read_bytes())

    with pytest.raises(DeviceError, match="did not end within 4 s of its last output"):
        benchmark(marked, timeout_s=4)
    assert eventually_none_running(marked)


def test_a_missing_interpreter_says_what_to_install(models, tmp_path, monkeypatch):
    stub_interpreter(tmp_path, monkeypatch, "raise ImportError('no such wheel')")

    with pytest.raises(DeviceError, match="pip install ai-edge-litert"):
        benchmark(models.small, **QUICK)


def test_a_killed_runner_is_a_device_error(models, tmp_path):
    marked = tmp_path / "model.tflite"
    marked.write_bytes(models.small.read_bytes())

    def kill(done, total, what):
        if what.startswith("round"):
            [runner] = running(marked)
            os.kill(runner, signal.SIGSEGV)

    with pytest.raises(DeviceError, match="SIGSEGV"):
        benchmark(marked, runs=100_000, progress=kill)
    assert eventually_none_running(marked)


def test_a_hang_in_native_code_is_given_up(models, tmp_path):
    marked = tmp_path / "model.tflite"
    marked.write_bytes(models.endless.read_bytes())

    with pytest.raises(DeviceError, match=r"silent for 4 s .*timeout_s.*model\.tflite hangs"):
        benchmark(marked, timeout_s=4)
    assert eventually_none_running(marked)


def test_progress_that_raises_stops_the_run(models, tmp_path):
    marked = tmp_path / "model.tflite"
    marked.write_bytes(models.small.read_bytes())

    def full(done, total, what):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        benchmark(marked, runs=100_000, progress=full)
    assert eventually_none_running(marked)


CALLER = """
import sys
from keras_bn.bench.api import benchmark
benchmark(sys.argv[1], runs=1_000_000, progress=lambda *step: print(step, flush=True))
"""


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
@pytest.mark.parametrize("name", ["small", "endless"])
def test_nothing_outlives_its_caller(models, tmp_path, name, end):
    """Neither in the middle of the rounds nor while a probe hangs in native code."""
    marked = tmp_path / "model.tflite"
    marked.write_bytes(getattr(models, name).read_bytes())
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, marked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as caller:
        if name == "small":
            while "round" not in caller.stdout.readline():
                assert caller.poll() is None
            assert len(running(marked)) == 2  # the caller and the runner
        else:
            # Importing and loading take a few tenths of a second: the rest is the endless loop.
            while not any(cpu_seconds(process) > 1.5 for process in running(marked)):
                assert caller.poll() is None
                time.sleep(0.1)
            assert len(running(marked)) == 3  # and the probe
        caller.send_signal(end)
        _, printed = caller.communicate(timeout=30)

    assert eventually_none_running(marked)
    if end == signal.SIGINT:
        assert printed.rstrip().endswith("KeyboardInterrupt")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_repeated_runs_leave_nothing_behind(tmp_path, monkeypatch):
    """Of the interpreter's own memory nothing is known here: it ends with its process."""
    install_python(tmp_path, path="python")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python-site"))
    marked = model(tmp_path / "model.tflite")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    [result] = benchmark(marked, runs=1)  # what is opened once and kept is open now
    assert result.environment["interpreter"] == "ai_edge_litert 2.9"
    before = open_files(), threading.active_count(), sorted(tmp_path.iterdir())

    for _ in range(REPEATED):
        benchmark(marked, runs=1, warmup=0)

    assert running(marked) == []
    assert list(temporary.iterdir()) == []
    assert (open_files(), threading.active_count(), sorted(tmp_path.iterdir())) == before
