"""Discovery, the head's kinds, reading commits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs import Repository
from oodatcaa.vcs.git import LEAKING

Git = Callable[..., str]


def test_a_plain_folder_is_told_to_git_init(tmp_path: Path) -> None:
    with pytest.raises(OodatcaaError) as caught:
        Repository.discover(tmp_path)
    assert (caught.value.code, caught.value.hint) == ("git.not_a_repository", "git init")


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OodatcaaError) as caught:
        Repository.discover(tmp_path / "nowhere")
    assert caught.value.code == "git.no_folder"


def test_a_bare_repository_is_told_apart(tmp_path: Path, git: Git) -> None:
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    with pytest.raises(OodatcaaError) as caught:
        Repository.discover(tmp_path / "bare.git")
    assert caught.value.code == "git.bare_repository"


def test_every_folder_of_every_worktree_leads_to_the_main_checkout(
    repo: Repository, root: Path, tmp_path: Path, git: Git
) -> None:
    other = tmp_path / "elsewhere"
    git(root, "worktree", "add", "-q", "-b", "side", str(other))
    deep = other / "a" / "b"
    deep.mkdir(parents=True)
    story = repo.story_worktree("T001", "feat/T001-x", "main")
    for start in (root, root / ".git", other, deep, story):
        found = Repository.discover(start)
        assert found.root == root
        assert found.work_dir == root / ".oodatcaa" / "work"
    assert Repository.discover(deep).here == other


def test_a_separate_git_folder_works_from_its_checkout(tmp_path: Path, git: Git) -> None:
    checkout = tmp_path / "checkout"
    git(tmp_path, "init", "-q", "--separate-git-dir", str(tmp_path / "gitdir"), str(checkout))
    assert Repository.discover(checkout).root == checkout


def test_variables_of_a_calling_hook_do_not_redirect_us(
    repo: Repository, root: Path, tmp_path: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q", "other")
    other = tmp_path / "other"
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "odd-index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git" / "objects"))
    assert Repository.discover(root).root == root
    assert repo.file_at("main", "README.md") == b"one\ntwo\n"
    (root / "new.txt").write_text("x")
    sha = repo.commit_files(root, ["new.txt"], "feat: new")
    assert not (tmp_path / "odd-index").exists()
    for name in LEAKING:
        monkeypatch.delenv(name, raising=False)
    assert git(root, "rev-parse", "main") == sha


def test_heads_are_told_apart(unborn: Path, git: Git) -> None:
    repo = Repository.discover(unborn)
    assert (repo.head().kind, repo.current_branch()) == ("unborn", "main")
    with pytest.raises(OodatcaaError, match=r"git\.unborn"):
        repo.target_branch()
    with pytest.raises(OodatcaaError, match=r"git\.unborn"):
        repo.story_worktree("T001", "feat/T001-x", "main")
    sha = repo.first_commit([], "chore: begin")
    assert (repo.head().kind, repo.head().sha) == ("branch", sha)
    assert repo.target_branch() == "main"
    git(unborn, "checkout", "-q", "--detach")
    assert (repo.head().kind, repo.current_branch()) == ("detached", None)
    with pytest.raises(OodatcaaError, match=r"git\.detached"):
        repo.target_branch()
    assert repo.target_branch("main") == "main"
    with pytest.raises(OodatcaaError, match=r"git\.no_branch"):
        repo.target_branch("release")


def test_dirty_paths_see_everything_but_the_ignored_and_the_live(
    repo: Repository, root: Path, git: Git
) -> None:
    git(root, "config", "status.showUntrackedFiles", "no")
    (root / "README.md").write_text("changed\n")
    (root / "ü ñ.txt").write_text("new")
    (root / "noise.log").write_text("ignored")
    (root / ".gitignore").unlink()
    for live in ("work", "worktrees"):
        (root / ".oodatcaa" / live).mkdir(parents=True)
        (root / ".oodatcaa" / live / "x").write_text("live")
    assert repo.dirty_paths() == (".gitignore", "README.md", "noise.log", "ü ñ.txt")
    assert repo.dirty_paths(untracked=False) == (".gitignore", "README.md")
    assert not repo.status().clean


def test_reading_a_commit(repo: Repository, root: Path, git: Git) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "[a] ü*.bin").write_bytes(b"\0\xff")
    (root / "sub" / "ax ü.bin").write_bytes(b"no")
    git(root, "add", ".")
    git(root, "commit", "-qm", "second")
    assert repo.file_at("HEAD", "sub/[a] ü*.bin") == b"\0\xff"
    assert repo.file_at("HEAD", "sub") is None
    assert repo.file_at("HEAD", "missing") is None
    assert repo.file_at("HEAD~1", "sub/ax ü.bin") is None
    assert "sub/[a] ü*.bin" in repo.paths_at("main")
    assert repo.sizes_at("main")["sub/ax ü.bin"] == 2
    assert repo.is_ancestor("HEAD~1", "HEAD")
    assert not repo.is_ancestor("HEAD", "HEAD~1")
    assert set(repo.changed_paths("HEAD~1", "HEAD")) == {"sub/[a] ü*.bin", "sub/ax ü.bin"}
    for nonsense in ("no-such", "--all", ""):
        with pytest.raises(OodatcaaError, match=r"git\.unknown_commit"):
            repo.resolve(nonsense)


def test_inventory_counts_the_commit_not_the_folder(repo: Repository, root: Path, git: Git) -> None:
    files = {
        "src/pkg/__init__.py": "",
        "src/pkg/core.py": "a = 1\nb = 2\n",
        "tests/test_core.py": "def test():\n    pass\n",
        "docs/guide.md": "# Guide\n",
        "weights.bin": "\0\0\n\n\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "add", ".")
    git(root, "commit", "-qm", "more")
    (root / "untracked.py").write_text("x\n" * 50)
    seen = repo.inventory("main")
    languages = {count.name: (count.files, count.lines) for count in seen.languages}
    assert languages["Python"] == (3, 4)
    assert {count.name: count.files for count in seen.folders}["src/"] == 2
    assert (seen.tests.files, seen.tests.lines) == (1, 2)
    assert (seen.docs.files, seen.docs.lines) == (2, 3)
    assert (seen.total.files, seen.total.lines) == (7, 10)
    assert seen.packages == ("pkg",)
    assert seen.for_plan().rows[-1].files == 7


def test_what_git_ignores_is_known(repo: Repository) -> None:
    assert repo.is_ignored(".oodatcaa/work/SPRINT_QUEUE.json")
    assert repo.is_ignored("notes.log")
    assert not repo.is_ignored("README.md")
