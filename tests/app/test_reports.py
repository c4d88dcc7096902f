"""Reports on disk: what an earlier attempt reported is not lost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from oodatcaa.app.project import Project
from oodatcaa.app.reports import write_report
from oodatcaa.domain.report import Report
from oodatcaa.domain.task import Role

NOW = datetime(2026, 1, 30, 12, 0, tzinfo=UTC)


def of_attempt(number: int, outcome: str) -> Report:
    return Report(
        story="T001", task="T001-B01", title="Profile", role=Role.BUILDER, agent="builder-A",
        attempt=number, started_at=NOW, finished_at=NOW, outcome=outcome,
    )  # fmt: skip


def test_a_second_attempt_does_not_write_over_the_first(tmp_path: Path) -> None:
    project = Project(tmp_path)
    first = write_report(project, of_attempt(1, "crashed"), "builder-T001-B01")
    second = write_report(project, of_attempt(2, "complete"), "builder-T001-B01")
    again = write_report(project, of_attempt(2, "complete after all"), "builder-T001-B01")
    assert (first.name, second.name) == ("builder-T001-B01.md", "builder-T001-B01-attempt-2.md")
    assert again == second
    assert "crashed" in first.read_text(encoding="utf-8")
    assert "complete after all" in second.read_text(encoding="utf-8")


def test_a_report_that_can_not_be_read_is_kept(tmp_path: Path) -> None:
    project = Project(tmp_path)
    path = write_report(project, of_attempt(1, "complete"), "planner").with_suffix(".json")
    path.write_text("<<<<<<< ours", encoding="utf-8")
    assert write_report(project, of_attempt(1, "complete"), "planner").stem == "planner-attempt-1"
    assert path.read_text(encoding="utf-8") == "<<<<<<< ours"
