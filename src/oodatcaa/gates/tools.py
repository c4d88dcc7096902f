"""Whether a known tool really did its work: an exit code of 0 alone may be that of other code.

What a commit contains runs inside of a test run (conftest.py) or can take a tool's place (a mypy.py
beside the code). So pytest has to leave its own report outside of the worktree (see
`pytest_runs`), mypy its summary, and no tool is looked for in the worktree.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from oodatcaa.domain.gate_presets import GatePreset

MODULES: dict[str, tuple[str, ...]] = {
    "black": ("black", "blib2to3"),
    "ruff": ("ruff",),
    "ruff-format": ("ruff",),
    "mypy": ("mypy", "mypyc", "sitecustomize", "usercustomize"),
    "pytest": ("pytest", "_pytest", "pluggy", "sitecustomize", "usercustomize"),
    "coverage": ("coverage", "pytest", "_pytest", "pluggy", "sitecustomize", "usercustomize"),
    "build": ("build",),
    "pip-audit": ("pip_audit",),
    "pip-check": ("pip",),
}
"""What a tool is started from: found in the worktree, it would be the commit that checks itself."""
ALONE = frozenset({"black", "ruff", "ruff-format", "build", "pip-audit", "pip-check"})
"""Tools that import nothing of the project: they get no path that leads into it."""
_MYPY_DONE = re.compile(r"^Success: no issues found in \d+ source files?", re.MULTILINE)
_MYPY_QUIET = re.compile(r"--no-error-summary\b|--output\b|(?:^|\s)-O\b")
_CODE = frozenset({".py", ".pyc", ".so", ".pyd"})


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


def with_own_caches(env: dict[str, str], folder: Path) -> dict[str, str]:
    """What tools remember of files that look unchanged is of this gate alone: code that ran in an
    earlier one could have written it."""
    place = folder / f"caches-{secrets.token_hex(8)}"
    names = {"MYPY_CACHE_DIR": "mypy", "BLACK_CACHE_DIR": "black", "RUFF_CACHE_DIR": "ruff"}
    return {**env, **{name: str(place / tool) for name, tool in names.items()}}


def mypy_said_nothing(preset: GatePreset | None, command: str, text: str) -> bool:
    """Whether a mypy that ended with 0 did not say what it looked at."""
    if preset is None or preset.name != "mypy" or _MYPY_QUIET.search(command):
        return False
    return _MYPY_DONE.search(text) is None
