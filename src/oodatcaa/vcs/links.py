"""Whether a worktree of ours still is one: its `.git` is a file that whoever works there can write.

Pointed at the main checkout's folder, what is committed in the worktree would land on the branch
that a person has checked out.
"""

from __future__ import annotations

from pathlib import Path

from oodatcaa.errors import OodatcaaError

CHECK_PREFIX = "check-"
_STORIES = (".oodatcaa", "worktrees")


def is_ours(checkout: Path) -> bool:
    """Whether the path is one where stories are built or checked."""
    return checkout.parts[-3:-1] == _STORIES or checkout.name.startswith(CHECK_PREFIX)


def link_problem(checkout: Path) -> str:
    """Why the worktree and git's record of it do not name each other; empty = they do, or there
    is no `.git` at all (then git itself finds nothing there)."""
    mark = checkout / ".git"
    if not mark.is_symlink() and not mark.exists():
        return ""
    if mark.is_symlink() or not mark.is_file():
        return f"{mark} is no longer the file that git made"
    try:
        words = mark.read_text(encoding="utf-8").strip()
        record = (checkout / words.removeprefix("gitdir:").strip()).resolve()
        back = (record / (record / "gitdir").read_text(encoding="utf-8").strip()).resolve()
        shared = (record / (record / "commondir").read_text(encoding="utf-8").strip()).resolve()
    except (OSError, ValueError):
        return f"{mark} does not lead to git's record of this worktree"
    if back != mark.resolve():
        return f"{mark} leads to the record of {back.parent}"
    if record.parent != shared / "worktrees":
        return f"{mark} leads to another repository: {shared}"
    own = checkout.parents[2] / ".git" if checkout.parts[-3:-1] == _STORIES else shared
    if own.is_dir() and own.resolve() != shared:
        return f"{mark} leads to another repository: {shared}"
    return ""


def refuse_redirected(checkout: Path) -> None:
    """Raises OodatcaaError `git.worktree_redirected` for one of ours that leads elsewhere."""
    if is_ours(checkout) and (problem := link_problem(checkout)):
        raise OodatcaaError(
            "git.worktree_redirected",
            problem,
            hint=f"look: cat '{checkout / '.git'}'; the next attempt gets a new worktree, and this "
            "folder is kept beside it",
        )
