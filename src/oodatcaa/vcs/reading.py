"""Questions about a repository; nothing here changes anything or takes git's locks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs.git import run_git
from oodatcaa.vcs.layout import LIVE
from oodatcaa.vcs.records import Head, Worktree


def read_head(checkout: Path) -> Head:
    """Branch, detached or unborn: told apart, never guessed."""
    symbolic = run_git(checkout, ["symbolic-ref", "--quiet", "HEAD"], may_fail=True)
    sha = try_resolve(checkout, "HEAD")
    if not symbolic.ok:
        return Head(kind="detached", sha=sha)
    branch = symbolic.line.removeprefix("refs/heads/")
    return Head(kind="unborn" if sha is None else "branch", branch=branch, sha=sha)


def try_resolve(cwd: Path, name: str) -> str | None:
    """The full id of the commit that `name` means (tags are peeled), or None."""
    if not name or name.startswith("-"):
        return None
    output = run_git(cwd, ["rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], may_fail=True)
    return output.line if output.ok else None


def resolve(cwd: Path, name: str) -> str:
    """Like try_resolve, but raises OodatcaaError git.unknown_commit."""
    sha = try_resolve(cwd, name)
    if sha is None:
        raise OodatcaaError(
            "git.unknown_commit",
            f"{name!r} names no commit here",
            hint="see what there is: git branch --all; git tag",
        )
    return sha


def is_ancestor(cwd: Path, ancestor: str, descendant: str) -> bool:
    """True also for a commit and itself. Raises when one of them does not exist."""
    pair = [resolve(cwd, ancestor), resolve(cwd, descendant)]
    output = run_git(cwd, ["merge-base", "--is-ancestor", *pair], may_fail=True)
    if output.code not in (0, 1):
        raise OodatcaaError(
            "git.failed", "git merge-base failed", hint="git fsck", details=output.messages()
        )
    return output.ok


def merge_of(cwd: Path, commit: str, target: str) -> str | None:
    """The oldest merge in `target` that brought `commit` in as a second parent; None when it came
    in another way or not at all."""
    args = ["rev-list", "--merges", "--parents", "--topo-order", "--reverse"]
    output = run_git(cwd, [*args, f"{commit}..{target}"])
    for line in output.out.splitlines():
        merge, _, *others = line.split()
        if commit in others:
            return merge
    return None


def dirty_paths(checkout: Path, *, untracked: bool = True, hidden: bool = False) -> tuple[str, ...]:
    """What differs from HEAD, relative to the top: changed, staged, deleted and (by default)
    untracked paths; nothing that git ignores, nothing of the crew's live state. With `hidden` also
    what git was told to overlook, as a person may have done in a checkout of their own."""
    mode = "all" if untracked else "no"
    args = ["status", "--porcelain=v1", "-z", "--no-renames", f"--untracked-files={mode}"]
    found = {field[3:] for field in run_git(checkout, args).fields()}
    if hidden:
        found |= set(hidden_paths(checkout))
    return tuple(sorted(path for path in found if not is_live(path)))


def hidden_paths(checkout: Path) -> tuple[str, ...]:
    """Changed files that git was told to overlook (`update-index --assume-unchanged`,
    `--skip-worktree`). Files that a sparse checkout left out are none."""
    flagged = {
        line[2:]
        for line in run_git(checkout, ["ls-files", "-v", "-z"]).fields()
        if line[0].islower() or line[0] == "S"
    }
    if not flagged or try_resolve(checkout, "HEAD") is None:
        return ()
    sparse = run_git(checkout, ["config", "--bool", "core.sparseCheckout"], may_fail=True)
    if sparse.line == "true":
        flagged = {path for path in flagged if os.path.lexists(checkout / path)}
    with tempfile.TemporaryDirectory(prefix="oodatcaa-index-") as folder:
        env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        run_git(checkout, ["read-tree", "HEAD"], env=env)
        args = ["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=no"]
        changed = {field[3:] for field in run_git(checkout, args, env=env).fields()}
    return tuple(sorted(flagged & changed))


def is_live(path: str) -> bool:
    return any(path.rstrip("/") == live or path.startswith(f"{live}/") for live in LIVE)


def list_worktrees(cwd: Path) -> tuple[Worktree, ...]:
    """The main checkout first, then every linked worktree, those with a deleted folder included."""
    blocks = run_git(cwd, ["worktree", "list", "--porcelain", "-z"]).out.split("\0\0")
    return tuple(_worktree(block) for block in blocks if block.strip("\0"))


def _worktree(block: str) -> Worktree:
    facts = dict((line.split(" ", 1) + [""])[:2] for line in block.strip("\0").split("\0") if line)
    sha = facts.get("HEAD", "")
    path = Path(facts["worktree"])
    return Worktree(
        path=path,
        sha=sha if sha.strip("0") else None,
        branch=facts["branch"].removeprefix("refs/heads/") if "branch" in facts else None,
        bare="bare" in facts,
        locked=facts.get("locked"),
        exists=(path / ".git").exists() or "bare" in facts,
    )


def git_folder(checkout: Path) -> Path:
    """The checkout's own git folder (index, HEAD, locks), not the common one."""
    return Path(run_git(checkout, ["rev-parse", "--absolute-git-dir"]).line)


def operation_in_progress(checkout: Path) -> str | None:
    """merge, rebase, cherry-pick, … that somebody left unfinished in `checkout`."""
    own = git_folder(checkout)
    marks = {
        "MERGE_HEAD": "merge",
        "CHERRY_PICK_HEAD": "cherry-pick",
        "REVERT_HEAD": "revert",
        "rebase-merge": "rebase",
        "rebase-apply": "rebase",
        "BISECT_LOG": "bisect",
    }
    return next((name for mark, name in marks.items() if (own / mark).exists()), None)
