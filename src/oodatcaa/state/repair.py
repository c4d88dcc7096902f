"""What `oodatcaa doctor` finds in the queue's files, and the repair that loses least.

Repair takes the newest state that can be proven: the journal's longest sound part, or the last
snapshot when it is intact and newer. What a sprint's archive has moved past is no such state: the
sprint stays closed. Every file it replaces is kept beside the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.board import Board, Event, EventKind
from oodatcaa.domain.ports import Logged
from oodatcaa.errors import StateError
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock
from oodatcaa.state.archive import EVENTS_FILE, Sealed, newest_closed
from oodatcaa.state.changes import Change, Replica, Transaction, structure_problems
from oodatcaa.state.guard import refuse_rolled_back, seen_by_views
from oodatcaa.state.journal import Journal
from oodatcaa.state.log import LOG_FILE, read_log
from oodatcaa.state.publishing import may_lag
from oodatcaa.state.recall import lost_steps, with_attempts
from oodatcaa.state.snapshot import QUEUE_FILE, QueueFile, intact
from oodatcaa.state.views import EventFile, Events

JOURNAL_FILE = "queue.journal"
_WORDS = {"queue.journal_older": "an older one", "queue.journal_missing": "gone"}


@dataclass(frozen=True)
class Finding:
    """Something that does not fit, as doctor shows it."""

    code: str
    place: str
    meaning: str
    repair: str


@dataclass(frozen=True)
class Repaired:
    """What was done: where the state came from, and which originals were kept."""

    seq: int
    source: str
    kept: tuple[Path, ...]
    lost: str


def examine(work_dir: Path) -> tuple[Finding, ...]:
    """Everything wrong with the queue's own files. Takes no lock and changes nothing."""
    findings: list[Finding] = []
    journal = Journal(work_dir / JOURNAL_FILE)
    try:
        seen = seen_by_views(work_dir)
        journal.follow(locked=False)
        refuse_rolled_back(journal, seen)
        board = journal.replica.board
        findings += [
            Finding("queue.structure", str(work_dir / QUEUE_FILE), one, "none: edit the queue file")
            for one in structure_problems(board)
        ]
        if journal.exists and not (work_dir / QUEUE_FILE).exists():
            how = "the next command writes it again from the journal"
            place = str(work_dir / QUEUE_FILE)
            findings.append(Finding("queue.snapshot_missing", place, "it is gone", f"none: {how}"))
        findings += _event_findings(work_dir, journal)
    except StateError as error:
        how = "start a new journal from its sound part or from the last intact snapshot"
        findings.append(Finding(error.code, str(journal.path), error.message, how))
    finally:
        journal.close()
    return tuple(findings)


def _event_findings(work_dir: Path, journal: Journal) -> list[Finding]:
    findings = []
    for path in sorted(work_dir.glob("SPRINT_QUEUE.rejected-*.json")):
        meaning = "a change from outside was refused and is kept here, its reasons beside it"
        findings.append(Finding("queue.rejected_change", str(path), meaning, "none: read, delete"))
    try:
        for _ in EventFile(work_dir / EVENTS_FILE).read(journal.since):
            pass
    except StateError as error:
        how = "keep the sound lines, put the damaged file aside"
        findings.append(Finding(error.code, str(work_dir / EVENTS_FILE), error.message, how))
        return findings
    expected = journal.expected_entry
    logged = [(one.seq, one.index) for one in read_log(work_dir)]
    replica = journal.replica
    lags = replica.at is not None and may_lag(replica.board, replica.at, utc_now())
    if expected is not None and (not logged or logged[-1] != expected) and not lags:
        meaning = f"it does not end with entry {expected[0]}.{expected[1]}"
        how = "the next transaction completes it"
        findings.append(Finding("log.incomplete", str(work_dir / "AGENT_LOG.md"), meaning, how))
    return findings


def repair(work_dir: Path, clock: Callable[[], datetime] = utc_now) -> Repaired | None:
    """Make the queue usable again when its journal is damaged, gone or older; None = it is sound.

    Raises StateError `queue.beyond_repair` when neither journal nor snapshot can be read.
    """
    with FileLock(work_dir / f"{QUEUE_FILE}.lock", code="queue.locked").held(60):
        journal = Journal(work_dir / JOURNAL_FILE)
        try:
            journal.follow(locked=True)
            _ = journal.replica.board
            refuse_rolled_back(journal, seen_by_views(work_dir))
            return None
        except StateError as error:
            what = _WORDS.get(error.code, "damaged")
        finally:
            journal.close()
        return _rebuild(work_dir, clock(), what)


def _rebuild(work_dir: Path, now: datetime, what: str) -> Repaired:
    path = work_dir / JOURNAL_FILE
    closed = newest_closed(work_dir)
    since = closed.seq if closed else 0
    candidates = _candidates(work_dir, closed)
    source, found, _ = max(candidates, key=lambda one: one[1].seq)
    sound = [line for _, _, lines in candidates for line in lines if line[0] > since]
    logged = [one for one in read_log(work_dir) if one.seq > since]
    recalled = _recalled(logged, after=max((seq for seq, _ in sound), default=0))
    # Numbers that were given out once are never given again, though their change may be lost.
    newest = max([found.seq, *(one.seq for one in seen_by_views(work_dir) if not one.data)])
    times = [one.event.at for one in logged] + ([found.at] if found.at else [])
    board, raised = with_attempts(found.board, logged, now)
    replica = Replica(board, seq=newest, at=max(times, default=None))
    kept = []
    stale_log = bool(since) and not logged  # of the closed sprint: no entry here is of this one
    for name in (JOURNAL_FILE, QUEUE_FILE, *([LOG_FILE] if stale_log else [])):
        original = work_dir / name
        if original.exists():
            copy = work_dir / f"{name}.damaged-{now:%Y-%m-%dT%H-%M-%SZ}"
            write_atomic(copy, original.read_bytes())
            kept.append(copy)
    EventFile(work_dir / EVENTS_FILE).extend([*sound, *recalled])
    lost = f"changes after transaction {found.seq}, if there were any"
    forgotten = [f"lost: {line}" for line in lost_steps(logged, after=found.seq)]
    said = Event(
        kind=EventKind.MANUAL,
        at=now if replica.at is None else max(now, replica.at),
        actor="doctor",
        subject="sprint",
        text=f"the journal was {what}; the state goes on from the {source} at {found.seq}",
        details=(f"lost: {lost}", *forgotten, *raised, *(f"kept: {one.name}" for one in kept)),
    )
    then = Transaction.of(
        Change(), (said,), seq=replica.seq + 1, revision=replica.revision + 1, at=said.at
    )
    journal = Journal(path)
    journal.rebase(replica, since=since, then=then)
    journal.close()
    (work_dir / QUEUE_FILE).unlink(missing_ok=True)  # a copy is kept; the next commit writes it
    if stale_log:
        (work_dir / LOG_FILE).unlink(missing_ok=True)
    return Repaired(found.seq, source, tuple(kept), lost)


def _recalled(logged: Sequence[Logged], *, after: int) -> list[tuple[int, bytes]]:
    """Events that only the log still knows."""
    grouped: dict[int, list[Event]] = {}
    for one in logged:
        if one.seq > after:
            grouped.setdefault(one.seq, []).append(one.event)
    return [
        (seq, Events(seq=seq, events=tuple(events)).model_dump_json().encode() + b"\n")
        for seq, events in grouped.items()
    ]


_Candidate = tuple[str, Replica, list[tuple[int, bytes]]]


def _candidates(work_dir: Path, closed: Sealed | None) -> list[_Candidate]:
    """The states to go on from. Raises StateError `queue.beyond_repair` without any."""
    journal = _newer(_sound_part(work_dir / JOURNAL_FILE), closed)
    snapshot = _newer(_snapshot(work_dir / QUEUE_FILE), closed)
    if journal and snapshot and journal[1].board.sprint != snapshot[1].board.sprint:
        history = max(one.seq for one in seen_by_views(work_dir) if not one.data)
        if history < snapshot[1].seq:
            snapshot = None  # of another queue: nothing here ever was where it says it is
    found = [one for one in (journal, snapshot) if one]
    if closed and not found:
        # What moves on waits outside of the queue: between two sprints it is empty.
        last = _snapshot(closed.folder / QUEUE_FILE)
        revision = last[1].board.revision + 1 if last else 0
        return [("archive", Replica(Board(revision=revision), seq=closed.seq + 1, at=None), [])]
    if not found:
        raise StateError(
            "queue.beyond_repair",
            f"neither {JOURNAL_FILE} nor {QUEUE_FILE} in {work_dir} can be read",
            hint="put back a copy of one of them, or move the folder away and start a sprint",
        )
    return found


def _newer(found: _Candidate | None, closed: Sealed | None) -> _Candidate | None:
    """None when it is of a sprint that was closed since."""
    return None if found and closed and found[1].seq <= closed.seq else found


def _sound_part(path: Path) -> _Candidate | None:
    """The journal up to its first damaged line, with the events of that part."""
    if not path.exists():
        return None
    journal = Journal(path)
    try:
        if not journal.follow_sound_part():
            return None
        board = journal.replica.board
        replica = Replica(board, seq=journal.replica.seq, at=journal.replica.at)
        return "journal", replica, list(journal.event_lines())
    finally:
        journal.close()


def _snapshot(path: Path) -> _Candidate | None:
    try:
        data = path.read_bytes()
        if not intact(data):
            return None
        found = QueueFile.model_validate(json.loads(data))
    except (OSError, ValueError, ValidationError):
        return None
    board: Board = found.board()
    return "snapshot", Replica(board, seq=found.seq, at=None), []
