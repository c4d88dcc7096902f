"""Every field, word and contradiction that old queues are known for, one hand-written file each."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import SubtaskKind
from oodatcaa.importers import Imported, as_drafts, import_file
from oodatcaa.importers.oodatcaa import read_queue

FIXTURES = Path(__file__).parent / "fixtures"
NOW = datetime(2025, 10, 10, tzinfo=UTC)

STORY_WORDS = {
    "needs_plan": "needs_plan",
    "planning": "needs_plan",
    "planning_complete": "planning_complete",
    "blocked": "blocked",
    "ready": "needs_plan",
    "in_progress": "needs_plan",
    "awaiting_test": "planning_complete",
    "testing": "needs_plan",
    "ready_for_integrator": "ready_for_integrator",
    "integrating": "ready_for_integrator",
    "done": "done",
    "needs_adapt": "needs_adapt",
    "adapting": "needs_adapt",
    "cancelled": "cancelled",
    "assigned": "needs_plan",
    "ready_for_test": "planning_complete",
    "completed": "done",
    "adapted": "planning_complete",
    "marinating": "needs_human",
}
BUILD_WORDS = STORY_WORDS | {
    "needs_plan": "blocked",
    "planning": "blocked",
    "planning_complete": "ready",
    "ready": "ready",
    "in_progress": "ready",
    "awaiting_test": "ready",
    "testing": "ready",
    "ready_for_integrator": "done",
    "integrating": "done",
    "assigned": "ready",
    "ready_for_test": "ready",
    "adapted": "ready",
}
"""A build that waits for its test was never verified here: its gates run again."""
FINDINGS = {
    "leases_and_times": {
        ("lease.ttl_unit", 5, "T001: ttl 30 was read as 30 minutes"),
        ("lease.ttl_unit", 6, "T002: ttl 1800 was read as 30 minutes"),
        ("lease.on_finished", 9,
         "T005 is done, but still has a lease, held by agent-integrator-B"),
        ("lease.on_finished", 10,
         "T006 is cancelled, but still has a lease, held by agent-builder-A"),
        ("lease.ttl_unit", 9, "T005: ttl 30 was read as 30 minutes"),
        ("lease.ttl_unit", 10, "T006: ttl 90 was read as 90 minutes"),
        ("field.unmapped", 17, "events has no place on the board"),
        ("time.order", 11, "T007: completed_at 2025-10-03T10:30:00+01:00 is before "
         "started_at 2025-10-03T12:00:00+02:00"),
        ("time.future", 3, "the sprint: last_updated 2030-01-01T00:00:00Z is in the future"),
        ("time.future", 12, "T008: created 2026-10-03T12:00:00+02:00 is in the future"),
        ("time.future", 14, "T008: at 2027-10-03T12:00:00Z is in the future"),
        ("time.future", 17, "the sprint: timestamp 2028-02-01T00:00:00Z is in the future"),
        ("time.naive", 8, "1 lines have times without a zone, read as UTC"),
        ("time.mixed_zones", 0, "times in different zones: +0100, +0200, Z, naive"),
    },
    "counters": {
        ("counter.wrong", 2, "total_tasks says 12, counted: 4"),
        ("counter.wrong", 3, "completed_tasks says 4, counted: 2"),
        ("counter.wrong", 5, "T001: subtasks_total says 2, counted: 1"),
        ("counter.wrong", 12, "done says 4, counted: 2"),
        ("counter.wrong", 13, "completed says 3, counted: 2"),
        ("counter.wrong", 16, "subtasks says 2, counted: 1"),
        ("counter.wrong", 17, "progress_percentage says 75, counted: 33.3 or 50"),
    },
    "fields": set(),
}  # fmt: skip
"""All of them: whatever else these files were said to contradict would be made up."""
SILENT = {"estimate.assumed", "plan.missing", "done.unproven", "status.released"}


def read(name: str) -> Imported:
    return import_file(FIXTURES / f"{name}.json", now=NOW)


def test_every_status_word_is_mapped_or_asks_a_person() -> None:
    imported = read("every_word")
    tasks = json.loads((FIXTURES / "every_word.json").read_text(encoding="utf-8"))["tasks"]
    words = {task["id"]: task["status"] for task in tasks}
    assert set(words.values()) == set(STORY_WORDS)
    for task in tasks_of(imported.board):
        test = task.id.startswith("T003-T")
        build = "-B" in task.id
        expected = (BUILD_WORDS if build or test else STORY_WORDS)[words[task.id]]
        if test and expected == "ready":
            expected = "awaiting_test"
        assert (task.id, task.status.value) == (task.id, expected)
    unknown = [one.message for one in imported.findings if one.code == "status.unknown"]
    assert [text.split(":")[0] for text in unknown] == ["T019", "T003-B19"]
    told = " ".join(f"{one.message} {one.content}" for one in imported.findings)
    moved = {i for i, word in words.items() if word not in (STORY_WORDS[word], BUILD_WORDS[word])}
    assert {name for name in moved if name not in told} == set(), "no word is changed silently"


@pytest.mark.parametrize("name", FINDINGS)
def test_exactly_these_contradictions_are_reported(name: str) -> None:
    found = {
        (one.code, int(one.place.partition(":")[2] or 0), one.message)
        for one in read(name).findings
        if one.code not in SILENT
    }
    assert found == FINDINGS[name]


def test_types_parents_steps_dependencies_and_nulls() -> None:
    board = read("fields").board
    parts = {part.id: part for part in board.subtasks}
    assert {part.story for part in parts.values()} == {"T001"}
    assert {name: part.steps for name, part in parts.items()} == {
        "T001-B01": (1,),
        "T001-B02": (2, 3),
        "T001-B03": (4, 5, 6),
        "T001-T01": (7, 8),
        "T001-T02": (9,),
    }
    assert {name: part.depends_on for name, part in parts.items()} == {
        "T001-B01": (),
        "T001-B02": ("T001-B01",),
        "T001-B03": ("T001-B02",),
        "T001-T01": ("T001-B02", "T001-B03"),
        "T001-T02": ("T001-T01",),
    }
    kinds = [part.kind for part in parts.values()]
    assert kinds == [SubtaskKind.BUILD] * 3 + [SubtaskKind.TEST] * 2
    second, third = board.story_by_id["T002"], board.story_by_id["T003"]
    assert (second.depends_on, second.reason, second.commit) == (("T001",), "waits for T001", "")
    assert (third.depends_on, third.estimate_minutes) == ((), 90)
    notes = {(note.subject, note.text) for note in read("fields").notes}
    assert ("T001-B01", "commits: 3 commits (a count, not their names)") in notes


# -- every task is somewhere, whatever dialect it was written in and wherever the damage is

WORDS = st.sampled_from([*STORY_WORDS, "Ready for Test", "", None])
NOISE = st.sampled_from(
    [
        "<<<<<<< HEAD\n{noise}\n=======\n{noise}\n>>>>>>> other\n",
        "<<<<<<< HEAD\n",
        '{{"id": "T9',
        '"status": ,',
        "}}]",
        "\x00",
    ]
)


@st.composite
def queues(draw: st.DrawFn) -> tuple[str, set[str]]:
    """The text of a queue in some dialect, and the ids of its tasks. Between two of its entries
    there may be damage."""
    ids: set[str] = set()
    entries: list[str] = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        story: dict[str, Any] = {"id": f"T{number:03d}", "title": f"story {number}"}
        story |= {"type": draw(st.sampled_from(["Story", "story", "Infra"]))}
        story |= {draw(st.sampled_from(["status", "state"])): draw(WORDS)}
        ids.add(story["id"])
        parts = []
        for index in range(1, draw(st.integers(0, 3)) + 1):
            kind = draw(st.sampled_from(["Build", "Implementation", "Test", "Testing"]))
            part: dict[str, Any] = {"id": f"{story['id']}-{kind[0].replace('I', 'B')}{index:02d}"}
            part |= {"title": "part", "type": kind, "status": draw(WORDS)}
            part |= {draw(st.sampled_from(["parent", "parent_task"])): story["id"]}
            part |= {draw(st.sampled_from(["plan_step", "plan_steps", "steps"])): index}
            part |= {draw(st.sampled_from(["depends_on", "dependencies"])): draw(
                st.sampled_from([None, [], sorted(ids), "T001", ["T777"]])
            )}  # fmt: skip
            ids.add(part["id"])
            parts.append(part)
        if draw(st.booleans()):
            story["subtasks"] = parts
            entries.append(json.dumps(story, indent=draw(st.sampled_from([None, 1]))))
        else:
            entries += [json.dumps(one) for one in (story, *parts)]
    text = '{"sprint": 1, "tasks": [\n'
    for index, entry in enumerate(entries):
        if draw(st.integers(0, 4)) == 0:
            text += draw(NOISE).format(noise='"x": 1,') + "\n"
        text += entry + (",\n" if index + 1 < len(entries) else "\n")
    return text + draw(st.sampled_from(["]}", "]", ""])), ids


@settings(max_examples=200, deadline=None)
@given(queues())
def test_every_task_outside_the_damage_is_in_the_outcome(queue: tuple[str, set[str]]) -> None:
    text, ids = queue
    imported = as_drafts(read_queue(text, source="q.json", now=NOW))
    assert ids <= set(imported.renamed)
    on_board = {task.id for task in tasks_of(imported.board)}
    assert {imported.renamed[name] for name in ids} <= on_board
    outcome = " ".join(
        [
            *(draft.model_dump_json() for draft in imported.drafts),
            *imported.told,
        ]
    )
    lost = {name for name in ids if imported.renamed[name] not in outcome}
    assert not lost, f"neither open nor over: {lost} of {text}"
