"""A plan's checkpoints: the work before one is done, a person answers, then the rest is done."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent_making import calls, script
from crew_projects import git, make_project, work
from oodatcaa.app.importing import import_plans
from oodatcaa.app.people import approve_story, cancel_task, reject_story
from oodatcaa.app.project import Project
from oodatcaa.domain.asking import asked_now
from oodatcaa.domain.commit_message import commit_message
from oodatcaa.domain.lifecycle import invariants
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.sprinting import carried_from
from oodatcaa.domain.task import ManualLease, Role, Story, StoryStatus, SubtaskStatus
from oodatcaa.errors import RefusedError
from oodatcaa.views.status import show_text

PLAN = """\
---
phase: 03-page
plan: 01
autonomous: false
---
<objective>Show a page.</objective>
<tasks>
<task type="auto"><name>Task 1: Draw it</name><files>page.txt</files>
<action>Draw the page.</action>
</task>
<task type="checkpoint:human-verify" gate="blocking">
  <what-built>A page with a title</what-built>
  <how-to-verify>
1. Open page.txt
2. Is the title blue?
  </how-to-verify>
  <resume-signal>Type "approved" or say what is wrong</resume-signal>
</task>
<task type="checkpoint:decision" gate="blocking">
  <decision>Which footer?</decision>
  <options><option id="a">small</option><option id="b">large</option></options>
</task>
<task type="auto"><name>Task 4: Add the footer</name><files>page.txt</files>
<action>Add the footer that was chosen.</action>
<verify>grep -q footer page.txt</verify>
</task>
<task type="checkpoint:human-action"><name>Publish</name>
  <instructions>Log in and press the button.</instructions>
</task>
</tasks>
"""
TITLE = [{"write": "page.txt", "text": "title\n"}, {"done": "drawn"}]
BLUE = [{"write": "page.txt", "text": "blue title\n"}, {"done": "drawn"}]
FOOTER = [{"append": "page.txt", "text": "footer\n"}, {"done": "added"}]


def project_with(tmp_path: Path, *turns: list[dict[str, Any]], plan: str = PLAN) -> Path:
    """A project with nothing to do but the plan, whose commands are allowed."""
    builder = {"role": "builder", "script": script(tmp_path / "builder.json", *turns)}
    config = {"imports": {"allow": ["grep"]}}
    root = make_project(tmp_path, {"builder-s": builder}, config=config)
    cancel_task(Project(root), "T001", "ada", "only the imported plan")
    path = tmp_path / "03-01-PLAN.md"
    path.write_text(plan, encoding="utf-8")
    import_plans(Project(root), [path])
    return root


def story_of(root: Path) -> Story:
    return Project(root).board().story_by_id["T002"]


def shown(root: Path) -> str:
    return show_text(Project(root).board(), "T002", datetime.now(UTC))


def asked(root: Path) -> str:
    question = asked_now(Project(root).board(), story_of(root))
    return question.title if question is not None else ""


def test_checkpoints_stop_the_work_at_their_place_and_answers_are_told_to_it(
    tmp_path: Path,
) -> None:
    root = project_with(tmp_path, TITLE, FOOTER)
    assert work(root) == "needs_human"
    assert story_of(root).status is StoryStatus.NEEDS_HUMAN
    assert asked(root) == "human-verify, step 2 (A page with a title)"
    assert git(root, "show", f"{story_of(root).branch}:page.txt") == "title\n"
    text = shown(root)
    assert "Is the title blue?" in text
    assert "oodatcaa approve T002" in text
    assert "to be asked  decision, step 3 (Which footer?)" in text
    assert "the work so far is on branch feat/T002-show-a-page" in text
    assert "oodatcaa approve T002" in story_of(root).reason
    page = (Project(root).work / "plans/T002/AGENT_PLAN.md").read_text(encoding="utf-8")
    assert "T002-B01, a person (human-verify, step 2" in page

    answered = approve_story(Project(root), "T002", "ada", "it is blue")
    assert answered.status is StoryStatus.NEEDS_HUMAN  # the next question follows at once
    assert asked(root) == "decision, step 3 (Which footer?)"
    assert "Which footer?" in shown(root)
    with pytest.raises(RefusedError, match="asks decision"):
        reject_story(Project(root), "T002", "ada", "no")
    approve_story(Project(root), "T002", "ada", "b, the large one")
    assert story_of(root).status is StoryStatus.PLANNING_COMPLETE
    moved_on = carried_from(Project(root).board(), datetime.now(UTC))
    assert len({s.id: s for s in moved_on.stories}["T002"].answers) == 2

    assert work(root) == "needs_human"
    assert asked(root) == "human-action, step 5 (Publish)"
    assert "press the button" in shown(root)
    prompts = [call["argv"][0] for call in calls(tmp_path / "builder.json")]
    assert len(prompts) == 2
    assert "b, the large one" in prompts[1]
    assert "b, the large one" not in prompts[0]
    tests = [item for item in Project(root).board().subtasks if item.id == "T002-T01"]
    assert tests[0].status is SubtaskStatus.BLOCKED

    approve_story(Project(root), "T002", "ada", "published")
    assert work(root) == "done"
    assert git(root, "show", "main:page.txt") == "title\nfooter\n"
    assert [answer.why for answer in story_of(root).answers] == [
        "it is blue",
        "b, the large one",
        "published",
    ]


def test_work_that_a_person_says_no_to_is_done_and_looked_at_again(tmp_path: Path) -> None:
    root = project_with(tmp_path, TITLE, BLUE, FOOTER)
    work(root)
    rejected = reject_story(Project(root), "T002", "ada", "it is grey")
    assert rejected.status is StoryStatus.NEEDS_ADAPT
    assert work(root) == "needs_human"
    assert asked(root) == "human-verify, step 2 (A page with a title)"
    assert "it is grey" in calls(tmp_path / "builder.json")[1]["argv"][-1]
    assert git(root, "show", f"{story_of(root).branch}:page.txt") == "blue title\n"
    for why in ("now it is", "a"):
        approve_story(Project(root), "T002", "ada", why)
    work(root)
    approve_story(Project(root), "T002", "ada", "published")
    assert work(root) == "done"


COMMITS = """\
# A page

**Goal:** Show it.

### Task 1: Draw it

**Files:**
- Create: `page.txt`

**Step 1: Write the check**

Draw nothing yet.

**Step 2: Draw**

Draw the page.

**Step 3: Run it**

Run: `grep -q title page.txt`
Expected: PASS

**Step 4: Commit**

```bash
git add page.txt
git commit -m "feat: a page" -m "It has a title."
```
"""


def test_a_commit_step_gives_its_message_to_the_work_before_it(tmp_path: Path) -> None:
    note = [{"write": "check.txt", "text": "look for the title\n"}, {"done": "written"}]
    root = project_with(tmp_path, note, TITLE, plan=COMMITS)
    assert work(root) == "done"
    messages = git(root, "log", "--format=%B%x00", "main").split("\0")
    assert "feat: a page\n\nIt has a title.\n\nT002 Draw" in [text.strip() for text in messages]
    assert any(text.strip() == "[impl] T002 Write the check" for text in messages)
    told = [call["argv"][-1] for call in calls(tmp_path / "builder.json")]
    assert ["feat: a page" in text for text in told] == [False, True]


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ('git add a && git commit -m "feat: x"', "feat: x"),
        ("git commit -am 'one' && git push", "one"),
        ('git add .\ngit commit -m "a\n\nb"\ngit tag -m "v1"', "a\n\nb"),
        ("git commit --message=x -m y", "x\n\ny"),
        ("git -C sub commit --message 'x'", "x"),
        ("git commit -m \"$(cat <<'EOF'\nfeat: y\n\nmore\nEOF\n)\"", "feat: y\n\nmore"),
        ("git commit", ""),
        ("git commit -m 'no end", ""),
        ("git commit -m 'a\x1b[2Jb'", "a[2Jb"),
        ("git add x", ""),
        ("", ""),
    ],
)
def test_the_message_of_a_commit_command_is_read_and_nothing_is_run(
    commands: str, message: str
) -> None:
    assert commit_message(commands) == message


def test_an_older_plan_keeps_its_fingerprint(tmp_path: Path) -> None:
    root = project_with(tmp_path, TITLE)
    work(root)
    plan = Project(root).plans.load("T002", 1)
    values = json.loads(plan.model_dump_json())
    assert [("asks" in item) for item in values["subtasks"]] == [False, True, True]
    assert not any("message" in item for item in values["steps"])
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_no_board_may_hold_work_whose_question_is_open(tmp_path: Path) -> None:
    root = project_with(tmp_path, TITLE)
    work(root)
    board = Project(root).board()
    policy = Project(root).policy
    assert invariants(board, policy) == ()
    waiting = board.subtask_by_id["T002-B02"]
    lease = ManualLease(
        kind="manual",
        owner="ada",
        role=Role.BUILDER,
        host="here",
        attempt=1,
        ttl_seconds=60,
        claimed_at=board.stories[0].created_at,
        heartbeat_at=board.stories[0].created_at,
    )
    begun = waiting.evolve(status=SubtaskStatus.IN_PROGRESS, lease=lease, attempt=1, reason="")
    problems = invariants(board.with_task(begun), policy)
    assert any("nobody answered human-verify, step 2" in line for line in problems)


CHECKS = """\
# A page

**Goal:** Show it.

### Task 1: Draw the page

**Files:**
- Create: `page.txt`

Run: `grep -q title page.txt`
Expected: FAIL

Run: `grep -q title page.txt`
Expected: PASS
"""


def test_a_task_of_checks_alone_is_worked_on_before_the_one_that_must_pass(tmp_path: Path) -> None:
    root = project_with(tmp_path, TITLE, plan=CHECKS)
    assert work(root) == "done"
    plan = Project(root).plans.load("T002", 1)
    assert [step.kind.value for step in plan.steps] == ["check", "agent", "check"]
    assert git(root, "show", "main:page.txt") == "title\n"
