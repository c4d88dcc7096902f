"""Judges the tortured queue: everything against everything, between two transactions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from victims import open_store

from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.ports import Logged
from oodatcaa.errors import OodatcaaError
from oodatcaa.state.log import read_log
from oodatcaa.state.schema import schema_problems
from oodatcaa.state.snapshot import QUEUE_FILE, intact

_NOT_MOVES = (EventKind.NOTE, EventKind.MANUAL, EventKind.REFUSED, EventKind.SPRINT)

_BEGINS_IN = {
    EventKind.CLAIM: "ready",
    EventKind.RELEASE: "in_progress",
    EventKind.EXPIRE: "in_progress",
    EventKind.TRANSITION: "done",
}


@dataclass(frozen=True)
class _Seen:
    """One moment of the queue, taken while nobody could write."""

    board: Board
    history: list[Logged]
    log: list[Logged]
    closed: list[Path]
    document: bytes | None


class Auditor:
    """Remembers all that it saw: what was there once must be there for ever."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._store = open_store(work)
        self._archived: list[Logged] = []
        self._read: set[str] = set()
        self._known: list[Logged] = []
        self._offsets: dict[Path, int] = {}
        self._attempts: dict[str, int] = {}
        self._status: dict[str, str] = {}
        self._holder: dict[str, str] = {}
        self._happened: Counter[str] = Counter()
        self._last: datetime | None = None
        self.moves: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.looks = 0

    def look(self, *, quiet: bool = False) -> None:
        """Every invariant. `quiet`: nobody else is left, so the views must be exact too."""
        self.looks += 1
        promised = self._promises()  # before the look: all of these must be found in it
        try:
            seen = self._store.transact(self._take)
        except (OodatcaaError, OSError) as error:
            self.violations.append(f"the queue can not be read: {error}")
            return
        self._follow(seen)
        if seen.log != seen.history:
            self.violations.append("log and history differ")
        self._compare(seen.board)
        self._document(seen, quiet)
        for line in promised:
            if not self._happened[line]:
                self.violations.append(f"promised and lost: {line}")

    def last_look(self) -> None:
        """When all is quiet; one more transaction completes what the dead left behind."""
        self._store.transact(
            lambda board, now: Decision(
                board,
                None,
                (Event(kind=EventKind.NOTE, at=now, actor="judge", subject="sprint", text="end"),),
            )
        )
        self._store.flush()
        self.look(quiet=True)
        for key, count in self._happened.items():
            if count > 1 and key.startswith(("claim", "release")):
                self.violations.append(f"{key}: happened {count} times")
        self._store.close()

    def _take(self, board: Board, _: datetime) -> Decision[_Seen]:
        folders = (self._work / "archive").glob("sprint-*")
        path = self._work / QUEUE_FILE
        seen = _Seen(
            board,
            list(self._store.history()),
            list(read_log(self._work)),
            sorted(folders, key=lambda folder: int(folder.name.partition("-")[2])),
            path.read_bytes() if path.exists() else None,
        )
        return Decision(board, seen)

    def _promises(self) -> list[str]:
        found = []
        for path in self._work.parent.glob("acks-*"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            self._offsets[path] = self._offsets.get(path, 0) + sum(map(len, whole))
            for line in (one.decode().rstrip("\n") for one in whole):
                first, _, rest = line.partition(" ")
                if first == "error":
                    self.violations.append(f"{path.name}: {rest}")
                elif first == "count":
                    what, _, number = rest.rpartition(" ")
                    many = number.isdigit()
                    self.counts[what if many else rest] += int(number) if many else 1
                else:
                    found.append(line)
        return found

    def _follow(self, seen: _Seen) -> None:
        for folder in seen.closed:
            if folder.name not in self._read:
                self._read.add(folder.name)
                self._archived += read_log(folder)
        full = [*self._archived, *seen.history]
        if full[: len(self._known)] != self._known:
            self.violations.append("history that had been seen is gone or changed")
        places = [(one.seq, one.index) for one in full]
        if places != sorted(set(places)):
            self.violations.append("history is out of order or repeats itself")
        for one in full[len(self._known) :]:
            self._judge(one)
        self._known = full

    def _judge(self, one: Logged) -> None:
        event = one.event
        if self._last is not None and event.at < self._last:
            self.violations.append(f"{one.seq}: time went backwards")
        self._last = event.at
        self.moves[event.kind.value] += 1
        if event.kind in _NOT_MOVES:
            return
        key, attempt = event.subject, event.attempt or 0
        if event.before != self._status.get(key, "ready"):
            self.violations.append(
                f"{one.seq} {key}: from {event.before}, was {self._status.get(key)}"
            )
        if event.before != _BEGINS_IN[event.kind]:
            self.violations.append(f"{one.seq} {key}: {event.kind} of what is {event.before}")
        if event.kind is EventKind.CLAIM:
            self._holder[key] = event.actor
        elif event.kind is EventKind.RELEASE and event.actor != self._holder.get(key):
            self.violations.append(
                f"{one.seq} {key}: a result of {event.actor}, held by {self._holder.get(key)}"
            )
        expected = self._attempts.get(key, 0) + (event.kind is EventKind.CLAIM)
        if attempt != expected:
            self.violations.append(
                f"{one.seq} {key}: {event.kind} of attempt {attempt}, not {expected}"
            )
        self._attempts[key], self._status[key] = attempt, event.after or ""
        self._happened[f"{event.kind.value} {key} {attempt} {event.actor}"] += 1

    def _compare(self, board: Board) -> None:
        for task in board.subtasks:
            stated = (task.status.value, task.attempt)
            told = (self._status.get(task.id, "ready"), self._attempts.get(task.id, 0))
            if stated != told:
                self.violations.append(f"{task.id}: the board says {stated}, its history {told}")
            if (task.lease is not None) != (stated[0] == "in_progress"):
                self.violations.append(f"{task.id}: {stated[0]} with lease {task.lease}")

    def _document(self, seen: _Seen, quiet: bool) -> None:
        data = seen.document
        if data is None or not intact(data):
            if quiet:
                self.violations.append(f"{QUEUE_FILE} is not as the store writes it")
            return  # a hand is in it just now: whoever comes next settles that
        document = json.loads(data)
        self.violations += schema_problems(document)
        if quiet and (document["revision"], document["exact"]) != (seen.board.revision, True):
            self.violations.append(f"{QUEUE_FILE} is not the newest board")
        if document["revision"] > seen.board.revision:
            self.violations.append(f"{QUEUE_FILE} is ahead of the journal")
