"""One exclusive lock between processes: filelock's file and protocol, but waiting in the kernel.

filelock polls, and under contention its waiters starve (one worker of eight made 119 claims while
another made one). A blocking `flock` on the same file queues in the kernel and still excludes
every program that uses filelock. The lock file is never unlinked: that would split the waiters
over two inodes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from oodatcaa.errors import StateError
from oodatcaa.kit.alive import is_alive, is_stopped, process_identity
from oodatcaa.kit.clock import utc_now


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as that process noted it."""

    pid: int
    command: str
    since: datetime

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) since {self.since:%Y-%m-%dT%H:%M:%SZ}"


@functools.cache
def _own_start(pid: int) -> float:
    return process_identity(pid)[1]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class FileLock:
    """An exclusive lock on `path`; one instance is for one thread at a time.

    A process that dies gives the lock back: the kernel does that. Safe over fork: the child opens
    the file anew. `code` is the error's code when the time limit passes. Without `note` it
    leaves nobody's name, and that error can not tell who has it.
    """

    def __init__(
        self, path: Path, *, code: str = "lock.held", what: str = "", note: bool = True
    ) -> None:
        self.path = path
        self._name = str(path)
        self._notes = note
        self.note_path = path.with_name(path.name + ".holder")
        self._code = code
        self._what = what or path.name
        self._command = " ".join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:200]
        self._pid = os.getpid()
        self._note_start, self._noted_by = "", 0
        self._handle = -1
        self._identity = (0, 0)
        self._note = -1
        self._waiter: _Waiter | None = None

    @contextlib.contextmanager
    def held(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock for the block. See `acquire`."""
        self.acquire(timeout)
        try:
            yield
        finally:
            self.release()

    def acquire(self, timeout: float | None = None) -> None:
        """Wait in the kernel until the lock is free, at most `timeout` seconds (None = for ever).

        Raises StateError naming the holder when the time is over; OSError when the lock file can
        not be opened.
        """
        while True:
            self._open()
            if not self._try() and not self._wait(timeout):
                raise self._held_error(timeout)
            if self._is_current():
                break
            self.close()  # somebody replaced the file: the lock that we got guards no name
        self._write_note()

    def try_acquire(self) -> bool:
        """Take the lock if it is free; never waits."""
        while True:
            self._open()
            if not self._try():
                return False
            if self._is_current():
                self._write_note()
                return True
            self.close()

    def release(self) -> None:
        self._write_over_note(b"-")
        if self._handle >= 0:  # a finalizer may have closed it a moment ago
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def holder(self) -> Holder | None:
        """Who noted that they hold it, if that process still lives; None = unknown."""
        try:
            note = json.loads(self.note_path.read_bytes().split(b"\n", 1)[0])
            found = Holder(note["pid"], note["command"], datetime.fromisoformat(note["since"]))
            float(note.get("started") or 0)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        started = note.get("started")
        if started is None:  # a note of an older version
            return found if _exists(found.pid) else None
        # Another process may have got the pid since.
        return found if is_alive(found.pid, float(started)) else None

    def close(self) -> None:
        """Give back the file handles, and with them the lock if it is held."""
        if self._pid == os.getpid():
            if self._handle >= 0:
                fcntl.flock(self._handle, fcntl.LOCK_UN)  # a forked child may have a copy
            self._close_handles()
        self._handle = self._note = -1
        if self._waiter is not None:
            self._waiter.stop()
            self._waiter = None

    def begin_in_child(self) -> None:
        """After a fork the parent's handle shares its lock with ours: never use it, nor keep it,
        for then the lock would outlive the parent."""
        self._close_handles()
        self._handle = self._note = -1
        self._waiter = None
        self._pid = os.getpid()

    def _close_handles(self) -> None:
        for handle in (self._handle, self._note):
            if handle >= 0:
                os.close(handle)

    def _open(self) -> None:
        if self._pid != os.getpid():
            self.begin_in_child()
        if self._handle < 0:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            ours = os.fstat(self._handle)
            self._identity = ours.st_ino, ours.st_dev
        if self._notes and self._note < 0:
            self._note = os.open(self.note_path, os.O_RDWR | os.O_CREAT, 0o644)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait(self, timeout: float | None) -> bool:
        if timeout is None:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            return True
        if self._waiter is None:
            self._waiter = _Waiter()
        if self._waiter.wait(self._handle, timeout):
            return True
        # The thread still sits in flock on this handle and closes it when it returns.
        self._waiter = None
        self._handle = -1
        return False

    def _is_current(self) -> bool:
        try:
            named = os.stat(self._name)  # noqa: PTH116 - a Path is slower by half
        except FileNotFoundError:
            return False
        return self._identity == (named.st_ino, named.st_dev)

    def _write_note(self) -> None:
        if not self._notes:
            return
        pid = os.getpid()
        if self._noted_by != pid:  # written at every turn: only the time is new
            note = {"pid": pid, "started": _own_start(pid), "command": self._command}
            self._note_start, self._noted_by = json.dumps(note)[:-1], pid
        self._write_over_note(
            f'{self._note_start}, "since": "{utc_now().isoformat()}"}}\n'.encode()
        )

    def _write_over_note(self, text: bytes) -> None:
        if self._notes:
            try:  # noqa: SIM105 - `suppress` costs as much as the call, at every transaction
                os.pwrite(self._note, text, 0)
            except OSError:
                pass  # a courtesy for error messages; to hold or release the lock must not fail

    def _held_error(self, timeout: float | None) -> StateError:
        who = self.holder()
        by = f"by {who}" if who else "by a program that left no note"
        return StateError(
            self._code,
            f"{self._what} is locked {by}; waited {timeout:g} s",
            hint=_advice(who, self.path),
        )


def _advice(who: Holder | None, path: Path) -> str:
    if who is None:
        return f"find the program with: fuser -v {path}"
    if is_stopped(who.pid):
        return (
            f"it is stopped; let it go on with: kill -CONT {who.pid}, or end it: kill -9 {who.pid}"
        )
    return f"wait for it, or look at it with: ps -p {who.pid}"


class _Waiter:
    """A thread that blocks in flock, so that its owner's wait can have a limit without signals."""

    def __init__(self) -> None:
        # Plain locks as signals: `threading.Semaphore` costs ten times as much to pass.
        self._asked = threading.Lock()
        self._asked.acquire()
        self._granted = threading.Lock()
        self._granted.acquire()
        self._guard = threading.Lock()
        self._handle = -1
        self._abandoned = False
        self._error: OSError | None = None
        threading.Thread(target=self._run, name="lock-waiter", daemon=True).start()

    def wait(self, handle: int, timeout: float) -> bool:
        self._handle = handle
        self._asked.release()
        if self._granted.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            return self._outcome()
        with self._guard:
            if self._granted.acquire(blocking=False):  # it came in the last moment
                return self._outcome()
            self._abandoned = True
        return False

    def stop(self) -> None:
        self._handle = -1
        with contextlib.suppress(RuntimeError):  # it was told already
            self._asked.release()

    def _outcome(self) -> bool:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True

    def _run(self) -> None:
        while True:
            self._asked.acquire()
            if self._handle < 0:
                return
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            except OSError as error:
                self._error = error
            with self._guard:
                if self._abandoned:
                    # Back to the next in the queue. Closing alone would not do that when a fork
                    # has copied the handle meanwhile.
                    fcntl.flock(self._handle, fcntl.LOCK_UN)
                    os.close(self._handle)
                    return
                self._granted.release()
