"""Three ways to keep a queue: this project's store, filelock + json, and SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import filelock

from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.task import (
    ManualLease,
    Role,
    Story,
    StoryKind,
    StoryStatus,
    Subtask,
    SubtaskKind,
    SubtaskStatus,
)
from oodatcaa.kit.files import write_atomic
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
PADDING = "x" * 420
"""Brings a stored task to about 0.9 KB."""


class Side(Protocol):
    """One way to keep a queue. `claim` returns None when nothing is free."""

    def claim(self, owner: str) -> str | None: ...
    def release(self, task: str) -> None: ...
    def close(self) -> None: ...


def subtask(number: int) -> Subtask:
    return Subtask(
        id=f"T{1 + number // 90:03d}-B{10 + number % 90}",
        story=f"T{1 + number // 90:03d}",
        kind=SubtaskKind.BUILD,
        status=SubtaskStatus.READY,
        title=f"Task {number}",
        reason=PADDING,
        estimate_minutes=30,
        status_since=START,
        created_at=START,
        plan_version=1,
        steps=(1, 2, 3),
    )


def story(number: int) -> Story:
    return Story(
        id=f"T{1 + number:03d}",
        slug="bench",
        kind=StoryKind.CUSTOM,
        status=StoryStatus.PLANNING_COMPLETE,
        title="Bench",
        estimate_minutes=30,
        status_since=START,
        created_at=START,
    )


class Journalled:
    """This project's store, through its public door."""

    def __init__(self, folder: Path) -> None:
        self._store = QueueStore(folder)

    @staticmethod
    def fill(folder: Path, tasks: int) -> None:
        made = Board(
            stories=tuple(story(n) for n in range(1 + (tasks - 1) // 90)),
            subtasks=tuple(subtask(n) for n in range(tasks)),
        )
        with QueueStore(folder) as store:
            store.transact(lambda old, _: Decision(made.evolve(revision=old.revision), None))

    def claim(self, owner: str) -> str | None:
        def decide(board: Board, now: datetime) -> Decision[str | None]:
            free = next((t for t in board.subtasks if t.status is SubtaskStatus.READY), None)
            if free is None:
                return Decision(board, None)
            lease = ManualLease(
                kind="manual",
                owner=owner,
                role=Role.BUILDER,
                host="bench",
                attempt=free.attempt + 1,
                ttl_seconds=60,
                claimed_at=now,
                heartbeat_at=now,
            )
            taken = free.evolve(
                status=SubtaskStatus.IN_PROGRESS, lease=lease, attempt=free.attempt + 1
            )
            return Decision(board.with_task(taken), free.id, (_event(now, owner, free.id),))

        return self._store.transact(decide)

    def release(self, task: str) -> None:
        def decide(board: Board, now: datetime) -> Decision[None]:
            held = board.subtask_by_id[task]
            freed = held.evolve(status=SubtaskStatus.READY, lease=None)
            return Decision(board.with_task(freed), None, (_event(now, "worker", task),))

        self._store.transact(decide)

    def close(self) -> None:
        self._store.close()


def _event(now: datetime, actor: str, task: str) -> Event:
    return Event(
        kind=EventKind.TRANSITION,
        at=now,
        actor=actor,
        subject=task,
        before="ready",
        after="in_progress",
        text="moved",
    )


class Rewritten:
    """filelock and json, the (readable, indented) file rewritten and fsynced each time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / QUEUE_FILE
        self._lock = filelock.FileLock(f"{self._path}.lock")

    @staticmethod
    def fill(folder: Path, tasks: int) -> None:
        made = [subtask(n).model_dump(mode="json") for n in range(tasks)]
        write_atomic(folder / QUEUE_FILE, json.dumps({"subtasks": made}, indent=2))

    def _change(self, choose: Callable[[dict[str, object]], bool], status: str) -> str | None:
        with self._lock:
            document = json.loads(self._path.read_text())
            found = next((one for one in document["subtasks"] if choose(one)), None)
            if found is None:
                return None
            found["status"] = status
            write_atomic(self._path, json.dumps(document, indent=2))
            return str(found["id"])

    def claim(self, owner: str) -> str | None:
        del owner
        return self._change(lambda one: one["status"] == "ready", "in_progress")

    def release(self, task: str) -> None:
        self._change(lambda one: one["id"] == task, "ready")

    def close(self) -> None:
        pass


class Sqlite:
    """WAL with synchronous=FULL; the status is indexed, the task itself is a JSON column."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "queue.sqlite", timeout=60, isolation_level=None)
        self._db.execute("PRAGMA synchronous=FULL")

    @staticmethod
    def fill(folder: Path, tasks: int) -> None:
        db = sqlite3.connect(folder / "queue.sqlite")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE task (id TEXT PRIMARY KEY, status TEXT, body TEXT)")
        db.execute("CREATE TABLE event (at TEXT, task TEXT, text TEXT)")
        db.execute("CREATE INDEX by_status ON task (status, id)")
        rows = [
            (one.id, one.status.value, one.model_dump_json()) for one in map(subtask, range(tasks))
        ]
        db.executemany("INSERT INTO task VALUES (?, ?, ?)", rows)
        db.commit()
        db.close()

    def claim(self, owner: str) -> str | None:
        self._db.execute("BEGIN IMMEDIATE")
        row = self._db.execute(
            "SELECT id, body FROM task WHERE status = 'ready' ORDER BY id LIMIT 1"
        ).fetchone()
        if row is not None:
            self._move(row[0], row[1], "in_progress", owner)
        self._db.execute("COMMIT")
        return None if row is None else str(row[0])

    def release(self, task: str) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        row = self._db.execute("SELECT id, body FROM task WHERE id = ?", (task,)).fetchone()
        self._move(task, row[1], "ready", "worker")
        self._db.execute("COMMIT")

    def _move(self, task: str, body: str, status: str, owner: str) -> None:
        document = json.loads(body)
        document["status"] = status
        values = (status, json.dumps(document), task)
        self._db.execute("UPDATE task SET status = ?, body = ? WHERE id = ?", values)
        moment = datetime.now(UTC).isoformat()
        self._db.execute("INSERT INTO event VALUES (?, ?, ?)", (moment, task, owner))

    def close(self) -> None:
        self._db.close()


PLAIN, DATABASE, OURS = "filelock + json", "SQLite, WAL, synchronous=FULL", "this store"
SIDES: dict[str, type[Journalled] | type[Rewritten] | type[Sqlite]] = {
    PLAIN: Rewritten,
    DATABASE: Sqlite,
    OURS: Journalled,
}
