"""`oodatcaa init` in the repositories that people really have."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.app.project import open_project
from oodatcaa.errors import EXIT_FAILURE
from typing_in import complaint, git, type_in

WRITTEN = {
    ".gitignore",
    ".oodatcaa/config.toml",
    "OBJECTIVE.md",
    *(f"agents/{role}.md" for role in ("planner", "builder", "tester", "refiner", "integrator")),
}


def repository(root: Path, *, identity: bool = True) -> Path:
    root.mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    if identity:
        git(root, "config", "user.name", "Ada")
        git(root, "config", "user.email", "ada@example.org")
    return root


def tracked(root: Path) -> set[str]:
    return set(git(root, "ls-files").splitlines())


def test_an_unborn_head_without_an_identity(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", identity=False)
    nobody = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    nobody |= {"HOME": str(tmp_path), "EMAIL": ""}
    answer = type_in(root, "init", "--commit", **nobody)
    assert answer.code == 0, answer.text
    assert answer.out.endswith("next: oodatcaa sprint new\n")
    assert tracked(root) == WRITTEN
    assert git(root, "status", "--porcelain") == ""


def test_it_offers_to_commit_until_that_is_done(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    for _ in range(2):
        assert type_in(root, "init").out.endswith("next: oodatcaa init --commit\n")
    assert type_in(root, "init", "--commit").out.endswith("next: oodatcaa sprint new\n")
    again = type_in(root, "init", "--commit")
    assert again.out.endswith("next: oodatcaa sprint new\n")
    assert "committed" not in again.out
    assert len(git(root, "log", "--format=%h").splitlines()) == 1


def test_the_first_objective_is_judged_on_the_whole_test_split(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    assert type_in(root, "init").code == 0
    objective = open_project(root).objective()
    assert objective.eval_examples is None
    assert objective.prompt.startswith("Write the Python function")


def test_signing_without_a_key_keeps_the_files(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    git(root, "config", "commit.gpgsign", "true")
    git(root, "config", "gpg.program", "/nowhere/gpg")
    complaint(type_in(root, "init", "--commit"), "git.signing_failed", EXIT_FAILURE)
    assert tracked(root) == WRITTEN
    git(root, "config", "commit.gpgsign", "false")
    assert "committed as" in type_in(root, "init", "--commit").out


def test_a_hook_that_refuses_keeps_the_files(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    hook = root / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho too late in the evening >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    text = complaint(type_in(root, "init", "--commit"), "git.hook_refused", EXIT_FAILURE)
    assert "too late in the evening" in text
    assert tracked(root) == WRITTEN
    assert type_in(root, "init").out.endswith("next: oodatcaa init --commit\n")


def test_an_unfinished_gitignore_and_a_subfolder(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    (root / "sub" / "deep").mkdir(parents=True)
    (root / ".gitignore").write_text("*.tmp", encoding="utf-8")
    (root / "OBJECTIVE.md").write_text("mine\n", encoding="utf-8")
    answer = type_in(root / "sub" / "deep", "init", "--commit")
    assert "kept  OBJECTIVE.md" in answer.out
    assert (root / "OBJECTIVE.md").read_text(encoding="utf-8") == "mine\n"
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "*.tmp"
    assert {".oodatcaa/work/", ".oodatcaa/worktrees/", "/models/"} < set(lines)
    assert tracked(root) == WRITTEN
    assert not (root / "sub" / "deep" / "OBJECTIVE.md").exists()


def test_what_a_person_staged_is_not_committed_with_it(tmp_path: Path) -> None:
    root = repository(tmp_path / "r")
    (root / "own.txt").write_text("x", encoding="utf-8")
    git(root, "add", "own.txt")
    assert type_in(root, "init", "--commit").code == 0
    assert git(root, "status", "--porcelain") == "A  own.txt"
