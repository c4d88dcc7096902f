"""A second reader of the journal, for threads that would have to wait for one of their process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from oodatcaa.state.following import JournalReader
from oodatcaa.state.guard import Guard

SOON = 0.05
"""A thread that waits for the queue's lock has what others want to read; they wait so long."""


class Beside:
    """Reads the whole journal the first time: only for those who can not have the first reader."""

    def __init__(self, work_dir: Path, path: Path) -> None:
        self._work_dir = work_dir
        self._path = path
        self.begin_in_child()

    @contextlib.contextmanager
    def looking(self) -> Iterator[JournalReader]:
        """The journal as it is now, for the block."""
        with self._mutex:
            self._guard.follow()
            yield self._guard.journal

    def close(self) -> None:
        with self._mutex:
            self._guard.journal.close()

    def begin_in_child(self) -> None:
        """After a fork another thread may have been in the middle of reading."""
        self._mutex = threading.Lock()
        self._guard = Guard(self._work_dir, JournalReader(self._path))
