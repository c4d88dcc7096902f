"""The same plan once more for what failed: finished work is kept, the rest gets new subtasks."""

from __future__ import annotations

from oodatcaa.domain.board import Board
from oodatcaa.domain.plan import AdaptationNote, Plan, StepKind, SubtaskPlan
from oodatcaa.domain.planning import free_subtask_id
from oodatcaa.domain.rungs import FailureClass, classify
from oodatcaa.domain.states import is_done
from oodatcaa.domain.task import Failure, Story, SubtaskKind
from oodatcaa.roles.desk import Desk


def quick_fix(
    desk: Desk, board: Board, story: Story, previous: Plan, failure: Failure, note: AdaptationNote
) -> Plan:
    """Version n+1 of `previous` with the same steps.

    Done again are the builds that did not get done, what a person said no to, and what depends on
    them; when all were done and a test or the merge failed, the last build in which an agent
    worked. Nothing is built again when only the tester's agent failed; everything is after a
    conflict, for the branch begins again at the target.
    """
    again = _again(board, previous, failure)
    names: dict[str, str] = {}
    taken = {SubtaskKind.BUILD: 0, SubtaskKind.TEST: 0}
    for item in previous.subtasks:
        if item.id in again:
            names[item.id] = free_subtask_id(board, story.id, item.kind, taken[item.kind])
            taken[item.kind] += 1
    subtasks = tuple(_renamed(item, names) for item in previous.subtasks)
    keeps = tuple(item.id for item in previous.subtasks if item.id not in again)
    return previous.evolve(
        version=previous.version + 1,
        created_at=desk.now(),
        author=desk.agent,
        adaptation=note,
        subtasks=subtasks,
        keeps=keeps,
        exit_gates={names.get(name, name): gates for name, gates in previous.exit_gates.items()},
    )


def _renamed(item: SubtaskPlan, names: dict[str, str]) -> SubtaskPlan:
    return item.evolve(
        id=names.get(item.id, item.id),
        depends_on=tuple(names.get(needed, needed) for needed in item.depends_on),
    )


def _again(board: Board, plan: Plan, failure: Failure) -> frozenset[str]:
    """The subtasks that have to be done once more: all tests, and the builds that it takes."""
    if classify(failure) is FailureClass.CONFLICT:
        return frozenset(item.id for item in plan.subtasks)
    builds = [item for item in plan.subtasks if item.kind is SubtaskKind.BUILD]
    again = {item.id for item in plan.subtasks if item.kind is SubtaskKind.TEST}
    undone = {item.id for item in builds if not _done(board, item.id)}
    if not undone and classify(failure) is not FailureClass.AGENT_ERROR:
        by_agent = [item for item in builds if _has_agent(plan, item)]
        undone = {(by_agent or builds)[-1].id}
    again |= undone
    again |= {item.id for item in builds if item.id == failure.task}
    while True:
        more = {item.id for item in builds if item.id not in again and again & set(item.depends_on)}
        if not more:
            return frozenset(again)
        again |= more


def _done(board: Board, subtask: str) -> bool:
    found = board.subtask_by_id.get(subtask)
    return found is not None and is_done(found)


def _has_agent(plan: Plan, item: SubtaskPlan) -> bool:
    return any(plan.steps[number - 1].kind is StepKind.AGENT for number in item.steps)
