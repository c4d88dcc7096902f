"""What killed processes left behind."""

from __future__ import annotations

import time
from pathlib import Path

from oodatcaa.app.doctor.finding import Fact, Finding, Severity, note
from oodatcaa.app.doctor.machine import Looked
from oodatcaa.app.project import Project
from oodatcaa.domain.states import tasks_of

OLD_SECONDS = 3600.0
"""Younger temp files may belong to somebody who is writing now."""


def look_at_leftovers(project: Project) -> Looked:
    held = {task.lease.owner for task in tasks_of(project.board()) if task.lease is not None}
    found: list[Finding] = []
    for path in sorted((project.work / "scratch").glob("*")):
        if path.is_dir() and path.name not in held:
            meaning = f"scratch of {path.name}, who holds nothing"
            repair = f"move it to {_attic(project)}"
            found.append(_left("scratch.left", path, meaning, repair))
        elif path.name.startswith("crash-"):
            meaning = "the traceback of an agent that crashed"
            found.append(note("scratch.crash", str(path), meaning, "nothing: read it, delete it"))
    for path in temp_files(project):
        meaning = "a temporary file of a process that was killed while it wrote"
        found.append(_left("temp.left", path, meaning, f"move it to {_attic(project)}"))
    return (Fact("leftovers", f"{len(found)}"),), tuple(found)


def _left(code: str, path: Path, meaning: str, repair: str) -> Finding:
    return Finding(code, str(path), meaning, repair, Severity.NOTE, "attic", str(path))


def _attic(project: Project) -> Path:
    return project.work / "attic"


def temp_files(project: Project, now: float | None = None) -> tuple[Path, ...]:
    """Old ones only: `.NAME.xxxx.tmp` of atomic writes, `.new-…` of runs in the making."""
    moment = time.time() if now is None else now
    candidates = [
        *project.work.glob("**/.*.tmp"),
        *(project.models / "runs").glob("*/.new-*"),
    ]
    return tuple(
        path
        for path in sorted(candidates)
        if path.exists()
        and _attic(project) not in path.parents
        and moment - path.lstat().st_mtime > OLD_SECONDS
    )
