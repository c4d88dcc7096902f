"""A negotiation round and SPRINT_PLAN.md, which tells people what it decided."""

from __future__ import annotations

from datetime import UTC, datetime

from oodatcaa.app.claims import run_negotiation
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.rounds import Round
from oodatcaa.kit.files import write_atomic

SPRINT_PLAN = "SPRINT_PLAN.md"


def negotiate_and_show(project: Project) -> Round:
    """One round; SPRINT_PLAN.md is written again when it decided something."""
    found = run_negotiation(project.store, project.policy)
    if found.changed:
        write_sprint_plan(project, found, project.store.read())
    return found


def write_sprint_plan(project: Project, found: Round, board: Board) -> None:
    from oodatcaa.views.sprint import sprint_plan

    text = sprint_plan(board, found, datetime.now(UTC), project.policy)
    write_atomic(project.work / SPRINT_PLAN, text)
