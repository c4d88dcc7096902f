"""The steps of a task's life: `move` is the only function that assigns a status.

`legal` and `invariants` say what is wrong with a board that somebody else wrote (a person with an
editor, an importer, an older version). The tables themselves stand in `states`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, overload

from oodatcaa.domain.board import Board, Event, EventKind, Offer
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.question import unanswered
from oodatcaa.domain.states import (
    ACTIVE,
    BUILD,
    CLAIMABLE,
    STORY_TABLE,
    SUBTASK_TABLE,
    TEST,
    B,
    Row,
    S,
    Status,
    give_back,
    is_cancelled,
    is_done,
    is_finished,
    mermaid,
    role_holding,
    role_wanted,
    row_exists,
    row_for,
    tasks_of,
    undone,
    waiting_status,
    wip,
)
from oodatcaa.domain.task import Role, Story, Subtask, Task
from oodatcaa.errors import RefusedError

__all__ = [
    "ACTIVE",
    "BUILD",
    "CLAIMABLE",
    "STORY_TABLE",
    "SUBTASK_TABLE",
    "TEST",
    "B",
    "Row",
    "S",
    "Status",
    "give_back",
    "initial_story",
    "initial_subtask",
    "invariants",
    "is_cancelled",
    "is_done",
    "is_finished",
    "legal",
    "mermaid",
    "move",
    "moved_event",
    "put",
    "role_holding",
    "role_wanted",
    "row_for",
    "tasks_of",
    "undone",
    "waiting_status",
    "wip",
]

WAITS_FOR_ANSWER = "waits for a person's answer"


@overload
def move(task: Story, to: Status, now: datetime, **changes: Any) -> Story: ...
@overload
def move(task: Subtask, to: Status, now: datetime, **changes: Any) -> Subtask: ...
def move(task: Task, to: Status, now: datetime, **changes: Any) -> Task:
    """`task` in status `to`. Raises RefusedError (`lifecycle.forbidden`) outside the tables.

    Sets `status_since`, clears the lease and the reason unless new ones are given, and resets
    `expiries` when the step is progress. Everything in `changes` wins over these.
    """
    row = row_for(task, to)
    if row is None:
        raise RefusedError(
            "lifecycle.forbidden",
            f"{task.id} can not go from {task.status.value} to {to.value}",
            hint=f"oodatcaa show {task.id} lists what can be done now",
        )
    values: dict[str, Any] = {"status": to, "status_since": now, "lease": None, "reason": ""}
    if row.progress:
        values["expiries"] = 0
    if isinstance(task, Story):
        values["paused_from"] = task.status if to is S.NEEDS_HUMAN else None
    return task.evolve(**{**values, **changes})


def moved_event(
    before: Task,
    after: Task,
    actor: str,
    now: datetime,
    text: str,
    *,
    kind: EventKind = EventKind.TRANSITION,
    details: tuple[str, ...] = (),
    evidence: tuple[str, ...] = (),
) -> Event:
    """The history's entry for `before` becoming `after`."""
    return Event(
        kind=kind,
        at=now,
        actor=actor,
        role=before.lease.role if before.lease else None,
        subject=after.id,
        before=before.status.value,
        after=after.status.value,
        attempt=before.attempt or None,
        text=text,
        details=details,
        evidence=evidence,
    )


def initial_story(now: datetime, *, waits: Sequence[str] | None = None, **fields: Any) -> Story:
    """A new story: `blocked` when it depends on others, else `needs_plan`.

    `waits` names those of its dependencies that are not done, where some may be.
    """
    waits = fields.get("depends_on", ()) if waits is None else waits
    values: dict[str, Any] = {
        "status": S.BLOCKED if waits else S.NEEDS_PLAN,
        "reason": f"waits for {', '.join(waits)}" if waits else "",
        "status_since": now,
        "created_at": now,
    }
    return Story.model_validate({**values, **fields})


def initial_subtask(board: Board, now: datetime, **fields: Any) -> Subtask:
    """A new subtask: `blocked` until what it depends on is done and what it asks is answered,
    else claimable by its role."""
    waits = undone(board, fields.get("depends_on", ()))
    names = ", ".join(item if isinstance(item, str) else item.id for item in waits)
    story = board.story_by_id.get(fields["story"])
    answers = story.answers if story is not None else ()
    asks = unanswered(fields.get("asks", ()), answers, tuple(fields.get("depends_on", ())))
    values: dict[str, Any] = {
        "status": waiting_status(fields["kind"], blocked=bool(waits or asks)),
        "reason": f"waits for {names}" if waits else WAITS_FOR_ANSWER if asks else "",
        "status_since": now,
        "created_at": now,
    }
    return Subtask.model_validate({**values, **fields})


def put(board: Board, *tasks: Task) -> Board:
    """The board with `tasks` replaced or added; offers that no longer stand are withdrawn."""
    for task in tasks:
        board = board.with_task(task)
    standing = tuple(offer for offer in board.offers if _stands(board, offer))
    return board if standing == board.offers else board.evolve(offers=standing)


def _stands(board: Board, offer: Offer) -> bool:
    task = board.find(offer.task)
    return task is not None and role_wanted(board, task) is offer.role


def invariants(board: Board, policy: Policy) -> tuple[str, ...]:
    """Everything that is wrong with this one board, all at once; empty = sound."""
    problems = _shape(board)
    if not problems:  # the rest may rely on ids that exist and on acyclic dependencies
        for task in tasks_of(board):
            problems += _lease_problems(task)
            problems += _claims_of(board, task)
        problems += _counts(board, policy)
    return tuple(problems)


def _shape(board: Board) -> list[str]:
    """Ids, references and cycles."""
    tasks: tuple[Task, ...] = tasks_of(board)
    counts = Counter(task.id for task in tasks)
    problems = [f"{task_id} exists {n} times" for task_id, n in counts.items() if n > 1]
    if board.sprint is None and (tasks or board.offers):
        problems.append("there are tasks or offers, but no sprint is open")
    for subtask in board.subtasks:
        if subtask.story not in board.story_by_id or not subtask.id.startswith(subtask.story + "-"):
            problems.append(f"{subtask.id} belongs to no story ({subtask.story} is named)")
        if (subtask.id.split("-")[1][0] == "B") != (subtask.kind is BUILD):
            problems.append(f"{subtask.id}: the letter does not match kind {subtask.kind.value}")
        if row_exists(subtask) is False:
            problems.append(
                f"{subtask.id}: a {subtask.kind.value} subtask is never {subtask.status.value}"
            )
    for task in tasks:
        for needed in task.depends_on:
            other = board.find(needed)
            if other is None or type(other) is not type(task):
                problems.append(f"{task.id} depends on {needed}, which is no {_word(task)}")
            elif getattr(other, "story", None) != getattr(task, "story", None):
                problems.append(f"{task.id} depends on {needed} of another story")
    problems += [f"{' -> '.join(ring)} is a circle of dependencies" for ring in _cycles(tasks)]
    return problems


def _word(task: Task) -> str:
    return "story" if isinstance(task, Story) else "subtask"


def _cycles(tasks: tuple[Task, ...]) -> list[list[str]]:
    """One ring per cycle that a depth-first walk meets."""
    edges = {task.id: task.depends_on for task in tasks}
    state: dict[str, int] = {}
    rings: list[list[str]] = []
    for start in edges:
        path: list[str] = []
        todo: list[tuple[str, bool]] = [(start, False)]
        while todo:
            node, leaving = todo.pop()
            if leaving:
                state[node] = 2
                path.pop()
            elif state.get(node) == 1:
                rings.append([*path[path.index(node) :], node])
            elif node not in state and node in edges:
                state[node] = 1
                path.append(node)
                todo.append((node, True))
                todo += [(needed, False) for needed in edges[node]]
    return rings


def _lease_problems(task: Task) -> list[str]:
    wanted, lease = role_holding(task), task.lease
    if lease is None:
        return [f"{task.id} is {task.status.value} without a lease"] if wanted else []
    if wanted is None:
        return [f"{task.id} is {task.status.value}, which nobody can hold, but has a lease"]
    problems = []
    if lease.role is not wanted:
        problems.append(f"{task.id} is {task.status.value}, but a {lease.role.value} holds it")
    if lease.attempt != task.attempt:
        problems.append(f"{task.id}: lease of attempt {lease.attempt}, task at {task.attempt}")
    return problems


def _claims_of(board: Board, task: Task) -> list[str]:
    """What the status of `task` asserts and the rest of its record does not bear out."""
    where = f"{task.id} is {task.status.value}"
    problems: list[str] = []
    if task.status in (S.BLOCKED, S.NEEDS_HUMAN) and not task.reason:
        problems.append(f"{where} without a reason")
    late = not isinstance(task, Story) or task.status not in (
        S.NEEDS_PLAN,
        S.BLOCKED,
        S.NEEDS_HUMAN,
        S.CANCELLED,
    )
    if isinstance(task, Subtask):
        late = task.status in (B.IN_PROGRESS, B.TESTING)
        story = board.story_by_id.get(task.story)
        asks = unanswered(task.asks, story.answers, task.depends_on) if late and story else ()
        problems += [f"{where}, but nobody answered {question.title}" for question in asks]
        if task.status is B.DONE and not (task.evidence and task.commit):
            problems.append(f"{where} without evidence and commit")
    if late:
        problems += [
            f"{where}, but depends on {_id(needed)}, which is not done"
            for needed in undone(board, task.depends_on)
        ]
    if isinstance(task, Story):
        problems += _story_claims(board, task, where)
    return problems


def _id(task: Task | str) -> str:
    return task if isinstance(task, str) else task.id


def _story_claims(board: Board, story: Story, where: str) -> list[str]:
    problems: list[str] = []
    if story.status is S.DONE and story.integration is None:
        problems.append(f"{where} without proof of integration")
    if story.status is not S.DONE and story.integration is not None:
        problems.append(f"{where}, but has a proof of integration")
    if story.status in (S.NEEDS_PLAN, S.BLOCKED, S.PLANNING, S.NEEDS_HUMAN, S.CANCELLED):
        return problems
    if story.plan_version < 1 and story.status is not S.NEEDS_ADAPT:
        problems.append(f"{where} without a plan")
    if story.status not in (S.READY_FOR_INTEGRATOR, S.INTEGRATING, S.DONE):
        return problems
    subtasks = [item for item in board.subtasks_of(story.id) if not is_cancelled(item)]
    problems += [f"{where}, but {item.id} is not done" for item in subtasks if not is_done(item)]
    if not any(item.kind is TEST for item in subtasks):
        problems.append(f"{where}, but no test subtask verified it")
    if not story.commit:
        problems.append(f"{where} without a commit")
    return problems


def _counts(board: Board, policy: Policy) -> list[str]:
    """WIP limits, one task per owner, offers within what is free."""
    held = [task for task in tasks_of(board) if task.lease is not None]
    owners = Counter(task.lease.owner for task in held if task.lease is not None)
    problems = [f"{owner} holds {n} tasks" for owner, n in owners.items() if n > 1]
    used, offered = wip(board), Counter(offer.role for offer in board.offers)
    for role in Role:
        limit = policy.wip.of(role)
        if used[role] > limit:
            problems.append(f"{used[role]} tasks of {role.value}, the WIP limit is {limit}")
        elif offered[role] > limit - used[role]:
            problems.append(f"{offered[role]} offers for {role.value}, free {limit - used[role]}")
    for offer in board.offers:
        if not _stands(board, offer):
            problems.append(f"{offer.task} is offered to {offer.role.value}, who can not claim it")
    twice = Counter(offer.task for offer in board.offers)
    return problems + [f"{task_id} is offered {n} times" for task_id, n in twice.items() if n > 1]


def legal(old: Board, new: Board, policy: Policy | None = None) -> tuple[str, ...]:
    """Everything about the step `old` -> `new` that the rules forbid; empty = legal.

    A status may jump only along one row of its table, a number that fences may not go back, and
    `new` must be sound in itself (`invariants`). What a hand may do is less: `editing`.
    """
    problems = list(invariants(new, policy or Policy()))
    if new.revision < old.revision:
        problems.append(f"revision {new.revision} is older than {old.revision}")
    if old.sprint is not None and new.sprint != old.sprint:
        problems.append(f"sprint {old.sprint.number} was changed; close it instead")
    for before in tasks_of(old):
        after = new.find(before.id)
        if after is None:
            problems.append(f"{before.id} vanished; cancel it instead")
        else:
            problems += _step_problems(before, after)
    for task in tasks_of(new):
        if old.find(task.id) is None and not _is_initial(task):
            problems.append(f"{task.id} is new, but already {task.status.value}")
    return tuple(problems)


def _is_initial(task: Task) -> bool:
    if isinstance(task, Story):
        approved = task.source is not None and task.source.approved is not None
        return task.status in (S.NEEDS_PLAN, S.BLOCKED) and not approved
    return task.status in (B.READY, B.AWAITING_TEST, B.BLOCKED)


def _step_problems(before: Task, after: Task) -> list[str]:
    problems: list[str] = []
    if before.status is not after.status and row_for(before, after.status) is None:
        problems.append(
            f"{before.id} can not go from {before.status.value} to {after.status.value}"
        )
    for field in ("attempt", "plan_version", "adapt_round"):
        was, now = getattr(before, field, 0), getattr(after, field, 0)
        if now < was:
            problems.append(f"{before.id}: {field} goes back from {was} to {now}")
    for field in ("story", "kind", "created_at", "source"):
        if getattr(before, field, None) != getattr(after, field, None):
            problems.append(f"{before.id}: {field} can not be changed")
    if is_done(before) and is_done(after):
        kept = ("evidence", "commit", "integration")
        problems += [
            f"{before.id} is done: its {field} can not be changed"
            for field in kept
            if getattr(before, field, None) != getattr(after, field, None)
        ]
    return problems
