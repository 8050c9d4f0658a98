"""The system's ssh client against a real server on loopback, and every way that it can fail."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import asyncssh
import pytest

from keras_bn.bench.api import benchmark
from keras_bn.bench.devices import discover, host, resolve, ssh
from keras_bn.bench.devices.shell import BLOCK_BYTES
from keras_bn.bench.request import Request
from keras_bn.errors import DeviceError
from tests.bench.sshd import reachable
from tests.bench.stand_in import REPEATED, install_python, model, program, running

pytestmark = pytest.mark.skipif(
    shutil.which("ssh") is None, reason="ssh is not installed: apt install openssh-client"
)

QUICK = {"device": "ssh://board", "runs": 3, "warmup": 1, "timeout_s": 30}


@pytest.fixture
def board(tmp_path, monkeypatch):
    folder = tmp_path / "board"
    folder.mkdir()
    with reachable(folder, monkeypatch) as computer:
        install_python(computer.home)
        yield computer


@pytest.fixture
def file(tmp_path):
    return model(tmp_path / "model.tflite")


def files_of(board):
    return sorted(path.name for path in board.cache.iterdir()) if board.cache.exists() else []


# --- Reaching it -------------------------------------------------------------------------------


def test_an_alias_of_the_users_configuration(board, file):
    steps = []
    [result] = benchmark(file, **QUICK, progress=lambda *step: steps.append(step))

    assert (result.device, result.model) == ("ssh://board", str(file))
    assert len(result.latency_ms.samples) == 3
    assert result.environment["interpreter"] == "ai_edge_litert 2.9"
    assert steps[-1][0] == steps[-1][1] == 5  # a probe, a warm-up, three runs
    assert (5, 5, "round 3 of 3") in steps
    assert f"loading {file}" in [what for _, _, what in steps]
    assert "sending model.tflite (kB)" in [what for _, _, what in steps]
    assert board.is_idle()
    assert [len(name) for name in files_of(board)] == [64, 64]


def test_user_and_port(board, file):
    device = f"ssh://pi@127.0.0.1:{board.port}"
    [result] = benchmark(file, **QUICK | {"device": device})
    assert result.device == device


def test_an_address_of_ipv6(board, file):
    try:
        port = board.listen_on("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    board.know(board.host_key, port=port)
    [result] = benchmark(file, **QUICK | {"device": f"ssh://pi@[::1]:{port}"})
    assert len(result.latency_ms.samples) == 3


def test_a_second_run_sends_nothing(board, file):
    benchmark(file, **QUICK)
    sent = board.received_bytes
    assert sent > file.stat().st_size
    benchmark(file, **QUICK)
    assert board.received_bytes == sent


def test_what_startup_files_print_is_not_taken_for_a_result(board, file):
    board.noise = "echo 'Welcome!'; echo '@keras-bn end 0'; printf '{}'; echo 'Last login' >&2"
    [result] = benchmark(file, **QUICK)
    assert len(result.latency_ms.samples) == 3


HOSTILE_NAMES = [
    "two words.tflite",
    'it\'s "quoted".tflite',
    "a; touch pwned; $(touch pwned) `touch pwned`.tflite",
    "line\nbreak.tflite",
    "-rf.tflite",
    "--help.tflite",
    "größe.tflite",
]


def test_no_name_of_a_file_reaches_the_device(board, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [model(tmp_path / name).name for name in HOSTILE_NAMES]
    results = benchmark(files, **QUICK)

    assert [result.model for result in results] == HOSTILE_NAMES
    assert not [command for command in board.commands for name in files if name in command]
    assert not list(tmp_path.rglob("pwned"))
    assert all(len(name) == 64 for name in files_of(board))


def test_files_of_the_same_content_keep_their_names(board, file):
    copy = file.with_name("copy.tflite")
    copy.write_bytes(file.read_bytes())
    results = benchmark([copy, file], **QUICK)
    assert [result.model for result in results] == [str(copy), str(file)]


@pytest.mark.parametrize(
    "name",
    [
        "ssh://",
        "ssh://-oProxyCommand=touch pwned",
        "ssh://-V",
        "ssh://user@-V",
        "ssh://-l@host",
        "ssh://two words",
        "ssh://host;id",
        "ssh://$(id)",
        "ssh://`id`",
        "ssh://host\nid",
        "ssh://host/path",
        "ssh://host:",
        "ssh://host:0",
        "ssh://host:65536",
        "ssh://host:22x",
        "ssh://us'er@host",
        "ssh://user:password@host",
        "ssh://[::1",
        "ssh://::1",
        "ssh://[-V]",
        "ssh:/host",
        "ssh://host ",
    ],
)
def test_names_that_are_no_names_are_refused(name, file):
    with pytest.raises(ValueError, match=r"Expected"):
        benchmark(file, device=name)


@pytest.mark.parametrize(
    "name, words",
    [
        ("ssh://board", ["--", "board"]),
        ("ssh://pi@raspberrypi.local", ["-l", "pi", "--", "raspberrypi.local"]),
        ("ssh://pi@10.0.0.7:2222/", ["-l", "pi", "-p", "2222", "--", "10.0.0.7"]),
        ("ssh://pi@[fe80::1%eth0]:22", ["-l", "pi", "-p", "22", "--", "fe80::1%eth0"]),
        ("ssh://me@corp@jump_host", ["-l", "me@corp", "--", "jump_host"]),
    ],
)
def test_a_name_becomes_words_of_the_command_line(name, words):
    command = ssh.Ssh.parse(name).command("true")
    assert command[-1 - len(words) : -1] == words
    assert "BatchMode=yes" in command
    assert not [word for word in command if "HostKey" in word or "KnownHosts" in word]


def unknown_host(board):
    board.know()


def changed_host(board):
    board.know(asyncssh.generate_private_key("ssh-ed25519"))


def refused_key(board):
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(board.folder / "key")


def switched_off(board):
    board.close()


def no_such_host(board):
    board.configure("HostName name.invalid")


@pytest.mark.parametrize(
    "failure, words",
    [
        (unknown_host, "Host key verification failed"),
        (changed_host, "REMOTE HOST IDENTIFICATION HAS CHANGED"),
        (refused_key, r"Permission denied \(publickey\)"),
        (switched_off, "Connection refused"),
    ],
)
def test_a_device_out_of_reach(board, file, failure, words):
    failure(board)
    with pytest.raises(DeviceError, match=words) as caught:
        benchmark(file, **QUICK)
    assert "ssh://board cannot be reached" in str(caught.value)
    assert str(caught.value).endswith("first: ssh board true")
    assert board.commands == []


def test_without_the_client(file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="ssh is not installed"):
        benchmark(file, **QUICK)


# --- Failures on the way -----------------------------------------------------------------------


def test_an_upload_that_broke_off_is_continued(board, tmp_path):
    large = model(tmp_path / "large.tflite", kilobytes=2000)
    board.gone_after_bytes = 500_000
    with pytest.raises(DeviceError, match=r"connection to ssh://board was lost"):
        benchmark(large, **QUICK)
    assert board.is_idle()
    [part] = [name for name in files_of(board) if name.endswith(".part")]
    there = (board.cache / part).stat().st_size
    assert 0 < there < 2_000_000
    assert large.read_bytes().startswith((board.cache / part).read_bytes())

    board.gone_after_bytes = None
    board.received_bytes = 0
    [result] = benchmark(large, **QUICK)
    # Whole blocks stay; the one that was cut comes again.
    kept = there // BLOCK_BYTES * BLOCK_BYTES
    assert board.received_bytes == large.stat().st_size - kept
    assert len(result.latency_ms.samples) == 3
    assert not [name for name in files_of(board) if name.endswith(".part")]


def test_an_upload_that_is_interrupted(board, tmp_path):
    large = model(tmp_path / "large.tflite", kilobytes=2000)

    def interrupt(done, total, what):
        if what == "sending large.tflite (kB)":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(large, **QUICK, progress=interrupt)
    assert board.is_idle()
    assert len([name for name in files_of(board) if not name.endswith(".part")]) == 1
    assert not any("--runs" in command for command in board.commands)


def test_an_upload_that_comes_to_a_halt(board, tmp_path):
    """More than what is on its way at most: a pipe's content, and ssh's window of 2 MB."""
    large = model(tmp_path / "large.tflite", kilobytes=5000)
    program(board.home / "bin" / "dd", "#!/bin/sh\nexec sleep 3")
    with pytest.raises(DeviceError, match=r"^ssh://board was silent for 1 s and was stopped"):
        benchmark(large, **QUICK | {"timeout_s": 1})
    assert board.is_idle()
    assert not [name for name in files_of(board) if not name.endswith(".part")]


def test_a_run_that_broke_off_leaves_nothing_running(board, file):
    board.gone_during = "--runs"
    with pytest.raises(DeviceError, match=r"connection to ssh://board was lost"):
        benchmark(file, **QUICK | {"runs": 1_000_000})
    assert board.is_idle()
    assert [len(name) for name in files_of(board)] == [64, 64]


def test_a_device_that_is_gone_in_the_middle(board, file):
    def switch_off(done, total, what):
        if what.startswith("round"):
            board.close()

    with pytest.raises(DeviceError, match=r"connection to ssh://board was lost"):
        benchmark(file, **QUICK | {"runs": 1_000_000}, progress=switch_off)
    assert board.is_idle()
    with pytest.raises(DeviceError, match="Connection refused"):
        benchmark(file, **QUICK)


def test_a_full_disk(board, file):
    program(board.home / "bin" / "dd", '#!/bin/sh\nexec /bin/dd "$@" of=/dev/full')
    with pytest.raises(DeviceError, match="No space left on device"):
        benchmark(file, **QUICK)
    assert files_of(board) == []
    assert board.is_idle()


def test_a_crash_of_the_interpreter_names_the_model(board, file):
    install_python(board.home, on_load="os.kill(os.getpid(), signal.SIGILL)")
    with pytest.raises(DeviceError, match=r"board failed: .*model\.tflite crashed .*\(SIGILL\)"):
        benchmark(file, **QUICK)
    assert board.is_idle()


def test_a_crash_during_the_rounds(board, file):
    crash = "probe or (os.write(2, b'assertion failed'), os.kill(os.getpid(), signal.SIGILL))"
    install_python(board.home, on_invoke=crash)
    with pytest.raises(DeviceError, match=r"on ssh://board was killed by SIGILL") as caught:
        benchmark(file, **QUICK)
    assert "assertion failed" in str(caught.value)
    assert board.is_idle()


@pytest.mark.parametrize("phase", ["probe", "not probe"])
def test_a_hang_that_holds_the_interpreters_lock(board, file, phase):
    """No thread of the process can run meanwhile: it cannot end itself."""
    install_python(board.home, on_invoke=f"{phase} and ctypes.PyDLL(None).sleep(600)")
    with pytest.raises(DeviceError, match=r"silent for 3 s .*model\.tflite hangs"):
        benchmark(file, **QUICK | {"timeout_s": 3})
    assert board.is_idle()


CALLER = """
import sys
from keras_bn.__main__ import main
sys.argv[1:1] = ["bench", "--device", "ssh://board", "--runs", "1000000"]
main()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_nothing_outlives_the_caller(board, file, end):
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as caller:
        while not any("--runs" in command for command in board.commands):
            assert caller.poll() is None
            time.sleep(0.05)
        while not running(board.home):
            assert caller.poll() is None
            time.sleep(0.05)
        caller.send_signal(end)
        _, printed = caller.communicate(timeout=30)
    if end == signal.SIGINT:
        assert (caller.returncode, printed.strip()) == (130, "interrupted")
    assert board.is_idle()
    assert [len(name) for name in files_of(board)] == [64, 64]


# --- What comes back is data -------------------------------------------------------------------


@pytest.mark.parametrize(
    "prints, words",
    [
        ("printf '\\033[2Jcleared' >&2; exit 9", r"ended with status 9 and no result.*\n�\[2Jcl"),
        ("echo '{}'", r"result of the benchmark on ssh://board is not as expected.*missing"),
        ("yes", r"ssh://board sent more than \d+ bytes and was stopped"),
        ("yes | head -20000 >&2; exit 1", r"status 1 and no result.*(\ny){20}$"),
    ],
    ids=["escapes", "empty", "flood", "noise"],
)
def test_answers_that_make_no_sense(board, file, monkeypatch, prints, words):
    python = install_python(board.home, path="python")
    program(
        board.home / "bin" / "python3",
        f"""#!/bin/sh\n[ "$1" = -c ] && exec {python} "$@"\n{prints}""",
    )
    monkeypatch.setattr("keras_bn.bench.devices.shell.ANSWER_BYTES", 2**20)
    with pytest.raises(DeviceError, match=f"(?s){words}"):
        benchmark(file, **QUICK)
    assert board.is_idle()


def test_another_file_measured_in_place_of_the_model(board, file):
    python = install_python(board.home, path="python")
    program(
        board.home / "bin" / "python3",
        f"""#!/bin/sh
        [ "$1" = -c ] && exec {python} "$@"
        for model; do :; done
        echo damage >>"$model"
        exec {python} "$@"
        """,
    )
    with pytest.raises(DeviceError, match=r"another file in place of .*model\.tflite"):
        benchmark(file, **QUICK)


# --- Again and again ---------------------------------------------------------------------------


def test_repeated_runs_leave_nothing_behind(board, file, tmp_path, monkeypatch):
    """With one connection that all share, as the user's configuration can have it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with tempfile.TemporaryDirectory() as sockets:  # their names have to be short
        board.configure(f"ControlMaster auto\n  ControlPath {sockets}/%C\n  ControlPersist yes")
        monkeypatch.setenv("TMPDIR", str(temporary))
        benchmark(file, **QUICK)
        before = open_files(), threading.active_count(), files_of(board), children()

        for _ in range(REPEATED):
            benchmark(file, **QUICK | {"runs": 1, "warmup": 0})
        assert board.is_idle()
        assert (open_files(), threading.active_count(), files_of(board), children()) == before
        assert list(temporary.iterdir()) == []
        subprocess.run(["ssh", "-O", "exit", "board"], check=True, capture_output=True)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def children():
    """Processes that this one started and that still exist."""
    listed = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return len(listed.stdout.split())


# --- Others ------------------------------------------------------------------------------------


def shape_of(value):
    """The names and types of a document."""
    if isinstance(value, dict):
        return {name: shape_of(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item) for item in value[:1]]
    return type(value).__name__


def test_the_real_interpreter_tells_what_it_tells_on_the_host(board, models):
    request = Request(
        models=(str(models.indices),),
        threads=(1,),
        runs=2,
        warmup=1,
        xnnpack=True,
        affinity=(0,),
        cooldown_s=0.0,
        seed=3,
        timeout_s=60.0,
        progress=None,
        python=sys.executable,
    )
    there, here = resolve("ssh://board")(request), host.run(request)
    assert shape_of(there) == shape_of(here)
    assert there["models"] == here["models"]
    for name in ("system", "cpu", "cpus", "memory_bytes", "python", "numpy", "interpreter"):
        assert there["environment"][name] == here["environment"][name]
    assert [m["inputs"] for m in there["measurements"]] == [
        m["inputs"] for m in here["measurements"]
    ]


def test_what_a_computer_is(board):
    [device] = discover(["ssh://board"])
    assert device.device == "ssh://board"
    assert device.system.startswith("Linux")
    assert device.memory_bytes > 2**20
    assert device.cpus >= 1
    assert device.runtime == (
        f"ai_edge_litert 2.9, Python {sys.version.split()[0]} ({board.home}/bin/python3)"
    )
    assert device.problem is None
    assert files_of(board) == []


def test_the_others_are_measured_all_the_same(board, file):
    with pytest.raises(DeviceError) as caught:
        benchmark(file, **QUICK | {"device": ["ssh://127.0.0.1:1", "ssh://board"]})
    assert "ssh://127.0.0.1:1 cannot be reached" in str(caught.value)
    assert [result.device for result in caught.value.results] == ["ssh://board"]
