"""What the vcs room tells its callers: small frozen records, and its refusals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.plan import Inventory, InventoryRow
from oodatcaa.errors import OodatcaaError, RefusedError

HeadKind = Literal["branch", "detached", "unborn"]


class Head(Record):
    """Where a checkout stands. `branch` is None when detached; `sha` is None when unborn."""

    kind: HeadKind
    branch: str | None = None
    sha: str | None = None


class RepositoryStatus(Record):
    """One look at the main checkout."""

    root: Path
    head: Head
    dirty: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.dirty


class Worktree(Record):
    """One line of `git worktree list`. `exists` is False when the folder was deleted."""

    path: Path
    sha: str | None = None
    branch: str | None = None
    bare: bool = False
    locked: str | None = None
    exists: bool = True


class Advanced(Record):
    """How a target branch was moved. `note` tells a person what their checkout does not show."""

    target: NonEmpty
    sha: NonEmpty
    how: Literal["checkout", "ref", "already"]
    checkout: Path | None = None
    note: str = ""


class Count(Record):
    """Files and text lines of one folder or language; a binary file has no lines."""

    name: NonEmpty
    files: int
    lines: int


class TreeInventory(Record):
    """What a commit holds: tracked files by top folder and by language, tests, documents."""

    commit: NonEmpty
    total: Count
    folders: tuple[Count, ...]
    languages: tuple[Count, ...]
    tests: Count
    docs: Count
    packages: tuple[str, ...] = ()

    def for_plan(self) -> Inventory:
        """The same facts as the record that a plan carries."""
        rows = [
            *((count, "top folder") for count in self.folders),
            *((count, "language") for count in self.languages),
            (self.tests, "test files, wherever they are"),
            (self.docs, "documents, wherever they are"),
            (self.total, "all tracked files"),
        ]
        return Inventory(
            commit=self.commit,
            rows=tuple(
                InventoryRow(place=count.name, files=count.files, lines=count.lines, what=what)
                for count, what in rows
            ),
            packages=self.packages,
        )


class CheckOwner(Record):
    """The process that made a check worktree."""

    host: NonEmpty
    pid: int
    started: float


class TargetMoved(RefusedError):
    """Somebody moved the target meanwhile: merge again onto its new head and retry."""

    def __init__(self, target: str, expected: str, found: str) -> None:
        super().__init__(
            "git.target_moved",
            f"{target} moved from {expected[:12]} to {found[:12]} while the merge was prepared",
            hint="merge again onto the new head: oodatcaa negotiate",
        )
        self.target, self.expected, self.found = target, expected, found


class TargetDirty(RefusedError):
    """The checkout of the target holds uncommitted work, which a merge may not touch."""

    def __init__(
        self, target: str, checkout: Path, paths: Iterable[str], *, reason: str = "uncommitted work"
    ) -> None:
        self.target, self.checkout, self.paths = target, checkout, tuple(paths)
        code = "git.untracked_in_the_way" if "untracked" in reason else "git.target_dirty"
        super().__init__(
            code,
            f"{target} is checked out in {checkout} with {reason}",
            hint=f"commit, move or stash it there (git -C '{checkout}' status), "
            "then: oodatcaa negotiate",
            details=self.paths,
        )


class TagExists(OodatcaaError):
    """The tag already names another commit; a tag is never moved."""

    def __init__(self, name: str, found: str, wanted: str) -> None:
        super().__init__(
            "git.tag_exists",
            f"tag {name} already names {found[:12]}, not {wanted[:12]}",
            hint=f"look at it: git show {name}; delete it if it is stale: git tag -d {name}",
        )
