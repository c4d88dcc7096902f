"""What `oodatcaa doctor` finds in the queue's files, and the repair that loses least.

Repair takes the newest state that can be proven: the journal's longest sound part, or the last
snapshot when it is intact and newer. Every file it replaces is kept beside the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.board import Board, Event, EventKind
from oodatcaa.errors import StateError
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock
from oodatcaa.state.archive import EVENTS_FILE
from oodatcaa.state.changes import Change, Replica, Transaction, structure_problems
from oodatcaa.state.journal import Journal
from oodatcaa.state.log import read_log
from oodatcaa.state.snapshot import QUEUE_FILE, QueueFile, intact
from oodatcaa.state.views import EventFile, Events

JOURNAL_FILE = "queue.journal"


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
        journal.follow(locked=False)
        board = journal.replica.board
        findings += [
            Finding("queue.structure", str(work_dir / QUEUE_FILE), one, "none: edit the queue file")
            for one in structure_problems(board)
        ]
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
        stored = list(EventFile(work_dir / EVENTS_FILE).read(journal.since))
    except StateError as error:
        how = "keep the sound lines, put the damaged file aside"
        findings.append(Finding(error.code, str(work_dir / EVENTS_FILE), error.message, how))
        return findings
    expected = journal.expected_entry
    logged = [(one.seq, one.index) for one in read_log(work_dir)]
    if expected is not None and (not logged or logged[-1] != expected):
        meaning = f"it does not end with entry {expected[0]}.{expected[1]}"
        how = "the next transaction completes it"
        findings.append(Finding("log.incomplete", str(work_dir / "AGENT_LOG.md"), meaning, how))
    if stored and stored[-1].seq > journal.replica.seq:
        meaning = f"it knows of transaction {stored[-1].seq}, the journal of {journal.replica.seq}"
        how = "none: the journal was replaced by an older one; put the right one back"
        findings.append(Finding("queue.journal_older", str(journal.path), meaning, how))
    return findings


def repair(work_dir: Path, clock: Callable[[], datetime] = utc_now) -> Repaired | None:
    """Make the queue usable again when its journal is not; None = the journal is sound.

    Raises StateError `queue.beyond_repair` when neither journal nor snapshot can be read.
    """
    with FileLock(work_dir / f"{QUEUE_FILE}.lock", code="queue.locked").held(60):
        journal = Journal(work_dir / JOURNAL_FILE)
        try:
            journal.follow(locked=True)
            _ = journal.replica.board
            if journal.exists or not (work_dir / EVENTS_FILE).exists():
                return None
        except StateError:
            pass
        finally:
            journal.close()
        return _rebuild(work_dir, clock())


def _rebuild(work_dir: Path, now: datetime) -> Repaired:
    path = work_dir / JOURNAL_FILE
    candidates = [one for one in (_sound_part(path), _snapshot(work_dir / QUEUE_FILE)) if one]
    if not candidates:
        raise StateError(
            "queue.beyond_repair",
            f"neither {path.name} nor {QUEUE_FILE} in {work_dir} can be read",
            hint="put back a copy of one of them, or move the folder away and start a sprint",
        )
    source, found, _ = max(candidates, key=lambda one: one[1].seq)
    sound = [line for _, _, lines in candidates for line in lines]
    recalled = _recalled(work_dir, after=max((seq for seq, _ in sound), default=0))
    # Numbers that were given out once are never given again, though their change may be lost.
    newest = max([found.seq, *(seq for seq, _ in recalled)])
    replica = Replica(found.board, seq=newest, at=found.at)
    kept = []
    for name in (JOURNAL_FILE, QUEUE_FILE):
        original = work_dir / name
        if original.exists():
            copy = work_dir / f"{name}.damaged-{now:%Y-%m-%dT%H-%M-%SZ}"
            write_atomic(copy, original.read_bytes())
            kept.append(copy)
    EventFile(work_dir / EVENTS_FILE).extend([*sound, *recalled])
    lost = f"changes after transaction {found.seq}, if there were any"
    said = Event(
        kind=EventKind.MANUAL,
        at=now if replica.at is None else max(now, replica.at),
        actor="doctor",
        subject="sprint",
        text=f"the journal was damaged; the state goes on from the {source} at {found.seq}",
        details=(f"lost: {lost}", *(f"kept: {one.name}" for one in kept)),
    )
    then = Transaction.of(
        Change(), (said,), seq=replica.seq + 1, revision=replica.revision + 1, at=said.at
    )
    journal = Journal(path)
    journal.rebase(replica, then=then)
    journal.close()
    (work_dir / QUEUE_FILE).unlink(missing_ok=True)  # a copy is kept; the next commit writes it
    return Repaired(found.seq, source, tuple(kept), lost)


def _recalled(work_dir: Path, *, after: int) -> list[tuple[int, bytes]]:
    """Events that only the log still knows."""
    grouped: dict[int, list[Event]] = {}
    for one in read_log(work_dir):
        if one.seq > after:
            grouped.setdefault(one.seq, []).append(one.event)
    return [
        (seq, Events(seq=seq, events=tuple(events)).model_dump_json().encode() + b"\n")
        for seq, events in grouped.items()
    ]


_Candidate = tuple[str, Replica, list[tuple[int, bytes]]]


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
