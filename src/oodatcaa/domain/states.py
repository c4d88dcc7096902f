"""The two transition tables, and the questions that only they answer.

Nothing here changes anything: `lifecycle.move` performs a transition. The state diagrams of the
documentation are made from these tables by `mermaid`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from oodatcaa.domain.board import Board
from oodatcaa.domain.task import (
    Role,
    Story,
    StoryStatus,
    Subtask,
    SubtaskKind,
    SubtaskStatus,
    Task,
    TaskId,
)

S = StoryStatus
B = SubtaskStatus
BUILD, TEST = SubtaskKind.BUILD, SubtaskKind.TEST
Status = StoryStatus | SubtaskStatus


@dataclass(frozen=True)
class Row:
    """One legal transition. `progress` ones end a series of lost leases."""

    name: str
    source: Status
    target: Status
    who: str
    kind: SubtaskKind | None = None
    progress: bool = False


STORY_TABLE: tuple[Row, ...] = (
    Row("claim", S.NEEDS_PLAN, S.PLANNING, "planner"),
    Row("submit plan", S.PLANNING, S.PLANNING_COMPLETE, "planner", progress=True),
    Row("release or expire", S.PLANNING, S.NEEDS_PLAN, "planner, negotiator"),
    Row("give up or ask", S.PLANNING, S.NEEDS_HUMAN, "planner, negotiator"),
    Row("last subtask done", S.PLANNING_COMPLETE, S.READY_FOR_INTEGRATOR, "tester", progress=True),
    Row("a subtask failed", S.PLANNING_COMPLETE, S.NEEDS_ADAPT, "builder, tester"),
    Row("a subtask is stuck, or ask", S.PLANNING_COMPLETE, S.NEEDS_HUMAN, "negotiator, person"),
    Row("claim", S.READY_FOR_INTEGRATOR, S.INTEGRATING, "integrator"),
    Row("integrate", S.INTEGRATING, S.DONE, "integrator", progress=True),
    Row("release or expire", S.INTEGRATING, S.READY_FOR_INTEGRATOR, "integrator, negotiator"),
    Row("integration failed", S.INTEGRATING, S.NEEDS_ADAPT, "integrator", progress=True),
    Row("give up", S.INTEGRATING, S.NEEDS_HUMAN, "integrator, negotiator"),
    Row("claim", S.NEEDS_ADAPT, S.ADAPTING, "refiner"),
    Row("submit adapted plan", S.ADAPTING, S.PLANNING_COMPLETE, "refiner", progress=True),
    Row("start over", S.ADAPTING, S.NEEDS_PLAN, "refiner", progress=True),
    Row("release or expire", S.ADAPTING, S.NEEDS_ADAPT, "refiner, negotiator"),
    Row("give up or ask", S.ADAPTING, S.NEEDS_HUMAN, "refiner, negotiator"),
    Row("rounds used up", S.NEEDS_ADAPT, S.NEEDS_HUMAN, "negotiator"),
    Row("unblock", S.BLOCKED, S.NEEDS_PLAN, "negotiator"),
    Row("block", S.NEEDS_PLAN, S.BLOCKED, "negotiator"),
    Row("dependency cancelled", S.BLOCKED, S.NEEDS_HUMAN, "negotiator, person"),
    Row("dependency cancelled", S.NEEDS_PLAN, S.NEEDS_HUMAN, "negotiator, person"),
    Row("approve", S.NEEDS_HUMAN, S.NEEDS_PLAN, "person", progress=True),
    Row("approve", S.NEEDS_HUMAN, S.PLANNING_COMPLETE, "person", progress=True),
    Row("approve", S.NEEDS_HUMAN, S.NEEDS_ADAPT, "person", progress=True),
    Row("approve", S.NEEDS_HUMAN, S.READY_FOR_INTEGRATOR, "person", progress=True),
    Row("approve", S.NEEDS_HUMAN, S.BLOCKED, "person", progress=True),
    *(
        Row("cancel", status, S.CANCELLED, "person")
        for status in S
        if status not in (S.DONE, S.CANCELLED)
    ),
)

SUBTASK_TABLE: tuple[Row, ...] = (
    Row("claim", B.READY, B.IN_PROGRESS, "builder", BUILD),
    Row("gates passed", B.IN_PROGRESS, B.DONE, "builder", BUILD, progress=True),
    Row("failed", B.IN_PROGRESS, B.NEEDS_ADAPT, "builder", BUILD, progress=True),
    Row("release or expire", B.IN_PROGRESS, B.READY, "builder, negotiator", BUILD),
    Row("too many lost leases", B.IN_PROGRESS, B.NEEDS_HUMAN, "negotiator", BUILD),
    Row("claim", B.AWAITING_TEST, B.TESTING, "tester", TEST),
    Row("criteria passed", B.TESTING, B.DONE, "tester", TEST, progress=True),
    Row("failed", B.TESTING, B.NEEDS_ADAPT, "tester", TEST, progress=True),
    Row("release or expire", B.TESTING, B.AWAITING_TEST, "tester, negotiator", TEST),
    Row("too many lost leases", B.TESTING, B.NEEDS_HUMAN, "negotiator", TEST),
    Row("unblock", B.BLOCKED, B.READY, "negotiator", BUILD),
    Row("unblock", B.BLOCKED, B.AWAITING_TEST, "negotiator", TEST),
    Row("block", B.READY, B.BLOCKED, "refiner, negotiator", BUILD),
    Row("block", B.AWAITING_TEST, B.BLOCKED, "refiner, negotiator", TEST),
    Row("claim of the story", B.NEEDS_ADAPT, B.ADAPTING, "refiner"),
    Row("release or expire", B.ADAPTING, B.NEEDS_ADAPT, "refiner, negotiator"),
    *(
        Row("keep", source, target, "refiner", kind, progress=True)
        for source in (B.NEEDS_ADAPT, B.ADAPTING)
        for target, kind in ((B.READY, BUILD), (B.AWAITING_TEST, TEST), (B.BLOCKED, None))
    ),
    Row("approve or keep", B.NEEDS_HUMAN, B.READY, "person, refiner", BUILD, progress=True),
    Row("approve or keep", B.NEEDS_HUMAN, B.AWAITING_TEST, "person, refiner", TEST, progress=True),
    Row("approve or keep", B.NEEDS_HUMAN, B.BLOCKED, "person, refiner", progress=True),
    *(
        Row("replace or cancel", status, B.CANCELLED, "refiner, person")
        for status in B
        if status not in (B.DONE, B.CANCELLED)
    ),
)

ACTIVE: dict[Status, Role] = {
    S.PLANNING: Role.PLANNER,
    S.ADAPTING: Role.REFINER,
    S.INTEGRATING: Role.INTEGRATOR,
    B.IN_PROGRESS: Role.BUILDER,
    B.TESTING: Role.TESTER,
}
"""States that exist only under a lease. Story and subtask `adapting` share a name; a subtask's
is covered by the lease of its story, see `role_holding`."""

CLAIMABLE: dict[Status, Role] = {
    S.NEEDS_PLAN: Role.PLANNER,
    S.NEEDS_ADAPT: Role.REFINER,
    S.READY_FOR_INTEGRATOR: Role.INTEGRATOR,
    B.READY: Role.BUILDER,
    B.AWAITING_TEST: Role.TESTER,
}

FINISHED = frozenset({S.DONE, S.CANCELLED, B.DONE, B.CANCELLED})


def is_done(task: Task) -> bool:
    return task.status in (S.DONE, B.DONE)


def is_cancelled(task: Task) -> bool:
    return task.status in (S.CANCELLED, B.CANCELLED)


def is_finished(task: Task) -> bool:
    return is_done(task) or is_cancelled(task)


def role_holding(task: Task) -> Role | None:
    """The role whose lease this task's status needs; None when it needs none."""
    if isinstance(task, Subtask) and task.status is B.ADAPTING:
        return None
    return ACTIVE.get(task.status)


def role_wanted(board: Board, task: Task) -> Role | None:
    """The role that may claim `task` now; None when nobody may.

    A subtask can only be claimed while its story is `planning_complete`.
    """
    if isinstance(task, Subtask):
        story = board.story_by_id.get(task.story)
        if story is None or story.status is not S.PLANNING_COMPLETE:
            return None
        if task.status is B.NEEDS_ADAPT:
            return None
    return CLAIMABLE.get(task.status)


def row_for(task: Task, to: Status) -> Row | None:
    """The table's row for this step, or None when the tables forbid it."""
    table = STORY_TABLE if isinstance(task, Story) else SUBTASK_TABLE
    for row in table:
        fits = row.kind is None or (isinstance(task, Subtask) and task.kind is row.kind)
        if fits and row.source is task.status and row.target is to:
            return row
    return None


def give_back(task: Task) -> Status:
    """Where a held task returns to when its lease ends without a result."""
    back: dict[Status, Status] = {
        S.PLANNING: S.NEEDS_PLAN,
        S.ADAPTING: S.NEEDS_ADAPT,
        S.INTEGRATING: S.READY_FOR_INTEGRATOR,
        B.IN_PROGRESS: B.READY,
        B.TESTING: B.AWAITING_TEST,
    }
    if isinstance(task, Subtask) and task.status is B.ADAPTING:
        return B.NEEDS_ADAPT
    return back[task.status]


def waiting_status(kind: SubtaskKind, *, blocked: bool) -> SubtaskStatus:
    """The state in which a subtask of `kind` waits: blocked, or claimable by its role."""
    if blocked:
        return B.BLOCKED
    return B.READY if kind is BUILD else B.AWAITING_TEST


def undone(board: Board, depends_on: tuple[TaskId, ...]) -> tuple[Task | str, ...]:
    """The dependencies that are not done yet; an id that does not exist is given as a string."""
    tasks = [(needed, board.find(needed)) for needed in depends_on]
    return tuple(task or needed for needed, task in tasks if task is None or not is_done(task))


def tasks_of(board: Board) -> tuple[Task, ...]:
    """Stories, then subtasks, in the board's order."""
    return (*board.stories, *board.subtasks)


def wip(board: Board) -> Counter[Role]:
    """How many tasks each role holds now."""
    tasks: tuple[Task, ...] = tasks_of(board)
    return Counter(task.lease.role for task in tasks if task.lease is not None)


def row_exists(subtask: Subtask) -> bool:
    """Whether a subtask of this kind can ever be in its status."""
    return any(
        (row.source is subtask.status or row.target is subtask.status)
        and row.kind in (None, subtask.kind)
        for row in SUBTASK_TABLE
        if row.target is not B.CANCELLED or subtask.status is B.CANCELLED
    )


def mermaid(kind: Literal["story", "subtask"]) -> str:
    """A state diagram of one table for the documentation. `cancelled` is reachable from all."""
    table = STORY_TABLE if kind == "story" else SUBTASK_TABLE
    starts = (S.NEEDS_PLAN, S.BLOCKED) if kind == "story" else (B.READY, B.AWAITING_TEST, B.BLOCKED)
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {start.value}" for start in starts]
    for row in table:
        if row.target.value == "cancelled":
            continue
        only = f" [{row.kind.value}]" if row.kind else ""
        lines.append(f"    {row.source.value} --> {row.target.value}: {row.name}{only} ({row.who})")
    lines += ["    done --> [*]", "    cancelled --> [*]"]
    lines.append(f"    note right of cancelled: {table[-1].name}, from every state but done")
    return "\n".join(lines) + "\n"
