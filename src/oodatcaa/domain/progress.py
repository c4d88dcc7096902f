"""Counters, percentages and the critical path: derived from the board, never stored in it."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board
from oodatcaa.domain.lifecycle import is_cancelled, is_done, is_finished
from oodatcaa.domain.task import Story, StoryStatus, Subtask, SubtaskStatus, Task

INTEGRATION_MINUTES = 1
"""Nominal minutes of a story that only has to be integrated; orders offers, is never reported."""

TaskT = TypeVar("TaskT", Story, Subtask)


class Progress(Record):
    """`objective_percent` counts integrated stories only, weighted by their estimated minutes;
    cancelled stories no longer belong to the objective. Minutes are planning estimates."""

    stories: dict[str, int]
    subtasks: dict[str, int]
    objective_percent: float
    stories_done: int
    stories_total: int
    subtasks_done: int
    subtasks_total: int
    remaining_minutes: int
    blocked: tuple[str, ...]
    needs_human: tuple[str, ...]


def progress(board: Board) -> Progress:
    """The counters of this board. Cancelled tasks are listed by status but not in the totals."""
    stories = [story for story in board.stories if not is_cancelled(story)]
    subtasks = [item for item in board.subtasks if not is_cancelled(item)]
    live: tuple[Task, ...] = (*stories, *subtasks)
    weight = sum(story.estimate_minutes for story in stories)
    done = sum(story.estimate_minutes for story in stories if is_done(story))
    blocked = [task for task in live if task.status.value == "blocked"]
    human = [task for task in live if task.status.value == "needs_human"]
    return Progress(
        stories=dict(Counter(story.status.value for story in board.stories)),
        subtasks=dict(Counter(item.status.value for item in board.subtasks)),
        objective_percent=round(100.0 * done / weight, 1) if weight else 0.0,
        stories_done=sum(map(is_done, stories)),
        stories_total=len(stories),
        subtasks_done=sum(map(is_done, subtasks)),
        subtasks_total=len(subtasks),
        remaining_minutes=sum(remaining_work(board, story) for story in stories),
        blocked=tuple(f"{task.id}: {task.reason}" for task in blocked),
        needs_human=tuple(f"{task.id}: {task.reason}" for task in human),
    )


def remaining_work(board: Board, story: Story) -> int:
    """Estimated minutes of work left in a story, all agents together."""
    if is_finished(story):
        return 0
    open_subtasks = _open_subtasks(board, story)
    if not _is_planned(story) or not open_subtasks:
        return INTEGRATION_MINUTES if _only_integration(story) else story.estimate_minutes
    return sum(item.estimate_minutes for item in open_subtasks)


def longest_paths(board: Board) -> dict[str, int]:
    """Task id -> minutes from its start to the end of everything that waits for it.

    A story's chain goes through its dependents; a subtask's through the subtasks that depend on
    it and then through its story's dependents. Cycles, which `invariants` reports, are cut.
    """
    spans = {story.id: _span(board, story) for story in board.stories}
    paths = _chains(board.stories, spans)
    for story in board.stories:
        own = {item.id: item.estimate_minutes for item in _open_subtasks(board, story)}
        after = paths[story.id] - spans[story.id]
        chains = _chains(board.subtasks_of(story.id), own)
        paths |= {task: minutes + after for task, minutes in chains.items()}
    return paths


def critical_path(board: Board) -> tuple[tuple[str, ...], int]:
    """(story ids, minutes) of the longest chain of unfinished stories; ((), 0) when none is."""
    paths = longest_paths(board)
    front = [story for story in board.stories if not is_finished(story)]
    chain: list[str] = []
    total = 0
    while front:
        story = min(front, key=lambda item: (-paths[item.id], item.id))
        total = total or paths[story.id]
        chain.append(story.id)
        front = [
            item
            for item in board.stories
            if story.id in item.depends_on and not is_finished(item) and item.id not in chain
        ]
    return tuple(chain), total


def _is_planned(story: Story) -> bool:
    return story.status in (StoryStatus.PLANNING_COMPLETE, StoryStatus.NEEDS_HUMAN)


def _only_integration(story: Story) -> bool:
    return story.status in (
        StoryStatus.READY_FOR_INTEGRATOR,
        StoryStatus.INTEGRATING,
        StoryStatus.PLANNING_COMPLETE,
    )


def _open_subtasks(board: Board, story: Story) -> list[Subtask]:
    return [
        item
        for item in board.subtasks_of(story.id)
        if item.status not in (SubtaskStatus.DONE, SubtaskStatus.CANCELLED)
    ]


def _span(board: Board, story: Story) -> int:
    """Minutes a story still takes when enough agents work on it."""
    if is_finished(story):
        return 0
    own = {item.id: item.estimate_minutes for item in _open_subtasks(board, story)}
    if not _is_planned(story) or not own:
        return remaining_work(board, story)
    return max(_chains(board.subtasks_of(story.id), own).values())


def _chains(tasks: tuple[TaskT, ...], minutes: dict[str, int]) -> dict[str, int]:
    """Longest chain of minutes from each task through the tasks that depend on it."""
    dependents: dict[str, list[str]] = {task.id: [] for task in tasks}
    for task in tasks:
        for needed in task.depends_on:
            if needed in dependents:
                dependents[needed].append(task.id)
    found: dict[str, int] = {}

    def chain(task_id: str, above: frozenset[str]) -> int:
        if task_id in above:
            return 0
        if task_id not in found:
            below = [chain(item, above | {task_id}) for item in dependents[task_id]]
            found[task_id] = minutes.get(task_id, 0) + max(below, default=0)
        return found[task_id]

    for task in tasks:
        chain(task.id, frozenset())
    return found
