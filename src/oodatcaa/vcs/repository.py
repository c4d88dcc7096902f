"""The repository as the crew uses it: one object, safe to use from many processes at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.vcs import committing, integration, objects, reading, worktrees
from oodatcaa.vcs.git import CREW, GitPolicy, run_git
from oodatcaa.vcs.integration import MergeCandidate, MergeChain
from oodatcaa.vcs.layout import Layout, find_layout
from oodatcaa.vcs.records import (
    Advanced,
    CheckOwner,
    Head,
    RepositoryStatus,
    TreeInventory,
    Worktree,
)
from oodatcaa.vcs.worktrees import Worktrees


class Repository:
    """A non-bare git repository. `root` is the main checkout, wherever it was discovered from.

    Methods without a `checkout` argument speak of the main checkout. Nothing here is cached, so
    every answer is as new as the call. Commands are bounded in time, never ask, and wait a
    bounded time for git's own locks (`git.locked` names what held one).
    """

    def __init__(self, layout: Layout, policy: GitPolicy = CREW) -> None:
        self._layout = layout
        self._policy = policy
        self._worktrees = Worktrees(layout)

    @classmethod
    def discover(cls, start: Path, policy: GitPolicy = CREW) -> Repository:
        """From any folder of any worktree. Raises OodatcaaError: git.not_a_repository,
        git.bare_repository, git.unsafe_owner, git.missing.

        `policy` says how commits, merges and tags are made unless a call says otherwise.
        """
        return cls(find_layout(start), policy)

    @property
    def root(self) -> Path:
        return self._layout.root

    @property
    def here(self) -> Path:
        """The top of the checkout that discovery started in (root, or a linked worktree)."""
        return self._layout.here

    @property
    def common_dir(self) -> Path:
        return self._layout.common

    @property
    def work_dir(self) -> Path:
        """Live state, one for all worktrees. Not made here."""
        return self._layout.work_dir

    @property
    def worktrees_dir(self) -> Path:
        return self._layout.worktrees_dir

    # -- questions

    def head(self, checkout: Path | None = None) -> Head:
        return reading.read_head(checkout or self.root)

    def current_branch(self, checkout: Path | None = None) -> str | None:
        """The branch's name (also when unborn), None when detached."""
        return self.head(checkout).branch

    def target_branch(self, configured: str = "") -> str:
        """The branch that stories go into: the configured one, else the main checkout's.

        Raises OodatcaaError: git.unborn, git.no_branch, git.detached.
        """
        head = self.head()
        if configured:
            if reading.try_resolve(self.root, f"refs/heads/{configured}") is None:
                if head.kind == "unborn" and head.branch == configured:
                    raise _unborn(self.root)
                raise OodatcaaError(
                    "git.no_branch",
                    f"the target branch {configured} does not exist",
                    hint=f"make it (git branch {configured}) or mend .oodatcaa/config.toml",
                )
            return configured
        if head.kind == "unborn":
            raise _unborn(self.root)
        if head.branch is None:
            raise RefusedError(
                "git.detached",
                f"the main checkout is on a detached HEAD at {(head.sha or '')[:12]}, "
                "so there is no branch to integrate into",
                hint="git switch <branch>, or name the target in .oodatcaa/config.toml",
            )
        return head.branch

    def status(self) -> RepositoryStatus:
        return RepositoryStatus(root=self.root, head=self.head(), dirty=self.dirty_paths())

    def dirty_paths(
        self, checkout: Path | None = None, *, untracked: bool = True, hidden: bool = False
    ) -> tuple[str, ...]:
        """Changed, staged, deleted and untracked paths; nothing ignored, no live state. With
        `hidden` also changed files that git was told to overlook."""
        return reading.dirty_paths(checkout or self.root, untracked=untracked, hidden=hidden)

    def resolve(self, name: str) -> str:
        """The full commit id of a branch, tag or id. Raises OodatcaaError git.unknown_commit."""
        return reading.resolve(self.root, name)

    def try_resolve(self, name: str) -> str | None:
        return reading.try_resolve(self.root, name)

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        return reading.is_ancestor(self.root, ancestor, descendant)

    def merge_of(self, commit: str, target: str) -> str | None:
        """The merge that brought `commit` into `target`; None when no merge did."""
        return reading.merge_of(self.root, self.resolve(commit), self.resolve(target))

    def worktrees(self) -> tuple[Worktree, ...]:
        return reading.list_worktrees(self.root)

    def is_ignored(self, path: str) -> bool:
        """Whether git would ignore `path` (relative to the main checkout)."""
        # check-ignore is the one command that refuses literal pathspecs.
        args = ["--no-literal-pathspecs", "check-ignore", "--quiet", "--", path]
        return run_git(self.root, args, may_fail=True).ok

    def file_at(self, commit: str, path: str) -> bytes | None:
        """The content of a tracked file at a commit, None when there is none."""
        return objects.file_at(self.root, self.common_dir, self.resolve(commit), path)

    def paths_at(self, commit: str) -> tuple[str, ...]:
        return objects.paths_at(self.root, self.resolve(commit))

    def links_out(self, commit: str, target: str) -> dict[str, str]:
        """Links that `commit` made or changed since it left `target` and that lead out of the
        repository: what is there is not part of the commit."""
        changed = [path for path, _ in self.branch_changes(target, commit)]
        return objects.links_out(self.root, self.common_dir, self.resolve(commit), changed)

    def sizes_at(self, commit: str) -> dict[str, int]:
        return objects.sizes_at(self.root, self.resolve(commit))

    def changed_paths(self, old: str, new: str) -> tuple[str, ...]:
        """Paths that differ between two commits."""
        pair = [self.resolve(old), self.resolve(new)]
        return run_git(self.root, ["diff", "--name-only", "-z", "--no-renames", *pair]).fields()

    def branch_changes(self, target: str, commit: str) -> tuple[tuple[str, str], ...]:
        """(path, A, M, T or D): what `commit` changed since it left `target`; a rename is both."""
        pair = f"{self.resolve(target)}...{self.resolve(commit)}"
        args = ["diff", "--name-status", "-z", "--no-renames", pair]
        fields = run_git(self.root, args).fields()
        return tuple(zip(fields[1::2], fields[::2], strict=True))

    def inventory(self, commit: str) -> TreeInventory:
        return objects.take_inventory(self.root, self.common_dir, self.resolve(commit))

    # -- commits

    def commit_files(
        self,
        worktree: Path,
        paths: Iterable[str | Path] | None,
        message: str,
        *,
        policy: GitPolicy | None = None,
    ) -> str | None:
        """Commit exactly `paths` (every change when None); None when nothing changed."""
        return committing.commit_files(worktree, paths, message, policy=policy or self._policy)

    def first_commit(
        self, paths: Iterable[str | Path], message: str, *, policy: GitPolicy | None = None
    ) -> str:
        """The first commit of an unborn main checkout, possibly of no files at all."""
        if self.head().kind != "unborn":
            raise RefusedError(
                "git.has_commits", f"{self.root} already has commits", hint="git log --oneline"
            )
        sha = committing.commit_files(
            self.root, paths, message, policy=policy or self._policy, allow_empty=True
        )
        return sha or self.resolve("HEAD")

    def tag(self, name: str, sha: str, message: str, *, policy: GitPolicy | None = None) -> str:
        """An annotated tag; again on the same commit is fine, on another raises TagExists."""
        return committing.tag_commit(self.root, name, sha, message, policy=policy or self._policy)

    # -- worktrees

    def story_worktree(self, story_id: str, branch: str, base: str) -> Path:
        """The story's lasting worktree on `branch`, made at `base` when new; work is kept."""
        self._must_have_commits()
        return self._worktrees.story(story_id, branch, base)

    def remove_story_worktree(self, story_id: str, *, force: bool = False) -> bool:
        return self._worktrees.remove_story(story_id, force=force)

    def check_worktree(self, commit: str, label: str) -> AbstractContextManager[Path]:
        """`with repository.check_worktree(sha, "T001-B01") as path:` fresh, detached, temporary."""
        return self._worktrees.check(commit, label)

    def index_of(self, checkout: Path) -> bytes:
        """Git's index of a checkout, for `restore`."""
        return worktrees.index_of(checkout)

    def restore(
        self, checkout: Path, commit: str, keep: Collection[str] = (), index: bytes = b""
    ) -> tuple[str, ...]:
        """Bring a check worktree back to `commit`; the paths that had been changed.

        Untracked paths in `keep` and everything ignored stay. With `index`, from before the check,
        nothing hides a change. Never for a person's checkout.
        """
        if checkout == self.root:
            raise RefusedError(
                "git.not_ours", f"{checkout} is the main checkout", hint="git status"
            )
        return worktrees.restore(checkout, self.resolve(commit), keep, index)

    def prune_checks(
        self,
        alive: Callable[[CheckOwner], bool] | None = None,
        on_parked: Callable[[Path, str], None] | None = None,
    ) -> tuple[Path, ...]:
        """Remove what killed processes left; the default asks this host's process table.

        Commits and changes that only such a worktree has are parked first: `on_parked(path, ref)`.
        """
        return self._worktrees.prune(alive, on_parked)

    def reclaim_story(self, story_id: str) -> str | None:
        """Remove the worktree of a story that is over; the ref that keeps its uncommitted work,
        "" when there was none, None when there is no worktree. Its branch always stays."""
        return self._worktrees.reclaim_story(story_id)

    def story_worktrees(self) -> dict[str, Path]:
        """Story id -> its lasting worktree."""
        return {
            item.path.name: item.path
            for item in self.worktrees()
            if item.path.parent == self.worktrees_dir and item.exists
        }

    def park_story(self, story_id: str, label: str, *, clean: bool) -> str:
        """Keep the uncommitted work in a story's worktree on a ref ("" = there was none); with
        `clean` the worktree is then as its branch says."""
        return self._worktrees.park_story(story_id, label, clean=clean)

    def restart_branch(self, story_id: str, branch: str, base: str, label: str) -> str:
        """Let a story's branch begin again at `base`; the ref that keeps what it was.

        Only in the story's own worktree, whose uncommitted work is parked too.
        """
        return self._worktrees.restart(story_id, branch, self.resolve(base), label)

    def refs(self) -> dict[str, str]:
        """Every ref with the object that it names, and HEAD of the main checkout."""
        lines = run_git(self.root, ["for-each-ref", "--format=%(refname) %(objectname)"]).out
        found = dict(line.split(" ", 1) for line in lines.splitlines() if " " in line)
        head = self.head()
        return {**found, "HEAD": head.branch or head.sha or ""}

    def abandoned_checks(self) -> tuple[Path, ...]:
        """What `prune_checks` would remove."""
        return self._worktrees.abandoned()

    # -- integration

    @contextlib.contextmanager
    def merge_into(
        self, target: str, branch: str, message: str, label: str
    ) -> Iterator[MergeCandidate]:
        """Merge in a temporary worktree; `target` itself is not touched.

        Yields a candidate that is `ok`, or one that lists conflicts. Inside the block more files
        can be written to `candidate.worktree` and committed with `candidate.commit`; the worktree
        is gone afterwards, the commit (`candidate.sha`, read it inside) stays for `advance`.
        """
        base = reading.resolve(self.root, f"refs/heads/{target}")
        branch_sha = self.resolve(branch)
        with self._worktrees.check(base, f"merge-{label}") as path:
            candidate = integration.make_candidate(
                path, target, branch, branch_sha, message, self._policy
            )
            yield candidate

    @contextlib.contextmanager
    def merge_chain(self, target: str, label: str) -> Iterator[MergeChain]:
        """Like `merge_into`, for several branches one after the other."""
        base = reading.resolve(self.root, f"refs/heads/{target}")
        with self._worktrees.check(base, f"merge-{label}") as path:
            yield integration.MergeChain(path, target, self._policy)

    def conflicting_paths(self, target: str, branch: str) -> tuple[str, ...]:
        """What would conflict in a merge of `branch` into `target` now."""
        return integration.conflicting_paths(self.root, f"refs/heads/{target}", branch)

    def advance(
        self, target: str, candidate_sha: str, expected_old: str, *, beside_work: bool = False
    ) -> Advanced:
        """Move `target` forward, if it still is at `expected_old`.

        Checked out somewhere: fast-forward in that checkout, which must be clean (TargetDirty,
        also with untracked files in the way; nothing was changed). Not checked out: compare and
        swap. Moved meanwhile: TargetMoved, merge again. Already there: fine.

        With `beside_work` uncommitted work stays in a checkout that is moved, as it was, as long
        as it is in other files than those that change.
        """
        return integration.advance(
            self.root, target, candidate_sha, expected_old, beside_work=beside_work
        )

    def refuse_stuck(self, target: str, folder: str) -> None:
        """Raises OodatcaaError when a commit of files in `folder` can not be brought to `target`
        now: no such branch, a merge in progress in its checkout, or own work in that folder."""
        self.target_branch(target)
        integration.refuse_stuck(self.root, target, folder)

    def last_change(self, commit: str, path: str) -> str | None:
        """The newest commit up to `commit` that changed `path`; None when none did."""
        args = ["log", "-1", "--format=%H", self.resolve(commit), "--", path]
        return run_git(self.root, args).line or None

    def tags(self) -> dict[str, str]:
        """Every tag with the commit that it names."""
        return dict(self._refs("refs/tags", "%(*objectname) %(objectname)"))

    def branches(self) -> dict[str, str]:
        """Every local branch with the commit at its head."""
        return dict(self._refs("refs/heads", "%(objectname)"))

    def parked_refs(self) -> tuple[str, ...]:
        """Names under refs/oodatcaa: work that was put aside there."""
        args = ["for-each-ref", "--format=%(refname)", "refs/oodatcaa"]
        return tuple(run_git(self.root, args).out.splitlines())

    def _refs(self, below: str, what: str) -> Iterator[tuple[str, str]]:
        args = ["for-each-ref", f"--format=%(refname:strip=2) {what}", below]
        for line in run_git(self.root, args).out.splitlines():
            name, *shas = line.split(" ")
            yield name, next(sha for sha in shas if sha)

    def tracked_below(self, *folders: str) -> tuple[str, ...]:
        """Paths in the index of the main checkout that lie in one of `folders`."""
        return run_git(self.root, ["ls-files", "-z", "--", *folders]).fields()

    def _must_have_commits(self) -> None:
        if self.head().kind == "unborn":
            raise _unborn(self.root)


def _unborn(root: Path) -> RefusedError:
    return RefusedError(
        "git.unborn",
        f"{root} has no commit yet, so there is nothing to branch from",
        hint="oodatcaa init --commit",
    )
