"""Peak resident memory of this process, from Linux's /proc (proc(5))."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """From here on the peak counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
