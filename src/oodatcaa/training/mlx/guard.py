"""The run's own wall while MLX computes: a thread that samples memory, and the kernel's limit.

MLX's counters leave out the allocator's cache, and its memory limit never raises, so what is
compared with the limit is the larger of `active + cache` and what the process really holds. One
`mx.eval` can allocate gigabytes between two steps: the thread ends the process in the middle of it
(MLX lets other threads run while it computes). There is nothing to unwind: the last checkpoint is
whole, and a file says why.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import mlx.core as mx

from oodatcaa.domain.training import MemoryStop
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.memory import own_memory, own_peak, reset_own_peak
from oodatcaa.training.protocol import EXIT_MEMORY, STOP_FILE, WALL_FILE, StopNote, WallNote

INTERVAL = 0.01
KERNEL_SLACK = 0.02
"""How far above the limit the kernel's line is: the others shall be first, they say more."""


class Guard:
    """Samples from `start` to `stop`; ends the process as soon as it is over `limit`."""

    def __init__(self, folder: Path, limit: int, *, interval: float = INTERVAL) -> None:
        self.folder, self.limit, self.interval = folder, limit, interval
        self.samples = 0
        self._mlx_high = self._own_high = 0
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
        self._mlx_high = self._own_high = 0
        self._exact = reset_own_peak()
        mx.reset_peak_memory()

    def peaks(self) -> tuple[int, int]:
        """(MLX with its cache, process) since the last `reset`; the kernel's own mark on Linux."""
        process = max(self._own_high, (own_peak() or 0) if self._exact else 0, own_memory())
        return max(mx.get_peak_memory(), self._mlx_high), process

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            mlx = mx.get_active_memory() + mx.get_cache_memory()
            own = own_memory()
            self._mlx_high, self._own_high = max(self._mlx_high, mlx), max(self._own_high, own)
            self.samples += 1
            if max(mlx, own) > self.limit:
                self._end(mlx, own)

    def _end(self, mlx: int, own: int) -> None:
        note = StopNote(
            stop=MemoryStop.STEP, mlx_bytes=mlx, process_bytes=own, limit_bytes=self.limit
        )
        try:
            write_atomic(self.folder / STOP_FILE, note.model_dump_json() + "\n")
        finally:
            # Not sys.exit: the thread that computes would go on.
            os._exit(EXIT_MEMORY)


@contextmanager
def walled(folder: Path, limit: int) -> Iterator[Guard]:
    """The whole wall inside a child, for as long as the block runs; mlx is imported by now."""
    allowed = gate_limit(limit)
    faulthandler.enable()  # should the kernel's refusal crash MLX, the log says where
    note = WallNote(limit_bytes=allowed, kernel_bytes=limit_data(allowed))
    write_atomic(folder / WALL_FILE, note.model_dump_json() + "\n")
    with Guard(folder, allowed) as guard:
        yield guard


def gate_limit(limit: int) -> int:
    """The smaller of `limit` and what Metal recommends as working set; `limit` elsewhere."""
    if not mx.metal.is_available():
        return limit
    recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
    return min(limit, recommended) if recommended > 0 else limit


def limit_data(limit: int) -> int | None:
    """Have the kernel refuse this process data beyond the limit; the rlimit in bytes, or None.

    RLIMIT_DATA counts what is reserved, resident or not (getrlimit(2)), so what MLX and the BLAS
    have reserved without touching it by now is added. Linux only: macOS ignores it.
    """
    if not sys.platform.startswith("linux"):
        return None
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    reserved, resident = _kilobytes(status, "VmData:"), _kilobytes(status, "RssAnon:")
    line = int(limit * (1 + KERNEL_SLACK)) + max(0, reserved - resident)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    line = line if hard == resource.RLIM_INFINITY else min(line, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (line, hard))
    return line


def _kilobytes(status: str, key: str) -> int:
    for row in status.splitlines():
        if row.startswith(key):
            return int(row.split()[1]) * 1024
    return 0


def pace(seconds: float = 0.2) -> float:
    """Bytes per second that one thread of this machine can bring into memory, measured."""
    size, done, started = 1 << 24, 0, time.monotonic()
    while time.monotonic() - started < seconds:
        block = bytearray(size)
        block[:: resource.getpagesize()] = b"\x01" * len(range(0, size, resource.getpagesize()))
        done += size
    return done / (time.monotonic() - started)
