"""Before a builder begins: what dead attempts left is reclaimed, nothing of it is lost."""

from __future__ import annotations

import re

from oodatcaa.app.isolation import note
from oodatcaa.app.project import Project
from oodatcaa.domain.plan import Plan, StepKind
from oodatcaa.domain.states import is_finished
from oodatcaa.domain.task import Subtask

STORY = re.compile(r"T\d{3,}")


def step_kinds(plan: Plan, task: Subtask) -> set[StepKind]:
    return {plan.steps[number - 1].kind for number in task.steps}


def tidy_worktree(project: Project, task: Subtask, owner: str, plan: Plan) -> None:
    """Park what a dead attempt left uncommitted; begin again at the target after a conflict.

    An outside agent may go on in its session, so for it the files stay where they are as well.
    """
    repo, label = project.repo, f"{task.id}-a{task.attempt}"
    clean = StepKind.AGENT not in step_kinds(plan, task)
    ref = repo.park_story(task.story, label, clean=clean)
    if ref:
        text = f"uncommitted work of an earlier attempt at {task.id} is kept as {ref}"
        note(project, task.id, owner, text, (f"git show --stat {ref}",))
    target = project.sprint().target_branch
    if _begins_again(project, plan) and (paths := repo.conflicting_paths(target, plan.branch)):
        ref = repo.restart_branch(task.story, plan.branch, target, label)
        text = f"{plan.branch} begins again at {target}, with which it conflicted; kept as {ref}"
        note(project, task.id, owner, text, paths)


def _begins_again(project: Project, plan: Plan) -> bool:
    """After a conflict, before anything of the new plan was built on the old branch."""
    change = plan.adaptation
    if change is None or not change.trigger.startswith("conflict") or plan.keeps:
        return False
    mine = project.board().subtasks_of(plan.story)
    return not any(item.commit and item.plan_version == plan.version for item in mine)


def reclaim(project: Project, owner: str) -> tuple[str, ...]:
    """What killed processes and finished stories left, one line for each thing that was kept.

    Worktrees of stories that are over are removed; commits stay on their branches, uncommitted
    work is parked below refs/oodatcaa/parked/ and named in the log.
    """
    kept: list[str] = []

    def parked(path: object, ref: str) -> None:
        kept.append(f"a dead process left work in {path}; it is kept as {ref}")

    project.repo.prune_checks(on_parked=parked)
    board = project.board()
    for name in project.repo.story_worktrees():
        story = board.story_by_id.get(name)
        if not STORY.fullmatch(name) or (story is not None and not is_finished(story)):
            continue  # a person's own worktree, or one in use
        ref = project.repo.reclaim_story(name)
        if ref:
            kept.append(f"the worktree of {name} held uncommitted work; it is kept as {ref}")
    for line in kept:
        note(project, "sprint", owner, line, ())
    return tuple(kept)
