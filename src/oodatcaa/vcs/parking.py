"""Keep what would otherwise be lost: commits nobody points at, and changes nobody committed.

It is parked below refs/oodatcaa/parked/, where git never collects it; `git branch NAME REF` brings
it back.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs.git import CREW, run_git
from oodatcaa.vcs.identity import identity_environment
from oodatcaa.vcs.reading import dirty_paths, read_head

PARKED = "refs/oodatcaa/parked"
MAX_BYTES = 200_000_000
"""More uncommitted files than this are moved aside instead: git is no place for them."""


def park_worktree(root: Path, checkout: Path, label: str, *, commits_only: bool = False) -> str:
    """The new ref that holds what only `checkout` has, or "" when there is nothing to keep.

    Uncommitted changes (nothing that git ignores) become one commit on top of its HEAD; the
    checkout itself is not changed. Raises OodatcaaError git.park_too_big, or git's own failures.
    """
    head = read_head(checkout).sha
    if head is None:
        return ""
    dirty = () if commits_only else dirty_paths(checkout, hidden=True)
    if dirty:
        return park_commit(root, _snapshot(checkout, head, dirty, label), label)
    if run_git(root, ["for-each-ref", "--count=1", f"--contains={head}"]).line:
        return ""
    return park_commit(root, head, label)


def park_commit(root: Path, sha: str, label: str) -> str:
    """A new ref that holds the commit `sha`."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-") or "work"
    stamp = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{time.time_ns() % 10**6:06d}"
    ref = f"{PARKED}/{name}/{stamp}"
    run_git(root, ["update-ref", "-m", "oodatcaa: park", ref, sha, ""], policy=CREW)
    return ref


def _snapshot(checkout: Path, head: str, dirty: tuple[str, ...], label: str) -> str:
    """A commit of the checkout as it is, made through an index of its own."""
    total = sum(_size(checkout / name) for name in dirty)
    if total > MAX_BYTES:
        raise OodatcaaError(
            "git.park_too_big",
            f"{checkout} holds {total} uncommitted bytes, too many for git",
            hint=f"look: git -C '{checkout}' status",
        )
    with tempfile.TemporaryDirectory(prefix="oodatcaa-park-") as folder:
        env = {**identity_environment(checkout), "GIT_INDEX_FILE": str(Path(folder) / "index")}
        run_git(checkout, ["read-tree", head], env=env, policy=CREW)
        run_git(checkout, ["add", "--all", "--", "."], env=env, policy=CREW)
        tree = run_git(checkout, ["write-tree"], env=env, policy=CREW).line
        message = f"parked: {label}, uncommitted work of {checkout.name}"
        args = ["commit-tree", "-p", head, "-m", message, tree]
        return run_git(checkout, args, env=env, policy=CREW).line


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:  # deleted: a change too, but one without bytes
        return 0
