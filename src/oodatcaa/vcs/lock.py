"""One writer at a time for the list of worktrees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from oodatcaa.errors import StateError

PATIENCE_S = 300.0
"""Making a worktree of a big repository takes its time, and several may wait in line."""


@contextlib.contextmanager
def exclusive(path: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold `path` against every other process (and thread); the kernel lets go when one dies.

    The file names its last holder and is never removed. Raises StateError git.worktrees_busy.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(handle, path, patience_s)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()}: {' '.join(sys.argv)[:200]}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(handle, 400, 0).decode("utf-8", "replace").strip()
                raise StateError(
                    "git.worktrees_busy",
                    f"{path} was held for more than {patience_s:g} s",
                    hint="see what that process does, or end it, then try again",
                    details=(holder,) if holder else (),
                ) from None
            time.sleep(0.05)
