"""The environment of gate commands: the project's code comes from the checked worktree.

An editable install of the main checkout would otherwise be tested in its place: it passes.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from oodatcaa.domain.base import Record
from oodatcaa.kit.process import run_command

IMPORT_CHECK_TIMEOUT_S = 120.0
_KEPT_GIT = re.compile(r"GIT_(CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY_\d+|VALUE_\d+)|SSL|EXEC)")
_KEPT_PYTHON = frozenset({"PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING"})
_DROPPED = re.compile(r"GIT_|PYTHON|PYTEST|COV_CORE_|COVERAGE_|VIRTUAL_ENV|CONDA_|__PYVENV")
_NOT_PROJECT = frozenset({"test", "tests", "doc", "docs", "conftest", "setup"})

_ASK = """
import importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        spec = importlib.util.find_spec(name)
    except Exception as error:
        found[name] = ["!" + type(error).__name__ + ": " + str(error)]
        continue
    places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or ""])
    found[name] = [str(place) for place in places]
sys.stdout.write("\\n" + json.dumps(found) + "\\n")
"""


class CodeOrigin(Record):
    """Where the gate environment imports the project from. `problem` is set when that is not the
    checked worktree; then nothing that runs there says anything about the commit."""

    packages: dict[str, str]
    problem: str = ""

    def describe(self, worktree: Path) -> str:
        """For the evidence: every package's place, or the worktree when there is no package."""
        return os.pathsep.join(sorted(self.packages.values())) or str(worktree)


def gate_environment(
    worktree: Path,
    python: Path,
    root: Path,
    shims: Path,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The variables for every command in `worktree`.

    `python` is on PATH as `python` and `python3` (through `shims` if its folder has no such
    name); nothing of a calling git hook, test run, user site or other environment is left; of an
    inherited PYTHONPATH only what is outside of the main checkout `root`.
    """
    source = os.environ if base is None else base
    env = {
        name: value
        for name, value in source.items()
        if not _DROPPED.match(name) or _KEPT_GIT.match(name) or name in _KEPT_PYTHON
    }
    own = [path for path in (worktree / "src", worktree) if path.is_dir()]
    env["PYTHONPATH"] = os.pathsep.join(
        [*map(str, own), *_foreign(source.get("PYTHONPATH", ""), root)]
    )
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["PYTHONNOUSERSITE"] = "1"
    env["GIT_TERMINAL_PROMPT"] = "0"
    env["NO_COLOR"] = "1"
    if (python.parent.parent / "pyvenv.cfg").is_file():
        env["VIRTUAL_ENV"] = str(python.parent.parent)
    folders = [str(python.parent)]
    if not _same(python.parent / "python", python) or not _same(python.parent / "python3", python):
        _write_shims(shims, python)
        folders.insert(0, str(shims))
    env["PATH"] = os.pathsep.join([*folders, source.get("PATH", os.defpath)])
    return env


def find_packages(checkout: Path) -> tuple[str, ...]:
    """Importable names of a project: src/*/__init__.py, src/*.py and */__init__.py."""
    found: set[str] = set()
    for pattern in ("src/*/__init__.py", "*/__init__.py"):
        found |= {path.parent.name for path in checkout.glob(pattern)}
    found |= {path.stem for path in checkout.glob("src/*.py")}
    return tuple(sorted(name for name in found - _NOT_PROJECT if name.isidentifier()))


def check_origin(
    worktree: Path,
    python: Path,
    env: Mapping[str, str],
    root: Path,
    configured: Iterable[str] | None,
) -> CodeOrigin:
    """Ask the environment's own python where it would import the project's packages from.

    Configured packages must be found in `worktree`. Without a configuration: those found in the
    worktree must come from there, and those that only the main checkout has must not be
    importable from it (the commit removed them).
    """
    wanted = tuple(configured) if configured is not None else find_packages(worktree)
    gone = () if configured is not None else tuple(set(find_packages(root)) - set(wanted))
    if not wanted and not gone:
        return CodeOrigin(packages={})
    result = run_command(
        [str(python), "-c", _ASK, *wanted, *gone],
        cwd=worktree,
        env=env,
        timeout=IMPORT_CHECK_TIMEOUT_S,
    )
    try:
        lines = result.tail.strip().splitlines()
        places: dict[str, list[str]] = json.loads(lines[-1]) if result.ok else {}
    except (IndexError, ValueError):
        places = {}
    if not places:
        said = " ".join(result.tail.split())[-200:]
        return CodeOrigin(
            packages={}, problem=f"{python} can not say where it imports from: {said}"
        )
    problems = [line for name in wanted if (line := _misplaced(name, places[name], worktree))]
    problems += [
        f"{name} is not in the commit, but is imported from {place}"
        for name in gone
        for place in places[name]
        if _inside(place, root) and not _inside(place, worktree)
    ]
    packages = {name: places[name][0] for name in wanted if places[name]}
    return CodeOrigin(packages=packages, problem="; ".join(problems))


def _misplaced(name: str, places: list[str], worktree: Path) -> str:
    if not places:
        return f"{name} can not be imported in the gate environment"
    if places[0].startswith("!"):
        return f"{name} can not be found: {places[0][1:]}"
    outside = [place for place in places if not _inside(place, worktree)]
    if outside:
        return f"{name} is imported from {outside[0]}, not from the checked worktree {worktree}"
    return ""


def _inside(place: str, folder: Path) -> bool:
    return Path(place).resolve().is_relative_to(folder.resolve())


def _foreign(python_path: str, root: Path) -> list[str]:
    entries = [entry for entry in python_path.split(os.pathsep) if entry]
    return [entry for entry in entries if Path(entry).is_absolute() and not _inside(entry, root)]


def _same(candidate: Path, python: Path) -> bool:
    return candidate.exists() and os.access(candidate, os.X_OK) and candidate.samefile(python)


def _write_shims(shims: Path, python: Path) -> None:
    # A symlink would hide the environment's pyvenv.cfg from the interpreter.
    shims.mkdir(parents=True, exist_ok=True)
    for name in ("python", "python3"):
        shim = shims / name
        quoted = str(python).replace("'", "'\\''")
        shim.write_text(f"#!/bin/sh\nexec '{quoted}' \"$@\"\n", encoding="utf-8")
        shim.chmod(0o755)


def choose_python(configured: str, worktree: Path) -> Path:
    """The gates' interpreter: the crew's own, or the configured one (relative to the worktree).

    Not resolved: a virtual environment's python is a symlink that must stay one.
    """
    if not configured:
        return Path(sys.executable)
    path = Path(configured).expanduser()
    return path if path.is_absolute() else worktree / path
