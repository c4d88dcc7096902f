"""What a branch changes of the things that judge later stories: said, and where it decides, asked.

The gates of a story come from the main checkout: its configuration, objective and agents. A branch
that changes them has no say in its own checks, but once merged in those of every later story.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import GateKind, GateSpec

_ASKED = re.compile(r"(objective\.md|agents|\.oodatcaa)(/.*)?", re.IGNORECASE)
_JUDGES = re.compile(
    r"(.*/)?(tests?/.*|conftest\.py|test_[^/]*\.py|[^/]*_test\.py|pyproject\.toml|setup\.cfg|tox\.ini"
    r"|noxfile\.py|makefile|\.?pytest\.(ini|toml)|\.?mypy\.ini|\.?ruff\.toml|\.coveragerc|\.flake8"
    r"|\.gitattributes|\.gitignore)",
    re.IGNORECASE,
)
SHOWN = 20


def asked_gates(project: Project, tested: str, target: str) -> tuple[GateSpec, ...]:
    """One gate that a person decides when the branch changes objective, configuration or agents;
    it is for this commit alone."""
    found = [path for path, _ in project.repo.branch_changes(target, tested) if _asked(path)]
    if not found:
        return ()
    names = ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
    return (
        GateSpec(
            id=f"RULES-{tested[:12]}",
            name=f"it may change {names}",
            kind=GateKind.PERSON,
            statement="a branch that changes what later stories are judged by",
        ),
    )


def said(project: Project, tested: str, target: str) -> tuple[str, ...]:
    """For the report: existing tests and settings of tools that the branch changed or deleted."""
    found = [
        f"{path} ({'deleted' if how == 'D' else 'changed'})"
        for path, how in project.repo.branch_changes(target, tested)
        if how != "A" and (_asked(path) or _JUDGES.fullmatch(path))
    ]
    if not found:
        return ()
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (f"it changes what judges later stories: {', '.join(found[:SHOWN])}{more}",)


def _asked(path: str) -> bool:
    return _ASKED.fullmatch(str(PurePosixPath(path))) is not None
