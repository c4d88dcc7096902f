"""Who may compete for a lock: few processes at a time, each for a moment.

Handing a lock to the next process costs far more than a short transaction: two switches, and the
next one first has to read what the others wrote. But while one waits for the disk another should
work. So a few take turns, each of them for many transactions, and the others queue for a turn:
more of them the longer the disk takes, for one sync of the disk serves all that wait for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from oodatcaa.errors import StateError
from oodatcaa.kit.locks import FileLock


class Turns:
    """Turns before the real lock; a courtesy that nothing depends on.

    A caller in a burst (it came back within BURST of the end of its last turn) keeps its turn for
    LINGER after each use, for at most SLICE in all, and then queues behind everybody. Who comes
    now and then never lingers. Who can not get a turn (the folder is read-only, who has it was
    stopped) goes on without one after PATIENCE. One instance is for one thread at a time.
    """

    COUNT = 2
    """One that works and one that waits for the disk: with more they only wait for each other."""
    MOST = 8
    """So many where waiting for the disk takes that many times as long as the work."""
    BURST = 0.006
    LINGER = 0.004
    SLICE = 0.020
    PATIENCE = 1.0
    WITHOUT = 30.0
    """After a turn that could not be had, so long none is waited for."""

    def __init__(self, path: Path, count: int = COUNT, most: int = MOST) -> None:
        self._locks = [
            FileLock(path.with_name(f"{path.name}-{n}"), note=False) for n in range(most)
        ]
        self._count = min(count, most)
        self._idle = 0.0
        self._held: FileLock | None = None
        # A garbage collection may end a store, and so close its turns, inside of these blocks.
        self._guard = threading.RLock()
        self._taken_at = 0.0
        self._without_until = 0.0
        self._released_at = 0.0
        self._burst = False
        self._lingering = False
        self._watch: threading.Event | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[bool]:
        """Have a turn for the block. True when it is a new one."""
        fresh = self.take()
        try:
            yield fresh
        finally:
            self.release()

    def take(self) -> bool:
        """Wait for a turn. False when it is still the last one."""
        called = time.monotonic()
        with self._guard:
            lingering, self._lingering = self._lingering, False
        if lingering:
            if called - self._taken_at < self.SLICE:
                return False
            self._give_back()
        self._burst = called - self._released_at < self.BURST
        if called >= self._without_until:
            try:
                self._held = self._queue()
            except (OSError, StateError, RuntimeError):
                # A wait that ends like this leaves a thread behind until the lock is free.
                self._without_until = called + self.WITHOUT
        self._taken_at = time.monotonic()
        return True

    def _queue(self) -> FileLock:
        locks = self._locks[: max(self._count, 1 + int(self._idle))]
        start = os.getpid() % len(locks)
        order = (*locks[start:], *locks[:start])
        for lock in order:
            if lock.try_acquire():
                return lock
        order[0].acquire(self.PATIENCE)
        return order[0]

    def heed(self, worked: float, waited: float) -> None:
        """How long the last use had the lock, and how long it waited for the disk without it."""
        times = min(waited / max(worked, 1e-6), len(self._locks) - 1)
        self._idle += (times - self._idle) / 16  # one slow sync says nothing

    def release(self) -> None:
        """End the turn, or linger."""
        self._released_at = time.monotonic()
        over = self._released_at - self._taken_at >= self.SLICE
        if not self._burst or over or not self._watched():
            self._give_back()
            return
        with self._guard:
            self._lingering = True
        assert self._watch is not None
        if not self._watch.is_set():  # it is cleared under the guard, and not before BURST is over
            self._watch.set()

    def _watched(self) -> bool:
        """Whether a thread will give the turn back when nobody comes."""
        if self._watch is not None:
            return True
        watch = threading.Event()
        try:
            threading.Thread(
                target=self._let_go, args=(watch,), name="turn-linger", daemon=True
            ).start()
        except RuntimeError:  # no more threads here
            return False
        self._watch = watch
        return True

    def settle(self) -> None:
        """Give back what lingers."""
        with self._guard:
            lingering, self._lingering = self._lingering, False
            if lingering:
                self._give_back()

    def close(self) -> None:
        self.settle()
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.set()
        for lock in self._locks:
            lock.close()
        self._held = None

    def begin_in_child(self) -> None:
        """After a fork: the parent's threads are gone, and what it held is the parent's."""
        for lock in self._locks:
            lock.begin_in_child()
        self._held = None
        self._guard = threading.RLock()
        self._lingering = False
        self._watch = None

    def _give_back(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _let_go(self, watch: threading.Event) -> None:
        while True:
            watch.wait()
            if self._watch is not watch:
                return
            time.sleep(self.LINGER)
            with self._guard:
                idle = time.monotonic() - self._released_at
                if self._lingering and idle >= self.LINGER:
                    self._lingering = False
                    self._give_back()
                if idle >= self.BURST:
                    watch.clear()
