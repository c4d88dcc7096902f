"""The repository: is every proof of integration still true, and is nobody's work forgotten?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oodatcaa.app.doctor.finding import Fact, Finding, Severity, note
from oodatcaa.app.doctor.machine import Looked
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.states import is_finished
from oodatcaa.domain.task import Story
from oodatcaa.vcs import Worktree

LIVE_PATHS = (".oodatcaa/work", ".oodatcaa/worktrees", "models")


def look_at_checkout(project: Project) -> Looked:
    repo = project.repo
    head, dirty = repo.head(), repo.dirty_paths()
    state = f"{head.branch or 'detached'} at {(head.sha or 'no commit')[:12]}"
    kept = f"{len(dirty)} uncommitted paths, which the Integrator does not touch"
    facts = (Fact("git", f"{state}, {kept if dirty else 'clean'}", None if dirty else True),)
    if head.sha is None:
        meaning = "the repository has no commit: stories need one to branch from"
        return facts, (
            Finding("git.unborn", str(repo.root), meaning, "nothing: oodatcaa init --commit"),
        )
    return facts, (*_tracked(project), *_not_ignored(project))


def _tracked(project: Project) -> list[Finding]:
    found = []
    for folder in LIVE_PATHS:
        paths = project.repo.tracked_below(folder)
        if paths:
            meaning = f"{len(paths)} live files are tracked by git, for example {paths[0]}"
            repair = f"nothing: git rm -r --cached {folder}, then commit; the files stay"
            found.append(Finding("git.live_tracked", folder, meaning, repair))
    return found


def _not_ignored(project: Project) -> list[Finding]:
    loose = [path for path in LIVE_PATHS if not project.repo.is_ignored(f"{path}/x")]
    if not loose:
        return []
    meaning = f"git does not ignore {', '.join(loose)}: a commit of everything would carry them"
    return [Finding("git.live_not_ignored", ".gitignore", meaning, "nothing: oodatcaa init")]


@dataclass(frozen=True)
class Proof:
    """What the repository says now about one integrated story."""

    tagged: str | None
    merge_known: bool
    merged: bool
    merge_in_tag: bool
    missing: tuple[str, ...]


def look_at_stories(project: Project) -> Looked:
    board = project.board()
    branches = project.repo.branches()
    found: list[Finding] = []
    for story in board.stories:
        if story.integration is not None:
            found += judge_proof(story, _proof(project, story))
        elif not is_finished(story):
            found += _branch(project, board, story, branches)
    return (Fact("stories", f"{len(board.stories)}, {len(branches)} branches"),), tuple(found)


def _proof(project: Project, story: Story) -> Proof:
    repo, claimed = project.repo, story.integration
    assert claimed is not None
    tagged = repo.try_resolve(f"refs/tags/{claimed.tag}")
    merge = repo.try_resolve(claimed.merge_commit)
    target = repo.try_resolve(f"refs/heads/{claimed.target}")
    at = tagged or merge
    present = set(repo.paths_at(at)) if at else set()
    return Proof(
        tagged=tagged,
        merge_known=merge is not None,
        merged=bool(merge and target and repo.is_ancestor(merge, target)),
        merge_in_tag=bool(merge and tagged and repo.is_ancestor(merge, tagged)),
        missing=tuple(path for path in claimed.artefacts if path not in present),
    )


def judge_proof(story: Story, seen: Proof) -> list[Finding]:
    claimed = story.integration
    assert claimed is not None
    short = claimed.merge_commit[:12]
    found = []
    if not seen.merge_known:
        meaning = f"{story.id} is done by merge {short}, which does not exist here"
        found.append(Finding("story.merge_unknown", short, meaning))
    elif not seen.merged:
        meaning = f"{story.id} is done, but its merge {short} is not in {claimed.target}"
        repair = f"nothing: git merge {short} brings it back; git reflog {claimed.target} says why"
        found.append(Finding("story.not_merged", claimed.target, meaning, repair))
    if seen.tagged is None:
        meaning = f"{story.id} is done, but its tag does not exist"
        repair = f"nothing: git tag -a {claimed.tag} {short} -m '{story.id}'"
        found.append(Finding("story.tag_missing", claimed.tag, meaning, repair))
    elif seen.merge_known and not seen.merge_in_tag:
        meaning = f"the tag of {story.id} names {seen.tagged[:12]}, which does not hold its merge"
        found.append(Finding("story.tag_moved", claimed.tag, meaning))
    if seen.missing and (seen.tagged or seen.merge_known):
        meaning = f"{story.id} promised files that its commit does not hold: "
        where = claimed.tag
        found.append(Finding("story.artefact_missing", where, meaning + ", ".join(seen.missing)))
    return found


def _branch(
    project: Project, board: Board, story: Story, branches: Mapping[str, str]
) -> list[Finding]:
    commits = {item.commit: item.id for item in board.subtasks_of(story.id) if item.commit}
    if not commits or story.status.value in ("needs_plan", "blocked", "planning"):
        return []
    newest = list(commits)[-1]
    if story.branch not in branches:
        meaning = f"the branch of {story.id} is gone, though the story is not done"
        repair = f"nothing: git branch {story.branch} {newest[:12]} brings it back"
        return [Finding("branch.gone", story.branch, meaning, repair)]
    found = []
    for commit, task in commits.items():
        known = project.repo.try_resolve(commit)
        if known is None or not project.repo.is_ancestor(known, story.branch):
            meaning = f"{task} was handed in at {commit[:12]}, which its branch no longer holds"
            found.append(Finding("branch.commit_lost", story.branch, meaning))
    return found


@dataclass(frozen=True)
class Tree:
    """A worktree of the crew, as it lies there."""

    worktree: Worktree
    dirty: tuple[str, ...]


def look_at_worktrees(project: Project) -> Looked:
    repo = project.repo
    ours = [item for item in repo.worktrees() if item.path.parent == repo.worktrees_dir]
    trees = [Tree(item, repo.dirty_paths(item.path) if item.exists else ()) for item in ours]
    found = judge_trees(project.board(), trees)
    known = {item.path for item in ours}
    folder = repo.worktrees_dir
    loose = [path for path in sorted(folder.glob("*")) if path.is_dir() and path not in known]
    for path in loose:
        meaning = "git does not know this folder as a worktree; somebody's work may be in it"
        found.append(note("worktree.unknown", str(path), meaning))
    for path in repo.abandoned_checks():
        code, meaning = "worktree.check_left", "left by a check whose process ended"
        found.append(
            Finding(code, str(path), meaning, "remove it: it is a copy", Severity.NOTE, "checks")
        )
    for ref in repo.parked_refs():
        meaning = "work that was put aside under this name"
        repair = f"nothing: look (git log {ref}), then git update-ref -d {ref}"
        found.append(note("git.parked", ref, meaning, repair))
    return (Fact("worktrees", f"{len(ours)} of stories"),), tuple(found)


def judge_trees(board: Board, trees: list[Tree]) -> list[Finding]:
    found = []
    for tree in trees:
        path = tree.worktree.path
        story = board.story_by_id.get(path.name)
        held = story is not None and any(
            task.lease is not None for task in (story, *board.subtasks_of(story.id))
        )
        over = story is None or is_finished(story)
        why = "no story is open under this name" if story is None else f"{path.name} is finished"
        if not tree.worktree.exists:
            meaning = "git lists a worktree whose folder was deleted"
            repair = "take it off git's list; its branch stays"
            found.append(_tree("worktree.prunable", path, meaning, repair, "worktree"))
        elif over and tree.dirty:
            meaning = f"{why}, but the worktree holds {len(tree.dirty)} uncommitted paths"
            repair = f"nothing: uncommitted work is never deleted; look: git -C '{path}' status"
            found.append(_tree("worktree.left_with_work", path, meaning, repair, ""))
        elif over:
            meaning = f"{why} and the worktree is clean"
            repair = "remove the worktree; its branch stays"
            found.append(_tree("worktree.left", path, meaning, repair, "worktree"))
        elif tree.dirty and not held:
            meaning = f"{len(tree.dirty)} uncommitted paths, and nobody holds {path.name}"
            repair = "nothing: the next attempt finds them there"
            found.append(_tree("worktree.uncommitted", path, meaning, repair, ""))
    return found


def _tree(code: str, path: Path, meaning: str, repair: str, action: str) -> Finding:
    return Finding(code, str(path), meaning, repair, Severity.NOTE, action, path.name)
