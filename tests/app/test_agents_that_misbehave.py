"""Agents that hang, die, spend, err and come late: the right state, and nothing lost."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from agent_making import calls, script
from crew_projects import BAD, GOOD, crew, git, log, plan_answer, plan_values, task, work
from oodatcaa.app.ledger import Ledger
from oodatcaa.app.people import approve_story
from oodatcaa.app.project import Project
from oodatcaa.domain.task import Story

GOOD_TURN: list[dict[str, Any]] = [{"write": "greeter.py", "text": GOOD}, {"done": "done"}]


def ledger(root: Path) -> list[tuple[str, str]]:
    found = Ledger(Project(root).work, 1).calls()
    return [(item.task, item.ending.value if item.ending else "?") for item in found]


def test_an_error_and_a_death_are_tried_again_in_the_same_session(tmp_path: Path) -> None:
    root = crew(
        tmp_path,
        [{"write": "half.py", "text": "x = 1\n"}, {"error": "overloaded"}, {"exit": 0}],
        [{"usage": [7, 1]}, {"die": signal.SIGKILL}],
        GOOD_TURN,
        config={"agents": {"retries": 2}},
    )
    assert work(root) == "done"
    assert ledger(root) == [
        ("T001", "finished"),
        ("T001-B01", "agent_error"),
        ("T001-B01", "agent_error"),
        ("T001-B01", "finished"),
    ]
    assert [call["argv"][:2] for call in calls(tmp_path / "builder.json")][1:] == [
        ["--resume", "session-1"]
    ] * 2
    assert git(root, "show", "main:half.py") == "x = 1\n"
    assert "overloaded" in log(root)


def test_silence_is_a_time_out_and_what_was_written_is_kept(tmp_path: Path) -> None:
    root = crew(
        tmp_path,
        [{"write": "half.py", "text": "x = 1\n"}, {"silent": 100}],
        GOOD_TURN,
        more="limits:\n  silence_minutes: 0.1\n",
    )
    assert work(root) == "done"
    assert ledger(root)[1] == ("T001-B01", "silent")
    assert "[wip] T001 Write greet()" in git(root, "log", "--format=%s", "main")
    assert git(root, "show", "main:half.py") == "x = 1\n"
    story = task(root, "T001")
    assert isinstance(story, Story)
    assert (story.plan_version, story.adapt_round) == (2, 1)


@pytest.mark.slow
def test_a_subtasks_budget_means_a_start_over_with_a_lesson(tmp_path: Path) -> None:
    second = plan_values("Write greet(), but cheaply.", "T001-B02", "T001-T02")
    root = crew(
        tmp_path,
        [{"usage": [900, 200]}, {"sleep": 100}],
        [{"usage": [1, 1]}, *GOOD_TURN],
        planner=[
            [{"usage": [1, 1]}, {"done": plan_answer()}],
            [{"usage": [1, 1]}, {"done": plan_answer(**second)}],
        ],
        config={"budgets": {"subtask": {"tokens": 1000}}},
    )
    assert work(root) == "done"
    assert ledger(root)[1] == ("T001-B01", "budget")
    story = task(root, "T001")
    assert isinstance(story, Story)
    assert "1,100 of 1,000 tokens" in story.lessons[0]
    assert "1,100 of 1,000 tokens" in calls(tmp_path / "planner.json")[1]["argv"][0]
    assert "--resume" not in calls(tmp_path / "builder.json")[1]["argv"]


def test_a_storys_budget_is_a_persons_business_and_stays_used_up(tmp_path: Path) -> None:
    root = crew(
        tmp_path,
        [{"usage": [900, 200, 0.9]}, {"sleep": 100}],
        GOOD_TURN,
        config={"budgets": {"story": {"cost_usd": 0.5}}},
    )
    assert work(root) == "needs_human"
    assert "the story's budget is used up: $0.9100 of $0.5000" in task(root, "T001").reason
    approve_story(Project(root), "T001", "ada", "go on")
    assert work(root) == "needs_human"
    assert len(calls(tmp_path / "builder.json")) == 1, "nobody is called without a budget"
    assert git(root, "show", "main:greeter.py") != GOOD


def test_the_sprints_minutes_end_a_running_agent(tmp_path: Path) -> None:
    root = crew(
        tmp_path,
        [{"write": "half.py", "text": "x = 1\n"}, {"sleep": 100}],
        GOOD_TURN,
        config={"budgets": {"sprint": {"minutes": 0.04}}},
    )
    assert work(root) == "needs_human"
    assert "the sprint's budget is used up: 0." in task(root, "T001").reason
    assert len(calls(tmp_path / "builder.json")) == 1
    worktree = root / ".oodatcaa/worktrees/T001"
    assert git(worktree, "show", "HEAD:half.py") == "x = 1\n", "what was written is kept"


@pytest.mark.slow
def test_rounds_end_at_a_person_and_nothing_unproved_is_merged(tmp_path: Path) -> None:
    lie: list[dict[str, Any]] = [{"append": "greeter.py", "text": BAD}, {"done": "all tests pass"}]
    root = crew(tmp_path, lie, planner=[[{"done": plan_answer()}], [{"done": "no"}]])
    assert work(root) == "needs_human"
    builds = [task_id for task_id, _ in ledger(root) if "-B" in task_id]
    assert builds == ["T001-B01", "T001-B02", "T001-B03"]
    assert "Bye" not in git(root, "show", "main:greeter.py")
    assert git(root, "tag") == ""


def test_refused_permissions_wait_for_a_person_and_go_on_after_the_word(tmp_path: Path) -> None:
    root = crew(tmp_path, [{"denied": [{"tool_name": "Bash"}]}], GOOD_TURN)
    assert work(root) == "needs_human"
    reason = task(root, "T001").reason
    assert "refused 1 permission: " in reason
    assert "allow it in agents/builder-s.md" in reason
    approve_story(Project(root), "T001", "ada", "allowed now")
    assert work(root) == "done"


@pytest.mark.slow
def test_approvals_and_a_review(tmp_path: Path) -> None:
    veto = {"veto": ["it greets nobody"], "checks": []}
    check = {"name": "compiles", "command": "{python} -m py_compile greeter.py", "why": "syntax"}
    unasked = {"name": "fetches", "command": "curl example.org", "why": "nobody allowed it"}
    review = script(
        tmp_path / "tester.json",
        [{"done": f"```json\n{veto}\n```".replace("'", '"')}],
        [{"done": f'{{"checks": [{check}, {unasked}], "veto": []}}'.replace("'", '"')}],
    )
    objective = "approval: merge\n"
    from crew_projects import CHECK, OBJECTIVE

    root = crew(
        tmp_path,
        GOOD_TURN,
        agents={"tester-s": {"role": "tester", "script": review}},
        objective=OBJECTIVE.replace("id: O-F1\n", "id: O-F1\n" + objective),
        config={"imports": {"allow": [CHECK, check["command"]]}},
    )
    assert work(root) == "needs_human"
    story = task(root, "T001")
    assert "has to approve the merge" in story.reason
    assert "tester-s: it greets nobody" in log(root)
    names = {item.gate.name for item in Project(root).evidence.of_story("T001")}
    assert "compiles" in names
    assert "fetches" not in names
    assert "nobody allowed it: curl example.org" in log(root)
    assert git(root, "tag") == ""
    approve_story(Project(root), "T001", "ada", "I looked")
    assert work(root) == "done"
    assert "ada approved the merge of T001: I looked" in log(root)
