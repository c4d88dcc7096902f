"""Real repositories in temporary folders, away from the developer's own git settings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oodatcaa.vcs import Repository

Git = Callable[..., str]


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith("GIT_") or name == "EMAIL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    (home / "gitconfig").write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
    )


@pytest.fixture
def git() -> Git:
    def run(where: Path, *args: str, check: bool = True) -> str:
        result = subprocess.run(
            ["git", *args], cwd=where, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or result.returncode == 0, result.stderr
        return result.stdout.rstrip("\n")

    return run


@pytest.fixture
def unborn(tmp_path: Path, git: Git) -> Path:
    """A repository without commits, at a path with spaces and letters beyond ASCII."""
    root = tmp_path / "my project é"
    root.mkdir()
    git(root, "init", "-q")
    return root


@pytest.fixture
def root(unborn: Path, git: Git) -> Path:
    """A repository with one commit that ignores the live state."""
    (unborn / ".gitignore").write_text(".oodatcaa/work/\n.oodatcaa/worktrees/\n*.log\n")
    (unborn / "README.md").write_text("one\ntwo\n")
    git(unborn, "add", ".")
    git(unborn, "commit", "-qm", "first")
    return unborn


@pytest.fixture
def repo(root: Path) -> Repository:
    return Repository.discover(root)
