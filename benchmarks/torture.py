"""Dozens of processes work on one queue while they are killed, stopped and lied to.

Workers claim, submit, expire and edit at random, legally and not; they die by SIGKILL at random
moments and at injected crash points, lose their disk for a moment, run on clocks that jump, and
are stopped for longer than their leases last. A person's hand damages SPRINT_QUEUE.json meanwhile.
At the end, and every second in between, every invariant is checked. Exit code 1 = violations.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkProcess
from pathlib import Path

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
from oodatcaa.errors import OodatcaaError, RefusedError, StateError
from oodatcaa.kit import faults
from oodatcaa.state.log import read_log
from oodatcaa.state.schema import schema_problems
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore

TTL_SECONDS = 1
POINTS = [
    f"{name}.{point}"
    for name, points in {
        "journal": "before_write half_written after_write before_fsync after_fsync",
        "log": "before_write half_written after_write",
        "snapshot": "before_write half_written after_fsync before_rename after_rename",
        "marker": "before_write half_written after_write",
        "rebase": "before_write half_written after_fsync before_rename after_rename",
        "events": "before_write half_written after_write after_fsync",
        "rotate": "before_rename after_rename after_folder_fsync",
        "log_head": "before_write after_fsync before_rename after_rename",
        "refuse": "before_aside after_aside after_errors",
    }.items()
    for point in points.split()
]
ERRORS = [
    "journal.before_write",
    "journal.half_written",
    "journal.before_fsync",
    "log.half_written",
]


def open_store(work: Path, jump: float = 0.0) -> QueueStore:
    """Small limits, so that rotation and new bases happen all the time."""

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=jump)

    return QueueStore(work, clock, exact_tasks=10**6, log_bytes=40_000, journal_bytes=60_000)


def begin(tasks: int) -> Board:
    start = datetime(2026, 1, 5, tzinfo=UTC)
    story = Story(
        id="T001",
        slug="torture",
        kind=StoryKind.CUSTOM,
        status=StoryStatus.PLANNING_COMPLETE,
        title="Torture",
        estimate_minutes=1,
        status_since=start,
        created_at=start,
    )
    subtasks = tuple(
        Subtask(
            id=f"T001-B{number:02d}",
            story="T001",
            kind=SubtaskKind.BUILD,
            status=SubtaskStatus.READY,
            title=f"Task {number}",
            estimate_minutes=1,
            status_since=start,
            created_at=start,
            plan_version=1,
        )
        for number in range(1, tasks + 1)
    )
    return Board(stories=(story,), subtasks=subtasks)


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


class Worker:
    """One process's life: random deeds until it is killed or told to stop."""

    def __init__(self, work: Path, name: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.name = name
        jump = self.random.choice([0.0, 0.0, 0.0, 120.0, -3600.0])
        self.work = work
        self.store = open_store(work, jump)
        self.held: tuple[str, int] | None = None
        self.acks = os.open(
            work.parent / f"acks-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )

    def promise(self, what: str, done: tuple[str, int]) -> None:
        """What transact returned from must be in the history, whatever happens next."""
        os.write(self.acks, f"{what} {done[0]} {done[1]} {self.name}\n".encode())

    def run(self, stop: Path) -> None:
        deeds = [self.claim] * 6 + [self.submit] * 6 + [self.heartbeat, self.expire, self.look]
        deeds += [self.illegal, self.late, self.reopen]
        while not stop.exists():
            try:
                self.random.choice(deeds)()
            except OodatcaaError as error:
                if error.code not in ("queue.write_failed", "queue.views_behind", "test.refused"):
                    os.write(self.acks, f"error {error.code} {error.message}\n".encode())
            except OSError as error:
                os.write(self.acks, f"error OSError {error}\n".encode())
        try:
            self.store.close()
        except StateError as error:  # a disk that fails twice in a row, right at the end
            if error.code != "queue.views_behind":
                raise

    def claim(self) -> None:
        if self.held is not None:
            return

        def decide(board: Board, now: datetime) -> Decision[tuple[str, int] | None]:
            free = [one for one in board.subtasks if one.status is SubtaskStatus.READY]
            if not free:
                return Decision(board, None)
            task = self.random.choice(free)
            lease = ManualLease(
                kind="manual",
                owner=self.name,
                role=Role.BUILDER,
                host="torture",
                attempt=task.attempt + 1,
                ttl_seconds=TTL_SECONDS,
                claimed_at=now,
                heartbeat_at=now,
            )
            got = moved(
                board,
                task,
                now,
                self.name,
                EventKind.CLAIM,
                status=SubtaskStatus.IN_PROGRESS,
                lease=lease,
                attempt=task.attempt + 1,
            )
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
                raise RefusedError("test.refused", "a late result of an old attempt")
            return moved(
                board,
                task,
                now,
                self.name,
                EventKind.RELEASE,
                status=SubtaskStatus.DONE,
                lease=None,
            )

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
                    got = moved(
                        board,
                        task,
                        now,
                        self.name,
                        EventKind.EXPIRE,
                        status=SubtaskStatus.READY,
                        lease=None,
                    )
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
            got = moved(
                board, task, now, self.name, EventKind.TRANSITION, status=SubtaskStatus.READY
            )
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
            return
        os.write(self.acks, b"error illegal board accepted\n")

    def look(self) -> None:
        self.store.read()
        if self.random.random() < 0.1:
            for _ in self.store.history():
                pass


def life(work: Path, name: str, seed: int, stop: Path) -> None:
    chance = random.Random(seed)
    if chance.random() < 0.5:
        faults.arm(f"{chance.choice(POINTS)}:{chance.randint(1, 12)}")
    elif chance.random() < 0.3:
        error = chance.choice(["ENOSPC", "EIO"])
        faults.arm(f"{chance.choice(ERRORS)}:{chance.randint(1, 12)}:{error}")
    Worker(work, name, seed).run(stop)


def hand(work: Path, chance: random.Random, kept: list[bytes]) -> str:
    """What an editor, git or a script does to the queue file, without asking."""
    path = work / QUEUE_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "nothing"
    kept.append(data)
    what = chance.choice(["garbage", "cut", "conflict", "restore", "deletion", "title"])
    if what == "garbage":
        path.write_bytes(b"\xff not json")
    elif what == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif what == "conflict":
        path.write_bytes(data.replace(b'"stories"', b"<<<<<<< HEAD\n=======\n", 1))
    elif what == "restore":
        path.write_bytes(chance.choice(kept))
    elif what == "deletion":
        path.unlink()
    else:
        path.write_bytes(data.replace(b'"Torture"', b'"Torture by hand"', 1))
    return what


@dataclass
class Toll:
    kills: int = 0
    crashes: int = 0
    stops: int = 0
    hands: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def looked_at(work: Path, toll: Toll) -> None:
    """What must hold at every moment, seen without the lock."""
    try:
        store = open_store(work)
        board = store.read()
        places = [(one.seq, one.index) for one in store.history()]
        if places != sorted(set(places)):
            toll.violations.append("history is out of order or repeats itself")
        for task in board.subtasks:
            if (task.lease is not None) != (task.status is SubtaskStatus.IN_PROGRESS):
                toll.violations.append(f"{task.id}: {task.status} and lease {task.lease}")
    except OodatcaaError as error:
        toll.violations.append(f"{error.code}: {error.message}")


def judged(work: Path, toll: Toll) -> Counter[str]:
    """Everything against everything, when all is quiet."""
    wrong = toll.violations
    with open_store(work) as store:
        store.transact(
            lambda board, now: Decision(
                board,
                None,
                (Event(kind=EventKind.NOTE, at=now, actor="judge", subject="sprint", text="end"),),
            )
        )
        board, history = store.read(), list(store.history())
    if list(read_log(work)) != history:
        wrong.append("log and history differ")
    document = json.loads((work / QUEUE_FILE).read_text())
    wrong += schema_problems(document)
    if document["revision"] != board.revision or not document["exact"]:
        wrong.append("the queue file is not the newest board")
    happened: Counter[str] = Counter()
    attempts: dict[str, int] = {}
    status: dict[str, str] = {}
    for earlier, one in zip([None, *history], history, strict=False):
        event = one.event
        if earlier is not None and event.at < earlier.event.at:
            wrong.append(f"{one.seq}: time went backwards")
        if event.kind in (EventKind.NOTE, EventKind.MANUAL, EventKind.REFUSED):
            happened[event.kind.value] += 1
            continue
        key, attempt = event.subject, event.attempt or 0
        if event.before != status.get(key, "ready"):
            wrong.append(f"{one.seq} {key}: from {event.before}, was {status.get(key)}")
        expected = attempts.get(key, 0) + (event.kind is EventKind.CLAIM)
        if attempt != expected:
            wrong.append(f"{one.seq} {key}: {event.kind} of attempt {attempt}, not {expected}")
        attempts[key], status[key] = attempt, event.after or ""
        happened[f"{event.kind.value} {key} {attempt} {event.actor}"] += 1
    for task in board.subtasks:
        if (task.status, task.attempt) != (status.get(task.id, "ready"), attempts.get(task.id, 0)):
            wrong.append(f"{task.id}: the board and its history differ")
    for path in work.parent.glob("acks-*"):
        for line in path.read_text().splitlines():
            if line.startswith("error"):
                wrong.append(f"{path.name}: {line}")
            elif not happened[line]:
                wrong.append(f"promised and lost: {line}")
    wrong += [
        f"{key}: happened {count} times"
        for key, count in happened.items()
        if count > 1 and key.startswith(("claim", "release"))
    ]
    for path in work.glob("SPRINT_QUEUE.rejected-*.json"):
        if not path.with_suffix(".errors.txt").exists():
            toll.hands["rejected without its reasons (died in between)"] += 1
    return happened


def torture(work: Path, workers: int, tasks: int, seconds: float, seed: int) -> Toll:
    chance, toll, stop = random.Random(seed), Toll(), work.parent / "stop"
    context = multiprocessing.get_context("fork")
    with open_store(work) as store:
        store.transact(lambda old, _: Decision(begin(tasks).evolve(revision=old.revision), None))
    people: dict[int, ForkProcess] = {}
    sleeping: list[tuple[float, int]] = []
    kept: list[bytes] = []
    born, end = 0, time.monotonic() + seconds
    next_look = time.monotonic() + 1
    while time.monotonic() < end:
        while len(people) < workers:
            born += 1
            seed_of = chance.randrange(1 << 30)
            one = context.Process(target=life, args=(work, f"w{born}", seed_of, stop))
            one.start()
            assert one.pid is not None
            people[one.pid] = one
        time.sleep(0.02)
        pid = chance.choice(list(people))
        dice = chance.random()
        if dice < 0.25:
            os.kill(pid, signal.SIGKILL)
            toll.kills += 1
        elif dice < 0.29:
            os.kill(pid, signal.SIGSTOP)
            toll.stops += 1
            sleeping.append((time.monotonic() + 1.2 * TTL_SECONDS, pid))
        elif dice < 0.35:
            toll.hands[hand(work, chance, kept)] += 1
        for wake in [wake for wake in sleeping if wake[0] < time.monotonic()]:
            sleeping.remove(wake)
            if wake[1] in people:
                os.kill(wake[1], signal.SIGCONT)
        if time.monotonic() > next_look:
            next_look = time.monotonic() + 1
            looked_at(work, toll)
        for gone in [key for key, one in people.items() if not one.is_alive()]:
            one = people.pop(gone)
            one.join()
            toll.crashes += one.exitcode == -signal.SIGKILL
            if one.exitcode not in (0, -signal.SIGKILL):
                toll.violations.append(f"a worker ended with exit code {one.exitcode}")
    stop.touch()
    for key, one in people.items():
        os.kill(key, signal.SIGCONT)
        one.join(60)
        if one.exitcode is None:
            one.kill()
            toll.violations.append("a worker did not come to its end")
    return toll


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=24)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=None, help="of the parent's dice")
    parser.add_argument("--place", type=Path, help="a folder on the disk to use")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.randrange(1 << 30)
    with tempfile.TemporaryDirectory(dir=given.place) as made:
        work = Path(made) / "work"
        toll = torture(work, given.workers, given.tasks, given.seconds, seed)
        happened = judged(work, toll)
    kinds = Counter[str]()
    for key, count in happened.items():
        kinds[key.split()[0]] += count
    print(f"seed {seed}, {given.workers} processes, {given.seconds:g} s")
    print(f"killed with -9: {toll.kills + toll.crashes} ({toll.kills} at random moments)")
    print(f"stopped for longer than a lease: {toll.stops}")
    print(f"outside hands: {dict(toll.hands)}")
    print(f"transitions: {sum(kinds.values())} {dict(kinds)}")
    print(f"violations: {len(toll.violations)}")
    for line in toll.violations[:40]:
        print(f"  {line}")
    return 1 if toll.violations else 0


if __name__ == "__main__":
    sys.exit(main())
