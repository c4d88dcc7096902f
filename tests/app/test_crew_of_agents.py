"""A sprint whose planner and builder are external agents, from the objective to the merge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agent_making import ACP_AGENT, calls, script
from crew_projects import (
    BAD,
    GOOD,
    TEST,
    board,
    command,
    crew,
    git,
    log,
    make_project,
    plan_answer,
    task,
    work,
)

BUILDS: list[dict[str, Any]] = [
    {"write": "greeter.py", "text": GOOD},
    {"write": "tests/test_greeter.py", "text": TEST},
    {"usage": [5000, 700, 0.02]},
    {"done": "all tests pass"},
]


def test_a_feature_is_planned_built_checked_and_merged(tmp_path: Path) -> None:
    root = crew(tmp_path, BUILDS)
    output = command(root, "run")
    assert "the sprint is done" in output
    assert {row["status"] for row in board(root).values()} == {"done"}
    assert "Hello" in git(root, "show", "main:greeter.py")
    assert git(root, "tag").split() == ["T001-complete"]
    assert git(root, "status", "--porcelain") == ""
    (planned,) = calls(tmp_path / "planner.json")
    assert Path(planned["cwd"]) != root, "an agent never works in a person's checkout"
    assert "JSON Schema" in planned["argv"][0]
    (built,) = calls(tmp_path / "builder.json")
    assert ".oodatcaa/worktrees" in built["cwd"]
    assert "Write greet() in greeter.py." in built["argv"][0]
    assert "greeter.greet('Ada')" in built["argv"][0]
    history = log(root)
    assert "builder-s finished; 1 call, " in history
    assert "5,700 tokens, $0.0200" in history
    report = (root / ".oodatcaa/work/reports/T001/builder-T001-B01.md").read_text(encoding="utf-8")
    assert "5,700 tokens" in report


def test_a_lie_is_found_out_and_mended_in_the_same_session(tmp_path: Path) -> None:
    lies = [{"write": "greeter.py", "text": BAD}, {"done": "all tests pass"}]
    root = crew(tmp_path, lies, BUILDS)
    assert work(root) == "done"
    assert task(root, "T001-B01").status.value == "cancelled"
    assert task(root, "T001-B02").status.value == "done"
    first, second = calls(tmp_path / "builder.json")
    assert "--resume" not in first["argv"]
    assert second["argv"][:2] == ["--resume", "session-1"]
    assert "gate failed" in second["argv"][2]
    plan = json.loads((root / ".oodatcaa/work/plans/T001/plan-v2.json").read_text("utf-8"))
    assert plan["adaptation"]["trigger"].startswith("gate failed")


def test_a_plan_that_is_invalid_twice_goes_back_with_all_its_errors(tmp_path: Path) -> None:
    answers = [
        [{"done": "I would rather not plan."}],
        [{"done": plan_answer(size="XL", steps=[], risks="none")}],
        [{"done": plan_answer()}],
    ]
    root = crew(tmp_path, BUILDS, planner=answers)
    assert work(root) == "done"
    first, second, third = calls(tmp_path / "planner.json")
    assert "JSON Schema" in first["argv"][0]
    assert second["argv"][0] == "--resume"
    assert "there is no JSON object" in second["argv"][2]
    for place in ("size:", "steps:", "risks:"):
        assert place in third["argv"][2]


def test_a_planner_that_never_answers_well_costs_four_calls_and_a_person(tmp_path: Path) -> None:
    root = crew(tmp_path, BUILDS, planner=[[{"done": "no"}]])
    assert work(root) == "needs_human"
    assert "invalid record 4 times" in task(root, "T001").reason
    assert len(calls(tmp_path / "planner.json")) == 4


def test_an_agent_over_acp_builds_through_merge_and_its_permissions_are_in_the_log(
    tmp_path: Path,
) -> None:
    acts: list[dict[str, Any]] = [
        {"ask": "edit", "path": "/etc/passwd", "then": []},
        {"client_write": "greeter.py", "text": GOOD},
        {"usage": [50, 5]},
        {"done": "done"},
    ]
    path = script(tmp_path / "acp.json", acts)
    runner = {"kind": "acp", "argv": [sys.executable, str(ACP_AGENT), str(path)]}
    plans = script(tmp_path / "planner.json", [{"done": plan_answer()}])
    root = make_project(
        tmp_path,
        {
            "planner-s": {"role": "planner", "script": plans},
            "builder-acp": {"role": "builder", "runner": runner},
        },
    )
    assert work(root) == "done"
    assert git(root, "show", "main:greeter.py") == GOOD
    history = log(root)
    assert "builder-acp asked: refused: edit /etc/passwd" in history
    assert "builder-acp asked: allowed: write greeter.py" in history
    assert "55 tokens, cost unknown" in history
