"""Commits and tags, with and without identity, hooks and signing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs import GitPolicy, Repository, TagExists
from oodatcaa.vcs.git import git_processes

Git = Callable[..., str]
USER = GitPolicy.as_the_user(timeout_s=60)


def hook(root: Path, name: str, script: str) -> None:
    path = root / ".git" / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_only_the_given_paths_are_committed(repo: Repository, root: Path, git: Git) -> None:
    for name in (
        "a [1].txt",
        "a 1.txt",
        "ü.txt",
        "other.txt",
        "staged.txt",
        "dir/x.txt",
        "dir/y.txt",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    git(root, "add", "staged.txt")
    (root / "README.md").unlink()
    paths: list[str | Path] = ["a [1].txt", root / "ü.txt", "README.md", "dir"]
    sha = repo.commit_files(root, paths, "feat: some\n\n# not a comment")
    assert sha == git(root, "rev-parse", "HEAD")
    assert set(repo.changed_paths("HEAD~1", "HEAD")) == {
        "a [1].txt", "ü.txt", "README.md", "dir/x.txt", "dir/y.txt",
    }  # fmt: skip
    assert git(root, "log", "-1", "--format=%B").rstrip() == "feat: some\n\n# not a comment"
    assert git(root, "diff", "--cached", "--name-only") == "staged.txt"
    assert repo.dirty_paths() == ("a 1.txt", "other.txt", "staged.txt")


def test_nothing_to_commit_is_none(repo: Repository, root: Path, git: Git) -> None:
    (root / "b.txt").write_text("b")
    git(root, "add", "b.txt")
    assert repo.commit_files(root, ["README.md"], "x") is None
    assert repo.commit_files(root, [], "x") is None
    assert repo.commit_files(root, None, "x") is not None
    assert repo.commit_files(root, None, "x") is None


def test_everything_leaves_out_live_state_even_when_not_ignored(
    repo: Repository, root: Path, git: Git
) -> None:
    (root / ".gitignore").unlink()
    git(root, "commit", "-qam", "nothing is ignored")
    repo.story_worktree("T001", "feat/T001-x", "main")
    (root / ".oodatcaa" / "work" / "SPRINT_QUEUE.json").write_text("{}")
    (root / "kept.txt").write_text("k")
    assert repo.commit_files(root, None, "all") is not None
    assert repo.changed_paths("HEAD~1", "HEAD") == ("kept.txt",)


def test_what_can_not_be_added_is_named(repo: Repository, root: Path) -> None:
    (root / "big.log").write_text("ignored")
    for path in ("big.log", "missing.txt"):
        with pytest.raises(OodatcaaError) as caught:
            repo.commit_files(root, [path], "x")
        assert caught.value.code == "git.add_failed"
        assert path in " ".join(caught.value.details)
    with pytest.raises(OodatcaaError, match=r"git\.outside"):
        repo.commit_files(root, ["../x"], "x")


def test_another_repository_inside_is_not_swallowed(repo: Repository, root: Path, git: Git) -> None:
    git(root, "init", "-q", "vendored")
    (root / "vendored" / "x").write_text("x")
    git(root / "vendored", "add", "x")
    git(root / "vendored", "commit", "-qm", "x")
    with pytest.raises(OodatcaaError, match=r"git\.embedded_repository"):
        repo.commit_files(root, None, "all")


def test_a_first_commit_of_nothing_holds_nothing(unborn: Path, git: Git) -> None:
    repo = Repository.discover(unborn)
    (unborn / "staged.txt").write_text("for later")
    git(unborn, "add", "staged.txt")
    sha = repo.first_commit([], "chore: begin")
    assert repo.paths_at(sha) == ()
    assert repo.dirty_paths() == ("staged.txt",)
    with pytest.raises(OodatcaaError, match=r"git\.has_commits"):
        repo.first_commit([], "again")


def test_the_users_identity_is_used(repo: Repository, root: Path, git: Git) -> None:
    (root / "a").write_text("a")
    repo.commit_files(root, ["a"], "x")
    assert git(root, "log", "-1", "--format=%an %ae %cn") == "Ada ada@example.org Ada"


def test_without_identity_the_framework_signs_for_that_commit_only(
    unborn: Path, tmp_path: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    before = (unborn / ".git" / "config").read_text()
    repo = Repository.discover(unborn)
    (unborn / "a").write_text("a")
    sha = repo.first_commit(["a"], "chore: begin")
    repo.tag("T001-complete", sha, "done")
    who = "oodatcaa <oodatcaa@localhost>"
    assert git(unborn, "log", "-1", "--format=%an <%ae>%n%cn <%ce>") == f"{who}\n{who}"
    assert git(unborn, "for-each-ref", "--format=%(taggername) %(taggeremail)", "refs/tags") == who
    assert (unborn / ".git" / "config").read_text() == before


def test_broken_signing_and_refusing_hooks_do_not_stop_the_crew(
    repo: Repository, root: Path, git: Git
) -> None:
    git(root, "config", "commit.gpgsign", "true")
    git(root, "config", "tag.gpgsign", "true")
    git(root, "config", "gpg.program", "/bin/false")
    for name in ("pre-commit", "commit-msg", "reference-transaction", "post-checkout"):
        hook(root, name, "echo never; exit 1")
    path = repo.story_worktree("T001", "feat/T001-x", "main")
    (path / "a").write_text("a")
    sha = repo.commit_files(path, None, "feat: a")
    assert sha is not None
    repo.tag("t", sha, "m")
    with repo.merge_into("main", "feat/T001-x", "merge", "T001") as candidate:
        assert candidate.ok


def test_a_crew_may_be_told_to_use_hooks_and_signatures(root: Path) -> None:
    hook(root, "commit-msg", 'echo checked > "$(git rev-parse --show-toplevel)/../ran"')
    repo = Repository.discover(root, GitPolicy(hooks=True))
    (root / "a").write_text("a")
    assert repo.commit_files(root, ["a"], "x") is not None
    assert (root.parent / "ran").exists()
    (root.parent / "ran").unlink()
    (root / "a").write_text("b")
    assert repo.commit_files(root, ["a"], "x", policy=GitPolicy()) is not None
    assert not (root.parent / "ran").exists()
    with repo.merge_into("main", "HEAD", "m", "T001") as candidate:
        (candidate.worktree / "d").write_text("d")
        assert candidate.commit(["d"], "d") is not None
        assert (candidate.worktree.parent / "ran").exists()


@pytest.mark.parametrize("name", ["pre-commit", "commit-msg"])
def test_a_refusing_hook_stops_the_users_own_commit_and_keeps_the_files(
    unborn: Path, name: str
) -> None:
    repo = Repository.discover(unborn)
    hook(unborn, name, "echo 'no ticket number' >&2; exit 1")
    (unborn / "OBJECTIVE.md").write_text("x")
    with pytest.raises(OodatcaaError) as caught:
        repo.first_commit(["OBJECTIVE.md"], "chore: begin", policy=USER)
    assert caught.value.code == "git.hook_refused"
    assert "no ticket number" in caught.value.details
    assert name in caught.value.message
    assert (unborn / "OBJECTIVE.md").read_text() == "x"
    assert repo.head().kind == "unborn"


def test_a_failing_signature_stops_the_users_own_commit(
    repo: Repository, root: Path, git: Git
) -> None:
    git(root, "config", "commit.gpgsign", "true")
    git(root, "config", "gpg.program", "/bin/false")
    (root / "a").write_text("a")
    head = repo.resolve("HEAD")
    with pytest.raises(OodatcaaError) as caught:
        repo.commit_files(root, ["a"], "x", policy=USER)
    assert caught.value.code == "git.signing_failed"
    assert (repo.resolve("HEAD"), (root / "a").read_text()) == (head, "a")


def test_a_hook_that_hangs_is_ended_with_everything_it_started(
    repo: Repository, root: Path
) -> None:
    hook(root, "pre-commit", "sleep 300 & echo $! > .git/sleeper; wait")
    (root / "a").write_text("a")
    with pytest.raises(OodatcaaError) as caught:
        repo.commit_files(root, ["a"], "x", policy=GitPolicy.as_the_user(timeout_s=1))
    assert caught.value.code == "git.timeout"
    assert "commit" in caught.value.message
    sleeper = int((root / ".git" / "sleeper").read_text())
    for _ in range(100):
        if not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == "zombie":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the hook's child outlived the timeout")


def test_a_hook_can_not_ask_on_the_terminal_or_standard_input(repo: Repository, root: Path) -> None:
    hook(root, "pre-commit", "read answer && exit 1; exit 0")
    (root / "a").write_text("a")
    assert repo.commit_files(root, ["a"], "x", policy=USER) is not None


def test_a_tag_stays_where_it_is(repo: Repository, root: Path, git: Git) -> None:
    sha = repo.resolve("main")
    assert repo.tag("T001-complete", sha, "T001 done") == sha
    assert repo.tag("T001-complete", sha, "again") == sha
    assert git(root, "cat-file", "-t", "T001-complete") == "tag"
    (root / "a").write_text("a")
    other = repo.commit_files(root, ["a"], "x")
    assert other is not None
    with pytest.raises(TagExists):
        repo.tag("T001-complete", other, "moved")
    assert repo.resolve("T001-complete") == sha
    with pytest.raises(OodatcaaError, match=r"git\.tag_failed"):
        repo.tag("bad..name", sha, "m")


def test_a_held_lock_is_waited_for_then_named(
    repo: Repository, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = root / ".git" / "index.lock"
    lock.write_text("")
    (root / "a").write_text("a")
    monkeypatch.setattr("oodatcaa.vcs.git.LOCK_PATIENCE_S", 0.2)
    with pytest.raises(OodatcaaError) as caught:
        repo.commit_files(root, ["a"], "x")
    assert caught.value.code == "git.locked"
    assert str(lock) in caught.value.message
    assert f"rm '{lock}'" in caught.value.hint
    assert lock.exists()


def test_a_git_that_has_ended_holds_no_lock(tmp_path: Path) -> None:
    ended = subprocess.Popen(["git", "--version"], stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert not [line for line in git_processes(tmp_path) if f"pid {ended.pid}:" in line]
    finally:
        ended.wait()


def test_a_lock_that_goes_away_is_no_error(repo: Repository, root: Path) -> None:
    import threading

    lock = root / ".git" / "index.lock"
    lock.write_text("")
    (root / "a").write_text("a")
    release = threading.Timer(0.3, lock.unlink)
    release.start()
    assert repo.commit_files(root, ["a"], "x") is not None
    release.join()
