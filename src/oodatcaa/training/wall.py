"""The run's own wall while it computes: a thread that samples memory, and the kernel's limit.

What is compared with the limit is the larger of what the framework says it holds and what the
process really holds. One step can allocate gigabytes before it is over: the thread ends the
process in the middle of it (frameworks let other threads run while they compute). There is nothing
to unwind: the last checkpoint is whole, and a file says why.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from oodatcaa.domain.memory import MemoryLayer, MemoryStop
from oodatcaa.domain.training import FailureKind, RunFailure
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.memory import own_memory, own_peak, reset_own_peak
from oodatcaa.training.protocol import (
    EXIT_BLIND,
    EXIT_MEMORY,
    STOP_FILE,
    WALL_FILE,
    StopNote,
    WallNote,
)

INTERVAL = 0.01
KERNEL_SLACK = 0.02
"""How far above the limit the kernel's line is: the others shall be first, they say more."""


class Counters(Protocol):
    """A framework's own view of its memory, in bytes."""

    @property
    def title(self) -> str: ...

    def held(self) -> int:
        """Now, with what its allocator keeps for later."""
        ...

    def active(self) -> int:
        """Now, without that."""
        ...

    def peak(self) -> int:
        """Since the last `reset`."""
        ...

    def reset(self) -> None: ...


def over_limit(counters: Counters, limit: int) -> RunFailure | None:
    """The check after a step, by the framework's counters; None while it fits."""
    peak = max(counters.peak(), counters.held())
    if peak <= limit:
        return None
    return RunFailure(
        kind=FailureKind.MEMORY_GATE,
        layer=MemoryLayer.DURING,
        stop=MemoryStop.STEP,
        message=peak_is_over(counters.title, peak, limit),
        needed_bytes=peak,
        limit_bytes=limit,
        hint="use a smaller batch with accumulation, or gradient checkpointing",
    )


def peak_is_over(title: str, peak: int, limit: int) -> str:
    return f"{title}'s peak memory is {peak / 1e9:.2f} GB, the limit is {limit / 1e9:.2f} GB"


def check_peak(title: str, peak: int, limit: int) -> None:
    """Raises OodatcaaError `memory_gate.during` when a framework's peak is over the limit."""
    if peak > limit:
        raise OodatcaaError(
            "memory_gate.during",
            peak_is_over(title, peak, limit),
            hint="raise memory_limit in OBJECTIVE.md, or choose a smaller model",
        )


class Guard:
    """Samples from `start` to `stop`; ends the process as soon as it is over `limit`."""

    def __init__(
        self, folder: Path, limit: int, counters: Counters, *, interval: float = INTERVAL
    ) -> None:
        self.counters = counters
        self.folder, self.limit, self.interval = folder, limit, interval
        self.samples = 0
        self.longest_gap = 0.0
        """Seconds between two looks; more than `interval` and what a look takes means that what
        computes kept this thread from running."""
        self._framework_high = self._own_high = 0
        self._exact = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-guard", daemon=True)
        self.reset()

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
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

    def reset(self) -> None:
        """Forget the peaks so far: a new phase begins."""
        self._framework_high = self._own_high = 0
        self._exact = reset_own_peak()
        self.counters.reset()

    def peaks(self) -> tuple[int, int]:
        """(framework with its cache, process) since `reset`; the kernel's own mark on Linux."""
        process = max(self._own_high, (own_peak() or 0) if self._exact else 0, own_memory())
        return max(self.counters.peak(), self._framework_high), process

    def _run(self) -> None:
        try:
            self._look()
        except BaseException:  # noqa: BLE001 - whatever it was, nobody looks any more
            # A wall that can not look must not stand there like one that saw nothing.
            sys.stderr.write(f"the memory guard can not look any more:\n{traceback.format_exc()}")
            sys.stderr.flush()
            os._exit(EXIT_BLIND)

    def _look(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self.interval):
            held = self.counters.held()
            own = own_memory()
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now
            self._framework_high = max(self._framework_high, held)
            self._own_high = max(self._own_high, own)
            self.samples += 1
            if max(held, own) > self.limit:
                self._end(held, own)

    def _end(self, held: int, own: int) -> None:
        note = StopNote(
            stop=MemoryStop.STEP,
            mlx_bytes=held,
            process_bytes=own,
            limit_bytes=self.limit,
            longest_gap=self.longest_gap,
        )
        try:
            write_atomic(self.folder / STOP_FILE, note.model_dump_json() + "\n")
        finally:
            # Not sys.exit: the thread that computes would go on.
            os._exit(EXIT_MEMORY)


@contextmanager
def walled(folder: Path, limit: int, counters: Counters) -> Iterator[Guard]:
    """The whole wall inside a child, for as long as the block runs; the framework is imported."""
    faulthandler.enable()  # should the kernel's refusal crash the framework, the log says where
    note = WallNote(limit_bytes=limit, kernel_bytes=limit_data(limit))
    write_atomic(folder / WALL_FILE, note.model_dump_json() + "\n")
    with Guard(folder, limit, counters) as guard:
        yield guard


def limit_data(limit: int) -> int | None:
    """Have the kernel refuse this process data beyond the limit; the rlimit in bytes, or None.

    RLIMIT_DATA counts what is reserved, resident or not (getrlimit(2)), so what framework and BLAS
    have reserved without touching it by now is added. Linux only: macOS ignores it.
    """
    if not sys.platform.startswith("linux"):
        return None
    return _draw_line(int(limit * (1 + KERNEL_SLACK)) + max(0, _reserved()))


@contextmanager
def untouched() -> Iterator[None]:
    """Data that the block reserves and does not touch, the stacks of its threads, are added to the
    kernel's limit of this process, if it has one: that would refuse as much too early."""
    line = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if not sys.platform.startswith("linux") or line == resource.RLIM_INFINITY:
        yield
        return
    before = _reserved()
    yield
    _draw_line(line + max(0, _reserved() - before))


def _draw_line(line: int) -> int:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    line = line if hard == resource.RLIM_INFINITY else min(line, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (line, hard))
    return line


def _reserved() -> int:
    """Bytes of this process's data that are not resident."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return _kilobytes(status, "VmData:") - _kilobytes(status, "RssAnon:")


def _kilobytes(status: str, key: str) -> int:
    for row in status.splitlines():
        if row.startswith(key):
            return int(row.split()[1]) * 1024
    return 0
