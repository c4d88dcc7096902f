"""Whether a known tool really did its work: an exit code of 0 alone may be that of other code.

What a commit contains runs inside of a test run (conftest.py) or can take a tool's place (a mypy.py
beside the code). So pytest has to leave its own report outside of the worktree, mypy its summary,
and no tool is looked for in the worktree.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

from oodatcaa.domain.gate_presets import GatePreset, preset_for

MODULES: dict[str, tuple[str, ...]] = {
    "black": ("black", "blib2to3"),
    "ruff": ("ruff",),
    "ruff-format": ("ruff",),
    "mypy": ("mypy", "mypyc", "sitecustomize", "usercustomize"),
    "pytest": ("pytest", "_pytest", "pluggy"),
    "coverage": ("coverage", "pytest", "_pytest", "pluggy"),
    "build": ("build",),
    "pip-audit": ("pip_audit",),
    "pip-check": ("pip",),
}
"""What a tool is started from: found in the worktree, it would be the commit that checks itself."""
ALONE = frozenset({"black", "ruff", "ruff-format", "build", "pip-audit", "pip-check"})
"""Tools that import nothing of the project: they get no path that leads into it."""
_LISTS = re.compile(r"&&|\|\||;|\n")
_COVERED = re.compile(r"\bcoverage run\b.*\s-m pytest\b")
_OWN_REPORT = re.compile(r"--junit-?xml\b")
_HEAD = re.compile(r"<testsuite\b([^>]*)>")
_NUMBER = re.compile(r'\b(errors|failures|skipped|tests)="(\d+)"')
_MYPY_DONE = re.compile(r"^Success: no issues found in \d+ source files?", re.MULTILINE)
_MYPY_QUIET = re.compile(r"--no-error-summary\b|--output\b|(?:^|\s)-O\b")
MOST_BYTES = 256_000_000
_CODE = frozenset({".py", ".pyc", ".so", ".pyd"})


@dataclass(frozen=True)
class TestReport:
    """What pytest itself counted; an error in a fixture counts as a failure."""

    __test__ = False

    tests: int
    skipped: int
    failed: int


def shadowing(preset: GatePreset | None, worktree: Path) -> str:
    """What in the worktree would run in the tool's place; empty = nothing."""
    if preset is None:
        return ""
    places = [place for place in (worktree, worktree / "src") if place.is_dir()]
    for module in MODULES.get(preset.name, ()):
        for place in places:
            found = [path for path in place.glob(f"{module}.*") if path.suffix in _CODE]
            package = place / module
            if any(package.glob("__init__.*")):
                found.append(package)
            if found and not _is_the_tool(module, worktree):
                return str(found[0].relative_to(worktree))
    return ""


def _is_the_tool(module: str, worktree: Path) -> bool:
    """A project may be the tool itself: then its own packaging says so."""
    try:
        text = (worktree / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf'^name\s*=\s*"{re.escape(module)}"', text, re.MULTILINE) is not None


def without_project(
    preset: GatePreset | None, env: dict[str, str], worktree: Path
) -> dict[str, str]:
    """The environment for this tool: one that does not need the project's code does not see it."""
    if preset is None or preset.name not in ALONE:
        return env
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept = [path for path in paths if not Path(path).is_relative_to(worktree)]
    return {**env, "PYTHONPATH": os.pathsep.join(kept), "PYTHONSAFEPATH": "1"}


def new_report(command: str, folder: Path) -> Path | None:
    """Where the pytest of this command has to leave its report; None when the command runs none by
    a plain call, or asks for a report of its own."""
    parts = [part.strip() for part in _LISTS.split(command)]
    runs = any((_COVERED.search(part) or _is_pytest(part)) for part in parts)
    if not runs or _OWN_REPORT.search(command):
        return None
    return folder / f"report-{secrets.token_hex(16)}.xml"


def asking_for(report: Path, env: dict[str, str]) -> dict[str, str]:
    return {**env, "PYTEST_ADDOPTS": shlex.join([f"--junitxml={report}", "-o", "junit_logging=no"])}


def read_report(report: Path) -> TestReport | str:
    """The counts of a whole report; a string says why there is none."""
    try:
        if report.stat().st_size > MOST_BYTES:
            return "pytest's report is too large to be read"
        text = report.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "pytest left no report: it did not come to its end"
    head = _HEAD.search(text)
    numbers = {name: int(value) for name, value in _NUMBER.findall(head[1])} if head else {}
    if not text.rstrip().endswith("</testsuites>") or len(numbers) != 4:
        return "pytest's report is not whole: it did not come to its end"
    return TestReport(
        tests=numbers["tests"],
        skipped=numbers["skipped"],
        failed=numbers["failures"] + numbers["errors"],
    )


def mypy_said_nothing(preset: GatePreset | None, command: str, text: str) -> bool:
    """Whether a mypy that ended with 0 did not say what it looked at."""
    if preset is None or preset.name != "mypy" or _MYPY_QUIET.search(command):
        return False
    return _MYPY_DONE.search(text) is None


def _is_pytest(part: str) -> bool:
    found = preset_for(part)
    return found is not None and found.name == "pytest"
