"""Open and close sprints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from oodatcaa.app.plans import read_record
from oodatcaa.app.preflight import preflight
from oodatcaa.app.project import Project
from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.sprinting import close_sprint, open_sprint, stories_for
from oodatcaa.domain.task import Story
from oodatcaa.errors import RefusedError
from oodatcaa.kit.files import write_atomic

CARRIED = "carried.json"


class Carried(Record):
    """Stories of a closed sprint that were not finished; the next `sprint new` begins with them."""

    stories: tuple[Story, ...] = ()


def new_sprint(project: Project, say: Callable[[str], None] = lambda _: None) -> Board:
    """Turn OBJECTIVE.md into a sprint's stories. Raises OodatcaaError when it can not begin:

    an invalid objective, configuration or agent, no commits, a detached or dirty main checkout, a
    sprint still open, bad data, a model that can not be had, a limit below what loading it needs.
    """
    objective = project.objective()
    _ = project.roster  # and with it the configuration
    target = _clean_target(project)
    _none_open(project)
    if not objective.stories:  # stories of a project's own need neither model nor data
        for note in preflight(project, objective):
            say(f"note: {note}")
    number = 1 + _last_number(project)
    carried = _carried(project)
    now = datetime.now(UTC)
    sprint = Sprint(
        number=number,
        objective_id=objective.id,
        objective_sha256=objective.sha256,
        title=objective.title,
        target_branch=target,
        memory_limit_bytes=objective.memory_limit_bytes,
        max_adapt_rounds=objective.budget.adapt_rounds,
        max_sprint_rounds=objective.budget.sprint_rounds,
        created_at=now,
    )
    project.store.transact(
        lambda board, at: open_sprint(
            board,
            at,
            sprint=sprint.evolve(created_at=at),
            stories=carried or stories_for(objective, at, project.config.approval),
        )
    )
    (project.work / CARRIED).unlink(missing_ok=True)
    from oodatcaa.app.sprint_view import negotiate_and_show

    negotiate_and_show(project)
    return project.board()


@dataclass(frozen=True)
class Closed:
    """Where the closed sprint lies, and the unfinished stories that move on."""

    number: int
    folder: Path
    carried: tuple[Story, ...]


def end_sprint(project: Project, by: str) -> Closed:
    """Archive the sprint's queue, log and report; unfinished stories wait for the next one.

    Raises RefusedError while somebody still works on it.
    """
    from oodatcaa.app.closing import write_sprint_report

    number = project.sprint().number
    report = write_sprint_report(project)
    folder, carried = project.store.archive_sprint(
        number, lambda board, now: close_sprint(board, now, by=by)
    )
    report.replace(folder / report.name)
    write_atomic(project.work / CARRIED, Carried(stories=carried).model_dump_json(indent=2) + "\n")
    return Closed(number, folder, carried)


def _none_open(project: Project) -> None:
    """Said before the data is read; the store's own rule still decides."""
    sprint = project.board().sprint
    if sprint is not None:
        raise RefusedError(
            "sprint.open",
            f"sprint {sprint.number} ({sprint.title}) is open",
            hint="oodatcaa run goes on with it, oodatcaa sprint close ends it",
        )


def _carried(project: Project) -> tuple[Story, ...]:
    path = project.work / CARRIED
    return read_record(path, Carried).stories if path.exists() else ()


def _clean_target(project: Project) -> str:
    repo = project.repo
    if repo.head().kind == "unborn":
        raise RefusedError(
            "git.unborn",
            "the repository has no commit yet: stories need one to branch from",
            hint="oodatcaa init --commit",
        )
    target = repo.target_branch(project.config.git.target)
    dirty = repo.dirty_paths()
    if dirty and repo.current_branch() == target:
        raise RefusedError(
            "git.target_dirty",
            f"{target} has uncommitted changes; the crew would not see them and could not merge",
            hint="commit them (git commit -a, or oodatcaa init --commit), then oodatcaa sprint new",
            details=dirty[:20],
        )
    return target


def _last_number(project: Project) -> int:
    """The highest sprint number so far, from the exported history and the archive."""
    folders = [
        *(project.root / ".oodatcaa" / "history").glob("sprint-*"),
        *(project.work / "archive").glob("sprint-*"),
    ]
    numbers = [int(path.name[7:]) for path in folders if path.name[7:].isdigit()]
    sprint = project.board().sprint
    return max([*numbers, sprint.number if sprint else 0], default=0)
