"""`oodatcaa demo`: a fresh project whose objective asks for more memory than there is."""

from __future__ import annotations

import subprocess
from pathlib import Path

from oodatcaa.app.init import init_project
from oodatcaa.app.project import Project, open_project
from oodatcaa.app.sprints import new_sprint
from oodatcaa.app.templates import objective_text
from oodatcaa.domain.negotiation import sprint_outcome
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic

DEMO_MARK = Path("src") / "function_writer" / "__init__.py"

PACKAGE = '''\
"""Prompts of the function-writing model: name, signature and docstring in, code out."""

QUOTES = '"' * 3


def build_prompt(signature: str, docstring: str) -> str:
    """The chat message that asks for one function."""
    inner = docstring.strip().replace(QUOTES, "")
    return f"Write this Python function.\\n\\n{signature}\\n    {QUOTES}{inner}{QUOTES}"
'''

TESTS = """\
from function_writer import QUOTES, build_prompt


def test_the_prompt_holds_signature_and_docstring() -> None:
    prompt = build_prompt("def clamp(value, low, high):", "Limit a value.")
    assert "def clamp(value, low, high):" in prompt
    assert "Limit a value." in prompt


def test_a_docstring_can_not_end_the_prompt_early() -> None:
    prompt = build_prompt("def f():", f"Say {QUOTES}hello{QUOTES}.")
    assert prompt.count(QUOTES) == 2
"""

PYPROJECT = """\
[project]
name = "function-writer"
version = "0.1.0"
requires-python = ">=3.11"

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
"""


def unfinished_demo(folder: Path) -> Project | None:
    """The demo in `folder` that was interrupted and can go on, if there is one."""
    if not (folder / DEMO_MARK).is_file() or not (folder / ".git").is_dir():
        return None
    project = open_project(folder)
    return project if sprint_outcome(project.board()) in ("running", "needs_human") else None


def make_demo_project(folder: Path) -> Project:
    """A git repository with a small package, its tests, and an objective that does not fit.

    Raises OodatcaaError when `folder` exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OodatcaaError(
            "demo.folder_taken",
            f"{folder} is not empty; the demo never writes over anything",
            hint="oodatcaa demo --into ANOTHER-FOLDER",
        )
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
    write_atomic(folder / DEMO_MARK, PACKAGE)
    write_atomic(folder / "tests" / "test_prompt.py", TESTS)
    write_atomic(folder / "pyproject.toml", PYPROJECT)
    objective = objective_text(
        title="Teach a small model to write Python functions",
        batch_size=16,
        max_seq_length=2048,
        iters=10,
        save_every=5,
        learning_rate="1e-3",
        minutes=30,
        eval_examples=32,
    )
    init_project(folder, commit=True, objective=objective)
    project = open_project(folder)
    project.repo.commit_files(folder, None, "feat: prompts of the function writer")
    new_sprint(project)
    return project
