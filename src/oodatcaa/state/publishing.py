"""The journal's views, written under the lock: AGENT_LOG.md, SPRINT_QUEUE.json, events.jsonl.

A small queue has exact views whenever the lock is free. A large one has them at most a second
behind, in batches: its transactions then share the disk's fsyncs and write nothing but their line.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from oodatcaa.domain.board import Board
from oodatcaa.errors import StateError
from oodatcaa.state.archive import EVENTS_FILE, SprintArchive
from oodatcaa.state.journal import Journal
from oodatcaa.state.log import AgentLog
from oodatcaa.state.views import EventFile, QueueView, parsed

BEHIND_SECONDS = 0.8
"""A running crew rewrites a large queue's views this often (with the time to write: a second)."""
EXACT_TASKS = 200
"""Up to so many tasks the views are exact whenever the lock is free."""
_LAG = timedelta(seconds=2)


def may_lag(board: Board, at: datetime, now: datetime) -> bool:
    """Whether AGENT_LOG.md need not show yet what was committed `at` that moment."""
    return len(board.stories) + len(board.subtasks) > EXACT_TASKS and now - at < _LAG


class Publisher:
    """Every method that writes is called under the queue's lock.

    The transactions are in the journal: a view that can not be written is kept as `error`, for
    `QueueStore.flush` to report, and does not take back what was committed.
    """

    def __init__(
        self, work_dir: Path, journal: Journal, *, exact_tasks: int, log_bytes: int
    ) -> None:
        self.view = QueueView(work_dir, journal)
        self.log = AgentLog(work_dir, limit=log_bytes)
        self.events = EventFile(work_dir / EVENTS_FILE)
        self.archive = SprintArchive(work_dir, self.log)
        self.error: OSError | StateError | None = None
        self._journal = journal
        self._exact_tasks = exact_tasks
        self._finished_since = 0

    @property
    def large(self) -> bool:
        """Whether the views may be a second behind."""
        return self._journal.replica.size > self._exact_tasks

    @property
    def due(self) -> bool:
        """Whether the views are to be written with the next transaction."""
        return not self.large or self.view.due(BEHIND_SECONDS) or self._journal.grown

    @property
    def lacking(self) -> bool:
        """Whether a dead writer, or one that failed, left views that have to be exact."""
        journal, wrong = self._journal, self.view.left_behind
        return not self.large and (wrong or self.log.incomplete(journal.expected_entry))

    def write(self, *, final: bool = False, now: bool = False) -> None:
        """Bring the views up to the journal if they are due, or `now`; `final`: and exactly."""
        if final or now or self.due:
            if not self.attempt(self._journal.harden):
                return  # no view may know of what a power cut undoes
            self.attempt(self._catch_up_log)
            self.attempt(lambda: self.view.write(exact=final or not self.large))
            if self._journal.grown:
                self.attempt(self.renew_base)
            if final:
                self.attempt(self._journal.trim)

    def renew_base(self) -> None:
        """Start the journal anew at its newest board; its events go to events.jsonl before."""
        self.events.extend(self._journal.event_lines())
        self.log.sync()
        self._journal.rebase()

    def finish_archives(self) -> None:
        """Complete what closed a sprint and died."""
        if self._journal.since != self._finished_since:
            self.archive.finish(self._journal.since)
            self._finished_since = self._journal.since

    def attempt(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except (OSError, StateError) as error:
            self.error = error
            return False
        return True

    def _catch_up_log(self) -> None:
        journal = self._journal
        if not self.log.incomplete(journal.expected_entry):
            return None
        place = self.log.end
        lines = journal.event_lines_from(place) if place is not None else None
        if place is None or lines is None:
            return self._complete_log()
        missing = [one for one in parsed(lines) if (one.seq, one.index) > place]
        return self.log.append(missing) if missing else self._complete_log()

    def _complete_log(self) -> None:
        """The slow way, from all events of the sprint: the log is torn, noted in or far behind."""
        journal = self._journal
        stored = (one for one in self.events.read(journal.since) if one.seq <= journal.base_seq)
        recent = parsed(journal.event_lines())
        self.log.complete((*stored, *recent), since=journal.since)
