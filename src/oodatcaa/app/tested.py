"""Which commit of a story's branch was handed in, and which one was tested.

A branch is open to everybody: what stands at its head may be newer than what was checked. Only
handed-in commits are tested, and only tested ones are merged.
"""

from __future__ import annotations

from oodatcaa.app.project import Project
from oodatcaa.domain.states import is_cancelled, is_done
from oodatcaa.domain.task import Story, Subtask, SubtaskKind
from oodatcaa.errors import OodatcaaError


def commit_to_test(project: Project, story: str, branch: str) -> str:
    """The head of the branch, which a done build handed in; while other builds of the story are
    under way, the newest handed-in commit. A story without builds is tested at its head.

    Raises OodatcaaError branch.not_handed_in for a head that no build handed in.
    """
    head = project.repo.resolve(branch)
    live = _live(project, story, SubtaskKind.BUILD)
    built = [item.commit for item in live if is_done(item) and item.commit]
    if not built or head in built:
        return head
    newest = next((one for one in built if _holds_all(project, one, built)), None)
    if newest is not None and not all(is_done(item) for item in live):
        return newest
    known = ", ".join(item[:12] for item in dict.fromkeys(built))
    raise OodatcaaError(
        "branch.not_handed_in",
        f"{branch} stands at {head[:12]}, but its builds handed in {known}",
        hint=f"look: git log {newest or built[-1]}..{branch}; build on it, or set the branch back",
    )


def tested_commit(project: Project, story: Story, branch: str) -> str:
    """The head of the branch, which a test subtask accepted. A story whose tests name no commit
    is at the commit of its own record.

    Raises OodatcaaError branch.not_tested when the head is another one.
    """
    head = project.repo.resolve(branch)
    done = [item for item in _live(project, story.id, SubtaskKind.TEST) if is_done(item)]
    tested = [item.commit for item in done if item.commit] or [story.commit]
    if head in tested:
        return head
    known = ", ".join(item[:12] or "no commit" for item in dict.fromkeys(tested))
    raise OodatcaaError(
        "branch.not_tested",
        f"{branch} stands at {head[:12]}, but {known} was tested; it is not merged",
        hint=f"look: git log {tested[-1]}..{branch}; set the branch back to {tested[-1][:12]}, "
        f"then: oodatcaa approve {story.id} --why …",
    )


def _live(project: Project, story: str, kind: SubtaskKind) -> list[Subtask]:
    found = project.board().subtasks_of(story)
    return [item for item in found if item.kind is kind and not is_cancelled(item)]


def _holds_all(project: Project, commit: str, others: list[str]) -> bool:
    return all(project.repo.is_ancestor(other, commit) for other in others)
