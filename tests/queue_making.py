"""Records and decisions for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

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

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def story(number: int = 1, **changes: object) -> Story:
    made = Story(
        id=f"T{number:03d}",
        slug=f"story-{number}",
        kind=StoryKind.CUSTOM,
        status=StoryStatus.PLANNING_COMPLETE,
        title=f"Story {number}",
        estimate_minutes=30,
        status_since=START,
        created_at=START,
    )
    return made.evolve(**changes) if changes else made


def subtask(parent: int = 1, number: int = 1, **changes: object) -> Subtask:
    made = Subtask(
        id=f"T{parent:03d}-B{number:02d}",
        story=f"T{parent:03d}",
        kind=SubtaskKind.BUILD,
        status=SubtaskStatus.READY,
        title=f"Build {number} of story {parent}",
        estimate_minutes=20,
        status_since=START,
        created_at=START,
        plan_version=1,
        steps=(1, 2, 3),
    )
    return made.evolve(**changes) if changes else made


def sprint(number: int = 1) -> Sprint:
    return Sprint(
        number=number,
        objective_id="demo",
        objective_sha256="0" * 64,
        title="A sprint",
        target_branch="main",
        memory_limit_bytes=16_000_000_000,
        created_at=START,
    )


def board(tasks: int, revision: int = 0) -> Board:
    """A sprint with one story and `tasks` - 1 subtasks that are ready to be claimed."""
    return Board(
        revision=revision,
        sprint=sprint(),
        stories=(story(),),
        subtasks=tuple(subtask(number=n) for n in range(1, tasks)),
    )


def event(at: datetime, subject: str = "T001", text: str = "something happened") -> Event:
    return Event(kind=EventKind.NOTE, at=at, actor="tester", subject=subject, text=text)


def begin(tasks: int) -> Callable[[Board, datetime], Decision[None]]:
    """Fill an empty queue."""

    def decide(old: Board, now: datetime) -> Decision[None]:
        return Decision(board(tasks, old.revision), None, (event(now, "sprint", "it begins"),))

    return decide


def claim(owner: str) -> Callable[[Board, datetime], Decision[str | None]]:
    """Take the first ready subtask; None when there is none left."""

    def decide(old: Board, now: datetime) -> Decision[str | None]:
        free = next((one for one in old.subtasks if one.status is SubtaskStatus.READY), None)
        if free is None:
            return Decision(old, None)
        attempt = free.attempt + 1
        lease = ManualLease(
            kind="manual",
            owner=owner,
            role=Role.BUILDER,
            host="here",
            attempt=attempt,
            ttl_seconds=60,
            claimed_at=now,
            heartbeat_at=now,
        )
        taken = free.evolve(
            status=SubtaskStatus.IN_PROGRESS, lease=lease, attempt=attempt, status_since=now
        )
        said = Event(
            kind=EventKind.CLAIM,
            at=now,
            actor=owner,
            role=Role.BUILDER,
            subject=free.id,
            before="ready",
            after="in_progress",
            attempt=attempt,
            text="claimed",
        )
        return Decision(old.with_task(taken), free.id, (said,))

    return decide


def release(
    task_id: str, owner: str, to: SubtaskStatus
) -> Callable[[Board, datetime], Decision[bool]]:
    """Give a claimed subtask back; False when somebody else holds it."""

    def decide(old: Board, now: datetime) -> Decision[bool]:
        held = old.subtask_by_id[task_id]
        if held.lease is None or held.lease.owner != owner:
            return Decision(old, False)
        freed = held.evolve(status=to, lease=None, status_since=now)
        said = Event(
            kind=EventKind.RELEASE,
            at=now,
            actor=owner,
            role=Role.BUILDER,
            subject=task_id,
            before="in_progress",
            after=to.value,
            attempt=held.attempt,
            text="released",
        )
        return Decision(old.with_task(freed), True, (said,))

    return decide
