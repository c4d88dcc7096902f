"""What a person may change by writing SPRINT_QUEUE.json by hand.

A status is a claim about work that was measured, so an edit may only cancel; everything that the
crew itself vouches for (leases, attempts, evidence, commits, proofs, limits that people raised on
the record) has a command that checks it and says who did it.
"""

from __future__ import annotations

from collections.abc import Iterable

from oodatcaa.domain.board import Board
from oodatcaa.domain.lifecycle import legal
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.states import is_cancelled, tasks_of
from oodatcaa.domain.task import Story, Subtask, Task

EDITABLE = frozenset({"title", "goal", "reason", "estimate_minutes", "depends_on"})
"""Fields that are a person's to decide; `status` besides, to cancel."""
_NEW = EDITABLE | {
    *("id", "slug", "kind", "status", "status_since", "created_at"),
    *("source", "files", "story", "steps", "plan_version"),
}
"""What a new task may bring along; `source` and `status` are judged by `legal`."""


def edit_problems(old: Board, new: Board, policy: Policy | None = None) -> tuple[str, ...]:
    """Everything about the step `old` -> `new` that a hand may not do; empty = it may.

    Stricter than `legal`, which also lets the crew's own steps pass.
    """
    problems = list(legal(old, new, policy))
    for task in tasks_of(new):
        before = old.find(task.id)
        if before is None:
            problems += _new_problems(new, task)
        elif before is not task and before != task:
            problems += _edit_problems(before, task)
    offered = set(old.offers)
    problems += [
        f"{offer.task}: an offer is made by negotiation, not by hand; run: oodatcaa negotiate"
        for offer in new.offers
        if offer not in offered
    ]
    return tuple(dict.fromkeys(problems))


def _edit_problems(before: Task, after: Task) -> list[str]:
    if type(before) is not type(after):
        return [f"{before.id}: a story can not become a subtask, nor the other way round"]
    changed = _differing(before, after)
    cancels = is_cancelled(after) and not is_cancelled(before)
    allowed = EDITABLE | ({"status"} if cancels else set())
    if cancels and after.lease is None:
        allowed |= {"lease"}  # who held it has nothing to hold any more
    return [_refusal(before, after, field) for field in changed if field not in allowed]


def _refusal(before: Task, after: Task, field: str) -> str:
    if field == "status":
        was, now = before.status.value, after.status.value
        return f"{before.id}: status can not be set from {was} to {now} by hand, only to cancelled"
    return f"{before.id}: {field} can not be changed by hand"


def _differing(before: Task, after: Task) -> Iterable[str]:
    return [
        field
        for field in type(before).model_fields
        if getattr(before, field) != getattr(after, field)
    ]


def _new_problems(board: Board, task: Task) -> list[str]:
    """A new task begins at nothing: no work is done for it, and nobody holds it."""
    fields = type(task).model_fields
    problems = [
        f"{task.id} is new: {name} can not be given by hand"
        for name, field in fields.items()
        if name not in _NEW and getattr(task, name) != field.get_default()
    ]
    if isinstance(task, Story) and task.plan_version:
        problems.append(f"{task.id} is new: plan_version can not be given by hand")
    story = board.story_by_id.get(task.story) if isinstance(task, Subtask) else None
    if isinstance(task, Subtask) and story is not None and task.plan_version != story.plan_version:
        problems.append(
            f"{task.id} is new: plan_version is {task.plan_version}, but {story.id} is at "
            f"{story.plan_version}"
        )
    return problems
