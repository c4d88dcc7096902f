"""Open and close sprints."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from oodatcaa.app.archiving import CARRIED, half_closed
from oodatcaa.app.history import HISTORY, archived_board, archived_sprints
from oodatcaa.app.plans import read_record
from oodatcaa.app.preflight import preflight
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.sprinting import Carried, open_sprint, stories_for
from oodatcaa.domain.task import Story
from oodatcaa.errors import RefusedError


def new_sprint(
    project: Project, say: Callable[[str], None] = lambda _: None, *, by: str = "negotiator"
) -> Board:
    """Turn OBJECTIVE.md, or what the last sprint left unfinished, into a sprint's stories.

    `by` is who typed it, for the history.

    Raises OodatcaaError when it can not begin: an invalid objective, configuration or agent, no
    commits, a detached or dirty main checkout, a sprint still open or closed half way, bad data, a
    model that can not be had, a limit below what loading it needs.
    """
    _none_open(project)
    objective = project.objective()
    _ = project.roster  # and with it the configuration
    target = _clean_target(project)
    if not objective.stories:  # stories of a project's own need neither model nor data
        for note in preflight(project, objective):
            say(f"note: {note}")
    last = _last_number(project)
    number = 1 + last
    carried = carried_work(project)
    first = 1 + _last_story(project)
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
            stories=carried.stories
            if carried.unfinished
            else stories_for(objective, at, project.config.approval, first=first),
            subtasks=carried.subtasks if carried.unfinished else (),
            by=by,
        )
    )
    (project.work / CARRIED).unlink(missing_ok=True)
    from oodatcaa.app.sprint_view import negotiate_and_show

    negotiate_and_show(project)
    return project.board()


def carried_work(project: Project) -> Carried:
    """What the next sprint begins with: what the last one left unless that was taken up already,
    and what was imported since."""
    last = _last_closed(project)
    path = project.work / CARRIED
    found = read_record(path, Carried) if path.exists() else Carried()
    return found if found.sprint == last else Carried(sprint=last)


def carried_stories(project: Project) -> tuple[Story, ...]:
    return carried_work(project).stories


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
            hint="git add and git commit them, or git stash -u; then: oodatcaa sprint new",
            details=dirty[:20],
        )
    return target


def _none_open(project: Project) -> None:
    sprint = project.board().sprint
    if sprint is not None:
        raise RefusedError(
            "sprint.open",
            f"sprint {sprint.number} ({sprint.title}) is open",
            hint="oodatcaa run goes on with it, oodatcaa sprint close ends it",
        )
    if waiting := half_closed(project):
        raise RefusedError(
            "sprint.half_closed",
            f"closing sprint {waiting[0]} was not completed",
            hint="oodatcaa sprint close completes it",
        )


def _last_number(project: Project) -> int:
    """The highest sprint number so far, from the exported history, the archive and the tags."""
    folders = (project.root / HISTORY).glob("sprint-*")
    names = [path.name for path in folders] + [
        tag for tag in project.repo.tags() if tag.startswith("sprint-")
    ]
    numbers = [int(name[7:]) for name in names if name[7:].isdigit()]
    return max([*numbers, _last_closed(project)], default=0)


def _last_closed(project: Project) -> int:
    return max(archived_sprints(project), default=0)


def _last_story(project: Project) -> int:
    """The highest story number that was ever used here: ids name branches, tags and folders."""
    ids = [
        story.id
        for folder in archived_sprints(project).values()
        for story in archived_board(folder).stories
    ]
    ids += [path.name for path in (project.root / HISTORY).glob("sprint-*/T*")]
    ids += [tag.removesuffix("-complete") for tag in project.repo.tags()]
    numbers = [int(name[1:]) for name in ids if name[:1] == "T" and name[1:].isdigit()]
    return max(numbers, default=0)
