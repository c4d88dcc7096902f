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
        ("plan.files_differ", "plan.md:7"),
        ("plan.depends_on", "plan.md:6"),
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


ODD = """---
phase: 14-model
plan: 05
type: tdd
depends_on: [1, "14-02", 14-03-PLAN.md, 14-model-04, phases/13-x/13-09-PLAN.md, other]
files_modified: a/x.py, a/y.py
autonomous: {autonomous}
user_setup:
  - service: stripe
must_haves:
  truths: ["It holds"]
  artifacts:
    - path: a/x.py
      min_lines: many
---
<objective>Do it.</objective>
<!-- a comment
<task type="auto"><name>Not this one</name>
</task>
-->
<tasks>
<task type="auto" tdd="true" gate="blocking"><name>One</name><files>a/x.py</files>
<action>Write `a < b && c 2>&1`.
```xml
</action>
</task>
```
</action><verify>pytest a</verify></task>
{more}</tasks>
"""
CHECKPOINT = """<task type="checkpoint:human-verify"><what-built>x</what-built></task>
"""


def test_every_form_of_a_dependency_and_several_tags_on_a_line() -> None:
    draft, imported = draft_of(ODD.format(autonomous="true", more=""))
    assert draft.depends_on == ("14-01", "14-02", "14-03", "14-04", "13-09", "other")
    assert draft.files == ("a/x.py", "a/y.py")
    assert [(step.title, step.files) for step in draft.steps] == [("One", ("a/x.py",))]
    assert "a < b && c 2>&1" in draft.steps[0].action
    assert "</task>" in draft.steps[0].action
    assert draft.steps[0].action.startswith("Test first")
    assert draft.commands == ("pytest a",)
    kept = {item.what: (item.place, item.text) for item in draft.leftovers}
    assert kept["user_setup: a person has to see to this before it runs"] == (
        "line 8",
        '[{"service": "stripe"}]',
    )
    assert kept["type"] == ("line 4", "tdd")
    assert "Not this one" in kept["text outside every section"][1]
    assert '"gate": "blocking"' in kept["task 1: attributes"][1]
    assert ("plan.field", "plan.md:13") in {(f.code, f.place) for f in imported.findings}


@pytest.mark.parametrize(
    ("said", "more", "alone", "reported"),
    [
        ("true", "", True, False),
        ("false", CHECKPOINT, False, False),
        ("true", CHECKPOINT, False, True),
        ("false", "", False, True),
        ('""', CHECKPOINT, False, False),
    ],
)
def test_whether_a_plan_needs_a_person(said: str, more: str, alone: bool, reported: bool) -> None:
    draft, imported = draft_of(ODD.format(autonomous=said, more=more))
    assert draft.autonomous is alone
    found = {(item.code, item.place) for item in imported.findings}
    assert (("plan.autonomous", "plan.md:7") in found) is reported


NEWER = """---
phase: 2-a
plan: 01
---
<objective>Do it.</objective>
<context>
@docs/a.md

<interfaces>
```ts
export interface A {}
```
Take these.
</interfaces>
</context>
<tasks>
<task type="auto">
  <name>One</name>
  <action>Do.</action>
  <verify>
    <automated>npm test -- --run \\
      src/a.test.ts</automated>
    <manual>It looks right</manual>
  </verify>
  <done>x</done>
</task>
</tasks>
"""


def test_the_newer_parts_of_a_verify_and_a_section_in_a_section() -> None:
    draft, imported = draft_of(NEWER)
    assert draft.commands == ("npm test -- --run \\\n  src/a.test.ts",)
    assert draft.statements == ("It looks right",)
    assert draft.references == ("docs/a.md",)
    kept = [item.text for item in draft.leftovers if item.what == "text in <context>"]
    assert len(kept) == 1
    assert "export interface A {}" in kept[0]
    assert not [item for item in imported.findings if item.severity.value == "error"]
