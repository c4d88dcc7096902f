"""The memory of a process tree, sampled often enough to stop it in time.

What is counted, per process:
- macOS: the physical footprint (what Activity Monitor calls "Memory"; it includes Metal buffers,
  which the resident size does not);
- Linux: the resident set size, or, when the tree's root lives in a cgroup of its own, that
  cgroup's charge without the page cache that the kernel gives back on demand.

Resident pages shared between two processes of a tree (libraries, copy-on-write after a fork) are
counted once per process: a sum of resident sizes is never too small, at most some tens of MB too
large. The proportional set size would be exact, but reading it takes the process's memory lock
for milliseconds per GB, ten times a second. Memory on a discrete GPU is not seen here; the
framework's own peak covers it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from oodatcaa.domain.base import Record, Utc

LINUX = sys.platform.startswith("linux")
MACOS = sys.platform == "darwin"
MAX_INTERVAL = 0.05
"""A watcher never samples less often than this many seconds."""


class TreeMemory(Record):
    """One look at a tree. `largest_peak_bytes` is the highest resident size that any single
    living process ever had (the kernel keeps it, so it shows spikes between two looks)."""

    tree_bytes: int
    largest_peak_bytes: int = 0
    processes: int = 0

    @property
    def peak_bytes(self) -> int:
        return max(self.tree_bytes, self.largest_peak_bytes)


class MemorySample(Record):
    """A line of memory.jsonl."""

    at: Utc
    tree_bytes: int


def tree_memory(
    pid: int, tree: Sequence[int] | None = None, system: Path = Path("/")
) -> TreeMemory:
    """The memory of `pid` and its descendants now; zeros when they are all gone.

    `tree` spares the search for who they are; in `system` are the /proc and /sys of groups.
    """
    looks = [
        look
        for look in map(_process_memory, _tree(pid) if tree is None else tree)
        if look is not None
    ]
    total = sum(now for now, _ in looks)
    charged = _cgroup_memory(pid, system) if looks else None
    return TreeMemory(
        tree_bytes=total if charged is None else max(total, charged),
        largest_peak_bytes=max((peak for _, peak in looks), default=0),
        processes=len(looks),
    )


def own_memory() -> int:
    """What this process holds now, in bytes, counted like a tree's; cheap enough for 100 Hz."""
    if LINUX:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    look = _process_memory(os.getpid())
    return 0 if look is None else look[0]


def give_back() -> None:
    """Freed memory goes back to the system: glibc keeps the pages of small blocks otherwise."""
    if LINUX:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def own_peak() -> int | None:
    """The highest resident size of this process since `reset_own_peak`; None off Linux."""
    look = _process_memory(os.getpid()) if LINUX else None
    return None if look is None else look[1]


def reset_own_peak() -> bool:
    """Start a new high-water mark (proc(5), clear_refs 5); False where there is none."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class TreeFinder:
    """The processes of one tree, searched for only when the machine started a new one since.

    The last field of /proc/loadavg is the newest process id (proc(5)): while it stays the same
    no process can have joined the tree, and whoever left it is skipped when looked at.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._newest = ""
        self._known: list[int] = []

    def find(self) -> list[int]:
        if not LINUX:
            return _tree(self._pid)
        newest = Path("/proc/loadavg").read_text(encoding="ascii").split()[-1]
        if newest != self._newest:
            self._known = _tree(self._pid)
            self._newest = newest
        return self._known


def _tree(pid: int) -> list[int]:
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [pid, *(child.pid for child in below)]


def _process_memory(pid: int) -> tuple[int, int] | None:
    """(now, peak) in bytes; None for a process that vanished or that we may not look at."""
    if LINUX:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        now, peak = _status_bytes(status, "VmRSS:"), _status_bytes(status, "VmHWM:")
        return now, peak
    try:
        footprint = _footprint(pid) if MACOS else None
        if footprint is None:
            footprint = int(psutil.Process(pid).memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return footprint, 0


def _status_bytes(status: str, key: str) -> int:
    start = status.find(key)
    if start < 0:  # kernel threads and zombies have no memory
        return 0
    return int(status[start + len(key) :].split(maxsplit=1)[0]) * 1024


class _RusageV0(ctypes.Structure):
    """`rusage_info_v0` of <sys/resource.h> (macOS 10.9 and later)."""

    _fields_ = (
        ("ri_uuid", ctypes.c_uint8 * 16),
        ("ri_user_time", ctypes.c_uint64),
        ("ri_system_time", ctypes.c_uint64),
        ("ri_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_interrupt_wkups", ctypes.c_uint64),
        ("ri_pageins", ctypes.c_uint64),
        ("ri_wired_size", ctypes.c_uint64),
        ("ri_resident_size", ctypes.c_uint64),
        ("ri_phys_footprint", ctypes.c_uint64),
        ("ri_proc_start_abstime", ctypes.c_uint64),
        ("ri_proc_exit_abstime", ctypes.c_uint64),
    )


@functools.cache
def _libproc() -> ctypes.CDLL:
    return ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True)


def _footprint(pid: int) -> int | None:
    """ri_phys_footprint through proc_pid_rusage(pid, RUSAGE_INFO_V0 = 0, …)."""
    info = _RusageV0()
    if _libproc().proc_pid_rusage(pid, 0, ctypes.byref(info)) != 0:
        return None
    return int(info.ri_phys_footprint)


def _cgroup_memory(pid: int, system: Path) -> int | None:
    """The charge of the tree's own cgroup (v2) without files on disk; None when it shares ours or
    there is none. A file that was read twice is "active", and given back like any other; what is
    kept in a file system in memory is in neither number, and counts."""
    if not LINUX:
        return None
    theirs, ours = (_cgroup_of(one, system) for one in (pid, os.getpid()))
    if theirs is None or theirs in (ours, "/"):
        return None
    folder = system / "sys/fs/cgroup" / theirs.lstrip("/")
    try:
        current = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        amounts = dict(line.split(" ", 1) for line in lines)
        return max(0, current - sum(int(amounts.get(name, 0)) for name in _GIVEN_BACK))
    except (OSError, ValueError):  # the memory controller is not delegated, or it just ended
        return None


_GIVEN_BACK = ("inactive_file", "active_file")
"""Of a cgroup's charge: the page cache of files on disk."""


def _cgroup_of(pid: int, system: Path) -> str | None:
    try:
        lines = (system / f"proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


class MemoryWatch:
    """Samples a tree in a thread and calls `on_over` once, as soon as its peak exceeds `limit`.

    `limit=None` only records. `path` receives memory.jsonl: every new maximum, and besides that
    one line per `every` seconds. `on_over` runs in the watching thread and must be quick.

    A watch that can not look any more must not look like a watch that saw nothing: an unexpected
    error in the thread is kept in `error`, and `on_over` is called for it too. An unwritable
    file is kept in `write_error` and does not stop the watching.
    """

    def __init__(
        self,
        pid: int,
        limit: int | None,
        *,
        interval: float = 0.025,
        on_over: Callable[[TreeMemory], None] | None = None,
        path: Path | None = None,
        every: float = 1.0,
    ) -> None:
        self.pid = pid
        self.limit = limit
        self.interval = min(interval, MAX_INTERVAL)
        self.peak_bytes = 0
        """Largest `TreeMemory.peak_bytes` seen."""
        self.current_bytes = 0
        self.samples = 0
        self.longest_gap = 0.0
        """Seconds between two looks, until it was over; more than `interval` and what a look takes
        means that this process itself was kept from running."""
        self.over: TreeMemory | None = None
        """The look that exceeded the limit."""
        self.over_limit: int | None = None
        """What the limit was at that look; it may be changed while the watch runs."""
        self.error: BaseException | None = None
        self.write_error: OSError | None = None
        self._finder = TreeFinder(pid)
        self._looked_at: float | None = None
        self._on_over = on_over
        self._path = path
        self._every = every
        self._written_max = 0
        self._written_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"memory-{pid}", daemon=True)

    def start(self) -> Self:
        """Take the first look now, in this thread, then go on in the background."""
        self._look()
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the watching; afterwards nothing is written any more."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        last = time.monotonic()
        try:
            # A look takes time itself: the pause is what is left of the interval.
            while not self._stop.wait(max(0.001, self.interval - (time.monotonic() - last))):
                last = time.monotonic()
                self._look()
        except BaseException as error:  # noqa: BLE001 - kept, and treated like being over
            self.error = error
            if self._on_over is not None and self.over is None:
                self._on_over(TreeMemory(tree_bytes=self.current_bytes))

    def _look(self) -> None:
        look = tree_memory(self.pid, self._finder.find())
        now = time.monotonic()
        if self._looked_at is not None and self.over is None:
            self.longest_gap = max(self.longest_gap, now - self._looked_at)
        self._looked_at = now
        self.samples += 1
        self.current_bytes = look.tree_bytes
        self.peak_bytes = max(self.peak_bytes, look.peak_bytes)
        self._record(look)
        if self.limit is not None and self.over is None and look.peak_bytes > self.limit:
            self.over, self.over_limit = look, self.limit
            if self._on_over is not None:
                self._on_over(look)

    def _record(self, look: TreeMemory) -> None:
        if self._path is None or self.write_error is not None or not look.processes:
            return
        now = time.monotonic()
        if look.tree_bytes <= self._written_max and now - self._written_at < self._every:
            return
        self._written_max = max(self._written_max, look.tree_bytes)
        self._written_at = now
        line = {"at": datetime.now(UTC).isoformat(), "tree_bytes": look.tree_bytes}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self.write_error = error


def read_samples(path: Path) -> tuple[MemorySample, ...]:
    """The lines of a memory.jsonl; a last line cut off by a crash is left out."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(MemorySample.model_validate_json(line))
    return tuple(found)
