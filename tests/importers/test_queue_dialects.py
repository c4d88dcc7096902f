"""Every dialect of the old queues, from hand-written files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from oodatcaa.domain.board import EventKind
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import StoryStatus, SubtaskKind, SubtaskStatus
from oodatcaa.importers import Imported, Severity, as_drafts, import_file

FIXTURES = Path(__file__).parent / "fixtures"
QUEUES = sorted(FIXTURES.glob("*.json"))
NOW = datetime(2025, 10, 10, tzinfo=UTC)


def read(name: str) -> Imported:
    return import_file(FIXTURES / name, now=NOW)


def statuses(imported: Imported) -> dict[str, str]:
    return {task.id: task.status.value for task in tasks_of(imported.board)}


def codes(imported: Imported) -> set[str]:
    return {finding.code for finding in imported.findings}


def test_nested_subtasks_steps_estimates_and_leases_in_seconds() -> None:
    imported = read("nested.json")
    board = imported.board
    assert statuses(imported) == {
        "T001": "planning_complete",
        "T002": "needs_plan",
        "T001-B01": "done",
        "T001-B02": "ready",
        "T001-T01": "blocked",
    }
    parts = board.subtasks_of("T001")
    assert [part.steps for part in parts] == [(1, 2, 3, 4, 5), (6, 7, 8), (9,)]
    assert [part.estimate_minutes for part in parts] == [120, 40, 20]
    assert [part.kind for part in parts] == [SubtaskKind.BUILD] * 2 + [SubtaskKind.TEST]
    assert board.story_by_id["T001"].branch == "feat/T001-step-01-framework-selection"
    assert board.story_by_id["T002"].depends_on == ("T001",)
    assert all(task.lease is None for task in tasks_of(board))
    assert imported.count(Severity.ERROR) == 0
    released = next(f for f in imported.findings if f.code == "status.released")
    assert released.place == "nested.json:34"
    assert "T001-B02 was in_progress" in released.message
    assert any("5400 was read as 90 minutes" in f.message for f in imported.findings)


def test_sprint_facts() -> None:
    sprint = read("nested.json").sprint
    assert (sprint.number, sprint.name, sprint.status) == (4, "SPRINT-4", "in_progress")
    assert sprint.lease_minutes == {"planner": 30, "builder": 90, "tester": 45}
    assert sprint.wip_limits == {"planner": 1, "builder": 3, "tester": 2}
    flat = read("flat.json").sprint
    assert flat.goal == "Automate the process"
    assert flat.created_at == datetime(2025, 10, 2, 6, 15, tzinfo=UTC)
    assert read("by_id.json").sprint.number == 5


def test_flat_list_with_other_ids_and_right_counters() -> None:
    imported = read("flat.json")
    assert imported.renamed["P001-B02"] == "T001-B02"
    assert statuses(imported)["T002"] == "done"
    assert "counter.wrong" not in codes(imported), "the counters in this file are right"
    assert imported.board.subtask_by_id["T001-B01"].commit == "1a2b3c4"
    assert imported.board.subtask_by_id["T001-B02"].steps == (5, 6)
    assert imported.board.subtask_by_id["T001-B02"].estimate_minutes == 75
    priorities = next(f for f in imported.findings if f.message.startswith("priority"))
    assert priorities.content == '{"P001": 1, "P002": 2, "P003": 3}'


def test_history_becomes_notes_with_their_times() -> None:
    imported = read("flat.json")
    notes = {(note.subject, note.text): note for note in imported.notes}
    assert ("T002-B01", "tag: P002-B01-complete") in notes
    assert ("T002-B01", "test_result: 9/9 pass") in notes
    finished = notes["T001-B01", "completed: 2025-10-04T09:05:00+02:00"]
    assert finished.at == datetime(2025, 10, 4, 7, 5, tzinfo=UTC)
    assert finished.kind is EventKind.NOTE
    assert list(imported.notes) == sorted(imported.notes, key=lambda note: note.at)


def test_stray_status_words_go_to_the_state_before_the_claim() -> None:
    imported = read("stray_words.json")
    assert statuses(imported) == {
        "T001": "planning_complete",
        "T002": "done",
        "T003": "planning_complete",
        "T004": "ready_for_integrator",
        "T005": "needs_adapt",
        "T006": "needs_human",
        "T007": "needs_human",
        "T001-B01": "ready",
        "T001-T01": "awaiting_test",
        "T003-B01": "needs_adapt",
        "T003-T01": "awaiting_test",
        "T003-B02": "done",
    }
    failure = imported.board.story_by_id["T005"].failure
    assert failure is not None
    assert failure.summary == "used too much memory"
    assert imported.board.subtask_by_id["T001-B01"].commit == "9a8b7c6"
    assert {"status.unknown", "status.missing", "active.no_lease"} <= codes(imported)


def test_tasks_keyed_by_id_without_ids_and_leases_kept_apart() -> None:
    imported = read("by_id.json")
    assert imported.renamed == {
        "T001": "T001",
        "T002": "T002",
        "(line 8)": "T008",
        "7": "T007",
        "setup-db": "T003",
        "T001-B1": "T001-B01",
        "T001-I01": "T001-B02",
    }
    assert imported.board.story_by_id["T002"].depends_on == ("T001",)
    assert imported.board.story_by_id["T002"].estimate_minutes == 90
    assert {"lease.unknown_task", "subtask.missing", "owner.several"} <= codes(imported)
    history = next(f for f in imported.findings if f.message.startswith("history"))
    assert "sprint began" in history.content


@pytest.mark.parametrize("path", QUEUES, ids=lambda path: path.stem)
def test_open_work_becomes_drafts_and_finished_work_is_named(path: Path) -> None:
    imported = as_drafts(import_file(path, now=NOW))
    over = (StoryStatus.DONE, StoryStatus.CANCELLED)
    left = {s.id for s in imported.stories if s.status not in over}
    assert {draft.key for draft in imported.drafts} == left
    assert set(imported.done) == {s.id for s in imported.stories} - left
    for draft in imported.drafts:
        assert draft.steps
        assert not draft.commands  # text of an old queue is never taken for a command
        assert set(draft.depends_on) <= left | set(imported.done)


def test_open_work_remembers_what_was_known_of_its_parts() -> None:
    draft = as_drafts(read("nested.json")).drafts[0]
    kept = {item.what: item.text for item in draft.leftovers}
    assert kept["T001-B02 Document"].startswith("ready in the old queue")


@pytest.mark.parametrize("path", QUEUES, ids=lambda path: path.stem)
def test_nothing_on_the_board_claims_a_live_lease_or_an_unknown_task(path: Path) -> None:
    imported = import_file(path, now=NOW)
    board = imported.board
    held = {StoryStatus.PLANNING, StoryStatus.INTEGRATING, StoryStatus.ADAPTING}
    working = {SubtaskStatus.IN_PROGRESS, SubtaskStatus.TESTING, SubtaskStatus.ADAPTING}
    assert not held & {story.status for story in board.stories}
    assert not working & {part.status for part in board.subtasks}
    for task in tasks_of(board):
        assert all(board.find(needed) for needed in task.depends_on)
        assert task.created_at <= task.status_since <= NOW
        assert task.reason or task.status.value not in ("blocked", "needs_human")
    assert len(imported.lines()) > len(imported.findings)
