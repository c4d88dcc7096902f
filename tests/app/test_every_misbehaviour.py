"""Every misbehaviour, through every door: the right state, nothing lost, nothing unproved merged.

The same script is played by a command-line agent and by one that speaks the Agent Client Protocol.
Agents that drive the MCP server are in test_misbehaviour_over_mcp.py.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_making import ACP_AGENT, calls, runner_values, script
from crew_projects import (
    BAD,
    GOOD,
    git,
    make_project,
    nothing_unproved_is_merged,
    plan_answer,
    plan_values,
    task,
    work,
)
from oodatcaa.app.ledger import Ledger
from oodatcaa.app.people import release_task
from oodatcaa.app.project import Project

Turn = list[dict[str, Any]]
BUILDS: Turn = [{"write": "greeter.py", "text": GOOD}, {"usage": [5, 1, 0.01]}, {"done": "x"}]
PLANS: Turn = [{"usage": [5, 1, 0.01]}, {"done": plan_answer()}]
AGAIN: Turn = [{"done": plan_answer(**plan_values("Once more.", "T001-B03", "T001-T03"))}]
DOORS = ("command", pytest.param("acp", marks=pytest.mark.slow))


def runner(door: str, path: Path) -> dict[str, Any]:
    if door == "acp":
        return {"kind": "acp", "argv": [sys.executable, str(ACP_AGENT), str(path)]}
    return runner_values(path)


@dataclass(frozen=True)
class Case:
    """The builder's turns, one misbehaviour each (a good one follows), and how it has to end."""

    turns: tuple[Turn, ...] = ()
    sprint: str = "done"
    kinds: tuple[str, ...] = ()
    """The failures that the build subtasks are left with, in order; the one after them is done."""
    endings: tuple[str, ...] = ("finished",)
    """How the calls of the builder ended."""
    planner: tuple[Turn, ...] = (PLANS,)
    more: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    also: tuple[Callable[[Path], None], ...] = ()


def stray_is_named_and_kept(root: Path) -> None:
    assert (root / "stray.txt").read_text() == "x", "nothing is put back"
    failures = [item.failure for item in Project(root).board().subtasks]
    assert any(found and "stray.txt was changed" in found.summary for found in failures)


def nobody_is_left(root: Path) -> None:
    pid = int((root.parent / "grandchild").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def logs_are_bounded(root: Path) -> None:
    sizes = [path.stat().st_size for path in (root / ".oodatcaa/work/agents").rglob("*.log")]
    assert sum(sizes) < 30_000_000


def half_is_kept(root: Path) -> None:
    assert git(root, "show", "main:half.py") == "x = 1\n"


HALF = {"write": "half.py", "text": "x = 1\n"}
LIES = {"done": "all 128 tests pass, coverage 100%"}
CASES = {
    "errs with exit code 0, dies, spawns grandchildren": Case(
        turns=(
            [HALF, {"error": "overloaded"}],
            [{"die": signal.SIGKILL}],
            [{"grandchild": "{tmp}/grandchild"}, *BUILDS],
        ),
        endings=("agent_error", "agent_error", "finished"),
        config={"agents": {"retries": 2}},
        also=(half_is_kept, nobody_is_left),
    ),
    "lies, writes outside": Case(
        turns=(
            [{"append": "greeter.py", "text": BAD}, LIES],
            [HALF, {"append": "{root}/stray.txt", "text": "x"}, *BUILDS],
        ),
        kinds=("gate", "isolation"),
        endings=("finished", "finished", "finished"),
        also=(half_is_kept, stray_is_named_and_kept),
    ),
    "hangs silently, wants all memory": Case(
        turns=([HALF, {"silent": 100}], [{"eat": 500_000_000}]),
        kinds=("timeout", "memory"),
        endings=("silent", "memory", "finished"),
        planner=(PLANS, AGAIN),
        more="limits:\n  silence_minutes: 0.04\n  memory_bytes: 250MB\n",
        also=(half_is_kept,),
    ),
    "floods its output, exceeds a budget": Case(
        turns=(
            [*({"flood": 9_000_000},) * 4, {"exit": 0}],
            [{"usage": [1, 1, 0.9]}, {"silent": 100}],
        ),
        sprint="needs_human",
        kinds=("budget",),
        endings=("agent_error", "budget"),
        config={"budgets": {"story": {"cost_usd": 0.5}, "unknown_usage": "warn"}},
        also=(logs_are_bounded,),
    ),
    "returns invalid JSON twice": Case(
        planner=([{"done": "I would rather not."}], [{"done": plan_answer(size="XL")}], PLANS),
    ),
}
"""What it does, one after the other."""


def filled(turns: tuple[Turn, ...], tmp_path: Path) -> list[Turn]:
    def fill(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.replace("{root}", f"{tmp_path}/project").replace("{tmp}", str(tmp_path))

    return [[{k: fill(v) for k, v in action.items()} for action in turn] for turn in turns]


def a_crew(tmp_path: Path, door: str, case: Case) -> Path:
    planner = script(tmp_path / "planner.json", *case.planner)
    plans_by = door if len(case.planner) > 2 else "command"
    builder = script(tmp_path / "builder.json", *filled(case.turns, tmp_path), BUILDS)
    return make_project(
        tmp_path,
        {
            "planner-s": {"role": "planner", "runner": runner(plans_by, planner)},
            "builder-s": {"role": "builder", "runner": runner(door, builder), "more": case.more},
        },
        config=case.config,
    )


def endings(root: Path) -> tuple[str, ...]:
    found = Ledger(Project(root).work, 1).calls()
    return tuple(
        call.ending.value if call.ending else "?" for call in found if call.role.value == "builder"
    )


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", CASES)
def test_it_ends_in_the_right_state(tmp_path: Path, name: str, door: str) -> None:
    case = CASES[name]
    root = a_crew(tmp_path, door, case)
    assert work(root) == case.sprint
    builds = [item for item in Project(root).board().subtasks if "-B" in item.id]
    assert tuple(item.failure.kind for item in builds if item.failure) == case.kinds
    assert endings(root) == case.endings
    nothing_unproved_is_merged(root)
    for check in case.also:
        check(root)


@pytest.mark.parametrize("door", DOORS)
def test_a_late_result_of_an_old_attempt_counts_for_nothing(tmp_path: Path, door: str) -> None:
    gate = tmp_path / "go on"
    late: Turn = [
        {"append": "greeter.py", "text": BAD},
        {"wait_for": str(gate)},
        {"done": "late, but all tests pass"},
    ]
    root = a_crew(tmp_path, door, Case(turns=(late,)))
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(work(root)))
    thread.start()
    while len(calls(tmp_path / "builder.json")) < (2 if door == "acp" else 1):
        assert thread.is_alive()
    release_task(Project(root), "T001-B01", "builder-s-A", "taken away")
    gate.write_text("")
    thread.join(200)
    assert ended == ["done"]
    assert task(root, "T001-B01").attempt == 2
    nothing_unproved_is_merged(root)
