"""Damaged files: every task outside the damaged place is recovered, and the damage is named."""

from __future__ import annotations

import json
import random
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodatcaa.domain.states import tasks_of
from oodatcaa.importers import Imported, import_file
from oodatcaa.importers.oodatcaa import read_queue
from oodatcaa.importers.oodatcaa.collect import looks_like_task
from oodatcaa.importers.oodatcaa.scan import scan
from oodatcaa.importers.oodatcaa.words import ID, SYNONYMS

FIXTURES = Path(__file__).parent / "fixtures"
QUEUES = {path.stem: path.read_text(encoding="utf-8") for path in FIXTURES.glob("*.json")}
NOW = datetime(2025, 10, 10, tzinfo=UTC)


def read(text: str) -> Imported:
    return read_queue(text, source="q.json", now=NOW)


def test_both_sides_of_a_conflict_are_recovered() -> None:
    imported = import_file(FIXTURES / "conflict.json", now=NOW)
    assert set(imported.renamed) == {"T001", "T002", "T003", "T004", "T005"}
    assert imported.board.story_by_id["T002"].status.value == "done", "the newer side"
    found = {finding.code: finding for finding in imported.findings}
    assert found["conflict.markers"].place == "conflict.json:13"
    assert "HEAD and feat/T002-step-01" in found["conflict.markers"].message
    assert json.loads(found["conflict.differs"].content)["status"] == "integrating"
    one_side = [f.message for f in imported.findings if f.code == "conflict.one_side"]
    assert len(one_side) == 2
    assert found["conflict.base"].content.strip() == '"total_tasks": 3,'
    assert found["field.differs"].content == "5"


@pytest.mark.parametrize("marker", ["<<<<<<< HEAD", "=======", ">>>>>>> other", "||||||| base"])
def test_a_marker_without_its_partners_loses_nothing(marker: str) -> None:
    lines = QUEUES["nested"].split("\n")
    for at in range(0, len(lines), 7):
        imported = read("\n".join([*lines[:at], marker, *lines[at:]]))
        assert set(imported.renamed) == {"T001", "T001-B01", "T001-B02", "T001-T01", "T002"}
        assert "conflict.broken" in {finding.code for finding in imported.findings}


def test_a_truncated_file_keeps_what_came_before() -> None:
    imported = import_file(FIXTURES / "truncated.json", now=NOW)
    assert list(imported.renamed) == [
        "T001",
        "T002",
        "T001-B01",
        "T001-T01",
        "T002-B01",
        "T002-B02",
    ]
    assert imported.board.subtask_by_id["T002-B01"].story == "T002"
    damage = [f for f in imported.findings if f.code.startswith("json.")]
    assert {f.place for f in damage} >= {"truncated.json:1", "truncated.json:22"}
    assert any(f.content == '"Cut in the mid' for f in damage)


def test_syntax_errors_damage_only_their_own_task() -> None:
    imported = import_file(FIXTURES / "broken_syntax.json", now=NOW)
    assert set(imported.renamed) == {f"T{n:03d}" for n in (*range(1, 12), 13)}
    status = {story.id: story.status.value for story in imported.stories}
    assert status["T002"] == "done"
    assert status["T004"] == status["T006"] == status["T007"] == status["T013"] == "needs_plan"
    assert status["T009"] == "blocked"
    assert status["T010"] == "needs_plan"
    assert {f.code for f in imported.findings} >= {
        "json.invalid",
        "json.comma",
        "json.string",
        "json.bracket",
        "json.junk",
        "json.duplicate_key",
    }


def test_tasks_that_ran_into_a_list_of_dependencies_come_back() -> None:
    text = """{"tasks": [
      {"id": "T001", "title": "a", "status": "done", "depends_on": ["T003",
      {"id": "T002", "title": "b", "status": "done"},
      {"id": "T003", "title": "c", "status": "done"}
    ]}"""
    imported = read(text)
    assert set(imported.renamed) == {"T001", "T002", "T003"}
    assert imported.board.story_by_id["T001"].depends_on == ("T003",)


def test_a_lost_quote_in_a_file_of_one_line_swallows_no_other_task() -> None:
    whole = '{"id": "T002", "title": "b", "status": "done"}'
    text = f'{{"tasks": [{{"id": "T001", "title": "a, "status": "done"}}, {whole}, {whole}]}}'
    imported = read(text.replace("T002", "T003", 1))
    assert set(imported.renamed) == {"T001", "T002", "T003"}
    assert imported.board.story_by_id["T002"].status.value == "done"
    assert imported.board.story_by_id["T003"].status.value == "done"


def test_of_two_versions_the_undamaged_one_counts() -> None:
    text = """{"tasks": [
      {"id": "T001", "title": "older, whole", "status": "done", "updated": "2025-10-01"},
      {"id": "T001", "title": "newer, broken", "status": , "updated": "2025-10-02"}
    ]}"""
    imported = read(text)
    assert imported.board.story_by_id["T001"].title == "older, whole"
    assert "newer, broken" in next(f for f in imported.findings if f.code == "id.duplicate").content


def test_dependencies_may_be_objects() -> None:
    task = {"id": "T001", "title": "a", "status": "blocked"}
    needed = [{"id": "T002", "status": "done", "why": "data"}]
    other = {"id": "T002", "title": "b", "status": "needs_plan"}
    imported = read(json.dumps({"tasks": [{**task, "depends_on": needed}, other]}))
    assert imported.board.story_by_id["T001"].depends_on == ("T002",)
    assert imported.board.story_by_id["T002"].status.value == "needs_plan"
    assert any("why" in finding.content for finding in imported.findings)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "}", '{"tasks": 3}', "\0", '"', "{{{{"])
def test_a_file_without_a_task_says_so(text: str) -> None:
    assert "queue.no_tasks" in {finding.code for finding in read(text).findings}


def test_deep_nesting_and_huge_numbers_are_no_traceback() -> None:
    task = '{"id": "T001", "status": "done", "title": "deep"}'
    for text in (
        "[" * 100_000 + task,
        '{"a":' * 5_000 + task + "}" * 5_000,
        f'{{"tasks": [{task}], "n": {"9" * 6_000}, "m": 1e999, "metadata": {{"done": 1e400}}}}',
        f'{{"tasks": [{task[:-1]}, "estimate": 1e308, "commits": NaN, "priority": Infinity}}]}}',
    ):
        assert "T001" in read(text).renamed


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda k: k != "id"), inner),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([None, 1]))
def test_valid_json_is_read_as_json_reads_it(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    result = scan(text, looks_like_task)
    assert [root.plain for root in result.roots] == [json.loads(text)]
    assert result.damage == []


def task_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, id) of every object in `text` that is a whole task."""
    found = []
    for at, char in enumerate(text):
        if char != "{":
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            continue
        known = value.get("id")
        if isinstance(known, str) and ID.fullmatch(known) and "status" in value:
            found.append((at, end, known))
    return found


SPANS = {name: task_spans(text) for name, text in QUEUES.items()}
JUNK = st.sampled_from(
    ['"', "\\", "{", "}", "[", "]", ",", ":", "\n", "null", '{"id": "', '"id": "T999",', "'", "é"]
    + [
        "\n<<<<<<< HEAD\n",
        "\n=======\n",
        "\n>>>>>>> x\n",
        "/* no */",
        "\0",
        "\ud7ff",
        '"a": [{',
        "]]",
    ]
) | st.text(max_size=12)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_no_mutation_loses_a_task_that_it_does_not_touch(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(QUEUES)))
    text, spans = QUEUES[name], SPANS[name]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.sampled_from([0, 0, 1, 1, 2, 9, 60, 100_000])))
        junk = data.draw(JUNK)
        text = text[:start] + junk + text[end:]
        shift = len(junk) - (end - start)
        spans = [
            (first + shift * (first >= end), last + shift * (first >= end), known)
            for first, last, known in spans
            if last <= start or first >= end
        ]
    imported = read(text)
    assert {known for _, _, known in spans} <= {old.upper() for old in imported.renamed}
    by_id = {task.id: task for task in tasks_of(imported.board)}
    assert set(by_id) == set(imported.renamed.values()), "each task is on the board"
    imported.model_dump_json()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=string.printable + 'é{}[]":,\\', max_size=300))
def test_any_text_is_read_without_an_exception(text: str) -> None:
    read(text).model_dump_json()


KEYS = sorted(
    {key for keys in SYNONYMS.values() for key in keys}
    | {"notes", "commits", "branch", "tag", "lease", "completed_at", "started", "progress"}
    | {"priority", "acceptance", "test_result", "subtasks", "weird", "tasks_done", "steps_total"}
    | {"metadata", "summary", "leases", "wip_limits", "lease_ttls", "sprint", "history", "items"}
)


def leaves(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(leaves, value.values()))
    if isinstance(value, list):
        return set().union(*map(leaves, value))
    return {value} if isinstance(value, str) else set()


def token_value(source: random.Random, depth: int = 0) -> Any:
    """A value of unique words, so that each can be looked for afterwards."""
    choice = source.random()
    if choice < 0.55 or depth > 1:
        return "".join(source.choices(string.ascii_lowercase, k=12))
    if choice < 0.65:
        return None
    if choice < 0.8:
        return [token_value(source, depth + 1) for _ in range(source.randint(0, 3))]
    names = [source.choice([*KEYS, "owner", "ttl", "at"]) for _ in range(source.randint(0, 3))]
    return {name: token_value(source, depth + 1) for name in names}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_no_word_of_a_readable_file_is_dropped(seed: int) -> None:
    source = random.Random(seed)
    tasks = []
    for number in range(1, 4):
        task = {key: token_value(source) for key in source.sample(KEYS, 8)}
        tasks.append({**task, "id": f"T00{number}", "title": f"title{number}"})
    queue = {key: token_value(source) for key in source.sample(KEYS, 6)} | {"tasks": tasks}
    imported = read(json.dumps(queue))
    everything = imported.model_dump_json().lower()
    lost = {word for word in leaves(queue) if word.lower() not in everything}
    assert not lost, f"{lost} of {json.dumps(queue)}"
