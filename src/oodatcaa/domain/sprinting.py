"""Opening and closing a sprint, and the stories that an objective becomes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from oodatcaa.domain.board import Board, Decision, Event, EventKind, Sprint
from oodatcaa.domain.lifecycle import initial_story, invariants, is_done, is_finished
from oodatcaa.domain.objective import Objective
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.progress import progress
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import Approval, Story, StoryKind, StoryStatus, slugify
from oodatcaa.errors import RefusedError


def open_sprint(
    board: Board, now: datetime, *, sprint: Sprint, stories: tuple[Story, ...]
) -> Decision[Sprint]:
    """A board with `sprint` and `stories`. Raises RefusedError: sprint.open, sprint.no_stories,
    sprint.invalid (everything that is wrong with the stories, at once)."""
    if board.sprint is not None:
        raise RefusedError(
            "sprint.open",
            f"sprint {board.sprint.number} ({board.sprint.title}) is open",
            hint="oodatcaa sprint close",
        )
    if not stories:
        raise RefusedError(
            "sprint.no_stories", "a sprint needs at least one story", hint="oodatcaa sprint new"
        )
    opened = board.evolve(sprint=sprint, stories=stories, subtasks=(), offers=())
    problems = list(invariants(opened, Policy()))
    initial = (StoryStatus.NEEDS_PLAN, StoryStatus.BLOCKED)
    problems += [
        f"{story.id} starts as {story.status.value}"
        for story in stories
        if story.status not in initial
    ]
    if problems:
        raise RefusedError(
            "sprint.invalid",
            f"the stories do not make a sprint: {problems[0]}",
            hint="oodatcaa sprint new",
            details=problems,
        )
    event = Event(
        kind=EventKind.SPRINT,
        at=now,
        actor="negotiator",
        subject="sprint",
        text=f"sprint {sprint.number} is open: {sprint.title}",
        details=tuple(f"{story.id} {story.title}" for story in stories),
    )
    return Decision(opened, sprint, (event,))


def close_sprint(board: Board, now: datetime, *, by: str) -> Decision[tuple[Story, ...]]:
    """An empty board; the value are the unfinished stories as the next sprint starts them.

    A story that moves on keeps its id, attempt number, plan version and waivers, and is planned
    again. Raises RefusedError: sprint.none, sprint.busy (naming who works on what).
    """
    sprint = board.sprint
    if sprint is None:
        raise RefusedError("sprint.none", "no sprint is open", hint="oodatcaa sprint new")
    held = [
        f"{task.id} is held by {task.lease.owner}"
        for task in tasks_of(board)
        if task.lease is not None
    ]
    if held:
        raise RefusedError(
            "sprint.busy",
            f"{len(held)} task{'s are' if len(held) != 1 else ' is'} being worked on: {held[0]}",
            hint="stop the crew, or oodatcaa release or cancel them",
            details=held,
        )
    counted = progress(board)
    carried = tuple(_carry(board, item, now) for item in board.stories if not is_finished(item))
    event = Event(
        kind=EventKind.SPRINT,
        at=now,
        actor=by,
        subject="sprint",
        text=f"sprint {sprint.number} is closed: {counted.stories_done} of "
        f"{counted.stories_total} stories integrated ({counted.objective_percent:g} %)",
        details=tuple(f"{story.id} {story.title} moves on" for story in carried),
    )
    closed = board.evolve(sprint=None, stories=(), subtasks=(), offers=())
    return Decision(closed, carried, (event,))


def _carry(board: Board, story: Story, now: datetime) -> Story:
    """Done dependencies are satisfied, cancelled ones can not come any more: both are dropped."""
    open_ones = {item.id for item in board.stories if not is_finished(item) and not is_done(item)}
    return initial_story(
        now,
        id=story.id,
        slug=story.slug,
        kind=story.kind,
        title=story.title,
        goal=story.goal,
        estimate_minutes=story.estimate_minutes,
        depends_on=tuple(needed for needed in story.depends_on if needed in open_ones),
        created_at=story.created_at,
        attempt=story.attempt,
        plan_version=story.plan_version,
        waivers=story.waivers,
        approval=story.approval,
        lessons=story.lessons,
    )


@dataclass(frozen=True)
class _Outline:
    id: str
    kind: StoryKind
    title: str
    goal: str
    depends_on: tuple[str, ...]
    demo_minutes: int
    minutes: int


_OUTLINE = (
    _Outline(
        "T001",
        StoryKind.FRAMEWORK,
        "Choose the framework and profile memory",
        "Pick the training framework from facts probed on this machine, load {model}, check its "
        "inference, and profile one training step against the limit of {limit}.",
        (),
        3,
        90,
    ),
    _Outline(
        "T002",
        StoryKind.DATA,
        "Build and validate the data",
        "Build the train, valid and test splits of {data} with no file in two of them, validate "
        "every line, and write the data card.",
        (),
        2,
        45,
    ),
    _Outline(
        "T003",
        StoryKind.TRAIN,
        "Train with QLoRA",
        "Train a QLoRA adapter for {model} on {data} inside {limit}.",
        ("T001", "T002"),
        8,
        120,
    ),
    _Outline(
        "T004",
        StoryKind.EVALUATE,
        "Evaluate against the base model",
        "Compare adapter and base model on the held-out test split, example by example: "
        "{acceptance}.",
        ("T003",),
        4,
        45,
    ),
    _Outline(
        "T005",
        StoryKind.PUBLISH,
        "Publish the adapter",
        "Write the model card and the changelog entry; the adapter itself stays in the run store.",
        ("T004",),
        2,
        20,
    ),
)


def stories_for(
    objective: Objective, now: datetime, approval: Approval = Approval.NONE
) -> tuple[Story, ...]:
    """The stories that the objective lists, or else those of a fine-tuning.

    In a fine-tuning T002 waits for nobody, so it runs beside T001. Estimates are planning
    estimates in minutes: small ones for the demo model. `approval` is for stories of which the
    objective says nothing.
    """
    default = objective.approval or approval
    if objective.stories:
        return tuple(
            initial_story(
                now,
                id=item.id,
                kind=StoryKind.CUSTOM,
                title=item.title,
                slug=slugify(item.title),
                goal=item.goal,
                depends_on=item.depends_on,
                estimate_minutes=item.estimate_minutes,
                approval=item.approval or default,
            )
            for item in objective.stories
        )
    words = {
        "model": "the demo model" if objective.model == "demo" else objective.model,
        "data": "the demo data" if objective.data == "demo" else objective.data,
        "limit": objective.memory_limit_text,
        "acceptance": "; ".join(str(bound) for bound in objective.acceptance),
    }
    return tuple(
        initial_story(
            now,
            id=item.id,
            kind=item.kind,
            title=item.title,
            slug=slugify(item.title),
            goal=item.goal.format(**words),
            depends_on=item.depends_on,
            estimate_minutes=item.demo_minutes if objective.model == "demo" else item.minutes,
            approval=default,
        )
        for item in _OUTLINE
    )
