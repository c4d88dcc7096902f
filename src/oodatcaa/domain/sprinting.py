"""Opening and closing a sprint, and the stories that an objective becomes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board, Decision, Event, EventKind, Sprint
from oodatcaa.domain.lifecycle import B, initial_story, invariants, is_done, is_finished, move
from oodatcaa.domain.objective import Objective
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.progress import progress
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import Approval, Story, StoryKind, StoryStatus, Subtask, slugify
from oodatcaa.errors import RefusedError


class Carried(Record):
    """What the next sprint begins with: the unfinished stories of sprint `sprint`, the done ones
    that they build on, and the subtasks of both, so that no id and no attempt is used twice."""

    sprint: int = 0
    stories: tuple[Story, ...] = ()
    subtasks: tuple[Subtask, ...] = ()

    @property
    def unfinished(self) -> tuple[Story, ...]:
        return tuple(story for story in self.stories if not is_finished(story))


def open_sprint(
    board: Board,
    now: datetime,
    *,
    sprint: Sprint,
    stories: tuple[Story, ...],
    subtasks: tuple[Subtask, ...] = (),
    by: str = "negotiator",
) -> Decision[Sprint]:
    """A board with `sprint` and `stories`. Raises RefusedError: sprint.open, sprint.no_stories,
    sprint.invalid (everything that is wrong with the stories, at once).

    Stories begin unplanned; only one that was integrated before may come along as done.
    """
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
    opened = board.evolve(sprint=sprint, stories=stories, subtasks=subtasks, offers=())
    problems = list(invariants(opened, Policy()))
    initial = (StoryStatus.NEEDS_PLAN, StoryStatus.BLOCKED, StoryStatus.DONE)
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
        actor=by,
        subject="sprint",
        text=f"sprint {sprint.number} is open: {sprint.title}",
        details=tuple(
            f"{story.id} {story.title}" + (" (done before)" if is_done(story) else "")
            for story in stories
        ),
    )
    return Decision(opened, sprint, (event,))


def close_sprint(board: Board, now: datetime, *, by: str) -> Decision[Carried]:
    """An empty board; the value is what the next sprint starts with, see `carried_from`.

    Raises RefusedError: sprint.none, sprint.busy (naming who works on what).
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
    carried = carried_from(board, now)
    event = Event(
        kind=EventKind.SPRINT,
        at=now,
        actor=by,
        subject="sprint",
        text=f"sprint {sprint.number} is closed: {counted.stories_done} of "
        f"{counted.stories_total} stories integrated ({counted.objective_percent:g} %)",
        details=tuple(f"{story.id} {story.title} moves on" for story in carried.unfinished),
    )
    closed = board.evolve(sprint=None, stories=(), subtasks=(), offers=())
    return Decision(closed, carried, (event,))


def carried_from(board: Board, now: datetime) -> Carried:
    """The unfinished stories as the next sprint starts them, and the done ones they depend on.

    A story that moves on keeps its id, attempt number, plan version, evidence, waivers and what
    people answered, and is planned again; its unfinished subtasks are cancelled but keep their
    ids, so that a late result of this sprint can never count for new work.
    """
    open_ones = [item for item in board.stories if not is_finished(item)]
    wanted = {item.id for item in open_ones}
    front = list(open_ones)
    while front:
        for needed in front.pop().depends_on:
            other = board.story_by_id.get(needed)
            if other is not None and is_done(other) and needed not in wanted:
                wanted.add(needed)
                front.append(other)
    stories = tuple(_carry(item, wanted, board, now) for item in board.stories if item.id in wanted)
    number = board.sprint.number if board.sprint else 0
    subtasks = tuple(
        item
        if is_finished(item)
        else move(item, B.CANCELLED, now, reason=f"sprint {number} was closed before it was done")
        for item in board.subtasks
        if item.story in wanted
    )
    return Carried(sprint=number, stories=stories, subtasks=subtasks)


def _carry(story: Story, wanted: set[str], board: Board, now: datetime) -> Story:
    """Cancelled dependencies can not come any more: they are dropped."""
    needs = tuple(needed for needed in story.depends_on if needed in wanted)
    if is_done(story):
        return story.evolve(depends_on=needs)
    waits = [needed for needed in needs if not is_done(board.story_by_id[needed])]
    return initial_story(
        now,
        id=story.id,
        slug=story.slug,
        kind=story.kind,
        title=story.title,
        goal=story.goal,
        estimate_minutes=story.estimate_minutes,
        depends_on=needs,
        waits=waits,
        created_at=story.created_at,
        attempt=story.attempt,
        plan_version=story.plan_version,
        evidence=story.evidence,
        waivers=story.waivers,
        approval=story.approval,
        lessons=story.lessons,
        source=story.source,
        files=story.files,
        answers=story.answers,
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


def renumbered(ids: list[str], first: int) -> dict[str, str]:
    """Old id -> new one: the same when all of them are free, else in order from `first` on."""
    if all(int(name[1:]) >= first for name in ids):
        return {name: name for name in ids}
    return {name: f"T{first + place:03d}" for place, name in enumerate(ids)}


def stories_for(
    objective: Objective, now: datetime, approval: Approval = Approval.NONE, *, first: int = 1
) -> tuple[Story, ...]:
    """The stories that the objective lists, or else those of a fine-tuning.

    Ids begin at `first`, for none is used twice in a repository; listed ones are kept as long as
    none of them was used.

    In a fine-tuning T002 waits for nobody, so it runs beside T001. Estimates are planning
    estimates in minutes: small ones for the demo model. `approval` is for stories of which the
    objective says nothing.
    """
    default = objective.approval or approval
    if objective.stories:
        listed = renumbered([item.id for item in objective.stories], first)
        return tuple(
            initial_story(
                now,
                id=listed[item.id],
                kind=StoryKind.CUSTOM,
                title=item.title,
                slug=slugify(item.title),
                goal=item.goal,
                depends_on=tuple(listed[needed] for needed in item.depends_on),
                estimate_minutes=item.estimate_minutes,
                approval=item.approval or default,
            )
            for item in objective.stories
        )
    renamed = renumbered([item.id for item in _OUTLINE], first)
    words = {
        "model": "the demo model" if objective.model == "demo" else objective.model,
        "data": "the demo data" if objective.data == "demo" else objective.data,
        "limit": objective.memory_limit_text,
        "acceptance": "; ".join(str(bound) for bound in objective.acceptance),
    }
    return tuple(
        initial_story(
            now,
            id=renamed[item.id],
            kind=item.kind,
            title=item.title,
            slug=slugify(item.title),
            goal=item.goal.format(**words),
            depends_on=tuple(renamed[needed] for needed in item.depends_on),
            estimate_minutes=item.demo_minutes if objective.model == "demo" else item.minutes,
            approval=default,
        )
        for item in _OUTLINE
    )
