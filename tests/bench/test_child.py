"""Following a child process: what it is sent, what it prints, how it is stopped."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from keras_bn.bench.child import (
    LINE_BYTES,
    LINES_KEPT,
    follow,
    printable,
    progress_lines,
    signal_name,
)
from keras_bn.errors import DeviceError


def sh(script, **options):
    return follow(["sh", "-c", script], **{"name": "The child", "timeout_s": 20, **options})


def test_everything_it_prints_and_its_status():
    ended = sh("echo out; echo err >&2; printf end; exit 7")
    assert (ended.status, ended.stdout, ended.lines) == (7, b"out\nend", ("err",))
    assert ended.printed == " It printed:\nerr"
    assert sh("exit 0").printed == ""


def test_a_signal_is_a_status_below_zero():
    assert sh("kill -ILL $$").status == -4


def test_input_goes_in_while_output_comes_out():
    """Far more than a pipe holds, both ways: neither side waits for the other."""
    chunks = [bytes([index]) * 50_000 for index in range(40)]
    assert sh("printf :; cat", stdin=iter(chunks)).stdout == b":" + b"".join(chunks)


def test_empty_chunks_do_not_end_the_input():
    assert sh("printf :; cat", stdin=[b"", b"a", b"", b"b", b""]).stdout == b":ab"


def test_input_waits_for_the_first_words():
    """What is lost before them was never reached, and took nothing."""
    taken = []

    def chunks():
        taken.append("chunk")
        yield b"x"

    assert sh("exec <&-; exit 255", stdin=chunks()).status == 255
    assert taken == []


def test_a_child_that_does_not_read_its_input():
    assert sh("echo enough", stdin=(bytes(100_000) for _ in range(100))).stdout == b"enough\n"


def test_input_stays_open_without_any():
    """A child that ends with its input does not end."""
    with pytest.raises(DeviceError, match=r"The child was silent for 0\.3 s and was stopped\. Try"):
        sh("cat", timeout_s=0.3, advice=" Try more.")


def test_no_input_at_all_ends_at_once():
    assert sh("printf :; cat; echo ended", stdin=()).stdout == b":ended\n"


def test_what_the_input_raises_stops_the_child(tmp_path):
    def failing():
        yield b"first"
        raise OSError("cannot read")

    mark = tmp_path / "mark"
    with pytest.raises(OSError, match="cannot read"):
        sh(f"trap '' PIPE TERM; echo; sleep 1; touch {mark}; cat", stdin=failing())
    time.sleep(1.2)
    assert not mark.exists()


def test_silence_quotes_what_was_said_before():
    with pytest.raises(DeviceError, match=r"(?s)silent.*It printed:\nwaiting for Godot"):
        sh("echo waiting for Godot >&2; sleep 60", timeout_s=1.5)


def test_sending_is_not_silence():
    def slow():
        for _ in range(6):
            time.sleep(0.4)
            yield b"x"

    assert sh("printf :; cat", stdin=slow(), timeout_s=2).stdout == b":xxxxxx"


def test_a_flood_is_stopped():
    with pytest.raises(DeviceError, match="sent more than 1000000 bytes"):
        sh("yes", answer_bytes=1_000_000)


def test_a_line_without_an_end_is_cut():
    ended = sh(f"head -c {10 * LINE_BYTES} /dev/zero | tr '\\0' x >&2; echo >&2; echo short >&2")
    assert ended.lines[-1] == "short"
    assert 0 < max(map(len, ended.lines)) <= LINE_BYTES


def test_only_the_last_lines_are_kept():
    ended = sh("seq 1000 >&2")
    assert ended.lines == tuple(str(number) for number in range(1001 - LINES_KEPT, 1001))


def test_a_process_that_stays_with_the_outputs_of_one_that_ended():
    """As ssh does when it goes on in the background for a shared connection."""
    started = time.monotonic()
    ended = sh("sleep 5 >/dev/null & echo $!; echo said >&2", timeout_s=60)
    assert time.monotonic() - started < 4
    assert ended.lines == ("said",)
    assert subprocess.run(["kill", ended.stdout.decode().strip()]).returncode == 0


def test_closed_outputs_are_not_an_end():
    with pytest.raises(DeviceError, match=r"did not end within 0\.3 s of its last output"):
        sh("exec >&- 2>&-; sleep 60", timeout_s=0.3)


def test_a_program_that_is_not_there():
    with pytest.raises(DeviceError, match=r"Cannot run /no/such/program: No such file"):
        follow(["/no/such/program"], name="It", timeout_s=1)


def test_no_process_thread_or_file_is_left():
    def open_files():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files(), threading.active_count()
    for _ in range(20):
        sh("echo; cat; sleep 0 & echo", stdin=[b"x"])
    with pytest.raises(DeviceError):
        sh("(trap '' TERM HUP; sleep 61) & sleep 62", timeout_s=0.2)
    assert (open_files(), threading.active_count()) == before
    sleeping = subprocess.run(["pgrep", "-f", "^sleep 6[12]$"], capture_output=True, text=True)
    assert sleeping.stdout == ""


# --- Lines -------------------------------------------------------------------------------------


def test_progress_is_reported_and_not_quoted():
    steps = []
    step = {"done": 1, "total": 2, "what": "a \x1b[2Jb"}
    program = f"import sys; print('@progress ' + {json.dumps(json.dumps(step))}, file=sys.stderr)"
    ended = follow(
        [sys.executable, "-c", program],
        name="It",
        timeout_s=20,
        on_line=progress_lines(lambda *step: steps.append(step)),
    )
    assert steps == [(1, 2, "a �[2Jb")]
    assert ended.lines == ()


@pytest.mark.parametrize(
    "line",
    [
        "@progress",
        "@progress {",
        "@progress 3",
        "@progress []",
        '@progress {"done": 1}',
        '@progress {"done": null, "total": 1, "what": ""}',
        '@progress {"done": Infinity, "total": 1, "what": ""}',
        "@progress " + "[" * 4000,
        "progress",
    ],
)
def test_what_is_no_progress_is_a_line_like_others(line):
    assert not progress_lines(lambda *step: pytest.fail("reported"))(line)


def test_progress_may_raise():
    def full(*step):
        raise ValueError("no space left")

    with pytest.raises(ValueError, match="no space left"):
        progress_lines(full)('@progress {"done": 1, "total": 1, "what": ""}')


def test_nothing_of_a_text_acts_on_a_terminal():
    assert (
        printable("\x1b]0;title\x07a\tb\r\x9b2J\u202eright \u2028 .\n")
        == "�]0;title�a\tb��2J�right � ."
    )
    assert printable(b"caf\xc3\xa9 \xff \n") == "café �"


def test_signals_have_names():
    assert (signal_name(4), signal_name(9)) == ("SIGILL", "SIGKILL")
    assert signal_name(250) == "signal 250"
