"""superpowers, task-master, beads and our own exchange format become drafts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oodatcaa.domain.evidence import GateKind
from oodatcaa.importers import DraftStory, Imported, ImportKind, detect, import_file
from oodatcaa.importers.superpowers_task import read_expected

PLANS = Path(__file__).parent / "fixtures" / "plans"
NOW = datetime(2025, 10, 10, tzinfo=UTC)


def read(name: str) -> tuple[Imported, dict[str, DraftStory]]:
    imported = import_file(PLANS / name, now=NOW)
    return imported, {draft.key: draft for draft in imported.drafts}


def found(imported: Imported) -> set[tuple[str, str]]:
    return {(item.code, item.place.rpartition(":")[2]) for item in imported.findings}


def test_every_format_is_found_by_its_content() -> None:
    kinds = {path.name: detect(path).value for path in PLANS.iterdir()}
    assert len(kinds) == 8
    assert all(kind in name for name, kind in kinds.items())


# -- superpowers


def test_a_superpowers_plan_becomes_one_story_a_task() -> None:
    imported, drafts = read("run_storage.superpowers.md")
    keys = [f"mlx-run-storage-implementation-plan#{n}" for n in (1, 2, 3, 4)]
    assert list(drafts) == keys
    assert [draft.depends_on for draft in drafts.values()] == [(), *((key,) for key in keys[:3])]
    first = drafts[keys[0]]
    assert first.title == "Add run storage utilities"
    assert first.purpose.startswith("Store MLX local training runs")
    assert [step.kind for step in first.steps] == ["auto", "check", "auto", "check", "commit"]
    red, green, promised = first.gates
    assert (red.id, red.expect) == ("R2", "failure")
    assert red.expect_output == "NameError: name 'create_run_dir' is not defined"
    assert (green.id, green.expect) == ("V4", "success")
    assert red.command == green.command
    assert promised.kind is GateKind.FILES
    assert first.steps[4].action.startswith("git add src/training/run_storage.py")
    assert {item.what for item in first.leftovers} == {
        "Architecture",
        "Tech Stack",
        "text outside every task",
    }
    assert {item.severity.value for item in imported.findings} == {"info"}


def test_every_form_of_a_superpowers_plan() -> None:
    imported, drafts = read("odd.superpowers.md")
    assert list(drafts) == ["odd-plan#0", "odd-plan#1a", "odd-plan#2", "odd-plan#2-2"]
    first = drafts["odd-plan#0"]
    assert first.files == ("pkg/__init__.py", "pkg/store.py", "setup.cfg", "old/store.py")
    assert first.references == ("docs/cache.md",)
    assert "Produces: `Store.get(key) -> str | None`" in first.goal
    assert first.purpose == "Try every form that is seen."
    assert first.phase == "Odd Plan / Chunk 1: Beginnings"
    assert [(step.kind, step.title) for step in first.steps] == [
        ("auto", "Write the failing test"),
        ("check", "Run it"),
        ("auto", "Write the code"),
        ("check", "Run both"),
        ("commit", "Commit"),
    ]
    assert "## Task 9: this heading stands in a code fence" in first.steps[0].action
    assert "class Store" in first.steps[2].action
    assert first.gates[1].command == "set -e\npytest tests/test_store.py -v\nruff check pkg"
    promised = next(gate for gate in first.gates if gate.kind is GateKind.FILES)
    assert "old/store.py" not in promised.paths
    kept = {item.text: item.place for item in first.leftovers if item.what == "file"}
    assert kept == {"Modify: `setup.cfg:10-20`": "line 14", "Delete: `old/store.py`": "line 15"}
    assert not any("rm -rf" in command for command in first.commands)
    assert drafts["odd-plan#2-2"].gates[0].expect == "success"
    without_steps = drafts["odd-plan#2"]  # its Run: decides all the same
    assert [(step.kind, step.gates) for step in without_steps.steps] == [("check", ("V1",))]
    assert {("plan.numbering", "73"), ("plan.no_steps", "60")} <= found(imported)


def test_a_deeper_heading_and_a_ticked_step_belong_to_their_task(tmp_path: Path) -> None:
    text = """# P

**Goal:** g

## Task 1: a

### Notes

Mind the gap.

### Step 1: Do it

Run: `make x`

### Step 2: Look

- [x] **Step 3: Done already**

## Afterwards

Rest.
"""
    path = tmp_path / "plan"
    path.write_text(text, encoding="utf-8")
    imported = import_file(path, now=NOW)
    draft = imported.drafts[0]
    assert "Mind the gap." in draft.goal
    assert [step.title for step in draft.steps] == ["Do it", "Look", "Done already"]
    assert draft.commands == ("make x",)
    assert "Rest." in " ".join(item.text for item in draft.leftovers)
    ticked = next(item for item in imported.findings if item.code == "plan.ticked")
    assert "1 of 3 steps of Task 1" in ticked.message


@pytest.mark.parametrize(
    ("text", "fails", "message"),
    [
        ('FAIL with "no such thing"', True, "no such thing"),
        ("FAIL", True, ""),
        ("FAILS: `ModuleNotFoundError`", True, "ModuleNotFoundError"),
        ("PASS", False, ""),
        ("All tests pass", False, ""),
        ("No errors", False, ""),
        ("PASS (was FAIL before)", False, ""),
        ("3 tests", False, ""),
        ("an error that names the file", True, ""),
        ("", False, ""),
    ],
)
def test_what_is_expected(text: str, fails: bool, message: str) -> None:
    assert read_expected(text) == (fails, message)


# -- GSD, the newer forms


def test_a_tdd_plan_with_the_newer_fields() -> None:
    imported, drafts = read("tdd.gsd.md")
    draft = drafts["07-03"]
    assert draft.depends_on == ("07-02",)
    assert draft.files == ("service/cache/ttl.py", "service/cache/ttl_test.py")
    assert [(step.kind, step.title) for step in draft.steps] == [
        ("tdd", "Time to live"),
        ("auto", "Measure"),
        ("checkpoint:decision", "Which clock?"),
    ]
    assert "put then get" in draft.steps[0].action
    assert "Compare two clocks." in draft.steps[0].action
    assert "Which clock?" in draft.steps[2].action
    assert draft.commands == (
        "pytest service/cache -q && echo ok 2>&1",
        "grep -q monotonic service/cache/ttl.py",
    )
    assert draft.references == ("docs/clock.md",)
    assert [item.path for item in draft.goals.artifacts] == ["service/cache/ttl.py"]
    assert draft.goals.artifacts[0].provides == "the clock"
    kept = " ".join(item.text for item in draft.leftovers)
    for text in ("CACHE-03", "redis", "something nice", "ttl uses the store", "true"):
        assert text in kept
    assert not [item for item in imported.findings if item.severity.value == "error"]


def test_the_reference_plan_keeps_its_must_haves() -> None:
    _, drafts = read("adapter_pool.gsd.md")
    draft = drafts["14-05"]
    assert len(draft.goals.truths) == 4
    assert [item.contains for item in draft.goals.artifacts] == [
        ("adapter_path",),
        ("AdapterInfo",),
    ]
    link = draft.goals.key_links[0]
    assert link.source == "backend/mlx_manager/mlx_server/models/pool.py"
    assert link.pattern == "load.*adapter_path"
    assert len(draft.commands) == 3


# -- task-master


def test_a_legacy_tasks_file() -> None:
    imported, drafts = read("legacy.taskmaster.json")
    assert list(drafts) == ["2", "3", "4", "5", "6"]
    assert imported.done == ("1", "8")
    store = drafts["2"]
    assert store.priority == 0
    assert store.depends_on == ("1", "7")
    assert [step.title for step in store.steps] == ["Keep", "Expire"]
    assert store.commands == ("pytest tests/test_store.py -q",)
    assert store.statements == ("It feels fast",)
    kept = {item.what: item.text for item in store.leftovers}
    assert kept["complexity"] == "4"
    assert kept["status there"] == "in-progress"
    assert "Make keys." in kept["subtask 2 is done"]
    assert drafts["3"].depends_on == ("2",)
    assert drafts["4"].depends_on == ()
    assert {
        ("dependency.unknown", "15"),
        ("taskmaster.contradiction", "4"),
        ("taskmaster.deferred", "31"),
        ("priority.unknown", "31"),
        ("status.unknown", "32"),
        ("dependency.circle", "32"),
        ("dependency.circle", "33"),
        ("taskmaster.duplicate", "36"),
        ("taskmaster.no_id", "37"),
    } <= found(imported)


def test_finished_work_is_told_with_its_title_and_kept_beside_what_builds_on_it() -> None:
    imported, drafts = read("legacy.taskmaster.json")
    assert imported.past[0].startswith("1 Set up the package (done, line 4): A package with")
    assert "over in legacy.taskmaster.json, not proven here: 1 Set up" in imported.told[0]
    assert "subtasks: Folder" in imported.told[0]
    kept = {item.what: item.text for item in drafts["2"].leftovers}
    assert "A package with one module." in kept["builds on 1 Set up the package, done there"]
    imported, drafts = read("issues.beads.jsonl")
    assert len(imported.past) == len(imported.done) == 2
    assert "closed" in imported.past[0]
    assert "deleted" in imported.past[1]


def test_tags_keep_their_tasks_apart() -> None:
    imported, drafts = read("tagged.taskmaster.json")
    assert list(drafts) == ["1", "later/1", "later/2"]
    assert drafts["later/2"].depends_on == ("later/1",)
    assert drafts["later/2"].steps[0].action == "Do it."
    assert "Tasks for master" in " ".join(item.content for item in imported.findings)


# -- beads


def test_beads_issues_wait_only_for_what_blocks_there() -> None:
    imported, drafts = read("issues.beads.jsonl")
    assert list(drafts) == ["bd-1.1", "bd-1.2", "bd-2", "bd-3", "bd-9"]
    assert imported.done == ("bd-7", "bd-8")
    store = drafts["bd-1.1"]
    assert store.priority == 0
    assert store.depends_on == ("bd-9",)  # what blocks the epic blocks its children
    assert store.estimate_minutes == 45
    assert store.commands == ("pytest tests/test_store.py -q",)
    assert store.phase == "Cache"
    assert drafts["bd-1.2"].depends_on == ("bd-1.1", "bd-9")
    assert drafts["bd-2"].depends_on == ("bd-1.1", "bd-1.2")  # an epic means all of it
    assert drafts["bd-3"].depends_on == ("bd-1.1:failed",)
    assert drafts["bd-9"].priority is None
    kept = {item.what: item.text for item in store.leftovers}
    assert kept["notes"] == "Ask Ada."
    assert kept["labels"] == '["cache"]'
    assert {i.text for i in drafts["bd-9"].leftovers if i.what == "status there"} == {"in_progress"}
    assert "All of it." in kept["its parent bd-1 Cache"]
    assert any(item.what == "related bd-7" for item in drafts["bd-1.2"].leftovers)
    assert {
        ("priority.unknown", "8"),
        ("dependency.unknown", "8"),
        ("beads.conditional", "5"),
        ("beads.deferred", "5"),
        ("beads.damaged", "10"),
    } <= found(imported)
    assert "hello" in " ".join(item.content for item in imported.findings)


def test_a_table_dump_with_numbers_for_booleans() -> None:
    imported, drafts = read("dump.beads.json")
    assert list(drafts) == ["bd-1", "bd-4"]
    assert drafts["bd-1"].priority == 0
    assert drafts["bd-4"].priority == 1
    assert drafts["bd-4"].depends_on == ("bd-1",)
    assert any('"later"' in item.text for item in drafts["bd-4"].leftovers)
    assert {("beads.orphan", "8"), ("beads.no_story", "3")} <= found(imported)


# -- our own


def test_our_own_form_says_what_is_wrong_with_a_plan(tmp_path: Path) -> None:
    good = read("adapter_pool.gsd.md")[1]["14-05"].model_dump(mode="json")
    value = {
        "format": "oodatcaa-plans",
        "version": 7,
        "plans": [good, {"key": "x", "title": "y"}, good, 3, {**good, "key": "empty", "steps": []}],
    }
    path = tmp_path / "plans"
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    imported = import_file(path, now=NOW)
    assert imported.kind is ImportKind.JSON
    assert [draft.key for draft in imported.drafts] == ["14-05"]
    codes = [item.code for item in imported.findings]
    assert {"json.version", "json.plan", "json.duplicate"} <= set(codes)
    assert any("slug" in item.message for item in imported.findings)
    assert any("empty: it has no steps" in item.message for item in imported.findings)
