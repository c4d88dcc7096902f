"""Bring a story's branch into the target without ever touching a person's work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs.committing import commit_files
from oodatcaa.vcs.git import CREW, GitPolicy, run_git
from oodatcaa.vcs.identity import identity_environment
from oodatcaa.vcs.reading import (
    dirty_paths,
    git_folder,
    is_ancestor,
    list_worktrees,
    operation_in_progress,
    read_head,
    resolve,
    try_resolve,
)
from oodatcaa.vcs.records import Advanced, TargetDirty, TargetMoved

MERGE_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class MergeCandidate:
    """A merge that nobody sees yet: a commit in a temporary worktree, or a list of conflicts.

    `base` is the target's head it was made on (the `expected_old` of advance), `merge` the merge
    commit (the target's head itself when `already` merged, None with conflicts).
    """

    target: str
    branch: str
    base: str
    branch_sha: str
    worktree: Path
    merge: str | None
    already: bool = False
    conflicts: tuple[str, ...] = ()
    policy: GitPolicy = CREW

    @property
    def ok(self) -> bool:
        return self.merge is not None

    @property
    def sha(self) -> str:
        """The candidate's newest commit: the merge, or what was committed on top of it."""
        return resolve(self.worktree, "HEAD")

    def commit(self, paths: Iterable[str | Path] | None, message: str) -> str | None:
        """Commit files (changelog, history) on top of the merge; None when nothing changed."""
        return commit_files(self.worktree, paths, message, policy=self.policy)


def make_candidate(
    worktree: Path,
    target: str,
    branch: str,
    branch_sha: str,
    message: str,
    policy: GitPolicy = CREW,
) -> MergeCandidate:
    """Merge `branch` with --no-ff in `worktree`, a fresh detached checkout of the target's head."""
    base = resolve(worktree, "HEAD")
    candidate = MergeCandidate(target, branch, base, branch_sha, worktree, None, policy=policy)
    if is_ancestor(worktree, branch_sha, base):
        return replace(candidate, merge=base, already=True)
    output = run_git(
        worktree,
        ["merge", "--no-ff", "--quiet", "--no-verify-signatures", "--cleanup=whitespace"]
        + ["-m", message, branch_sha],
        policy=policy,
        env=identity_environment(worktree),
        timeout_s=MERGE_TIMEOUT_S,
        may_fail=True,
    )
    if output.ok:
        return replace(candidate, merge=resolve(worktree, "HEAD"))
    unmerged = run_git(worktree, ["diff", "--name-only", "--diff-filter=U", "-z"]).fields()
    if not unmerged:
        raise OodatcaaError(
            "git.merge_failed",
            f"{branch} can not be merged into {target}",
            hint=f"try it by hand: git switch {target}; git merge --no-ff {branch}",
            details=output.messages(),
        )
    return replace(candidate, conflicts=tuple(sorted(set(unmerged))))


class MergeChain:
    """Several branches merged one after the other onto the target's head, in one worktree that
    nobody else sees. `base` is the head it began on: the `expected_old` of advance."""

    def __init__(self, worktree: Path, target: str, policy: GitPolicy = CREW) -> None:
        self.worktree, self.target, self._policy = worktree, target, policy
        self.base = resolve(worktree, "HEAD")

    @property
    def head(self) -> str:
        return resolve(self.worktree, "HEAD")

    def add(self, branch: str, branch_sha: str, message: str) -> MergeCandidate:
        """Merge one more. One that conflicts is left out again; its candidate names the paths.

        Raises OodatcaaError git.merge_failed; the worktree is as it was before.
        """
        before = self.head
        try:
            candidate = make_candidate(
                self.worktree, self.target, branch, branch_sha, message, self._policy
            )
        except OodatcaaError:
            run_git(self.worktree, ["reset", "--hard", "--quiet", before], policy=self._policy)
            raise
        if not candidate.ok:
            run_git(self.worktree, ["merge", "--abort"], policy=self._policy)
        return candidate

    def commit(self, paths: Iterable[str | Path] | None, message: str) -> str | None:
        """Commit files (changelog, history) on top; None when nothing changed."""
        return commit_files(self.worktree, paths, message, policy=self._policy)


def conflicting_paths(root: Path, target: str, branch: str) -> tuple[str, ...]:
    """What would conflict if `branch` were merged into `target` now; no checkout is touched.

    Empty also where git is too old to say (before 2.38).
    """
    pair = [resolve(root, target), resolve(root, branch)]
    args = ["merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", *pair]
    output = run_git(root, args, timeout_s=MERGE_TIMEOUT_S, may_fail=True)
    return tuple(sorted(set(output.fields()[1:]))) if output.code == 1 else ()


def advance(
    root: Path, target: str, candidate_sha: str, expected_old: str, *, beside_work: bool = False
) -> Advanced:
    """Move `target` from `expected_old` to its descendant; see Repository.advance."""
    ref = f"refs/heads/{target}"
    new, old = resolve(root, candidate_sha), resolve(root, expected_old)
    now = resolve(root, ref)
    if now == new:
        return Advanced(target=target, sha=new, how="already")
    if now != old:
        raise TargetMoved(target, old, now)
    if not is_ancestor(root, old, new):
        raise OodatcaaError(
            "git.not_forward",
            f"{new[:12]} does not contain {target} ({old[:12]})",
            hint="merge onto the target's head first",
        )
    checkout = _checkout_of(root, target)
    if checkout is not None:
        _forward_checkout(checkout, target, old, new, beside_work=beside_work)
    else:
        _swap(root, ref, target, old, new)
    return Advanced(
        target=target,
        sha=new,
        how="checkout" if checkout else "ref",
        checkout=checkout,
        note=_note(root, target),
    )


def _checkout_of(root: Path, target: str) -> Path | None:
    ref = f"refs/heads/{target}"
    for item in list_worktrees(root):
        if not item.exists or item.bare:
            continue
        if item.branch == target:
            return item.path
        # During a rebase HEAD is detached, but the branch will be written when it ends.
        own = git_folder(item.path)
        for name in ("rebase-merge/head-name", "rebase-apply/head-name"):
            mark = own / name
            if mark.exists() and mark.read_text(encoding="utf-8").strip() == ref:
                raise TargetDirty(target, item.path, (), reason="a rebase in progress")
    return None


def refuse_stuck(root: Path, target: str, folder: str) -> None:
    """Raises TargetDirty when files of `folder` could not be committed to `target` now, although
    nothing else there would be touched."""
    checkout = _checkout_of(root, target)
    if checkout is None:
        return
    if operation := operation_in_progress(checkout):
        raise TargetDirty(target, checkout, (), reason=f"a {operation} in progress")
    if dirty := [path for path in dirty_paths(checkout) if path.startswith(f"{folder}/")]:
        raise TargetDirty(target, checkout, dirty)


def _forward_checkout(
    checkout: Path, target: str, old: str, new: str, *, beside_work: bool
) -> None:
    if operation := operation_in_progress(checkout):
        raise TargetDirty(target, checkout, (), reason=f"a {operation} in progress")
    dirty = dirty_paths(checkout, untracked=False)
    if beside_work:
        args = ["diff", "--name-only", "-z", "--no-renames", old, new]
        moved = set(run_git(checkout, args).fields())
        dirty = tuple(path for path in dirty if path in moved)
    if dirty:
        raise TargetDirty(target, checkout, dirty)
    if blocking := _in_the_way(checkout, old, new):
        raise TargetDirty(target, checkout, blocking, reason="untracked files in the way")
    output = run_git(
        checkout,
        ["merge", "--ff-only", "--quiet", "--no-overwrite-ignore", "--no-verify-signatures", new],
        timeout_s=MERGE_TIMEOUT_S,
        may_fail=True,
    )
    now = resolve(checkout, f"refs/heads/{target}")
    if now == new:
        return
    if now != old:
        raise TargetMoved(target, old, now)
    raise OodatcaaError(
        "git.merge_failed",
        f"{target} in {checkout} could not be moved to {new[:12]}",
        hint=f"look: git -C '{checkout}' status",
        details=output.messages(),
    )


def _in_the_way(checkout: Path, old: str, new: str) -> tuple[str, ...]:
    """Files that are new in the merge but exist in the folder, ignored ones included: git would
    overwrite an ignored file without a word."""
    args = ["diff", "--name-only", "-z", "--no-renames", "--diff-filter=A", old, new]
    found = set()
    for name in run_git(checkout, args).fields():
        path = checkout / name
        if path.is_symlink() or path.exists():
            found.add(name)
        for parent in Path(name).parents[:-1]:
            where = checkout / parent
            if where.is_symlink() or where.is_file():
                found.add(str(parent))
    tracked = set(run_git(checkout, ["ls-tree", "-r", "-z", "--name-only", old]).fields())
    return tuple(sorted(found - tracked))


def _swap(root: Path, ref: str, target: str, old: str, new: str) -> None:
    args = ["update-ref", "-m", "oodatcaa: integrate", ref, new, old]
    output = run_git(root, args, policy=CREW, may_fail=True)
    if output.ok:
        return
    now = try_resolve(root, ref)
    if now != old:
        raise TargetMoved(target, old, now or "nothing (it was deleted)")
    raise OodatcaaError(
        "git.failed",
        f"{target} could not be moved to {new[:12]}",
        hint="git fsck",
        details=output.messages(),
    )


def _note(root: Path, target: str) -> str:
    head = read_head(root)
    if head.kind == "detached":
        return (
            f"the main checkout is on a detached HEAD at {(head.sha or '')[:12]} and does not show "
            f"{target}; to see it: git switch {target}"
        )
    return ""
