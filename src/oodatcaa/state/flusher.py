"""A thread that comes back after a while to write what was left behind."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable


class Flusher:
    """Calls `flush`, a method of an object that it does not keep alive. One thread at a time uses
    it: that which has the object's mutex, and so has `flush` before it calls `woke`."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = weakref.WeakMethod(flush)
        self._thread: threading.Thread | None = None

    def soon(self, seconds: float) -> None:
        """In so many seconds, if it is not on its way already."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(
            target=_later, args=(self._flush, seconds), name="queue-flush", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:  # no more threads here: the next transaction or `close` does it
            self._thread = None

    def woke(self) -> None:
        self._thread = None


def _later(flush: weakref.WeakMethod[Callable[[], None]], seconds: float) -> None:
    time.sleep(seconds)
    method = flush()
    if method is not None:
        method()
