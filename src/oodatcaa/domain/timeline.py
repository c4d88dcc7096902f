"""How long each task was in which state: read from the history's events, nothing is stored.

A state that finishes a task has no length; every other one is a *spell* from the event that began
it to the event that ended it. The spells of a task follow each other without a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board, Event
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import Story, Subtask, Task

FINISHED_WORDS = frozenset({"done", "cancelled"})
WORK = {
    "planning": "a planner works",
    "in_progress": "a builder works",
    "testing": "a tester works",
    "adapting": "a refiner works",
    "integrating": "an integrator works",
}
WAIT = {
    "needs_plan": "waits for a planner",
    "ready": "waits for a builder",
    "awaiting_test": "waits for a tester",
    "needs_adapt": "waits for a refiner",
    "ready_for_integrator": "waits for an integrator",
    "blocked": "waits for other tasks",
    "needs_human": "waits for a person",
}
THROUGH = {"planning_complete": "its subtasks are worked on"}


def meaning(status: str) -> str:
    """What a task in this state does, in words."""
    return WORK.get(status) or WAIT.get(status) or THROUGH.get(status) or status


class Spell(Record):
    """One stay of a task in one state. `end` is None while it lasts."""

    status: NonEmpty
    start: Utc
    end: Utc | None = None
    attempt: int | None = None

    def seconds(self, now: datetime) -> float:
        return max(0.0, ((self.end or now) - self.start).total_seconds())


class Timeline(Record):
    """One task's stays, oldest first. `finished_at` is when it became `outcome`."""

    task: NonEmpty
    story: NonEmpty
    kind: NonEmpty
    spells: tuple[Spell, ...]
    finished_at: Utc | None = None
    outcome: str = ""

    @property
    def start(self) -> datetime | None:
        return self.spells[0].start if self.spells else self.finished_at

    def work(self) -> tuple[Spell, ...]:
        """Stays in which an agent held this very task."""
        if self.kind != "story":
            return tuple(
                spell for spell in self.spells if spell.status in ("in_progress", "testing")
            )
        return tuple(spell for spell in self.spells if spell.status in WORK)

    def work_seconds(self, now: datetime) -> float:
        return sum(spell.seconds(now) for spell in self.work())


def timelines(board: Board, events: Iterable[Event]) -> dict[str, Timeline]:
    """Every task of the board by its id. Time before the sprint began does not count.

    Where the history and the board disagree (somebody edited the queue) the board's `status_since`
    begins the last stay.
    """
    moves: dict[str, list[Event]] = {}
    for event in events:
        if event.after is not None and event.after != event.before:
            moves.setdefault(event.subject, []).append(event)
    return {task.id: _timeline(board, task, moves.get(task.id, [])) for task in tasks_of(board)}


def _timeline(board: Board, task: Task, moves: Sequence[Event]) -> Timeline:
    opened = board.sprint.created_at if board.sprint else task.created_at
    moment = max(task.created_at, opened)
    status = (moves[0].before if moves else None) or task.status.value
    attempt: int | None = None
    spells: list[Spell] = []
    steps = [(event.at, event.after or "", event.attempt) for event in moves]
    if (steps[-1][1] if steps else status) != task.status.value:
        steps.append((task.status_since, task.status.value, None))
    for at, after, number in steps:
        at = max(at, moment)
        if status not in FINISHED_WORDS:
            spells.append(Spell(status=status, start=moment, end=at, attempt=attempt))
        status, moment, attempt = after, at, number
    finished = status in FINISHED_WORDS
    if not finished:
        spells.append(Spell(status=status, start=moment, attempt=attempt))
    return Timeline(
        task=task.id,
        story=task.story if isinstance(task, Subtask) else task.id,
        kind="story" if isinstance(task, Story) else task.kind.value,
        spells=tuple(spells),
        finished_at=moment if finished else None,
        outcome=status if finished else "",
    )


def covered(spells: Iterable[Spell], now: datetime) -> float:
    """Seconds in which at least one of the spells lasted: overlaps count once."""
    total, reach = 0.0, None
    for start, end in sorted((spell.start, spell.end or now) for spell in spells):
        begin = start if reach is None or start > reach else reach
        total += max(0.0, (end - begin).total_seconds())
        reach = end if reach is None else max(reach, end)
    return total
