"""SPRINT_PLAN.md: what a round decided, for people."""

from __future__ import annotations

from datetime import UTC, datetime

from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.rounds import Round
from oodatcaa.kit.files import write_atomic

SPRINT_PLAN = "SPRINT_PLAN.md"


def write_sprint_plan(project: Project, found: Round, board: Board) -> None:
    from oodatcaa.views.sprint import sprint_plan

    text = sprint_plan(board, found, datetime.now(UTC), project.policy)
    write_atomic(project.work / SPRINT_PLAN, text)
