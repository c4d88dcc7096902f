"""Worktrees: one per story that lasts, fresh ones for checks that go away."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import platformdirs

from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock
from oodatcaa.kit.process import is_alive, process_identity
from oodatcaa.vcs.git import Output, git_processes, run_git
from oodatcaa.vcs.layout import Layout
from oodatcaa.vcs.links import CHECK_PREFIX, link_problem
from oodatcaa.vcs.parking import park_commit, park_worktree
from oodatcaa.vcs.reading import (
    dirty_paths,
    git_folder,
    hidden_paths,
    list_worktrees,
    read_head,
    resolve,
    try_resolve,
)
from oodatcaa.vcs.records import CheckOwner, Worktree

CHECKOUT_TIMEOUT_S = 900.0
LOCK_PATIENCE_S = 300.0
"""Making a worktree of a big repository takes its time, and several may wait in line."""
_numbers = itertools.count(1)


class Worktrees:
    """Adds and removes worktrees, one process at a time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._owners = layout.work_dir / "checks"
        self._checks = checks_folder(layout.root)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = self._layout.work_dir / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        what = f"the list of worktrees of {self._layout.root}"
        lock = FileLock(folder / "worktrees.lock", code="git.worktrees_busy", what=what)
        with contextlib.closing(lock), lock.held(LOCK_PATIENCE_S):
            yield

    def story(self, story_id: str, branch: str, base: str) -> Path:
        """The story's worktree, on `branch` (made at `base` if it does not exist).

        Idempotent; whatever an earlier attempt left there, committed or not, is kept.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", story_id):
            raise OodatcaaError("git.bad_name", f"{story_id!r} can not name a worktree")
        path = self._layout.worktrees_dir / story_id
        with self._locked():
            known = {item.path: item for item in list_worktrees(self._layout.root)}
            self._must_be_free(branch, path, known.values())
            found = known.get(path)
            if link_problem(path):
                self._put_aside(path)
            if found is not None and not self._usable(found):
                self._remove(path)
                found = None
            if found is not None:
                drop_stale_index_lock(path)
                if found.branch != branch:
                    self._switch(path, branch, base)
                return path
            self._put_aside(path)
            self._add(path, branch, base)
        return path

    @contextlib.contextmanager
    def check(self, commit: str, label: str) -> Iterator[Path]:
        """A fresh detached worktree at `commit`, removed afterwards, whatever happens inside."""
        sha = resolve(self._layout.root, commit)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:60] or "x"
        path = self._checks / (
            f"{CHECK_PREFIX}{name}-{os.getpid()}-{next(_numbers)}-{time.time_ns() % 10**9}"
        )
        try:
            with self._locked():
                pid, started = process_identity()
                owner = CheckOwner(host=socket.gethostname(), pid=pid, started=started)
                self._make_checks_folder()
                # The owner is written first: no worktree ever exists that nobody would clean up.
                write_atomic(self._owner_file(path), owner.model_dump_json())
                self._git("worktree", "add", "--quiet", "--detach", str(path), sha)
            yield path
        finally:
            with self._locked():
                self._remove(path)

    def prune(
        self,
        alive: Callable[[CheckOwner], bool] | None = None,
        on_parked: Callable[[Path, str], None] | None = None,
    ) -> tuple[Path, ...]:
        """Remove check worktrees whose process is gone; those of other hosts stay.

        What only they hold is parked. Uncommitted files in a gates' worktree are what checks
        left behind, nobody's work; its commits are kept all the same.
        """
        removed = []
        with self._locked():
            for path in self.abandoned(alive):
                ref = self._keep(path, path.name.removeprefix(CHECK_PREFIX))
                if ref and on_parked is not None:
                    on_parked(path, ref)
                self._remove(path)
                removed.append(path)
        return tuple(removed)

    def reclaim_story(self, story_id: str) -> str | None:
        """Park what is not committed and remove the worktree; None when there is none."""
        path = self._layout.worktrees_dir / story_id
        with self._locked():
            if path not in {item.path for item in list_worktrees(self._layout.root)}:
                return None
            ref = self._keep(path, story_id)
            self._remove(path)
        return ref

    def park_story(self, story_id: str, label: str, *, clean: bool) -> str:
        path = self._layout.worktrees_dir / story_id
        with self._locked():
            found = {item.path: item for item in list_worktrees(self._layout.root)}.get(path)
            if found is None or not self._usable(found) or not dirty_paths(path, hidden=True):
                return ""
            drop_stale_index_lock(path)
            ref = park_worktree(self._layout.root, path, label)
            if clean:
                _clean(path)
        return ref

    def restart(self, story_id: str, branch: str, sha: str, label: str) -> str:
        """The story's branch at `sha`, its old head (and what was not committed) parked."""
        path = self._layout.worktrees_dir / story_id
        with self._locked():
            if read_head(path).branch != branch:
                raise OodatcaaError(
                    "git.not_ours",
                    f"{path} is not on {branch}",
                    hint=f"look: git -C '{path}' status",
                )
            drop_stale_index_lock(path)
            ref = park_commit(self._layout.root, resolve(path, "HEAD"), label)
            if dirty_paths(path, hidden=True):
                park_worktree(self._layout.root, path, label)
                _clean(path)
            run_git(path, ["reset", "--quiet", "--hard", sha])
        return ref

    def abandoned(self, alive: Callable[[CheckOwner], bool] | None = None) -> tuple[Path, ...]:
        """Check worktrees whose process is gone."""
        is_living = alive or owner_lives
        folder = self._checks
        names = {path.stem for path in self._owners.glob(f"{CHECK_PREFIX}*.json")}
        names |= {path.name for path in folder.glob(f"{CHECK_PREFIX}*")}
        names |= {
            item.path.name
            for item in list_worktrees(self._layout.root)
            if item.path.parent == folder and item.path.name.startswith(CHECK_PREFIX)
        }
        owners = {name: self._read_owner(folder / name) for name in sorted(names)}
        return tuple(
            folder / name for name, owner in owners.items() if owner is None or not is_living(owner)
        )

    def remove_story(self, story_id: str, *, force: bool = False) -> bool:
        """Remove a story's worktree (its branch stays); False when there is none.

        Raises OodatcaaError git.worktree_dirty unless `force` or everything is committed.
        """
        path = self._layout.worktrees_dir / story_id
        with self._locked():
            if path not in {item.path for item in list_worktrees(self._layout.root)}:
                return False
            if not force and path.exists() and (dirty := dirty_paths(path, hidden=True)):
                raise OodatcaaError(
                    "git.worktree_dirty",
                    f"{path} holds work that is not committed",
                    hint=f"look: git -C '{path}' status",
                    details=dirty,
                )
            self._remove(path)
        return True

    # The rest expects the lock to be held.

    def _git(self, *args: str, may_fail: bool = False) -> Output:
        return run_git(self._layout.root, args, timeout_s=CHECKOUT_TIMEOUT_S, may_fail=may_fail)

    def _owner_file(self, path: Path) -> Path:
        return self._owners / f"{path.name}.json"

    def _read_owner(self, path: Path) -> CheckOwner | None:
        try:
            text = self._owner_file(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return CheckOwner.model_validate(json.loads(text))

    def _must_be_free(self, branch: str, path: Path, known: Iterable[Worktree]) -> None:
        for item in known:
            if item.branch == branch and item.path != path and item.exists:
                raise OodatcaaError(
                    "git.branch_in_use",
                    f"{branch} is checked out in {item.path}",
                    hint=f"switch that checkout to another branch: git -C '{item.path}' switch ...",
                )

    def _usable(self, found: Worktree) -> bool:
        # "initializing" is git's own mark while it makes a worktree. The lock is ours, so
        # nobody is making one now: whoever was has been killed half way.
        return (
            found.path.exists()
            and found.exists
            and found.locked != "initializing"
            and found.sha is not None
        )

    def _add(self, path: Path, branch: str, base: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Twice --force: a deleted worktree of the same branch may still be listed, even locked.
        start = ["worktree", "add", "--quiet", "--force", "--force"]
        if try_resolve(self._layout.root, f"refs/heads/{branch}"):
            self._git(*start, str(path), branch)
        else:
            sha = resolve(self._layout.root, base)
            self._git(*start, "--no-track", "-b", branch, str(path), sha)

    def _switch(self, path: Path, branch: str, base: str) -> None:
        dirty = dirty_paths(path)
        if dirty:
            raise OodatcaaError(
                "git.worktree_dirty",
                f"{path} is not on {branch} and holds work that is not committed",
                hint=f"look: git -C '{path}' status; commit or remove it",
                details=dirty,
            )
        if try_resolve(self._layout.root, f"refs/heads/{branch}"):
            run_git(path, ["switch", "--quiet", branch])
        else:
            start = resolve(self._layout.root, base)
            run_git(path, ["switch", "--quiet", "--no-track", "--create", branch, start])

    def _make_checks_folder(self) -> None:
        try:
            self._checks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OodatcaaError(
                "git.no_check_folder",
                f"no folder for check worktrees: {error}",
                hint="set XDG_CACHE_HOME to a folder that can be written",
            ) from error

    def _keep(self, path: Path, label: str) -> str:
        """Park what only this worktree has. One that git can not read any more, or with too much
        in it, is moved aside; nothing is lost then either."""
        if not (path / ".git").exists():
            self._put_aside(path)
            return ""
        try:
            gates = label.startswith("gates-")
            return park_worktree(self._layout.root, path, label, commits_only=gates)
        except OodatcaaError:
            if not (path / ".git").is_dir():
                (path / ".git").unlink(missing_ok=True)
            self._put_aside(path)
            return ""

    def _put_aside(self, path: Path) -> None:
        """A folder that git knows nothing about may be somebody's work: moved, not deleted."""
        if not path.exists():
            return
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
            return
        path.rename(path.with_name(f"lost-{path.name}-{time.time_ns()}"))

    def _remove(self, path: Path) -> None:
        for attempt in range(5):
            args = ["worktree", "remove", "--force", "--force", str(path)]
            output = self._git(*args, may_fail=True)
            if output.ok or not path.exists():
                break
            # A check may leave read-only folders, or a dying process may still write in there.
            shutil.rmtree(path, onerror=_make_writable)
            time.sleep(0.05 * attempt)
        listed = {item.path for item in list_worktrees(self._layout.root)}
        if path in listed or path.exists():
            raise OodatcaaError(
                "git.worktree_stays",
                f"the worktree {path} could not be removed",
                hint=f"remove it by hand: rm -r '{path}'; git worktree prune",
                details=output.messages(),
            )
        self._owner_file(path).unlink(missing_ok=True)
        if path.parent == self._checks:
            with contextlib.suppress(OSError):  # another check is still in there
                self._checks.rmdir()


def checks_folder(root: Path) -> Path:
    """Where the checks of the repository at `root` happen: in the user's cache, outside of it.

    Inside the main checkout pytest and ruff would search upwards and use its configuration, and
    even run its conftest.py, whenever the commit has none of its own.
    """
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("oodatcaa")).resolve() / "checks" / key


def index_of(checkout: Path) -> bytes:
    """Git's index of a checkout, for `restore`."""
    return (git_folder(checkout) / "index").read_bytes()


def restore(
    checkout: Path, commit: str, keep: Collection[str] = (), index: bytes = b""
) -> tuple[str, ...]:
    """Bring a checkout of which we are the only user back to `commit`, detached.

    Tracked files are reset, untracked ones removed unless in `keep`; what git ignores stays.
    Returns the paths that had been changed. With `index`, as it was before strange code ran there,
    nothing that it told git hides a change.
    """
    drop_stale_index_lock(checkout)
    if index:
        _put_back(git_folder(checkout) / "index", index)
    changed = {path for path in dirty_paths(checkout) if path not in keep}
    head = read_head(checkout)
    if head.kind == "detached" and head.sha == commit and not dirty_paths(checkout):
        return ()
    if head.sha is not None and head.sha != commit:
        args = ["diff", "--name-only", "-z", "--no-renames", commit, head.sha]
        changed |= set(run_git(checkout, args).fields())
    run_git(checkout, ["checkout", "--quiet", "--force", "--detach", commit])
    for name in dirty_paths(checkout):
        path = checkout / name
        if name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return tuple(sorted(changed))


def _put_back(path: Path, index: bytes) -> None:
    """Git takes a file of the same size and second for unchanged, unless the index is no younger:
    a file that was changed in the second of the checkout would pass for what was committed. With an
    index that is older than everything git compares contents (zero means that it need not)."""
    write_atomic(path, index)
    os.utime(path, (1, 1))


def _clean(checkout: Path) -> None:
    """Back to HEAD; what git ignores stays. Only after its work was parked."""
    if hidden := hidden_paths(checkout):
        for flag in ("--no-assume-unchanged", "--no-skip-worktree"):
            run_git(checkout, ["update-index", flag, "-z", "--stdin"], stdin="\0".join(hidden))
    run_git(checkout, ["reset", "--quiet", "--hard"])
    run_git(checkout, ["clean", "-d", "--force", "--quiet"])


def drop_stale_index_lock(checkout: Path) -> None:
    """Remove the index lock of a git that was killed. Only for a checkout with one owner."""
    lock = git_folder(checkout) / "index.lock"
    if lock.exists() and not git_processes(checkout, lock.parent):
        lock.unlink(missing_ok=True)


def owner_lives(owner: CheckOwner) -> bool:
    """Whether the process still runs; of another host nothing is known, so it counts as alive."""
    return owner.host != socket.gethostname() or is_alive(owner.pid, owner.started)


def _make_writable(function: Callable[[str], object], name: str, _: object) -> None:
    path = Path(name)
    with contextlib.suppress(OSError):
        path.parent.chmod(0o700)
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    with contextlib.suppress(OSError):
        function(name)
