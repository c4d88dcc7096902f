"""Merging into a target without touching anybody's work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs import Repository, TargetDirty, TargetMoved

Git = Callable[..., str]
BRANCH = "feat/T001-x"
pytestmark = pytest.mark.usefixtures("story")


@pytest.fixture
def story(repo: Repository) -> str:
    """A story branch with one commit: adds `dir/ü new.txt`."""
    path = repo.story_worktree("T001", BRANCH, "main")
    (path / "dir").mkdir()
    (path / "dir" / "ü new.txt").write_text("new")
    sha = repo.commit_files(path, None, "feat: new [impl]")
    assert sha is not None
    return sha


def merge(repo: Repository, target: str = "main") -> tuple[str, str]:
    """(candidate, base)"""
    with repo.merge_into(target, BRANCH, "Merge T001", "T001") as candidate:
        assert candidate.ok
        return candidate.sha, candidate.base


def test_a_merge_with_more_commits_on_top_reaches_the_clean_checkout(
    repo: Repository, root: Path, story: str, git: Git
) -> None:
    before = repo.resolve("main")
    with repo.merge_into("main", BRANCH, "Merge T001\n\nbody", "T001") as candidate:
        assert (candidate.ok, candidate.already, candidate.base) == (True, False, before)
        (candidate.worktree / "CHANGELOG.md").write_text("- T001\n")
        assert candidate.commit(["CHANGELOG.md"], "docs: changelog") == candidate.sha
        assert candidate.commit(["CHANGELOG.md"], "again") is None
        sha, merged = candidate.sha, candidate.merge
        assert repo.resolve("main") == before
    assert not candidate.worktree.exists()
    done = repo.advance("main", sha, before)
    assert (done.how, done.checkout, done.note) == ("checkout", root, "")
    assert repo.resolve("main") == sha
    assert git(root, "rev-list", "--parents", "-1", str(merged)).split()[1:] == [before, story]
    assert (root / "CHANGELOG.md").exists()
    assert (root / "dir" / "ü new.txt").exists()
    assert repo.status().clean
    assert repo.is_ancestor(story, "main")
    assert repo.advance("main", sha, before).how == "already"
    with repo.merge_into("main", BRANCH, "again", "T001") as again:
        assert (again.ok, again.already, again.merge) == (True, True, sha)


def test_conflicts_are_listed_and_nothing_stays(repo: Repository, root: Path, git: Git) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    (path / "README.md").write_text("theirs\n")
    repo.commit_files(path, None, "feat: theirs")
    (root / "README.md").write_text("ours\n")
    (root / "dir").write_text("a file where the branch has a folder")
    git(root, "add", ".")
    git(root, "commit", "-qm", "ours")
    git(root, "config", "rerere.enabled", "true")
    before = repo.resolve("main")
    with repo.merge_into("main", BRANCH, "m", "T001") as candidate:
        assert not candidate.ok
        assert "README.md" in candidate.conflicts
        assert len(candidate.conflicts) == 2
    assert repo.resolve("main") == before
    assert not candidate.worktree.exists()
    assert len(repo.worktrees()) == 2
    assert repo.status().clean


def test_a_dirty_target_is_refused_and_untouched(repo: Repository, root: Path, git: Git) -> None:
    sha, base = merge(repo)
    (root / "README.md").write_text("my unfinished work\n")
    with pytest.raises(TargetDirty) as caught:
        repo.advance("main", sha, base)
    assert (caught.value.code, caught.value.paths) == ("git.target_dirty", ("README.md",))
    assert repo.resolve("main") == base
    assert (root / "README.md").read_text() == "my unfinished work\n"
    git(root, "checkout", "-q", "README.md")
    (root / "scratch.txt").write_text("untracked and not in the way")
    assert repo.advance("main", sha, base).how == "checkout"


@pytest.mark.parametrize("name", ["dir/ü new.txt", "dir"])
@pytest.mark.parametrize("ignored", [True, False])
def test_untracked_files_in_the_way_are_never_overwritten(
    repo: Repository, root: Path, name: str, ignored: bool
) -> None:
    sha, base = merge(repo)
    if ignored:
        (root / ".git" / "info").mkdir(exist_ok=True)
        (root / ".git" / "info" / "exclude").write_text("dir\ndir/*\n")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("precious")
    with pytest.raises(TargetDirty) as caught:
        repo.advance("main", sha, base)
    assert (caught.value.code, caught.value.paths) == ("git.untracked_in_the_way", (name,))
    assert (root / name).read_text() == "precious"
    assert repo.resolve("main") == base


def test_an_unfinished_merge_or_rebase_in_the_target_is_refused(
    repo: Repository, root: Path, git: Git
) -> None:
    (root / "README.md").write_text("mine\n")
    git(root, "commit", "-qam", "mine")
    git(root, "switch", "-qc", "other", "HEAD~1")
    (root / "README.md").write_text("other\n")
    git(root, "commit", "-qam", "other")
    git(root, "switch", "-q", "main")
    sha, base = merge(repo)
    git(root, "merge", "other", check=False)
    with pytest.raises(TargetDirty, match="merge in progress"):
        repo.advance("main", sha, base)
    git(root, "merge", "--abort")
    git(root, "rebase", "other", check=False)
    with pytest.raises(TargetDirty, match="rebase in progress"):
        repo.advance("main", sha, base)
    git(root, "rebase", "--abort")
    assert repo.advance("main", sha, base).how == "checkout"


def test_a_target_that_is_not_checked_out_is_swapped(
    repo: Repository, root: Path, git: Git
) -> None:
    git(root, "switch", "-q", "-c", "work")
    (root / "README.md").write_text("dirty, but on another branch\n")
    sha, base = merge(repo)
    done = repo.advance("main", sha, base)
    assert (done.how, done.checkout) == ("ref", None)
    assert repo.resolve("main") == sha
    assert (root / "README.md").read_text() == "dirty, but on another branch\n"


def test_a_detached_main_checkout_is_told(repo: Repository, root: Path, git: Git) -> None:
    git(root, "checkout", "-q", "--detach")
    sha, base = merge(repo)
    done = repo.advance("main", sha, base)
    assert done.how == "ref"
    assert "git switch main" in done.note


def test_a_target_in_another_worktree_is_moved_there(
    repo: Repository, root: Path, tmp_path: Path, git: Git
) -> None:
    git(root, "switch", "-q", "-c", "work")
    other = tmp_path / "other place"
    git(root, "worktree", "add", "-q", str(other), "main")
    sha, base = merge(repo)
    (other / "README.md").write_text("dirty\n")
    with pytest.raises(TargetDirty) as caught:
        repo.advance("main", sha, base)
    assert caught.value.checkout == other
    git(other, "checkout", "-q", "README.md")
    done = repo.advance("main", sha, base)
    assert (done.how, done.checkout) == ("checkout", other)
    assert (other / "dir" / "ü new.txt").exists()
    assert git(other, "status", "--porcelain") == ""


@pytest.mark.parametrize("checked_out", [True, False])
def test_a_target_that_moved_meanwhile_is_not_overwritten(
    repo: Repository, root: Path, story: str, git: Git, checked_out: bool
) -> None:
    sha, base = merge(repo)
    git(root, "commit", "-q", "--allow-empty", "-m", "somebody was faster")
    moved = repo.resolve("main")
    if not checked_out:
        git(root, "switch", "-q", "-c", "work")
    with pytest.raises(TargetMoved) as caught:
        repo.advance("main", sha, base)
    assert (caught.value.expected, caught.value.found) == (base, moved)
    assert repo.resolve("main") == moved
    retry, base = merge(repo)
    repo.advance("main", retry, base)
    assert repo.is_ancestor(story, "main")
    assert repo.is_ancestor(moved, "main")


def test_the_swap_itself_compares(
    repo: Repository, root: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody commits between our look at the target and the swap."""
    from oodatcaa.vcs import integration

    git(root, "switch", "-q", "-c", "work")
    sha, base = merge(repo)
    real = integration._checkout_of

    def slow(where: Path, target: str) -> Path | None:
        tree = git(root, "rev-parse", f"{base}^{{tree}}")
        made = git(root, "commit-tree", "-p", base, "-m", "faster", tree)
        git(root, "update-ref", "refs/heads/main", made)
        return real(where, target)

    monkeypatch.setattr(integration, "_checkout_of", slow)
    with pytest.raises(TargetMoved):
        repo.advance("main", sha, base)
    assert git(root, "log", "-1", "--format=%s", "main") == "faster"


def test_a_candidate_that_does_not_contain_the_target_is_refused(
    repo: Repository, root: Path, story: str, git: Git
) -> None:
    git(root, "commit", "-q", "--allow-empty", "-m", "more")
    with pytest.raises(OodatcaaError, match=r"git\.not_forward"):
        repo.advance("main", story, "main")


def test_unrelated_histories_are_one_clear_error(repo: Repository, root: Path, git: Git) -> None:
    tree = git(root, "rev-parse", "main^{tree}")
    git(root, "update-ref", "refs/heads/island", git(root, "commit-tree", "-m", "x", tree))
    with (
        pytest.raises(OodatcaaError) as caught,
        repo.merge_into("main", "island", "m", "x"),
    ):
        pass
    assert caught.value.code == "git.merge_failed"
    assert len(repo.worktrees()) == 2
