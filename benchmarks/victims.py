"""The processes of the torture: each lives a random life under one kind of misfortune."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import signal
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from oodatcaa.domain.board import Board, Decision, Event, EventKind, Sprint
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
from oodatcaa.errors import OodatcaaError, RefusedError, StateError
from oodatcaa.kit import faults
from oodatcaa.state import disk
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore

TTL_SECONDS = 1
START = datetime(2026, 1, 5, tzinfo=UTC)

_WRITE = "before_write half_written after_write"
_SYNC = "before_fsync after_fsync"
_RENAME = "before_rename after_rename"
_TEMP = f"{_WRITE} {_SYNC} {_RENAME}"
_ATOMIC = f"before_write after_write {_RENAME}"
POINTS = tuple(
    f"{name}.{point}"
    for name, points in {
        "journal": f"{_WRITE} {_SYNC}",
        "reserve": _WRITE,
        "marker": _WRITE,
        "snapshot": _TEMP,
        "schema": _ATOMIC,
        "log": f"{_WRITE} {_SYNC}",
        "log_head": f"{_TEMP} after_folder_fsync",
        "rotate": f"{_RENAME} after_folder_fsync",
        "index": _ATOMIC,
        "events": f"{_WRITE} {_SYNC}",
        "rebase": f"{_TEMP} after_folder_fsync",
        "aside": _ATOMIC,
        "errors": _ATOMIC,
        "copy": f"{_WRITE} {_SYNC}",
        "seal": _ATOMIC,
        "archive": (
            "copied sealed dropped_rotations restarted_log dropped_events "
            f"{_RENAME} after_folder_fsync"
        ),
    }.items()
    for point in points.split()
)
"""Every point where the source lets a process die; a test compares them with the source."""

FAILING = tuple(
    point for point in POINTS if point.partition(".")[2] in ("before_write", "half_written")
) + ("journal.before_fsync", "rebase.before_fsync", "rotate.before_rename", "archive.before_rename")
"""Where a full or broken disk says so."""
CLOSING = ("copy", "seal", "archive", "schema")
REFUSING = ("aside", "errors")
GROWING = ("log", "log_head", "rotate", "index", "events", "rebase")
EXPECTED = (
    "queue.write_failed",
    "queue.write_unsure",
    "queue.views_behind",
    "queue.unwritable",
    "test.refused",
    "sprint.not_open",
)


@dataclass(frozen=True)
class Fate:
    """What will happen to one process, beside being killed or stopped by its parent."""

    kind: str
    """`none`, `crash`, `ENOSPC`, `EIO`, `short`, `clock`."""
    point: str = ""
    count: int = 1
    seed: int = 0
    large: bool = False
    """Works as in a queue of many tasks: waits for the disk without the lock, its views lag."""

    @property
    def armed(self) -> str:
        if self.kind == "crash":
            return f"{self.point}:{self.count}"
        return f"{self.point}:{self.count}:{self.kind}" if self.point else ""

    @property
    def errand(self) -> str:
        """What the process does again and again to come to its point."""
        name = self.point.partition(".")[0]
        errands = {"close": CLOSING, "damage": REFUSING, "grow": GROWING}
        return next((errand for errand, names in errands.items() if name in names), "")


def open_store(work: Path, clock: object = None, *, large: bool = False) -> QueueStore:
    """Small limits, so that rotation and new bases happen all the time."""
    exact = 0 if large else 10**6
    moment = clock if callable(clock) else lambda: datetime.now(UTC)
    return QueueStore(work, moment, exact_tasks=exact, log_bytes=12_000, journal_bytes=20_000)


def begin(tasks: int) -> Board:
    story = Story(
        id="T001",
        slug="torture",
        kind=StoryKind.CUSTOM,
        status=StoryStatus.PLANNING_COMPLETE,
        title="Torture",
        estimate_minutes=1,
        status_since=START,
        created_at=START,
    )
    subtasks = tuple(
        Subtask(
            id=f"T001-B{number:02d}",
            story="T001",
            kind=SubtaskKind.BUILD,
            status=SubtaskStatus.READY,
            title=f"Task {number}",
            estimate_minutes=1,
            status_since=START,
            created_at=START,
            plan_version=1,
        )
        for number in range(1, tasks + 1)
    )
    return Board(sprint=sprint(1), stories=(story,), subtasks=subtasks)


def sprint(number: int) -> Sprint:
    return Sprint(
        number=number,
        objective_id="torture",
        objective_sha256="0" * 64,
        title="Torture",
        target_branch="main",
        memory_limit_bytes=1_000_000_000,
        created_at=START,
    )


def moved(
    board: Board, task: Subtask, now: datetime, actor: str, kind: EventKind, **changes: object
) -> Decision[tuple[str, int]]:
    after = task.evolve(status_since=now, **changes)
    said = Event(
        kind=kind,
        at=now,
        actor=actor,
        subject=task.id,
        before=task.status.value,
        after=after.status.value,
        attempt=after.attempt,
        text=kind.value,
    )
    return Decision(board.with_task(after), (task.id, after.attempt), (said,))


class Clock:
    """Jumps ahead and back during its process's life."""

    def __init__(self, chance: random.Random, jumps: bool) -> None:
        self._chance = chance
        self._jumps = jumps
        self._offset = timedelta()
        self.forward = self.back = 0

    def __call__(self) -> datetime:
        if self._jumps and self._chance.random() < 0.05:
            jump = self._chance.choice([0.5, 2.0, 20.0, -0.5, -2.0, -60.0, -3600.0])
            self._offset = timedelta(seconds=jump)
            self.forward += jump > 0
            self.back += jump < 0
        return datetime.now(UTC) + self._offset


class ShortDisk:
    """A disk that takes only a part of what it is given; the rest has to be offered again."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._real = os.pwrite
        self.writes = 0

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        part = self._chance.randint(1, len(data))
        self.writes += part < len(data)
        return self._real(handle, data[:part], offset)

    def install(self) -> None:
        disk.os.pwrite = self.pwrite  # type: ignore[attr-defined]


class Victim:
    """One process's life: random deeds until it is killed or told to stop."""

    def __init__(self, work: Path, name: str, fate: Fate) -> None:
        self.random = random.Random(fate.seed)
        self.name = name
        self.work = work
        self.fate = fate
        self.clock = Clock(self.random, fate.kind == "clock")
        self.disk = ShortDisk(self.random)
        self.store = open_store(work, self.clock, large=fate.large)
        self.held: tuple[str, int] | None = None
        self.struck = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.acks = os.open(work.parent / f"acks-{name}", flags, 0o644)

    def say(self, line: str) -> None:
        os.write(self.acks, f"{line}\n".encode())

    def promise(self, what: str, done: tuple[str, int]) -> None:
        """What transact returned from must be in the history, whatever happens next."""
        self.say(f"{what} {done[0]} {done[1]} {self.name}")

    def run(self, stop: Path) -> None:
        deeds = [self.claim] * 6 + [self.submit] * 6 + [self.heartbeat, self.expire, self.look]
        deeds += [self.illegal, self.late, self.reopen, self.store.flush]
        errands = {"close": self.close_sprint, "damage": self.damage, "grow": self.grow}
        errand = errands.get(self.fate.errand)
        if errand is not None:
            deeds += [errand] * 9
        if self.fate.kind == "short":
            self.disk.install()
        faults.arm(self.fate.armed)
        while not stop.exists():
            self.attempt(self.random.choice(deeds))
            self.report()
        self.attempt(self.store.close)

    def attempt(self, deed: object) -> None:
        try:
            deed()  # type: ignore[operator]
        except OodatcaaError as error:
            if error.code in EXPECTED:
                self.say(f"count {error.code}")
            else:
                self.say(f"error {error.code} {error.message}")
        except OSError as error:
            self.say(f"error OSError {error}")

    def report(self) -> None:
        """What can not be seen from outside."""
        for what, count in (
            ("short write", self.disk.writes),
            ("clock forward", self.clock.forward),
            ("clock back", self.clock.back),
        ):
            if count:
                self.say(f"count {what} {count}")
        self.disk.writes = self.clock.forward = self.clock.back = 0
        if self.fate.point and self.fate.kind != "crash":
            passed = faults.passed().get(self.fate.point, 0)
            if passed >= self.fate.count:
                self.say(f"count {self.fate.kind}")
                faults.arm(self.fate.armed)  # and once more

    # deeds --------------------------------------------------------------------------------

    def claim(self) -> None:
        if self.held is not None:
            return

        def decide(board: Board, now: datetime) -> Decision[tuple[str, int] | None]:
            free = [one for one in board.subtasks if one.status is SubtaskStatus.READY]
            if not free:
                return Decision(board, None)
            task = self.random.choice(free)
            attempt = task.attempt + 1
            lease = ManualLease(
                kind="manual",
                owner=self.name,
                role=Role.BUILDER,
                host="torture",
                attempt=attempt,
                ttl_seconds=TTL_SECONDS,
                claimed_at=now,
                heartbeat_at=now,
            )
            changes = {"status": SubtaskStatus.IN_PROGRESS, "lease": lease, "attempt": attempt}
            got = moved(board, task, now, self.name, EventKind.CLAIM, **changes)
            return Decision(got.board, got.value, got.events)

        self.held = self.store.transact(decide)
        if self.held is not None:
            self.promise("claim", self.held)

    def submit(self) -> None:
        if self.held is not None:
            held, self.held = self.held, None
            self.give(held)

    def give(self, held: tuple[str, int]) -> None:
        def decide(board: Board, now: datetime) -> Decision[tuple[str, int]]:
            task = board.subtask_by_id[held[0]]
            if task.lease is None or task.attempt != held[1] or task.lease.owner != self.name:
                self.say("count late result refused")
                raise RefusedError("test.refused", "a late result of an old attempt")
            changes = {"status": SubtaskStatus.DONE, "lease": None}
            return moved(board, task, now, self.name, EventKind.RELEASE, **changes)

        self.promise("release", self.store.transact(decide))

    def late(self) -> None:
        task = self.random.choice(self.store.read().subtasks)
        if task.attempt > 1:
            self.give((task.id, task.attempt - 1))

    def heartbeat(self) -> None:
        held = self.held
        if held is None:
            return

        def decide(board: Board, now: datetime) -> Decision[None]:
            task = board.subtask_by_id[held[0]]
            if task.lease is None or task.attempt != held[1]:
                raise RefusedError("test.refused", "the lease is gone")
            lease = task.lease.evolve(heartbeat_at=now)
            return Decision(board.with_task(task.evolve(lease=lease)), None)

        self.store.transact(decide)

    def expire(self) -> None:
        def decide(board: Board, now: datetime) -> Decision[tuple[str, int] | None]:
            for task in board.subtasks:
                lease = task.lease
                if lease and now - lease.heartbeat_at > timedelta(seconds=lease.ttl_seconds):
                    changes = {"status": SubtaskStatus.READY, "lease": None}
                    got = moved(board, task, now, self.name, EventKind.EXPIRE, **changes)
                    return Decision(got.board, got.value, got.events)
            return Decision(board, None)

        done = self.store.transact(decide)
        if done is not None:
            self.promise("expire", done)

    def reopen(self) -> None:
        def decide(board: Board, now: datetime) -> Decision[tuple[str, int] | None]:
            ended = [one for one in board.subtasks if one.status is SubtaskStatus.DONE]
            if not ended:
                return Decision(board, None)
            task = self.random.choice(ended)
            ready = SubtaskStatus.READY
            got = moved(board, task, now, self.name, EventKind.TRANSITION, status=ready)
            return Decision(got.board, got.value, got.events)

        for _ in range(5):
            done = self.store.transact(decide)
            if done is not None:
                self.promise("transition", done)

    def illegal(self) -> None:
        def decide(board: Board, _: datetime) -> Decision[None]:
            wrong = self.random.choice(
                [
                    board.evolve(stories=(*board.stories, *board.stories)),
                    board.evolve(revision=board.revision + 7),
                    board.evolve(stories=()),
                ]
            )
            return Decision(wrong, None)

        try:
            self.store.transact(decide)
        except StateError as error:
            if error.code != "queue.inconsistent":
                raise
            self.say("count illegal board refused")
            return
        self.say("error an illegal board was accepted")

    def look(self) -> None:
        self.store.read()
        if self.random.random() < 0.1:
            for _ in self.store.history():
                pass

    def close_sprint(self) -> None:
        """The sprint moves into the archive; its tasks move on."""
        found = self.store.read().sprint
        if found is None:
            return
        number = found.number
        with contextlib.suppress(OSError):  # the folder may be read-only just now
            (self.work / "SPRINT_QUEUE.schema.json").unlink()

        def decide(board: Board, now: datetime) -> Decision[None]:
            said = Event(
                kind=EventKind.SPRINT, at=now, actor=self.name, subject="sprint", text="closed"
            )
            return Decision(board.evolve(sprint=sprint(number + 1)), None, (said,))

        self.store.archive_sprint(number, decide)
        self.say("count sprint closed")

    def grow(self) -> None:
        """So much text that the log is rotated and the journal gets a new base."""
        for _ in range(3):
            self.store.transact(
                lambda board, now: Decision(
                    board,
                    None,
                    (
                        Event(
                            kind=EventKind.NOTE,
                            at=now,
                            actor=self.name,
                            subject="sprint",
                            text="long " * 1500,
                        ),
                    ),
                )
            )

    def damage(self) -> None:
        path = self.work / QUEUE_FILE
        try:
            document = json.loads(path.read_bytes())
            document["subtasks"] = "none"
            path.write_text(json.dumps(document))
        except (OSError, ValueError):  # gone, damaged already, or read-only just now
            return
        self.store.read()


def live(work: Path, name: str, fate: Fate, stop: Path) -> None:
    faulthandler.register(signal.SIGUSR1)  # where does it hang?
    Victim(work, name, fate).run(stop)
