"""Open and close sprints."""

from __future__ import annotations

from datetime import UTC, datetime

from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.sprinting import open_sprint, stories_for
from oodatcaa.errors import OodatcaaError


def new_sprint(project: Project) -> Board:
    """Turn OBJECTIVE.md into a sprint's stories. Raises OodatcaaError when it can not begin:

    an invalid objective, no commits, a detached or dirty main checkout, a sprint still open, a
    limit that this machine does not have.
    """
    objective = project.objective()
    target = _clean_target(project)
    number = 1 + _last_number(project)
    now = datetime.now(UTC)
    sprint = Sprint(
        number=number,
        objective_id=objective.id,
        objective_sha256=objective.sha256,
        title=objective.title,
        target_branch=target,
        memory_limit_bytes=objective.memory_limit_bytes,
        max_adapt_rounds=objective.budget.adapt_rounds,
        created_at=now,
    )
    project.store.transact(
        lambda board, at: open_sprint(
            board,
            at,
            sprint=sprint.evolve(created_at=at),
            stories=stories_for(objective, at),
        )
    )
    from oodatcaa.app.agent import negotiate_and_show

    negotiate_and_show(project)
    return project.board()


def _clean_target(project: Project) -> str:
    repo = project.repo
    if repo.head().kind == "unborn":
        raise OodatcaaError(
            "git.unborn",
            "the repository has no commit yet: stories need one to branch from",
            hint="oodatcaa init --commit",
        )
    target = repo.target_branch(project.config.git.target)
    dirty = repo.dirty_paths()
    if dirty and repo.current_branch() == target:
        raise OodatcaaError(
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
