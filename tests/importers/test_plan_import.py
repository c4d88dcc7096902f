"""Plans of another tool become drafts; their commands are recorded, never run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from oodatcaa.domain.evidence import GateKind
from oodatcaa.domain.task import StoryKind
from oodatcaa.importers import DraftStory, Imported, ImportKind, import_file
from oodatcaa.importers.gsd import read_plan

PLAN = Path(__file__).parent / "fixtures" / "plan.md"
TEXT = PLAN.read_text(encoding="utf-8")
NOW = datetime(2025, 10, 10, tzinfo=UTC)


def draft_of(text: str) -> tuple[DraftStory, Imported]:
    imported = read_plan(text, source="plan.md")
    return imported.drafts[0], imported


def test_a_plan_becomes_a_draft_story() -> None:
    imported = import_file(PLAN, now=NOW)
    draft = imported.drafts[0]
    assert imported.kind is ImportKind.GSD
    assert (draft.key, draft.kind, draft.wave) == ("07-02", StoryKind.CUSTOM, 1)
    assert draft.title == "Keep answers for five minutes"
    assert draft.slug == "keep-answers-for-five-minutes"
    assert draft.goal == "Keep answers for five minutes. Old ones are dropped."
    assert draft.purpose == "The same question is asked often."
    assert draft.output == "A cache with expiry."
    assert draft.depends_on == ("07-01",)
    assert draft.autonomous is False
    assert draft.files == ("service/cache/store.py", "service/cache/keys.py")
    assert draft.references == ("docs/cache.md",)
    assert draft.goals.artifacts[0].contains == ("class Store",)
    assert draft.goals.artifacts[0].min_lines == 30
    assert draft.goals.key_links[0].pattern == r"make_key\("


def test_steps_with_code_that_looks_like_tags() -> None:
    draft, _ = draft_of(TEXT)
    assert [step.title for step in draft.steps] == ["Write the store", "Look at it", "Measure"]
    assert [step.needs_human for step in draft.steps] == [False, True, False]
    assert '"""Holds <task> and </tasks> & more."""' in draft.steps[0].action
    assert draft.steps[0].files == ("service/cache/store.py", "service/cache/keys.py")
    assert draft.steps[0].done == "Expiry works."
    assert "A dashboard" in draft.steps[1].action


def test_a_tag_inside_a_code_fence_is_code() -> None:
    fence = "```xml\n<verify>\n<task>\n```\n  </action>"
    draft, imported = draft_of(TEXT.replace("  </action>", fence, 1))
    assert len(draft.steps) == 3
    assert "<verify>\n<task>" in draft.steps[0].action
    assert "plan.damaged" not in {finding.code for finding in imported.findings}


def test_gates_come_from_verify_commands_artifacts_and_criteria() -> None:
    draft, _ = draft_of(TEXT)
    gates = {gate.id: gate for gate in draft.gates}
    assert list(gates) == ["V1", "AC1", "F1"]
    assert gates["V1"].command == (
        "set -e\ncd /Users/somebody/work/service\npytest tests/cache -q\nruff check cache"
    )
    assert draft.steps[0].gates == ("V1",)
    assert gates["AC1"].command == "pytest -q"
    assert gates["F1"].kind is GateKind.FILES
    assert gates["F1"].paths == ("service/cache/store.py",)
    assert gates["V1"].verbatim
    assert draft.statements == (
        "It should be fast enough.",
        "Nothing else got slower",
        "Hit rate above one half",
    )


def test_everything_odd_about_the_plan_is_reported() -> None:
    _, imported = draft_of(TEXT)
    found = {(f.code, f.place) for f in imported.findings}
    assert {
        ("plan.foreign_path", "plan.md:52"),
        ("plan.set_e", "plan.md:52"),
        ("plan.checkpoint", "plan.md:62"),
        ("plan.numbering", "plan.md:68"),
        ("plan.verify_prose", "plan.md:72"),
        ("plan.files_differ", "plan.md"),
        ("plan.depends_on", "plan.md"),
    } <= found
    path = next(f for f in imported.findings if f.code == "plan.foreign_path")
    assert "perhaps --map /Users/somebody/work/service=service" in path.message
    unmapped = " ".join(f.content for f in imported.findings if f.code == "plan.unmapped")
    for text in (
        "nobody",
        "Read the old code first.",
        "Write a summary",
    ):
        assert text in unmapped


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("</verify>", "", "plan.damaged"),
        ("</tasks>\n\n<verification>", "<verification>", "plan.damaged"),
        ("```\n  </action>", "</action>", "plan.damaged"),
        ("---\n\n<objective>", "\n<objective>", "plan.front_matter"),
        ('depends_on: ["07-01"]', 'depends_on: ["07-01"', "plan.front_matter"),
        ("phase: 07-cache", "phase: &a [x]\nb: *a", "plan.front_matter"),
        ("<objective>", "<aim>", "plan.no_objective"),
        ("pytest tests/cache -q", "ruff check --fix .", "plan.gate_changes"),
        ("  <verify>It should be fast enough.</verify>\n", "", "plan.no_verify"),
    ],
)
def test_damage_is_named_and_the_rest_is_kept(old: str, new: str, code: str) -> None:
    assert old in TEXT
    draft, imported = draft_of(TEXT.replace(old, new, 1))
    assert code in {finding.code for finding in imported.findings}
    assert [step.title for step in draft.steps] == ["Write the store", "Look at it", "Measure"]


def test_a_gate_name_and_a_title_never_span_lines() -> None:
    draft, _ = draft_of(TEXT.replace("Task 1: Write the store", "Task 1: Write\nthe store"))
    assert draft.steps[0].title == "Write the store"
    assert draft.gates[0].name == "Step 1: Write the store"
