"""The queue on disk: `transact`, `read`, `history`, each over the journal's one commit point.

Under the lock a transaction takes in what others committed, settles what an outside hand did to
SPRINT_QUEUE.json, decides, appends one line and fsyncs it. That line is the truth; the log and the
snapshot are views written from it afterwards, and whoever comes next completes them after a crash.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from oodatcaa.domain.board import Board, Decision, Event
from oodatcaa.domain.ports import Logged
from oodatcaa.errors import StateError
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.locks import BurstLock, FileLock
from oodatcaa.state import lifetime
from oodatcaa.state.archive import EVENTS_FILE, SprintArchive
from oodatcaa.state.changes import Change, Replica, Transaction, difference, refuse_inconsistent
from oodatcaa.state.guard import refuse_rolled_back, seen_by_views
from oodatcaa.state.journal import Journal
from oodatcaa.state.log import AgentLog
from oodatcaa.state.moments import clamp, clock_note
from oodatcaa.state.outside import Legal, OutsideHands, accept_structure
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.troubles import nested, unwritable
from oodatcaa.state.views import EventFile, QueueView, parsed

T = TypeVar("T")

EXACT_TASKS = 200
"""Up to so many tasks SPRINT_QUEUE.json is exact whenever the lock is free."""
BEHIND_SECONDS = 0.8
"""Above that a running crew rewrites it this often (with the time to write: under a second)."""
LOCK_SECONDS = 60.0


class QueueStore:
    """The store behind `domain.ports.Store`, for any number of processes and threads.

    `work_dir` is made at the first transaction. `legal(old, new)` judges what an outside hand
    wrote into SPRINT_QUEUE.json: reasons against it, none = taken over. `on_notice` is told, one
    line each, what a person should know although the call went well. Use it as a context manager
    or call `close()`: SPRINT_QUEUE.json is then exact and every view complete.
    """

    def __init__(
        self,
        work_dir: Path,
        clock: Callable[[], datetime] = utc_now,
        *,
        legal: Legal = accept_structure,
        on_notice: Callable[[str], None] | None = None,
        lock_seconds: float | None = LOCK_SECONDS,
        exact_tasks: int = EXACT_TASKS,
        log_bytes: int = 1_000_000,
        journal_bytes: int = 4 << 20,
    ) -> None:
        self.work_dir = work_dir
        self._clock = clock
        self._notice = on_notice or (lambda _: None)
        self._lock_seconds = lock_seconds
        self._exact_tasks = exact_tasks
        lock_path = work_dir / f"{QUEUE_FILE}.lock"
        self._lock = BurstLock(FileLock(lock_path, code="queue.locked", what="the sprint queue"))
        self._journal = Journal(work_dir / "queue.journal", growth=journal_bytes)
        self._events = EventFile(work_dir / EVENTS_FILE)
        self._log = AgentLog(work_dir, limit=log_bytes)
        self._archive = SprintArchive(work_dir, self._log)
        self._finished_since = 0
        self._view = QueueView(work_dir, self._journal)
        self._outside = OutsideHands(work_dir, self._journal, legal)
        self._mutex = threading.RLock()
        self._deciding = False
        self._view_error: OSError | StateError | None = None
        self._flusher: threading.Thread | None = None
        self._unclamped = True
        self._guarded = False
        lifetime.watch(self, self._journal, self._log, self._lock)

    # the port -----------------------------------------------------------------------------

    def read(self) -> Board:
        """The newest committed board; an empty one where there is no queue yet."""
        with self._mutex:
            self._follow()
            if (self._view.touched() or self._view.gone) and self._may_write():
                # Only a writer can settle it. While another holds the lock, that one does.
                try:
                    self._settle_if_free()
                except OSError as error:  # reading goes on; `flush` reports it
                    self._view_error = error
            return self._journal.replica.board

    def transact(self, decide: Callable[[Board, datetime], Decision[T]]) -> T:
        """See the port. Raises StateError `queue.locked` naming the holder after `lock_seconds`."""
        with self._writing():
            replica = self._journal.replica
            read = self._clock()
            now = clamp(read, replica.at)
            old = replica.board
            decision = self._decide(decide, now)
            change = difference(old, decision.board)
            stale = decision.board.revision != old.revision
            if not change.empty or decision.events or stale:
                refuse_inconsistent(old, decision.board, change)
                self._commit(change, decision.events, now, read)
                self._write_views()
            return decision.value

    def history(self) -> Iterator[Logged]:
        """Every event since the sprint began, oldest first; never waits for a writer."""
        with self._mutex:
            self._follow()
            recent = tuple(parsed(self._journal.event_lines()))
            since, base = self._journal.since, self._journal.base_seq
        for logged in self._events.read(since):
            if logged.seq <= base:
                yield logged
        yield from (logged for logged in recent if logged.seq > since)

    def archive_sprint(
        self, number: int, decide: Callable[[Board, datetime], Decision[T]]
    ) -> tuple[Path, T]:
        """Close sprint `number`: move its queue, log and events to archive/sprint-<number>/.

        `decide` says which board goes on (none, or the stories that move on); its events open the
        new history. Atomic: after a crash either nothing happened or the next call completes it.
        Raises StateError `sprint.not_open` or `sprint.archived_already`.
        """
        with self._writing():
            replica = self._journal.replica
            if replica.board.sprint is None or replica.board.sprint.number != number:
                raise StateError(
                    "sprint.not_open",
                    f"sprint {number} is not the open one",
                    hint="see which one is: oodatcaa status",
                )
            self._archive.refuse_existing(number)
            read = self._clock()
            now = clamp(read, replica.at)
            decision = self._decide(decide, now)
            refuse_inconsistent(
                replica.board, decision.board, difference(replica.board, decision.board)
            )
            self._view.write(exact=True)
            self._events.extend(self._journal.event_lines())
            self._log.sync()
            self._archive.build(number, replica.seq)
            closing = Transaction.of(
                Change(),
                decision.events,
                seq=replica.seq + 1,
                revision=replica.revision + 1,
                at=now,
            )
            start = Replica(decision.board, seq=replica.seq, at=replica.at)
            self._journal.rebase(start, since=replica.seq, then=closing)
            self._view.committed()
            self._try_view(lambda: self._archive.finish(self._journal.since))
            self._append_to_log(closing, None)
            self._write_views()
            return self._archive.target(number), decision.value

    # the life of a store ------------------------------------------------------------------

    def flush(self) -> None:
        """Bring SPRINT_QUEUE.json and AGENT_LOG.md up to the journal.

        Raises StateError `queue.views_behind` when that can not be done; the state is safe.
        """
        with self._mutex:
            behind = self._view.behind or self._view_error is not None
            if self._journal.exists and behind and not self._deciding:
                self._view_error = None
                with self._writing():
                    self._write_views(final=True)
            self._lock.settle()
            if self._view_error is not None:
                error, self._view_error = self._view_error, None
                raise StateError(
                    "queue.views_behind",
                    f"the queue is safe, but a view of it could not be written: {error}",
                    hint="free space or make the folder writable; the next command writes it",
                ) from error

    def close(self) -> None:
        """`flush`, then give back the file handles. A closed store opens again when used."""
        with self._mutex:
            try:
                self.flush()
            finally:
                self._journal.close()
                self._log.close()
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # inside -------------------------------------------------------------------------------

    def _follow(self, *, locked: bool = False) -> None:
        """Take in the journal; the first time, make sure that it is not an older one put back."""
        seen = () if self._guarded else seen_by_views(self.work_dir)
        self._journal.follow(locked=locked)
        if not self._guarded:
            refuse_rolled_back(self._journal, seen)
            self._guarded = self._journal.exists

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._mutex:
            if self._deciding:
                raise nested()
            if not self._lock.lingering:
                self._make_folder()
                self._journal.follow(locked=False)  # the bulk of the reading, outside the lock
                self._journal.replica.settle()
            fresh = self._take_lock()
            try:
                self._recover(fresh)
                yield
            except OSError as error:
                raise unwritable(self.work_dir, error) from error
            finally:
                self._lock.release()

    def _settle_if_free(self) -> None:
        if self._lock.try_acquire():
            try:
                self._recover()
            finally:
                self._lock.release()

    def _decide(
        self, decide: Callable[[Board, datetime], Decision[T]], now: datetime
    ) -> Decision[T]:
        self._deciding = True
        try:
            return decide(self._journal.replica.board, now)
        finally:
            self._deciding = False

    def _make_folder(self) -> None:
        try:
            self.work_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.work_dir, error) from error

    def _take_lock(self) -> bool:
        try:
            return self._lock.acquire(self._lock_seconds, self._read_ahead)
        except OSError as error:
            raise unwritable(self.work_dir, error) from error

    def _read_ahead(self) -> None:
        """While others write: so that little is left to read under the lock."""
        with contextlib.suppress(StateError):  # under the lock it is read again, and then it counts
            self._journal.follow(locked=False)
            self._journal.replica.settle()

    def _recover(self, fresh: bool = True) -> None:
        """Under the lock: be where the last writer was, and complete what a dead one left."""
        if fresh:
            self._follow(locked=True)
        if self._journal.since != self._finished_since:
            self._archive.finish(self._journal.since)
            self._finished_since = self._journal.since
        if self._view.touched():
            now = clamp(self._clock(), self._journal.replica.at)
            verdict = self._outside.settle(self._view.content(), now)
            if verdict is not None:
                self._commit(verdict.change, verdict.events, verdict.at, verdict.at)
                self._notice(verdict.notice)
            self._view.settled()
            self._write_views()
        elif self._view.gone:
            if self._view.deleted:
                self._notice(f"{QUEUE_FILE} was deleted; it was written again from the journal")
            self._write_views()
        elif fresh and self._view.left_behind and self._journal.replica.size <= self._exact_tasks:
            self._write_views()
        # A lock that was never given back has had one writer, who knows whether that failed.
        doubt = fresh or self._view_error is not None
        if doubt and self._log.incomplete(self._journal.expected_entry):
            self._complete_log()

    def _commit(
        self, change: Change, events: tuple[Event, ...], now: datetime, read: datetime
    ) -> None:
        journal = self._journal
        if not journal.exists:
            journal.rebase()
        behind = (now - read).total_seconds()
        if behind > 1 and self._unclamped:
            events = (*events, clock_note(now, behind))
        self._unclamped = behind <= 1
        seq, revision = journal.replica.seq + 1, journal.replica.revision + 1
        clock = read if behind > 0 else None
        done = Transaction.of(change, events, seq=seq, revision=revision, at=now, clock=clock)
        previous = journal.expected_entry
        journal.commit(done)
        self._view.committed()
        self._append_to_log(done, previous)

    def _append_to_log(self, done: Transaction, previous: tuple[int, int] | None) -> None:
        if done.events:
            entries = [
                Logged(seq=done.seq, index=n, event=event) for n, event in enumerate(done.events)
            ]

            def append() -> None:
                if not self._log.append(entries, previous):
                    self._complete_log()

            self._try_view(append)

    def _complete_log(self) -> None:
        since = self._journal.since

        def complete() -> None:
            stored = (one for one in self._events.read(since) if one.seq <= self._journal.base_seq)
            self._log.complete((*stored, *parsed(self._journal.event_lines())), since=since)

        self._try_view(complete)

    def _write_views(self, *, final: bool = False) -> None:
        """The snapshot as its policy says, and a new base for a journal that has grown."""
        exact = self._journal.replica.size <= self._exact_tasks

        def write() -> None:
            if exact or final or self._view.due(BEHIND_SECONDS):
                self._view.write(exact=exact or final)
            if self._journal.grown:
                self._events.extend(self._journal.event_lines())
                self._log.sync()
                self._journal.rebase()

        self._try_view(write)
        if self._view.behind:
            self._flush_soon()

    def _try_view(self, write: Callable[[], None]) -> None:
        """The transaction is durable: a view that fails is reported by `flush`, not instead."""
        try:
            write()
        except (OSError, StateError) as error:
            self._view_error = error

    def _flush_soon(self) -> None:
        if self._flusher is None:
            self._flusher = threading.Thread(
                target=_flush_later, args=(weakref.ref(self),), name="queue-flush", daemon=True
            )
            self._flusher.start()

    def _flush_now(self) -> None:
        """The flusher's turn, BEHIND_SECONDS after a snapshot was left behind."""
        with self._mutex:
            self._flusher = None
            if not self._view.behind or self._deciding:
                return
            try:
                with self._writing():
                    self._view.write(exact=False)
            except (OSError, StateError) as error:
                self._view_error = error

    def _may_write(self) -> bool:
        return os.access(self.work_dir, os.W_OK)

    def begin_in_child(self) -> None:
        """After a fork: handles and threads are the parent's; what is in memory is still true."""
        self._mutex = threading.RLock()
        self._lock.begin_in_child()
        self._flusher = None
        self._journal.close()
        self._log.close()


def _flush_later(reference: weakref.ref[QueueStore]) -> None:
    time.sleep(BEHIND_SECONDS)
    store = reference()
    if store is not None:
        store._flush_now()
