"""The real adb client against a stand-in device, and every way that it can fail."""

import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from keras_bn.bench.devices import adb, benchmark_model
from keras_bn.bench.devices.shell import BLOCK_BYTES
from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError
from tests.bench import benchmark_model as program
from tests.bench.adbd import Device
from tests.bench.stand_in import REPEATED, install_python
from tests.bench.test_benchmark_model import OPERATIONS, elf_file

pytestmark = [
    pytest.mark.skipif(shutil.which("adb") is None, reason="adb is not installed: apt install adb"),
    pytest.mark.skipif(
        platform.machine() not in program.CODE or not Path("/proc/self/exe").exists(),
        reason="the stand-in for benchmark_model is a Linux program for x86-64 and AArch64",
    ),
]
ABI = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}


def client(*arguments):
    return subprocess.run(["adb", *arguments], capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An adb server of its own, with keys of its own, that ends with the tests."""
    with socket.create_server(("127.0.0.1", 0)) as free, pytest.MonkeyPatch.context() as patch:
        home = str(tmp_path_factory.mktemp("home"))
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
        for name in ("HOME", "TMPDIR", "ANDROID_SDK_HOME", "ANDROID_USER_HOME"):
            patch.setenv(name, home)
        patch.delenv("ANDROID_SERIAL", raising=False)
        patch.setenv("ADB_LOCAL_TRANSPORT_MAX_PORT", "0")  # emulators of this machine stay out
        free.close()
        assert client("start-server").returncode == 0
        yield
        client("kill-server")


def phone(folder):
    device = Device(
        folder,
        ro__product__cpu__abilist=f"{ABI[platform.machine()]},armeabi",
        ro__product__manufacturer="Maker",
        ro__product__model="Phone 7",
        ro__build__version__release="14",
        ro__soc__manufacturer="Fab",
        ro__soc__model="FB8550",
    )
    device.file("/proc/loadavg", "0.52 0.58 0.59 1/467 12345\n")
    device.file("/proc/meminfo", "MemTotal:        7654321 kB\nMemFree:  1 kB\n")
    device.file("/proc/cpuinfo", "processor\t: 0\nHardware\t: Board, Inc\n")
    return device


def connect(device):
    client("disconnect", device.serial)
    assert client("connect", device.serial).stdout.startswith("connected to")


@pytest.fixture
def device(server, tmp_path):
    """A phone, connected."""
    with phone(tmp_path / "device") as device:
        connect(device)
        yield device
        client("disconnect", device.serial)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """benchmark_model, built for the device."""
    folder = tmp_path_factory.mktemp("program")
    script = program.script(folder / "stand-in of benchmark_model")
    return program.program(folder / "benchmark_model", script, platform.machine())


@pytest.fixture
def model(tmp_path):
    def make(name="a.tflite", **behaviour):
        return program.model(tmp_path / name, **behaviour)

    return make


def measure(device, models, binary, **options):
    asked = {
        "threads": (1,),
        "runs": 2,
        "warmup": 1,
        "xnnpack": True,
        "affinity": None,
        "cooldown_s": 0.0,
        "seed": 0,
        "timeout_s": 30.0,
        "progress": None,
        "benchmark_binary": binary and str(binary),
        **options,
    }
    return adb.run(f"adb:{device.serial}", Request(models=tuple(map(str, models)), **asked))


def runs(device):
    """What the stand-in program did, in order."""
    lines = (device.folder / "runs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def cache(device):
    return sorted(path.name for path in device.tmp.glob("keras-bn/*"))


# --- Measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One whole run: what was asked for, what the program did, and what came of it."""

    models: tuple[Path, Path]
    steps: list
    runs: list
    document: dict
    left: list


@pytest.fixture(scope="module")
def measured(server, binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    a = program.model(
        folder / "a.tflite",
        init_us=7654,
        first_us=31234,
        started_kb=9000,
        added_kb=20480,
        operations=OPERATIONS,
    )
    b = program.model(folder / "b.tflite", latency_us=5000)
    steps = []
    with phone(folder / "device") as device:
        connect(device)
        for cpu, khz in enumerate((1_800_000, 2_400_000)):
            cpufreq = f"/sys/devices/system/cpu/cpu{cpu}/cpufreq"
            device.file(f"{cpufreq}/scaling_governor", ["schedutil\n", "powersave\n"][cpu])
            device.file(f"{cpufreq}/scaling_cur_freq", f"{khz}\n")
        zones = [("cpu-0-0", "41250"), ("battery", "55000"), ("modem", "-273000"), ("broken", "")]
        for number, (kind, temperature) in enumerate(zones):
            zone = f"/sys/class/thermal/thermal_zone{number}"
            device.file(f"{zone}/type", f"{kind}\n")
            device.file(f"{zone}/temp", f"{temperature}\n")
        document = measure(
            device,
            [a, b],
            binary,
            threads=(1, 2),
            runs=3,
            seed=1,
            progress=lambda *step: steps.append(step),
        )
        client("disconnect", device.serial)
        return Measured((a, b), steps, runs(device), document, device.processes())


def test_samples_are_those_of_every_round(measured):
    cells = [(str(path), threads) for path in measured.models for threads in (1, 2)]
    measurements = measured.document["measurements"]
    assert [(each["model"], each["threads"]) for each in measurements] == cells
    timed = [run for run in measured.runs if run["flags"]["warmup_min_secs"] != "0.0"]
    ran = [(run["flags"]["graph"], run["flags"]["num_threads"]) for run in timed]
    # Three samples are two processes; in each round every cell has one.
    assert len(ran) == 8
    assert len(set(ran[:4])) == len(set(ran[4:])) == 4
    assert ran[:4] != ran[4:]  # not always in the same order
    names = {each["model"]: each["sha256"] for each in measured.document["models"]}
    for each in measurements:
        expected = [
            us * 1000
            for run, cell in zip(timed, ran, strict=True)
            if cell == (names[each["model"]], str(each["threads"]))
            for us in run["timed"][1:]  # the first invoke brings caches and threads back
        ]
        assert each["samples_ns"] == expected
        assert len(expected) == 3
    assert measured.left == []


def test_figures_beside_the_samples(measured):
    first = measured.document["measurements"][0]
    assert first["init_ns"] == 7_654_000
    assert first["first_invoke_ns"] == 31_234_000
    # The program prints six digits of the megabytes.
    assert first["peak_rss_bytes"] == pytest.approx(29480 * 1024, rel=1e-5)
    assert first["runtime_rss_bytes"] == pytest.approx(9000 * 1024, rel=1e-4)
    assert [each["calls"] for each in first["profile"]] == [1, 13, 1]
    for path, file in zip(measured.models, measured.document["models"], strict=True):
        sha256 = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
        assert file["sha256"] == sha256.stdout.split()[0]
        assert file["size_bytes"] == path.stat().st_size


def test_progress_counts_to_its_total(measured):
    steps = [step for step in measured.steps if "sending" not in step[2]]
    assert {total for _, total, _ in steps} == {4 * (1 + 1 + 2)}
    assert [done for done, _, _ in steps] == list(range(1, 17))
    assert steps[0][2] == f"loaded {measured.models[0]}"


def test_environment_is_the_devices(measured):
    environment = measured.document["environment"]
    assert environment["system"].startswith("Android 14 (Linux ")
    assert environment["board"] == "Maker Phone 7"
    assert environment["cpu"] == "Fab FB8550"
    assert environment["architecture"] == ABI[platform.machine()]
    assert environment["cpus"] == 8
    assert environment["memory_bytes"] == 7654321 * 1024
    assert environment["timer_resolution_ns"] == 1000
    assert environment["before"] == {
        "load_average": 0.52,
        "governor": "powersave, schedutil",
        "frequency_mhz": 2100.0,
        "temperature_c": 41.25,  # of the CPU: the battery is none of its business
        "temperature_by_zone_c": {
            "thermal_zone0 (cpu-0-0)": 41.25,
            "thermal_zone1 (battery)": 55.0,
            "thermal_zone2 (modem)": -273.0,
        },
    }
    assert environment["after"].keys() == environment["before"].keys()


def test_the_program_is_told_what_was_asked(device, model, binary):
    document = measure(
        device, [model()], binary, threads=(4,), runs=4, warmup=7, xnnpack=False, affinity=(0,)
    )

    memory, profile, *timed = runs(device)
    assert len(timed) == 2
    for run in timed:
        flags = run["flags"]
        assert flags["num_threads"] == "4"
        assert flags["use_xnnpack"] == "false"
        assert flags["warmup_runs"] == "8"  # the first invoke of all, and seven
        assert flags["warmup_min_secs"] == "0.5"
        assert (flags["num_runs"], flags["min_secs"]) == ("3", "0")
        # What slows a run down is for runs of their own.
        assert not {"report_peak_memory_footprint", "enable_op_profiling"} & flags.keys()
        assert run["cpus"] == [0]
    assert memory["flags"]["report_peak_memory_footprint"] == "true"
    assert profile["flags"]["enable_op_profiling"] == "true"
    assert profile["flags"]["num_runs"] == "4"
    environment = document["environment"]
    assert environment["xnnpack"] is False
    assert (environment["affinity"], environment["cpus"]) == ([0], 1)
    assert (environment["warmup"], environment["warmup_s"]) == (7, 0.5)


def test_other_versions_of_the_program(device, model, binary):
    paths = [model(f"{version}.tflite", version=version) for version in ("2019", "litert")]
    older, other = measure(device, paths, binary)["measurements"]
    assert len(older["samples_ns"]) == len(other["samples_ns"]) == 2
    assert older["peak_rss_bytes"] is None  # which it does not tell
    assert other["peak_rss_bytes"] > other["runtime_rss_bytes"] > 0


def test_a_program_without_xnnpack_measures_without(device, model, binary):
    document = measure(device, [model(version="bare")], binary, xnnpack=False)
    assert document["environment"]["xnnpack"] is False


def test_a_device_that_tells_little(device, model, binary):
    """What SELinux keeps from the shell is left out."""
    shutil.rmtree(device.folder / "proc")
    for path in (device.folder / "properties").iterdir():
        if "abilist" not in path.name:
            path.unlink()
    environment = measure(device, [model()], binary)["environment"]

    assert environment["system"].startswith("Android (Linux ")
    assert environment["board"] is None
    assert environment["memory_bytes"] is None
    assert environment["cpu"] == ABI[platform.machine()]
    assert environment["before"] == {
        "load_average": None,
        "governor": None,
        "frequency_mhz": None,
        "temperature_c": None,
        "temperature_by_zone_c": {},
    }


def test_rounds_wait_until_the_device_has_cooled(device, model, binary, monkeypatch):
    monkeypatch.setattr(benchmark_model, "COOLING_PAUSE_S", 0.01)
    zone = "/sys/class/thermal/thermal_zone0"
    device.file(f"{zone}/type", "cpu\n")
    device.file(f"{zone}/temp", "40000\n")

    def progress(done, total, what):
        if what.startswith("profiled"):
            device.file(f"{zone}/temp", "60000\n")
        if what == "cooling down from 60 °C":
            device.file(f"{zone}/temp", "41900\n")  # within 2 °C

    environment = measure(device, [model()], binary, cooldown_s=5.0, progress=progress)[
        "environment"
    ]
    assert environment["cooldown_waited_s"] == 0.01
    assert environment["before"]["temperature_c"] == 40.0
    assert environment["after"]["temperature_c"] == 41.9


NAMES = ["-$(touch EXECUTED) `touch EXECUTED` *.tflite",
         "a\ntouch EXECUTED\n'; touch EXECUTED; '\"; touch EXECUTED; \".tflite"]  # fmt: skip


def test_names_of_files_are_never_part_of_a_command(device, model, binary, tmp_path):
    """Neither the models' nor the program's; all of them are measured."""
    named = tmp_path / "-b'; touch EXECUTED; '"
    named.write_bytes(binary.read_bytes())
    paths = [model(name, latency_us=1000 + number) for number, name in enumerate(NAMES)]
    document = measure(device, paths, named, runs=1)

    assert [each["model"] for each in document["measurements"]] == list(map(str, paths))
    assert not list(device.folder.rglob("EXECUTED"))
    assert not any("EXECUTED" in command for command in device.commands)


def test_a_second_run_sends_nothing(device, model, binary):
    path = model()
    measure(device, [path], binary)
    sent = device.received_bytes
    measure(device, [path], binary)

    assert sent == path.stat().st_size + binary.stat().st_size
    assert device.received_bytes == sent
    assert len(cache(device)) == 2


def test_a_python_on_the_device_runs_the_runner(device, model):
    """As Termux has one."""
    install_python(device.folder, path="bin/termux-python")
    document = measure(device, [path := model()], None, python="termux-python", runs=3)

    [measured] = document["measurements"]
    assert measured["model"] == str(path)
    assert len(measured["samples_ns"]) == 3
    assert document["environment"]["interpreter"] == "ai_edge_litert 2.9"
    assert device.is_idle()


def test_what_a_device_is(device):
    found = adb.describe(f"adb:{device.serial}", None, timeout_s=20.0)
    abi = ABI[platform.machine()]
    assert (found.device, found.architecture) == (f"adb:{device.serial}", abi)
    assert (found.board, found.cpu, found.cpus) == ("Maker Phone 7", "Fab FB8550", 8)
    assert found.memory_bytes == 7654321 * 1024

    install_python(device.folder, path="bin/termux-python")
    found = adb.describe(f"adb:{device.serial}", "termux-python", timeout_s=20.0)
    assert found.runtime.startswith("ai_edge_litert 2.9")


# --- The device cannot be used -----------------------------------------------------------------


def test_the_only_device_needs_no_name(device):
    assert adb.find(adb.parse("adb")).name == f"adb:{device.serial}"


def test_the_device_that_adb_itself_would_take(device, monkeypatch):
    monkeypatch.setenv("ANDROID_SERIAL", device.serial)
    assert adb.find(None).serial == device.serial
    monkeypatch.setenv("ANDROID_SERIAL", "0123ABCD")
    assert adb.find(device.serial).serial == device.serial
    with pytest.raises(DeviceError, match="The Android device 0123ABCD is not there"):
        adb.find(None)


def test_no_device(server):
    with pytest.raises(DeviceError, match=r"adb sees no device.*USB debugging"):
        adb.find(None)


def test_several_devices_are_named(device, tmp_path):
    with Device(tmp_path / "other") as other:
        connect(other)
        with pytest.raises(DeviceError) as caught:
            adb.find(None)
        assert adb.find(other.serial).name == f"adb:{other.serial}"
        client("disconnect", other.serial)
    for each in (device, other):
        assert f"adb:{each.serial}" in str(caught.value)
    assert "Several Android devices" in str(caught.value)


def test_a_device_that_is_not_there(device):
    with pytest.raises(DeviceError, match="The Android device 0123ABCD is not there") as caught:
        adb.find("0123ABCD")
    assert f"{device.serial} (Stand In): device" in str(caught.value)


def test_a_device_that_did_not_allow_debugging(server, tmp_path):
    with Device(tmp_path / "device") as device:
        device.authorized = False
        client("connect", device.serial)
        for serial in (None, device.serial):
            with pytest.raises(DeviceError, match="allow USB debugging in the dialog"):
                adb.find(serial)
        client("disconnect", device.serial)


def test_a_device_that_went_away(device, model, binary):
    device.go()
    deadline = time.monotonic() + 10
    while "offline" not in client("devices").stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(DeviceError, match="offline; plug it in again"):
        measure(device, [model()], binary)


def test_an_android_too_old(device):
    device.features = "cmd"
    connect(device)
    with pytest.raises(DeviceError, match="Android 7 or newer"):
        adb.find(device.serial)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0a388e93               device usb:1-1 product:p model:Pixel_7 device:p transport_id:1",
         ("0a388e93", "device", "Pixel 7")),
        ("192.168.0.7:5555\tdevice", ("192.168.0.7:5555", "device", "")),
        ("HT4CWJT01234           unauthorized usb:3-2 transport_id:2",
         ("HT4CWJT01234", "unauthorized", "")),
        ("????????????           no permissions (missing udev rules? user is in the plugdev "
         "group); see [http://developer.android.com/tools/device.html] usb:1-1.4 transport_id:1",
         ("????????????", "no permissions", "")),
        ("emulator-5554          offline transport_id:3", ("emulator-5554", "offline", "")),
        ("adb-ABC-xyz._adb-tls-connect._tcp device product:p model:A_B",
         ("adb-ABC-xyz._adb-tls-connect._tcp", "device", "A B")),
    ],
    ids=["USB", "network", "unauthorized", "no permissions", "offline", "found"],
)  # fmt: skip
def test_what_adb_lists(line, expected):
    assert adb.Attached.parse(line) == adb.Attached(*expected)
    assert str(adb.Attached.parse(line)).startswith(expected[0])


@pytest.mark.parametrize("state", ["unauthorized", "offline", "no permissions"])
def test_what_to_do_about_a_state(state):
    assert adb.STATES[state] in str(adb.Attached("0a388e93", state, ""))


@pytest.mark.parametrize(
    "name",
    ["adb:", "adb: ", "adb:-s", "adb:a b", "adb:a;b", "adb:$(reboot)", "adb:a\nb", "adb:'", "adbx",
     "adb:" + "a" * 200, "ADB:a", "usb:a"],
)  # fmt: skip
def test_what_is_no_device(name):
    with pytest.raises(ValueError, match="Expected adb, or adb:SERIAL"):
        adb.parse(name)


@pytest.mark.parametrize(
    "serial",
    ["0a388e93", "127.0.0.1:5555", "emulator-5554", "[fe80::1%eth0]:5555", "adb-A-b._adb._tcp"],
)
def test_serial_numbers(serial):
    assert adb.parse(f"adb:{serial}") == serial


def test_without_adb(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="sudo apt install adb; macOS: brew"):
        adb.attached()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sleep 60", "adb was silent for 0.5 s"),
        ("echo cannot bind: busy >&2; exit 1", "`adb -l` failed. It printed:\ncannot bind: busy"),
    ],
    ids=["hangs", "fails"],
)
def test_an_adb_that_does_not_work(monkeypatch, tmp_path, text, message):
    monkeypatch.setattr(adb, "CLIENT_TIMEOUT_S", 0.5)
    program = tmp_path / "adb"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DeviceError, match=message):
        adb.attached()


def test_android_without_python_says_where_benchmark_model_comes_from(device, model):
    with pytest.raises(DeviceError) as caught:
        measure(device, [model()], None, python="no-such-python")
    message = str(caught.value)
    assert "no-such-python" in message
    assert "//tflite/tools/benchmark:benchmark_model" in message
    assert "--config=android_arm64" in message
    assert "https://ai.google.dev/edge/litert/models/measurement" in message
    assert "ssh://DEVICE:8022" in message


# --- The program is not for this device --------------------------------------------------------


def test_a_program_for_another_architecture_is_not_sent(device, model, tmp_path):
    device.set_properties(ro__product__cpu__abilist="armeabi-v7a,armeabi")
    other = elf_file(tmp_path / "benchmark_model", linker="/system/bin/linker64")
    with pytest.raises(DeviceError) as caught:
        measure(device, [model()], other)
    assert "is built for arm64-v8a" in str(caught.value)
    assert "runs armeabi-v7a and armeabi" in str(caught.value)
    assert "--config=android_arm." in str(caught.value)
    assert device.received_bytes == 0


def test_a_program_for_linux_is_not_sent(device, model, tmp_path):
    machine = program.MACHINES[platform.machine()]
    linux = elf_file(tmp_path / "bm", machine=machine, linker="/lib64/ld-linux-x86-64.so.2")
    with pytest.raises(DeviceError, match=r"built for Linux.* asks for /lib64/ld-linux-x86-64"):
        measure(device, [model()], linux)
    assert device.received_bytes == 0


def test_a_file_that_is_no_program_is_not_sent(device, model):
    with pytest.raises(ValueError, match="is not a program for Android"):
        measure(device, [model()], model("benchmark_model"))
    assert device.received_bytes == 0


def test_a_cpu_that_no_device_has(device, model, binary):
    with pytest.raises(DeviceError, match="has no CPU 1000000000 to stay on"):
        measure(device, [model()], binary, affinity=(0, 10**9))


def test_a_device_that_is_not_android(device, model, binary):
    shutil.rmtree(device.folder / "properties")
    with pytest.raises(DeviceError, match="is not an Android device"):
        measure(device, [model()], binary)


# --- The run fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("SIGILL", "was killed by SIGILL: it was built for a newer CPU than the device has"),
        ("SIGSEGV", "was killed by SIGSEGV"),
        ("SIGKILL", "was killed by SIGKILL: the device ran out of memory"),
        ("refused", "failed with exit status 1"),
        ("stops", "makes no sense: it holds 1 lines of statistics"),
    ],
)
def test_a_run_that_fails_is_told_in_the_devices_words(device, model, binary, fault, message):
    with pytest.raises(DeviceError) as caught:
        measure(device, [bad := model("bad.tflite", fault=fault), model()], binary)
    told = str(caught.value)
    assert f"{device.serial}: benchmark_model on {bad}, threads: 1" in told
    assert message in told
    said = "Op builtin_code out of range" if fault == "refused" else f"Graph: [{bad}]"
    assert said in told
    assert device.is_idle()


def test_a_profile_that_is_cut_off(device, model, binary):
    with pytest.raises(DeviceError, match="its profile of operations is cut off"):
        measure(device, [model(fault="cut off", operations=OPERATIONS)], binary)


def test_output_without_end(device, model, binary, monkeypatch):
    monkeypatch.setattr(benchmark_model, "OUTPUT_BYTES", 100_000)
    with pytest.raises(DeviceError, match="sent more than 100000 bytes and was stopped"):
        measure(device, [model(fault="endless")], binary)
    assert device.is_idle()


def test_invokes_too_short_to_time(device, model, binary):
    with pytest.raises(DeviceError, match="less than the microsecond that it counts in"):
        measure(device, [model(latency_us=0, spread_us=0)], binary)


@pytest.mark.parametrize(
    ("version", "xnnpack", "message"),
    [
        ("litert", False, r"ran XNNPACK: .*Build //tflite/tools/benchmark:benchmark_model"),
        ("bare", True, r"ran the built-in kernels: .*was built without XNNPACK"),
    ],
)
def test_a_program_that_ignores_the_switch(device, model, binary, version, xnnpack, message):
    """It would measure the other thing than what the results say."""
    with pytest.raises(DeviceError, match=message):
        measure(device, [model(version=version)], binary, xnnpack=xnnpack)


def test_a_hang_is_given_up(device, model, binary):
    with pytest.raises(DeviceError, match=r"silent for 3 s .*larger timeout_s.*a\.tflite hangs"):
        measure(device, [model(fault="hang", fault_at=2)], binary, timeout_s=3.0)
    assert device.is_idle()


def test_a_device_that_goes_away_during_a_run(device, model, binary):
    device.gone_during = "--warmup_min_secs=0.5"
    with pytest.raises(DeviceError, match=f"The connection to adb:{device.serial} was lost"):
        measure(device, [model(fault="hang", fault_at=2)], binary)
    assert device.is_idle()

    device.gone_during = None
    connect(device)
    assert measure(device, [model()], binary)["measurements"]


def test_an_interrupted_upload_is_continued(device, model, binary):
    size = 40 * BLOCK_BYTES
    large = model(padding="x" * size)
    device.gone_after_bytes = size // 2
    with pytest.raises(DeviceError, match=r"was lost|cannot be reached"):
        measure(device, [large], binary)
    assert device.is_idle()
    [part] = (device.tmp / "keras-bn").glob("*.part")
    there = part.stat().st_size
    assert size // 4 < there < size

    device.gone_after_bytes = None
    connect(device)
    before = device.received_bytes
    assert measure(device, [large], binary)["measurements"]
    # Whole blocks are kept.
    assert device.received_bytes - before <= large.stat().st_size - there + BLOCK_BYTES
    assert all(len(name) == 64 for name in cache(device))


def test_a_full_disk(device, model, binary):
    large = model(padding="x" * 4 * BLOCK_BYTES)
    (device.folder / "full").touch()
    with pytest.raises(DeviceError, match="No space left on device") as caught:
        measure(device, [large], binary)
    assert str(binary) in str(caught.value)  # the first file of all
    assert cache(device) == []
    assert device.is_idle()

    (device.folder / "full").unlink()
    assert measure(device, [large], binary)["measurements"]


CALLER = """
import sys
from tests.bench.test_adb import measure
from types import SimpleNamespace
print("started", flush=True)
measure(SimpleNamespace(serial=sys.argv[1]), [sys.argv[2]], sys.argv[3], timeout_s=120.0)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_nothing_runs_on_the_device_after_its_caller(device, model, binary, end):
    path = model(fault="hang", fault_at=2)
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, device.serial, path, binary],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdout.readline() == "started\n"
        deadline = time.monotonic() + 60
        while not (device.folder / "runs.jsonl").exists() or len(runs(device)) < 3:
            assert caller.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert device.processes()
        caller.send_signal(end)
        _, printed = caller.communicate(timeout=30)

    assert device.is_idle()
    if end == signal.SIGINT:
        assert printed.rstrip().endswith("KeyboardInterrupt")


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_repeated_runs_leave_nothing_behind(device, model, binary):
    path = model()
    measure(device, [path], binary, runs=1)
    files, kept = open_files(), cache(device)
    here = {each.name for each in path.parent.iterdir()}

    for _ in range(REPEATED // 3):
        measure(device, [path], binary, runs=1)

    assert device.is_idle()
    assert cache(device) == kept
    assert list(device.tmp.iterdir()) == [device.tmp / "keras-bn"]
    # The device's own connection, in this process, is still the same one.
    assert open_files() == files
    assert {each.name for each in path.parent.iterdir()} == here


# --- The command line --------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "android.md"


def test_the_commands_of_the_page_for_android(device, binary, tmp_path, keras_bn_here, monkeypatch):
    """In the order in which a reader runs them."""
    monkeypatch.chdir(tmp_path)
    for name, us in (("float32", 3000), ("int8", 1000)):
        program.model(tmp_path / f"{name}.tflite", latency_us=us, operations=OPERATIONS)
    (tmp_path / "benchmark_model").write_bytes(binary.read_bytes())
    commands = re.findall(r"^\$ (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len([each for each in commands if each.startswith("keras-bn bench")]) == 3
    for command in commands:
        # These models are none to the interpreter of this machine; fifty runs show no more.
        client_name, *words = shlex.split(command.replace("--device host ", ""))
        few = ("--runs", "2") if words[0] == "bench" else ()
        run = keras_bn_here(*words, *few) if client_name == "keras-bn" else client(*words)
        assert not run.returncode, f"{command}: {run.stderr}"
        if words[0] == "devices":
            assert device.serial in run.stdout

    assert (tmp_path / "report.html").stat().st_size > 10_000
    written = json.loads((tmp_path / "results.json").read_text())
    assert [each["device"] for each in written["benchmarks"]] == ["adb"]
    assert [each["kind"] for each in written["benchmarks"][0]["profile"]] == [
        each[0] for each in OPERATIONS
    ]
    assert list(device.tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("SIGILL", 3, "was killed by SIGILL: it was built for a newer CPU"),
        ("no program", 2, "is not a program for Android"),
        ("no device", 3, "The Android device 0123ABCD is not there"),
        ("no such kind", 2, "Expected adb, or adb:SERIAL"),
    ],
)
def test_exit_codes(device, model, binary, keras_bn_here, fault, code, message):
    path = model(fault=fault if fault == "SIGILL" else None)
    name = {"no device": "adb:0123ABCD", "no such kind": "adb:-s x"}.get(
        fault, f"adb:{device.serial}"
    )
    run = keras_bn_here(
        *("bench", path, "--device", name, "--json", "--runs", "1"),
        *("--benchmark-binary", path if fault == "no program" else binary),
    )
    assert run.returncode == code, run.stderr
    assert message in " ".join(run.stderr.split())
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
