"""`oodatcaa init`: write what a project needs, never over what is there, and offer to commit it."""

from __future__ import annotations

import importlib.util
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodatcaa.app.project import OBJECTIVE_PATH, Project, open_project
from oodatcaa.app.templates import GITIGNORE, ROLES, config_text, objective_text, role_text
from oodatcaa.kit.config import CONFIG_PATH
from oodatcaa.kit.files import write_atomic


@dataclass(frozen=True)
class Initialised:
    """What was written, what was there already and left alone, and the commit if one was made."""

    root: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]
    commit: str | None
    uncommitted: tuple[str, ...] = ()

    @property
    def next_command(self) -> str:
        """Committing comes first: the crew works from commits only."""
        return "oodatcaa init --commit" if self.uncommitted else "oodatcaa sprint new"


def init_project(start: Path, *, commit: bool, objective: str | None = None) -> Initialised:
    """Raises OodatcaaError outside a git repository, or when a hook or signing refuses the commit;
    the written files stay."""
    project = open_project(start)
    contents = {
        OBJECTIVE_PATH: objective or objective_text(),
        str(CONFIG_PATH): config_text(detect_quality_gates(project.root)),
        **{f"agents/{role}.md": role_text(role) for role in ROLES},
    }
    written = [path for path, text in contents.items() if _write_new(project.root / path, text)]
    kept = [path for path in contents if path not in written]
    if _extend_gitignore(project.root / ".gitignore"):
        written.append(".gitignore")
    ours = [*contents, ".gitignore"]
    sha = _commit(project, ours) if commit else None
    dirty = project.repo.dirty_paths()
    left = tuple(path for path in ours if path in dirty)
    return Initialised(project.root, tuple(written), tuple(kept), sha, left)


def _write_new(path: Path, text: str) -> bool:
    if path.exists():
        return False
    write_atomic(path, text)
    return True


def _extend_gitignore(path: Path) -> bool:
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    present = {line.strip() for line in old.splitlines()}
    missing = [line for line in GITIGNORE if line not in present]
    if not [line for line in missing if not line.startswith("#")]:
        return False
    joint = "" if not old or old.endswith("\n") else "\n"
    write_atomic(path, old + joint + "\n".join(missing) + "\n")
    return True


def _commit(project: Project, paths: list[str]) -> str | None:
    from oodatcaa.vcs import GitPolicy

    # A person typed this and is there to see: their hooks run and their signing key is used.
    person = GitPolicy.as_the_user()
    message = "chore: set up the crew (oodatcaa init)"
    if project.repo.head().kind == "unborn":
        return project.repo.first_commit(paths, message, policy=person)
    return project.repo.commit_files(project.root, paths, message, policy=person)


def detect_quality_gates(root: Path) -> tuple[tuple[str, str], ...]:
    """(name, command) of what this project obviously checks itself with."""
    settings = _pyproject(root)
    tools = settings.get("tool", {})
    gates: list[tuple[str, str]] = []
    has_tests = any((root / "tests").rglob("test_*.py")) if (root / "tests").is_dir() else False
    if (has_tests or "pytest" in tools) and importlib.util.find_spec("pytest"):
        gates.append(("tests", "{python} -m pytest -q"))
    if "ruff" in tools and importlib.util.find_spec("ruff"):
        gates.append(("lint", "{python} -m ruff check ."))
    if "mypy" in tools and importlib.util.find_spec("mypy"):
        gates.append(("types", "{python} -m mypy"))
    return tuple(gates)


def _pyproject(root: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        # Somebody else's file: without it there is just nothing to detect.
        return {}
