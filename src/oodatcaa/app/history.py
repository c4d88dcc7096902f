"""The history of this sprint and of those before it: entries of the log, and their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.app.project import STATE_DIR, Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.metrics import SprintMetrics, measure
from oodatcaa.domain.ports import Logged
from oodatcaa.errors import RefusedError, StateError
from oodatcaa.state.log import ARCHIVE, LOG_FILE, read_log, wanted
from oodatcaa.state.snapshot import QUEUE_FILE, QueueFile

HISTORY = STATE_DIR / "history"


@dataclass(frozen=True)
class Entry:
    """One entry of the history. `sprint` is None for what happened between two sprints."""

    sprint: int | None
    logged: Logged


def entries(
    project: Project,
    *,
    sprint: int | None = None,
    everything: bool = False,
    task: str = "",
    agent: str = "",
    since: datetime | None = None,
) -> Iterator[Entry]:
    """Oldest first: of the open sprint, of `sprint`, or of every sprint that is kept.

    A story's id means its subtasks too. Raises RefusedError sprint.unknown.
    """
    now = project.board().sprint
    current = now.number if now is not None else None
    if sprint is not None and sprint != current:
        sources = [(sprint, read_log(archived_sprint(project, sprint)))]
    else:
        old = archived_sprints(project) if everything else {}
        sources = [(number, read_log(old[number])) for number in sorted(old) if number != current]
        sources.append((current, project.store.history()))  # type: ignore[arg-type]
    for number, found in sources:
        for logged in found:
            if wanted(logged, task or None, agent or None, since):
                yield Entry(number, logged)


def archived_sprints(project: Project) -> dict[int, Path]:
    """Closed sprints and where they lie: the local archive, else the copy in git's history."""
    found: dict[int, Path] = {}
    for parent in (project.root / HISTORY, project.work / ARCHIVE):
        for path in parent.glob("sprint-*"):
            if path.name[7:].isdigit() and (path / LOG_FILE).exists():
                found[int(path.name[7:])] = path
    return found


def archived_sprint(project: Project, number: int) -> Path:
    """Raises RefusedError sprint.unknown naming those that there are."""
    known = archived_sprints(project)
    if number not in known:
        there = ", ".join(str(one) for one in sorted(known)) or "none"
        raise RefusedError(
            "sprint.unknown",
            f"there is no sprint {number}; closed sprints that are kept here: {there}",
            hint="oodatcaa log --all",
        )
    return known[number]


def archived_board(folder: Path) -> Board:
    """The last board of a closed sprint. Raises StateError sprint.unreadable."""
    path = folder / QUEUE_FILE
    try:
        return QueueFile.model_validate(json.loads(path.read_bytes())).board()
    except (OSError, ValueError, ValidationError) as error:
        raise StateError(
            "sprint.unreadable",
            f"{path} can not be read: {str(error).splitlines()[0]}",
            hint="put it back from git: git log -- .oodatcaa/history",
        ) from error


def closed_task(project: Project, task: str) -> tuple[int, Board] | None:
    """The newest closed sprint that had the task, and its last board; None when none had it.

    Raises StateError sprint.unreadable.
    """
    for number, folder in sorted(archived_sprints(project).items(), reverse=True):
        board = archived_board(folder)
        if board.find(task) is not None:
            return number, board
    return None


def sprint_metrics(project: Project, sprint: int | None = None) -> SprintMetrics:
    """The numbers of the open sprint up to now, or of a closed one up to its last entry.

    Raises RefusedError: sprint.none, sprint.unknown.
    """
    board = project.board()
    if sprint is None or (board.sprint is not None and board.sprint.number == sprint):
        project.sprint()
        events = [one.event for one in project.store.history()]
        return measure(board, events, datetime.now(UTC), project.policy)
    folder = archived_sprint(project, sprint)
    return folder_metrics(project, folder)


def folder_metrics(project: Project, folder: Path) -> SprintMetrics:
    """The numbers of a closed sprint, derived again from its log."""
    board = archived_board(folder)
    events = [one.event for one in read_log(folder)]
    if board.sprint is None:
        raise StateError(
            "sprint.unreadable", f"{folder} holds no sprint", hint="oodatcaa log --all"
        )
    until = max((event.at for event in events), default=board.sprint.created_at)
    return measure(board, events, until, project.policy)
