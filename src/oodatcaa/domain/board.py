"""The whole state of a sprint as one frozen value, and what changes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import attrgetter, indexOf
from typing import Generic, Literal, NamedTuple, TypeVar

from pydantic import Field, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record, Said, SomeSaid, Utc
from oodatcaa.domain.task import Role, Story, Subtask, Task, TaskId

SCHEMA_VERSION = 1


class Sprint(Record):
    number: PositiveInt
    objective_id: NonEmpty
    objective_sha256: str
    title: NonEmpty
    target_branch: NonEmpty
    memory_limit_bytes: PositiveInt
    max_adapt_rounds: int = Field(default=3, ge=0)
    max_sprint_rounds: int = Field(
        default=15, ge=0, description="adaptation rounds of all stories together"
    )
    created_at: Utc


class Offer(Record):
    """Negotiation offers, people see it as assigned; only a claim moves a task."""

    task: TaskId
    role: Role
    rank: PositiveInt = Field(description="1 = first along the critical path for this role")


class Since(NamedTuple):
    """The tasks of an earlier board, and those that were put since."""

    stories: tuple[Story, ...]
    subtasks: tuple[Subtask, ...]
    puts: dict[str, Task]


class Board(Record):
    """Counters and percentages are derived from this, never stored in it."""

    schema_version: Literal[1] = 1
    revision: int = Field(default=0, ge=0)
    sprint: Sprint | None = None
    stories: tuple[Story, ...] = ()
    subtasks: tuple[Subtask, ...] = ()
    offers: tuple[Offer, ...] = ()

    @cached_property
    def story_by_id(self) -> dict[str, Story]:
        return {story.id: story for story in self.stories}

    @cached_property
    def subtask_by_id(self) -> dict[str, Subtask]:
        return {subtask.id: subtask for subtask in self.subtasks}

    def find(self, task_id: str) -> Task | None:
        return self.story_by_id.get(task_id) or self.subtask_by_id.get(task_id)

    @cached_property
    def _by_story(self) -> dict[str, tuple[Subtask, ...]]:
        found: dict[str, list[Subtask]] = {}
        for item in self.subtasks:
            found.setdefault(item.story, []).append(item)
        return {story: tuple(items) for story, items in found.items()}

    def subtasks_of(self, story_id: str) -> tuple[Subtask, ...]:
        return self._by_story.get(story_id, ())

    def with_task(self, task: Task) -> Board:
        """Replace the task of the same id, or append a new one. Order is kept."""
        stories, subtasks = self.stories, self.subtasks
        if isinstance(task, Story):
            stories = _replace(stories, task, self.__dict__.get("story_by_id"))
        else:
            subtasks = _replace(subtasks, task, self.__dict__.get("subtask_by_id"))
        # Its parts are records already: to validate a thousand of them again says nothing new.
        made = Board.assembled(
            {
                "schema_version": self.schema_version,
                "revision": self.revision,
                "sprint": self.sprint,
                "stories": stories,
                "subtasks": subtasks,
                "offers": self.offers,
            }
        )
        since = self.__dict__.get("_since") or Since(self.stories, self.subtasks, {})
        made.__dict__["_since"] = Since(
            since.stories, since.subtasks, {**since.puts, task.id: task}
        )
        return made

    @property
    def since(self) -> Since | None:
        """What `with_task` put since it was first used on a board; None when that is not known."""
        return self.__dict__.get("_since")


TaskT = TypeVar("TaskT", Story, Subtask)
_ID = attrgetter("id")


def _replace(
    tasks: tuple[TaskT, ...], task: TaskT, known: dict[str, TaskT] | None
) -> tuple[TaskT, ...]:
    """`known` is the index of `tasks` by id, if it was asked for before: it has their order."""
    whole = known is not None and len(known) == len(tasks)  # else an id is used twice
    try:
        place = indexOf(known if known and whole else map(_ID, tasks), task.id)
    except ValueError:
        return tasks + (task,)
    replaced = list(tasks)
    replaced[place] = task
    return tuple(replaced)


class EventKind(StrEnum):
    TRANSITION = "transition"
    CLAIM = "claim"
    RELEASE = "release"
    EXPIRE = "expire"
    REFUSED = "refused"
    NEGOTIATION = "negotiation"
    SPRINT = "sprint"
    PLAN = "plan"
    GATE = "gate"
    WAIVER = "waiver"
    MANUAL = "manual"
    MERGE = "merge"
    NOTE = "note"


class Event(Record):
    """One entry of the history; AGENT_LOG.md and reports are made from these."""

    kind: EventKind
    at: Utc
    actor: NonEmpty = Field(description="agent name, a person's name, or 'negotiator'")
    role: Role | None = None
    subject: NonEmpty = Field(description="a task id, or 'sprint'")
    before: str | None = None
    after: str | None = None
    attempt: int | None = None
    text: SomeSaid
    details: tuple[Said, ...] = ()
    evidence: tuple[str, ...] = ()


T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """What a pure function decided. The same board object and no events = nothing is written."""

    board: Board
    value: T
    events: tuple[Event, ...] = ()
