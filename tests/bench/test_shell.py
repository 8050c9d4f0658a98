"""What ssh and adb share, through the shells of this machine."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keras_bn.bench.devices import shell
from keras_bn.bench.devices.shell import NoPythonError, find_python, guarded, run, upload
from keras_bn.errors import DeviceError
from tests.bench.stand_in import environment, idle, install_python, model, program

pytestmark = pytest.mark.skipif(
    shutil.which("setsid") is None, reason="setsid is not installed: apt install util-linux"
)

SHELLS = [name for name in ("sh", "bash", "dash") if shutil.which(name)]


@dataclass(frozen=True)
class Local:
    """A shell with a home folder of its own. `sent` counts the bytes that commands were sent."""

    home: Path
    sh: str = "sh"
    path: str | None = None
    name: str = "the device"
    folder: str = '"$HOME/cache folder"'
    advice: str = "Try another one."
    scripts: list[str] = field(default_factory=list)

    def command(self, script: str) -> list[str]:
        self.scripts.append(script)
        variables = environment(self.home)
        if self.path is not None:
            variables["PATH"] = self.path
        words = [f"{name}={value}" for name, value in variables.items()]
        # A session of its own: to kill the client is not to kill what runs on the device.
        away = [shutil.which("setsid"), "--wait", shutil.which("env"), "-i", *words]
        return [*away, shutil.which(self.sh), "-c", script]

    @property
    def files(self) -> dict[str, bytes]:
        folder = self.home / "cache folder"
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home" / "bin").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture(params=SHELLS)
def device(home, request):
    """Each kind of shell, for what depends on it."""
    return Local(home, request.param)


@pytest.fixture
def local(home):
    return Local(home)


# --- Scripts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["", "a", "a\n", "\n", "@keras-bn end 0\nlast"])
def test_exactly_what_a_script_printed(device, output):
    assert run(device, f"printf '%s' '{output}'", timeout_s=20) == output


def test_input_reaches_the_script(device):
    assert run(device, "cat", timeout_s=20, stdin=[b"one", b"two"]) == "onetwo"


def test_a_failure_in_the_scripts_own_words(device):
    with pytest.raises(
        DeviceError, match=r"^the device: asking failed with exit status 3\. It "
    ) as e:
        run(device, "echo 'no \033[31mway' >&2; exit 3", timeout_s=20, doing="asking")
    assert str(e.value).endswith("printed:\nno �[31mway")


def test_a_signal_by_its_name(device):
    with pytest.raises(DeviceError, match=r"failed with SIGILL"):
        run(device, "kill -ILL $$", timeout_s=20)


def test_a_client_that_never_got_there(local):
    lost = Local(local.home)
    object.__setattr__(lost, "command", lambda script: ["sh", "-c", "echo no route >&2; exit 255"])
    with pytest.raises(DeviceError, match=r"(?s)the device cannot be reached.*no route\nTry ano"):
        run(lost, "true", timeout_s=20)


def test_a_connection_that_broke_off(local):
    """Whatever exit status the client has then."""
    lost = Local(local.home)
    begun = f"echo '{shell.BEGIN}'; echo half; echo broken pipe >&2"
    object.__setattr__(lost, "command", lambda script: ["sh", "-c", begun])
    with pytest.raises(DeviceError, match=r"(?s)connection to the device was lost.*broken pipe"):
        run(lost, "true", timeout_s=20)


def test_nothing_of_a_script_outlives_its_input(device):
    with pytest.raises(DeviceError, match=r"silent for 0\.5 s"):
        run(device, "sleep 100 & trap '' TERM HUP INT; sleep 101; echo", timeout_s=0.5)
    assert idle(device.home)


def test_without_setsid_the_script_itself_is_killed(home, device):
    """As on macOS."""
    tools = home / "tools"
    tools.mkdir()
    for name in ("sh", "sleep"):
        (tools / name).symlink_to(shutil.which(name))
    bare = Local(home, device.sh, path=str(tools))
    with pytest.raises(DeviceError, match=r"silent for 0\.5 s"):
        run(bare, "exec sleep 100", timeout_s=0.5)
    assert idle(home)
    assert run(bare, "echo done", timeout_s=20) == "done\n"


def test_a_script_that_ends_leaves_no_watcher(device):
    """Although its input stays open."""
    child = subprocess.Popen(
        device.command(guarded("echo done")), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.read() == b"done\n"
    assert child.wait(timeout=10) == 0
    assert idle(device.home)
    child.stdin.close()
    child.stdout.close()


# --- Files -------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return model(tmp_path / "-it's a; model\n.tflite", kilobytes=300)


def name_of(path):
    hashed = subprocess.run(["sha256sum"], input=path.read_bytes(), capture_output=True)
    return hashed.stdout.decode()[:64]


def test_files_are_called_by_their_content(device, file, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    steps = []
    names = upload(
        device,
        [str(file), str(empty)],
        timeout_s=20,
        progress=lambda *step: steps.append(step),
    )
    assert names == {str(file): name_of(file), str(empty): name_of(empty)}
    assert device.files == {name_of(file): file.read_bytes(), name_of(empty): b""}
    assert (device.home / "cache folder").stat().st_mode & 0o777 == 0o700
    size_kb = file.stat().st_size // 1000
    assert steps[-1] == (size_kb, size_kb, f"sending {file.name} (kB)")


def test_what_is_there_is_not_sent_again(local, file):
    upload(local, [str(file)], timeout_s=20)
    sent = len(local.scripts)
    upload(local, [str(file)], timeout_s=20, progress=lambda *step: pytest.fail("sent"))
    assert len(local.scripts) == sent + 1  # the look into the folder


@pytest.mark.parametrize("content", [b"", b"other"])
def test_a_file_that_lost_its_content_is_sent_anew(local, file, content):
    """As after a power failure."""
    upload(local, [str(file)], timeout_s=20)
    (local.home / "cache folder" / name_of(file)).write_bytes(content)
    upload(local, [str(file)], timeout_s=20)
    assert local.files == {name_of(file): file.read_bytes()}


@pytest.mark.parametrize("there_bytes", [0, 1, 65536, 100_000, 262_144, 300_004])
def test_a_part_is_continued(local, file, there_bytes):
    content = file.read_bytes()
    part = local.home / "cache folder" / f"{name_of(file)}.part"
    part.parent.mkdir()
    part.write_bytes(content[:there_bytes])
    starts = []
    upload(local, [str(file)], timeout_s=20, progress=lambda kb, *_: starts.append(kb))
    assert local.files == {name_of(file): content}
    assert len(local.scripts) == 2
    first_block = min(there_bytes // 65536 * 65536 + 65536, len(content))
    assert starts[:1] == [first_block // 1000]


@pytest.mark.parametrize("size_bytes", [100_000, 300_008, 400_000])
def test_a_damaged_part_is_sent_anew(local, file, size_bytes):
    part = local.home / "cache folder" / f"{name_of(file)}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(size_bytes))
    upload(local, [str(file)], timeout_s=20)
    assert local.files == {name_of(file): file.read_bytes()}


def test_several_transfers_of_one_file_at_once(local, tmp_path):
    large = model(tmp_path / "large.tflite", kilobytes=5000)
    failures = []

    def transfer():
        try:
            upload(local, [str(large)], timeout_s=20)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=transfer) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert failures == []
    assert local.files == {name_of(large): large.read_bytes()}


def test_a_file_that_changes_meanwhile(local, file):
    def change(*step):
        file.write_bytes(bytes(file.stat().st_size))

    with pytest.raises(
        DeviceError, match=r"did not receive (?s:.*) as it was sent: other .*changed meanwhile"
    ):
        upload(local, [str(file)], timeout_s=20, progress=change)
    assert local.files == {}


def test_a_file_that_shrinks_meanwhile(local, file):
    def cut(*step):
        file.write_bytes(b"")

    with pytest.raises(DeviceError, match=r"cut short at \d+ bytes"):
        upload(local, [str(file)], timeout_s=20, progress=cut)
    assert all(name.endswith(".part") for name in local.files)


def test_a_full_disk_keeps_what_is_whole(local, file, tmp_path):
    first = model(tmp_path / "first.tflite")
    upload(local, [str(first)], timeout_s=20)
    program(local.home / "bin" / "dd", f'#!/bin/sh\nexec {shutil.which("dd")} "$@" of=/dev/full')
    with pytest.raises(DeviceError, match=r"receiving (?s:.*)tflite failed .*\n.*No space left"):
        upload(local, [str(first), str(file)], timeout_s=20)
    assert local.files == {name_of(first): first.read_bytes()}


def test_a_folder_that_cannot_be_made(local, file):
    (local.home / "cache folder").touch()
    with pytest.raises(DeviceError, match=r"looking into its folder failed.*(?s:.)*File exists"):
        upload(local, [str(file)], timeout_s=20)


def test_what_was_long_unused_goes(local, file):
    upload(local, [str(file)], timeout_s=20)
    folder, old_s = local.home / "cache folder", time.time() - 40 * 86400
    for name in ("ab" * 32, "cd" * 32 + ".part", "notes.txt"):
        (folder / name).write_text("old")
    for path in folder.iterdir():
        os.utime(path, (old_s, old_s))
    upload(local, [str(file)], timeout_s=20)
    assert local.files.keys() == {name_of(file), "notes.txt"}
    assert (folder / name_of(file)).stat().st_mtime > old_s + 86400


def test_without_sha256sum(home, file):
    """As on macOS, where shasum does."""
    tools = home / "tools"
    tools.mkdir()
    for name in ("sh", "mkdir", "wc", "touch", "find", "dd", "mv", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    program(tools / "shasum", f'#!/bin/sh\n[ "$*" = "-a 256" ] && exec {shutil.which("sha256sum")}')
    bare = Local(home, path=str(tools))
    upload(bare, [str(file)], timeout_s=20)
    assert bare.files == {name_of(file): file.read_bytes()}


# --- Python ------------------------------------------------------------------------------------


def test_the_first_python_that_will_do(local, monkeypatch):
    install_python(local.home, numpy=False)
    install_python(local.home, path="bin/python", on_import="raise ImportError('no libfoo.so')")
    expected = install_python(local.home, path=".venv/bin/python", package="tflite_runtime")
    install_python(local.home, path="venv/bin/python")
    found = find_python(local, None, timeout_s=20)
    assert (found.path, found.runtime) == (str(expected), "tflite_runtime 2.9")
    assert str(found).startswith("tflite_runtime 2.9, Python 3.")


@pytest.mark.parametrize("wanted", ["my python's", "~/my python's", "{home}/bin/my python's"])
def test_the_python_that_is_asked_for(local, wanted):
    install_python(local.home)
    expected = install_python(local.home, path="bin/my python's")
    if wanted.startswith("~"):
        expected = install_python(local.home, path="my python's")
    found = find_python(local, wanted.format(home=local.home), timeout_s=20)
    assert found.path == str(expected)


def test_a_python_that_is_not_there(local):
    with pytest.raises(
        NoPythonError, match=r"the device has no ~/gone\. Name one, as it is called"
    ):
        find_python(local, "~/gone", timeout_s=20)


def test_no_python_at_all(home):
    tools = home / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to(shutil.which("sh"))
    with pytest.raises(NoPythonError, match=r"has no Python \(python3, python, ~/\.venv/bin/pyth"):
        find_python(Local(home, path=str(tools)), None, timeout_s=20)


def test_why_none_will_do_and_the_command_that_helps(local):
    """Each in its own words; nothing is installed."""
    first = install_python(local.home, numpy=False)
    crashing = install_python(
        local.home, path="bin/python", on_import="os.kill(os.getpid(), signal.SIGILL)"
    )
    foreign = local.home / ".venv" / "bin" / "python"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\x00\x28\x00" + bytes(40))
    foreign.chmod(0o755)
    with pytest.raises(NoPythonError) as caught:
        find_python(local, None, timeout_s=20)
    message = str(caught.value)
    assert re.search(rf"{first}: Python 3\.\S+: numpy: No module named 'numpy'", message)
    assert re.search(rf"{crashing}: SIGILL", message)
    assert re.search(rf"{foreign}: exit status 126: .*Exec format error", message)
    assert message.endswith(f"run on the device:\n  {first} -m pip install ai-edge-litert")
    assert not [script for script in local.scripts if "pip" in script]


def speaking(home, path="bin/python3", *, status=3, **facts):
    """A Python that says `facts` of itself."""
    told = {"version": [3, 11, 2], "machine": "aarch64", "bits": 64, "managed": False, **facts}
    text = "\n".join(f"echo '{json.dumps({name: fact})}'" for name, fact in told.items())
    return program(home / path, f"#!/bin/sh\n{text}\nexit {status}\n")


@pytest.mark.parametrize(
    "facts, command",
    [
        ({}, "{python} -m pip install ai-edge-litert"),
        (
            {"managed": True},
            "{python} -m venv ~/.venv && ~/.venv/bin/pip install ai-edge-litert",
        ),
        ({"version": [3, 8, 1]}, "{python} -m pip install tflite-runtime 'numpy<2'"),
        (
            {"bits": 32, "machine": "armv7l"},
            "{python} -m pip install tflite-runtime 'numpy<2'",
        ),
        (
            {"bits": 32, "managed": True},  # a 64-bit kernel under a 32-bit system
            "{python} -m venv ~/.venv && ~/.venv/bin/pip install tflite-runtime 'numpy<2'",
        ),
    ],
    ids=["plain", "managed", "3.8", "32 bit", "32 bit, managed"],
)
def test_the_command_suits_the_device(local, facts, command):
    python = speaking(local.home, failed=["numpy: none"], **facts)
    with pytest.raises(NoPythonError) as caught:
        find_python(local, "python3", timeout_s=20)
    assert str(caught.value).splitlines()[-1] == "  " + command.format(python=python)


def test_a_python_that_nothing_is_built_for(local):
    speaking(local.home, bits=32, version=[3, 13, 1], failed=["numpy: none"])
    with pytest.raises(NoPythonError, match=r"for Python 3\.13\.1 on 32-bit ARM.*64-bit system"):
        find_python(local, "python3", timeout_s=20)


def test_an_old_python_is_not_asked_to_install(local):
    speaking(local.home, version=[2, 7, 18], failed=["numpy: none"])
    with pytest.raises(NoPythonError, match=r"Python 2\.7\.18, and at least 3\.7 is ne") as caught:
        find_python(local, "python3", timeout_s=20)
    assert "pip" not in str(caught.value)


@pytest.mark.parametrize(
    "output",
    [
        '{"runtime": 3}',
        '{"runtime": {"a": 1}, "version": "3.11", "failed": 4, "bits": "32", "machine": []}',
        '{"version": [3, "11"], "failed": [[]]}',
        "[]",
        "3",
        "[" * 5000,
        "\033[2J\a",
        "@status 0",
        "@status 99999999999999999999999",
        "@python /bin/evil",
    ],
)
@pytest.mark.parametrize("status", [0, 3])
def test_a_python_that_says_anything(local, output, status):
    program(local.home / "bin" / "python3", f"#!/bin/sh\nprintf '%s' '{output}'\nexit {status}\n")
    with pytest.raises(NoPythonError) as caught:
        find_python(local, "python3", timeout_s=20)
    assert str(caught.value).isprintable() or "\033" not in str(caught.value)


def test_a_python_that_hangs(local):
    program(local.home / "bin" / "python3", "#!/bin/sh\nsleep 100\n")
    with pytest.raises(DeviceError, match=r"silent for 0\.5 s"):
        find_python(local, None, timeout_s=0.5)
    assert idle(local.home)
