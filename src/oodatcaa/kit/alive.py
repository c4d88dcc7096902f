"""Who a process is, and whether that very process still runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from oodatcaa.errors import OodatcaaError


def process_identity(pid: int | None = None) -> tuple[int, float]:
    """(pid, start) of a process, this one by default; together they survive the reuse of a pid.

    `start` is opaque: compare it through `is_alive` only. On Linux it is the start in seconds
    since boot, which no step of the wall clock can change; elsewhere seconds since the epoch.
    Raises OodatcaaError when the process is gone.
    """
    number = os.getpid() if pid is None else pid
    start = _start_of(number)
    if start is None:
        raise OodatcaaError("process.gone", f"process {number} does not exist (any more)")
    return number, start


def is_alive(pid: int, create_time: float) -> bool:
    """True while the very process that `process_identity` described runs. A zombie is dead."""
    start = _start_of(pid)
    return start is not None and abs(start - create_time) < 0.005


def is_stopped(pid: int) -> bool:
    """True for a process that a signal (SIGSTOP, Ctrl-Z) keeps from running."""
    if sys.platform.startswith("linux"):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] in "Tt"
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _start_of(pid: int) -> float | None:
    if pid <= 0:
        return None
    if sys.platform.startswith("linux"):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rpartition(")")[2].split()
        if fields[0] in "ZXx":
            return None
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
