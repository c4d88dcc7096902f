"""The queue on disk: `transact`, `read`, `history`, each over the journal's one commit point.

Under the lock a transaction takes in what others committed, settles what an outside hand did to
SPRINT_QUEUE.json, decides and appends one line. That line is the truth, told to the caller once it
is fsynced; the log and the snapshot are views written from it afterwards, and whoever comes next
completes them after a crash. While one process waits for the disk the next one has the lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from oodatcaa.domain.board import Board, Decision, Event
from oodatcaa.domain.ports import Logged
from oodatcaa.errors import StateError
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.locks import FileLock
from oodatcaa.kit.turns import Turns
from oodatcaa.state import lifetime
from oodatcaa.state.archive import newest_closed
from oodatcaa.state.beside import SOON, Beside
from oodatcaa.state.changes import Change, Replica, Transaction, difference, refuse_inconsistent
from oodatcaa.state.flusher import Flusher
from oodatcaa.state.following import JournalReader
from oodatcaa.state.guard import Guard
from oodatcaa.state.journal import Journal
from oodatcaa.state.moments import clamp, clock_note
from oodatcaa.state.outside import Legal, OutsideHands, accept_structure
from oodatcaa.state.publishing import BEHIND_SECONDS, EXACT_TASKS, Publisher
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.troubles import nested, unsure, unwritable
from oodatcaa.state.views import parsed

T = TypeVar("T")

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
        lock_path = work_dir / f"{QUEUE_FILE}.lock"
        self._lock = FileLock(lock_path, code="queue.locked", what="the sprint queue")
        self._turns = Turns(work_dir / "queue.turn")
        self._journal = Journal(work_dir / "queue.journal", growth=journal_bytes)
        self._views = Publisher(
            work_dir, self._journal, exact_tasks=exact_tasks, log_bytes=log_bytes
        )
        self._outside = OutsideHands(work_dir, self._journal, legal)
        self._mutex = threading.RLock()
        self._flusher = Flusher(self._flush_now)
        self._unclamped = True
        self._busy = False
        self._guard = Guard(work_dir, self._journal)
        self._beside = Beside(work_dir, self._journal.path)
        lifetime.watch(self, self._journal, self._beside, self._views.log, self._lock, self._turns)

    # the port -----------------------------------------------------------------------------

    def read(self) -> Board:
        """The newest committed board; an empty one where there is no queue yet. Never waits for a
        writer, be it another process or another thread."""
        with self._looking() as journal:
            if journal is self._journal:
                self._settle_outside()
            return journal.replica.board

    def transact(self, decide: Callable[[Board, datetime], Decision[T]]) -> T:
        """See the port. Raises StateError `queue.locked` naming the holder after `lock_seconds`."""
        with self._writing():
            replica = self._journal.replica
            read = self._clock()
            now = clamp(read, replica.at)
            change, events, value = self._decided(decide, now)
            if not change.empty or events:
                self._commit(change, events, now, read)
                self._publish()
            return value

    def history(self) -> Iterator[Logged]:
        """Every event since the sprint began, oldest first; never waits for a writer."""
        while True:
            with self._looking() as journal:
                recent = tuple(parsed(journal.event_lines()))
                since, base = journal.since, journal.base_seq
            stored = [one for one in self._views.events.read(since) if one.seq <= base]
            with self._looking() as journal:
                if journal.since == since:  # else a sprint was closed between the two looks
                    break
        yield from stored
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
            views = self._views
            views.archive.refuse_existing(number)
            read = self._clock()
            now = clamp(read, replica.at)
            decision = decide(self._journal.replica.board, now)
            refuse_inconsistent(
                replica.board, decision.board, difference(replica.board, decision.board)
            )
            views.error = None
            views.write(final=True)
            if views.error is not None:  # the archive is a copy of the views
                raise views.error
            views.events.extend(self._journal.event_lines())
            views.log.sync()
            views.archive.build(number, replica.seq)
            closing = Transaction.of(
                Change(),
                decision.events,
                seq=replica.seq + 1,
                revision=replica.revision + 1,
                at=now,
            )
            start = Replica(decision.board, seq=replica.seq, at=replica.at)
            self._journal.rebase(start, since=replica.seq, then=closing)
            views.view.committed()
            views.attempt(views.finish_archives)
            self._publish(final=True)
            return views.archive.target(number), decision.value

    # the life of a store ------------------------------------------------------------------

    def flush(self) -> None:
        """Bring SPRINT_QUEUE.json and AGENT_LOG.md up to the journal.

        Raises StateError `queue.views_behind` when that can not be done; the state is safe.
        """
        views = self._views
        with self._mutex:
            behind = views.view.behind or views.error is not None
            if self._journal.exists and behind and not self._busy:
                views.error = None
                with self._writing():
                    self._publish(final=True)
            self._turns.settle()
            if views.error is not None:
                error, views.error = views.error, None
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
                self._views.log.close()
                self._lock.close()
                self._turns.close()

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

    @contextlib.contextmanager
    def _looking(self) -> Iterator[JournalReader]:
        """The journal as it is now, for the block."""
        if not self._mutex.acquire(timeout=SOON):
            with self._beside.looking() as journal:
                yield journal
            return
        try:
            self._guard.follow()
            yield self._journal
        finally:
            self._mutex.release()

    def _settle_outside(self) -> None:
        """An outside hand's edit, as far as a reader can: only a writer can settle it, and while
        another one holds the lock, that one does. What fails is reported by `flush`."""
        view = self._views.view
        outside = not self._busy  # inside, the lock is ours: to give it back would be too early
        if outside and (view.touched() or view.gone) and self._may_write():
            try:
                self._settle_if_free()
            except OSError as error:
                self._views.error = error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._mutex:
            if self._busy:
                raise nested()
            self._busy = True
            try:
                fresh = self._turns.take()
                try:
                    if fresh:  # the bulk of the reading, before anybody has to wait for it
                        self.work_dir.mkdir(parents=True, exist_ok=True)
                        self._journal.follow(locked=False)
                        self._journal.replica.settle()
                    self._lock.acquire(self._lock_seconds)
                    begun = time.monotonic()
                    try:
                        self._recover()
                        yield
                    finally:
                        self._lock.release()
                    free = time.monotonic()
                    if self._harden():
                        self._turns.heed(free - begun, time.monotonic() - free)
                finally:
                    self._turns.release()
            except OSError as error:
                raise unwritable(self.work_dir, error) from error
            finally:
                self._busy = False

    def _harden(self) -> bool:
        """Wait for the disk, if there is a reason to; others may have the lock meanwhile. What is
        told now, also that nothing had to be done, rests on all that was read."""
        try:
            return self._journal.harden()
        except OSError as error:
            self._rescue(error)
            return False

    def _rescue(self, error: OSError) -> None:
        """The disk refused to confirm a line on which others may have built already: under the
        lock, write everything anew, elsewhere. Who can not do that says that it is not sure."""
        try:
            with self._lock.held(self._lock_seconds):
                self._journal.follow(locked=True)
                if self._journal.poisoned:  # else somebody else wrote everything anew
                    self._views.renew_base()
        except (OSError, StateError):
            raise unsure(self._journal.path, error) from error

    def _settle_if_free(self) -> None:
        if self._lock.try_acquire():
            self._busy = True
            try:
                self._recover()
            finally:
                self._busy = False
                self._lock.release()
            self._harden()

    def _decided(
        self, decide: Callable[[Board, datetime], Decision[T]], now: datetime
    ) -> tuple[Change, tuple[Event, ...], T]:
        # The old board ends with this call, so that the replica needs no copy to go on.
        old = self._journal.replica.board
        decision = decide(old, now)
        change = difference(old, decision.board)
        stale = decision.board.revision != old.revision
        if not change.empty or decision.events or stale:
            refuse_inconsistent(old, decision.board, change)
        return change, decision.events, decision.value

    def _recover(self) -> None:
        """Under the lock: be where the last writer was, and complete what a dead one left."""
        views = self._views
        self._guard.follow(locked=True)
        if self._journal.poisoned:
            views.renew_base()
        views.finish_archives()
        if views.view.touched():
            now = clamp(self._clock(), self._journal.replica.at)
            verdict = self._outside.settle(views.view.content(), now)
            if verdict is not None:
                self._commit(verdict.change, verdict.events, verdict.at, verdict.at)
                self._notice(verdict.notice)
            views.view.settled()
            self._publish()
        elif views.view.gone:
            if views.view.deleted:
                self._notice(f"{QUEUE_FILE} was deleted; it was written again from the journal")
            self._publish()
        elif views.lacking:
            self._publish()

    def _commit(
        self, change: Change, events: tuple[Event, ...], now: datetime, read: datetime
    ) -> None:
        journal = self._journal
        if not journal.exists:
            self._begin()
        behind = (now - read).total_seconds()
        if behind > 1 and self._unclamped:
            events = (*events, clock_note(now, behind))
        self._unclamped = behind <= 1
        seq, revision = journal.replica.seq + 1, journal.replica.revision + 1
        clock = read if behind > 0 else None
        done = Transaction.of(change, events, seq=seq, revision=revision, at=now, clock=clock)
        # The views come next, and may show only what is durable.
        journal.commit(done, durable=self._views.due)
        self._views.view.committed()

    def _begin(self) -> None:
        """A journal of its own; beside an archive it goes on where the closed sprint ended."""
        closed = newest_closed(self.work_dir)
        if closed is None:
            self._journal.rebase()
        else:
            start = Replica(Board(), seq=closed.seq + 1, at=None)
            self._journal.rebase(start, since=start.seq)

    def _publish(self, *, final: bool = False) -> None:
        self._views.write(final=final)
        if self._views.view.behind:
            self._flusher.soon(BEHIND_SECONDS)

    def _flush_now(self) -> None:
        """The flusher's turn, BEHIND_SECONDS after the views were left behind. Never waits for the
        lock: whoever reads from another thread would wait with it."""
        with self._mutex:
            self._flusher.woke()
            if not self._views.view.behind or self._busy:
                return None
            rest = self._views.view.due_in(BEHIND_SECONDS)
            if rest > 0:  # another process wrote them since
                return self._flusher.soon(rest)
            try:
                if not self._lock.try_acquire():
                    return self._flusher.soon(BEHIND_SECONDS)
                self._busy = True
                try:
                    self._recover()
                    rest = self._views.view.due_in(BEHIND_SECONDS)
                    if rest > 0:  # only now seen: another one did it
                        self._flusher.soon(rest)
                    else:
                        self._views.write(now=True)
                finally:
                    self._busy = False
                    self._lock.release()
                self._harden()
            except (OSError, StateError) as error:
                self._views.error = error

    def _may_write(self) -> bool:
        return os.access(self.work_dir, os.W_OK)

    def begin_in_child(self) -> None:
        """After a fork: handles and threads are the parent's; what is in memory is still true."""
        self._mutex = threading.RLock()
        self._busy = False
        self._guard.begin_again()
        self._lock.begin_in_child()
        self._turns.begin_in_child()
        self._flusher.woke()
        self._beside.begin_in_child()
        self._journal.close()
        self._views.log.close()
