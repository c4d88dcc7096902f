"""Deals steps out to subtasks, and numbers them on from what the story already has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oodatcaa.domain.board import Board
from oodatcaa.domain.plan import Plan, Step, StepKind, SubtaskPlan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Subtask, SubtaskId, SubtaskKind, SubtaskStatus
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.planner.design import Design, Group
from oodatcaa.roles.planner.inputs import PlanInputs

LETTER = {SubtaskKind.BUILD: "B", SubtaskKind.TEST: "T"}


def known_ids(inputs: PlanInputs, previous: Plan | None) -> tuple[str, ...]:
    """Every subtask id that the story ever had, as far as board and plan tell."""
    ids = [subtask.id for subtask in inputs.board.subtasks_of(inputs.story.id)]
    if previous is not None:
        ids += [*(subtask.id for subtask in previous.subtasks), *previous.keeps]
    return tuple(dict.fromkeys(ids))


def next_number(ids: Iterable[str], kind: SubtaskKind) -> int:
    """1 + the largest number in use for this kind: ids of cancelled subtasks stay taken."""
    letter = LETTER[kind]
    used = [int(i.split("-")[1][1:]) for i in ids if i.split("-")[1][0] == letter]
    return max(used, default=0) + 1


def kept_steps(inputs: PlanInputs, previous: Plan, keeps: Sequence[str]) -> frozenset[int]:
    """The steps that the kept subtasks did. Raises OodatcaaError listing every wrong keep."""
    planned = {subtask.id: subtask.steps for subtask in previous.subtasks}
    done: set[int] = set()
    problems = []
    for name in keeps:
        there: Subtask | None = inputs.board.subtask_by_id.get(name)
        if there is None and name not in planned:
            problems.append(f"{name}: no such subtask")
        elif not name.startswith(inputs.story.id + "-"):
            problems.append(f"{name}: belongs to another story")
        elif there is not None and there.status is not SubtaskStatus.DONE:
            problems.append(f"{name}: is {there.status.value}, only a done subtask can be kept")
        else:
            done.update(there.steps if there is not None else planned[name])
    if len(set(keeps)) != len(keeps):
        problems.append("a subtask is named twice")
    if problems:
        raise OodatcaaError(
            "plan.bad_keep",
            f"{inputs.story.id}: {len(problems)} of the subtasks to keep can not be kept",
            hint=f"oodatcaa show {inputs.story.id} lists its subtasks",
            details=problems,
        )
    return frozenset(done)


BACKEND_STEPS = frozenset(StepKind) - {
    StepKind.PROBE_FRAMEWORKS,
    StepKind.BUILD_DATA,
    StepKind.VALIDATE_DATA,
    StepKind.QUALITY_GATES,
    StepKind.COMMAND,
}
PARAMETER_STEPS = frozenset(
    {
        StepKind.PROFILE_MEMORY,
        StepKind.TRAIN,
        StepKind.EVALUATE,
        StepKind.COMPARE_GENERATIONS,
        StepKind.MODEL_CARD,
    }
)
PARAMETER_DOCUMENTS = frozenset({"training", "evaluation", "publication"})


def keepable(previous: Plan, board: Board, *, params: QLoRA, backend: str) -> tuple[SubtaskId, ...]:
    """The done build subtasks that new parameters or a new backend leave valid, in order.

    Empty when nothing would be left to do: then the next version is a start-over. What it
    returns, `adapted_plan` accepts as `keeps`.
    """
    left = {step.number for step in previous.steps}
    kept = []
    for subtask in board.subtasks_of(previous.story):
        known = subtask.id in previous.keeps or any(subtask.id == s.id for s in previous.subtasks)
        done = subtask.status is SubtaskStatus.DONE and subtask.kind is SubtaskKind.BUILD
        steps = [step for step in previous.steps if step.number in subtask.steps]
        if known and done and not any(_stale(s, previous, params, backend) for s in steps):
            kept.append(subtask.id)
            left -= set(subtask.steps)
    return tuple(sorted(kept)) if left else ()


def _stale(step: Step, previous: Plan, params: QLoRA, backend: str) -> bool:
    if backend != previous.backend and step.kind in BACKEND_STEPS:
        return not (step.kind is StepKind.DOCUMENT and step.document == "data_card")
    if params == previous.params:
        return False
    return step.kind in PARAMETER_STEPS or step.document in PARAMETER_DOCUMENTS


def remaining(design: Design, done: frozenset[int]) -> tuple[Group, ...]:
    """The groups with the steps that are still to be done; wholly done groups are dropped."""
    left = []
    for group in design.groups:
        steps = tuple(number for number in group.steps if number not in done)
        if steps:
            left.append(Group(group.title, steps, group.gates, group.asks))
    return tuple(left)


def deal(
    inputs: PlanInputs,
    design: Design,
    groups: Sequence[Group],
    *,
    ids: Sequence[str],
    keeps: Sequence[str],
) -> tuple[SubtaskPlan, ...]:
    """One build subtask a group, in a chain behind the kept ones, and one test subtask."""
    story = inputs.story.id
    minutes: dict[int, int] = {s.number: s.estimate_minutes for s in design.steps}
    number = next_number(ids, SubtaskKind.BUILD)
    before = tuple(sorted(keep for keep in keeps if keep.split("-")[1][0] == "B"))[-1:]
    subtasks = []
    for place, group in enumerate(groups):
        name = f"{story}-B{number + place:02d}"
        subtasks.append(
            SubtaskPlan(
                id=name,
                kind=SubtaskKind.BUILD,
                title=group.title,
                steps=group.steps,
                depends_on=before,
                estimate_minutes=max(1, sum(minutes[n] for n in group.steps)),
                asks=group.asks,
            )
        )
        before = (name,)
    return (
        *subtasks,
        SubtaskPlan(
            id=f"{story}-T{next_number(ids, SubtaskKind.TEST):02d}",
            kind=SubtaskKind.TEST,
            title=f"Verify all {len(design.checks.acceptance)} acceptance criteria",
            depends_on=before,
            estimate_minutes=max(1, design.checks.minutes),
            asks=design.checks.asks,
        ),
    )


def deliverables(steps: Sequence[Step]) -> tuple[str, ...]:
    paths = [path for step in steps for path in step.deliverables]
    return tuple(dict.fromkeys(paths))
