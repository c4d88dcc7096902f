"""Each contradiction is reported with its line, and decided on the safe side."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from oodatcaa.domain.states import tasks_of
from oodatcaa.importers import Imported, import_file
from oodatcaa.importers.oodatcaa import read_queue

FIXTURE = Path(__file__).parent / "fixtures" / "contradictions.json"
NOW = datetime(2025, 10, 10, tzinfo=UTC)

EXPECTED = {
    ("story.done_open_subtasks", 5): "T001 is done, but T001-B01 is blocked",
    ("blocked.no_dependency", 12): "T001-B01 is blocked without a dependency",
    ("lease.on_finished", 26): "T001-T01 is done, but still has a lease, held by agent-tester-A",
    ("dependency.unknown", 28): "T002 depends on T099, not in the file",
    ("active.no_lease", 28): "T002 is planning (by agent-planner-A) without a lease",
    ("dependency.cyclic", 36): "T003, T004 wait for each other; left out: T003 on T004",
    ("field.differs", 43): "T004: depends_on and dependencies name different tasks; both are kept",
    ("time.naive", 56): "2 lines have times without a zone, read as UTC",
    ("time.order", 57): "T005: completed 2025-10-05T09:00:00 is before started 2025-10-05T10:00:00",
    ("time.synonyms_differ", 58): "T005: completed 2025-10-05T09:00:00, completed_at "
    "2031-01-01T00:00:00+02:00 mean the same and differ",
    ("time.future", 58): "T005: completed_at 2031-01-01T00:00:00+02:00 is in the future",
    ("parent.missing", 60): "the story T006 of T006-B01 is not in the file; it is made up",
    ("owner.several", 67): "agent-builder-A holds 2 tasks at once: T007, T006-B01",
    ("parent.differs", 80): "T008-T01: its id, its place and its parent field name different "
    "stories: T008, T002",
    ("sprint.differs", 80): "T008-T01 says sprint 2, the file says 3",
    ("dependency.not_done", 88): "T008 is in_progress, but T003 is needs_plan",
    ("estimate.unreadable", 94): "T008: estimated_time a while is no duration",
    ("field.differs", 98): "sprint_status says completed, but status says planning",
    ("counter.wrong", 99): "total_tasks says 40, counted: 11",
    ("counter.wrong", 101): "progress_percentage says 88, counted: 27.3 or 28.6",
    ("time.unreadable", 102): "the sprint: updated soon is no date or time",
}


def read(value: Any) -> Imported:
    return read_queue(json.dumps(value, indent=1), source="q.json", now=NOW)


def messages(imported: Imported, code: str) -> list[str]:
    return [finding.message for finding in imported.findings if finding.code == code]


def test_every_contradiction_of_the_file_is_reported_in_its_line() -> None:
    imported = import_file(FIXTURE, now=NOW)
    found = {(f.code, f.place): f.message for f in imported.findings}
    for (code, line), message in EXPECTED.items():
        assert found.get((code, f"contradictions.json:{line}")) == message
    duplicate = next(f for f in imported.findings if f.code == "id.duplicate")
    assert duplicate.place == "contradictions.json:74"
    assert json.loads(duplicate.content)["status"] == "needs_plan"


def test_what_the_file_leaves_open_waits_for_a_person() -> None:
    imported = import_file(FIXTURE, now=NOW)
    waiting = {story.id: story.reason for story in imported.stories if story.reason}
    assert waiting["T001"] == "the old queue calls it done, but T001-B01 is blocked"
    assert "T099" in waiting["T002"]
    assert "circle" in waiting["T003"]
    assert "only its subtasks" in waiting["T006"]
    assert {imported.board.story_by_id[task].status.value for task in waiting} == {"needs_human"}


def test_a_consistent_queue_has_no_errors_and_no_contradictions() -> None:
    imported = read(
        {
            "tasks": [
                {"id": "T001", "title": "a", "type": "Story", "status": "done"},
                {"id": "T001-B01", "title": "b", "type": "Build", "status": "done"},
                {"id": "T002", "title": "c", "type": "Story", "status": "needs_plan"},
            ]
        }
    )
    assert {f.severity.value for f in imported.findings} == {"info"}


@pytest.mark.parametrize(
    ("ttl", "text"),
    [
        ({"ttl": 90}, "90 minutes"),
        ({"ttl": 5400}, "90 minutes"),
        ({"ttl": "5400"}, "90 minutes"),
        ({"ttl": 2700}, "45 minutes"),
        ({"ttl": 180}, "180 minutes"),
    ],
)
def test_a_bare_time_to_live_is_minutes_or_seconds(ttl: dict[str, Any], text: str) -> None:
    lease = {"owner": "agent-builder-A", "acquired": "2025-10-01T00:00:00Z", **ttl}
    imported = read({"tasks": [{"id": "T001-B01", "status": "in_progress", "lease": lease}]})
    assert any(text in message for message in messages(imported, "lease.ttl_unit"))


def test_a_lease_that_still_runs_is_a_warning() -> None:
    lease = {"owner": "agent-builder-A", "last_heartbeat": "2025-10-09T23:30:00Z", "ttl": "90m"}
    imported = read({"tasks": [{"id": "T001-B01", "status": "in_progress", "lease": lease}]})
    assert "somebody may still be working" in messages(imported, "lease.still_live")[0]


def test_an_unreadable_time_to_live_and_a_lease_on_idle_work() -> None:
    lease = {"owner": "agent-builder-A", "ttl": -5}
    imported = read({"tasks": [{"id": "T001", "status": "needs_plan", "lease": lease}]})
    assert messages(imported, "lease.ttl_invalid")
    assert messages(imported, "lease.on_idle")


def test_a_circle_through_a_story_and_its_parts() -> None:
    imported = read(
        {
            "tasks": [
                {"id": "T001", "title": "a", "status": "planning_complete"},
                {"id": "T001-B01", "title": "b", "status": "blocked", "depends_on": ["T002"]},
                {"id": "T002", "title": "c", "status": "blocked", "depends_on": ["T001"]},
            ]
        }
    )
    assert len(messages(imported, "dependency.cyclic")) == 1
    edges = {t.id: t.depends_on for t in tasks_of(imported.board)}
    assert edges == {"T001": (), "T001-B01": (), "T002": ("T001",)}


def test_dependencies_on_oneself_and_on_ones_own_story() -> None:
    imported = read(
        {
            "tasks": [
                {"id": "T001", "status": "planning_complete", "depends_on": ["T001"]},
                {"id": "T001-B01", "status": "ready", "depends_on": ["T001", "T001"]},
            ]
        }
    )
    assert messages(imported, "dependency.cyclic") == ["T001 depends on itself"]
    assert messages(imported, "dependency.own") == [
        "T001-B01 depends on its own story T001; left out"
    ]


def test_a_story_behind_its_parts_and_a_cancelled_one_before_them() -> None:
    imported = read(
        {
            "tasks": [
                {"id": "T001", "status": "planning_complete"},
                {"id": "T001-B01", "status": "done"},
                {"id": "T002", "status": "cancelled"},
                {"id": "T002-B01", "status": "ready"},
                {"id": "T003", "status": "blocked", "depends_on": "T009"},
                {"id": "T009", "status": "done"},
            ]
        }
    )
    assert messages(imported, "story.behind")
    assert messages(imported, "story.cancelled_open_subtasks")
    assert messages(imported, "blocked.stale") == ["T003 is blocked, but all it waits for is done"]
    assert imported.board.story_by_id["T001"].status.value == "ready_for_integrator"
    assert imported.board.subtask_by_id["T002-B01"].status.value == "cancelled"


def test_counters_that_a_story_keeps_of_its_parts() -> None:
    story = {"id": "T001", "status": "planning_complete", "subtasks_total": 3, "progress": "50%"}
    parts = [{"id": f"T001-B0{n}", "status": "done"} for n in (1, 2)]
    imported = read({"tasks": [{**story, "subtasks": parts}]})
    assert set(messages(imported, "counter.wrong")) == {
        "T001: subtasks_total says 3, counted: 2",
        "T001: progress says 50, counted: 100",
    }


def test_a_build_that_belongs_nowhere_and_a_letter_against_its_type() -> None:
    imported = read(
        {
            "tasks": [
                {"id": "T001", "type": "Build", "status": "ready"},
                {"id": "T002", "type": "Story", "status": "planning_complete"},
                {"id": "T002-B01", "type": "Testing", "status": "ready"},
            ]
        }
    )
    assert "belongs to no story" in messages(imported, "parent.missing")[0]
    assert "the letter of its id counts" in messages(imported, "kind.differs")[0]


def test_parents_that_go_round_in_a_circle_get_a_story() -> None:
    imported = read(
        {
            "tasks": [
                {"id": "T001", "status": "ready", "parent": "T002"},
                {"id": "T002", "status": "ready", "parent": "T001"},
            ]
        }
    )
    assert len(messages(imported, "parent.cycle")) == 2
    assert {"T001", "T002"} <= set(imported.renamed)
    assert len(imported.subtasks) == 2
