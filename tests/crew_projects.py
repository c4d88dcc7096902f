"""Fixture repositories in which scripted agents work: real git, the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

from agent_making import runner_values, script
from oodatcaa.app.agent import Mode, run_agent
from oodatcaa.app.init import init_project
from oodatcaa.app.project import Project
from oodatcaa.app.sprints import new_sprint
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.negotiation import sprint_outcome
from oodatcaa.domain.task import Role, Task

OBJECTIVE = """\
---
id: O-F1
title: The greeter learns to greet
stories:
  - title: Add a greeting
    goal: greeter.greet(name) returns "Hello, <name>!"
    estimate_minutes: 5
---

# The greeter learns to greet
"""

DEFINITION = """\
---
name: {name}
description: a scripted agent for the tests
role: {role}
runner: {runner}
{more}---

You are scripted.
"""

GOOD = 'def greet(name):\n    return f"Hello, {name}!"\n'
BAD = 'def greet(name):\n    return "Bye"\n'
TEST = (
    'from greeter import greet\n\n\ndef test_greet():\n    assert greet("Ada") == "Hello, Ada!"\n'
)
CHECK = "{python} -c \"import greeter; assert greeter.greet('Ada') == 'Hello, Ada!'\""


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def command(folder: Path, *words: str, expect: int | None = 0) -> str:
    """Type `oodatcaa …` in `folder`; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "oodatcaa", *words],
        cwd=folder,
        env={**os.environ, "OODATCAA_RESERVATIONS": str(folder.parent / "reservations")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert expect is None or done.returncode == expect, done.stdout[-3000:] + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def make_project(
    tmp_path: Path,
    agents: dict[str, dict[str, Any]],
    *,
    config: dict[str, Any] | None = None,
    objective: str = OBJECTIVE,
) -> Path:
    """A repository with one module, an open sprint, and these agents: name -> {role, script file
    (or runner), more front matter}."""
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "greeter.py").write_text("def name():\n    return 'greeter'\n", encoding="utf-8")
    (root / "OBJECTIVE.md").write_text(objective, encoding="utf-8")
    runners: dict[str, Any] = {}
    (root / "agents").mkdir()
    for name, values in agents.items():
        runners[name] = values.get("runner") or runner_values(values["script"])
        text = DEFINITION.format(
            name=name, role=values["role"], runner=name, more=values.get("more", "")
        )
        (root / "agents" / f"{name}.md").write_text(text, encoding="utf-8")
    settings: dict[str, Any] = {
        "heartbeat_seconds": 0.5,
        "crew": {"builder": 1},
        "agents": {"backoff_seconds": 0.1, "retries": 1},
        "runners": runners,
        "imports": {"allow": [CHECK]},
    }
    for key, value in (config or {}).items():
        old = settings.get(key)
        settings[key] = {**old, **value} if isinstance(old, dict) else value
    (root / ".oodatcaa").mkdir()
    (root / ".oodatcaa/config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    init_project(root, commit=True)
    for values in agents.values():
        # init writes the built-in ones beside them; here the scripted agents fill their roles.
        built_in = root / "agents" / f"{values['role']}.md"
        if built_in.stem not in agents and built_in.exists():
            built_in.unlink()
    git(root, "add", "-A")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    git(root, *who, "commit", "-q", "--allow-empty", "-m", "the crew's agents")
    new_sprint(Project(root))
    return root


def work(root: Path, *, rounds: int = 12) -> str:
    """Let one agent of each role work in turn, in this process, until nothing moves any more;
    how the sprint stands then."""
    for _ in range(rounds):
        before = Project(root).store.read().revision
        for role in Role:
            project = Project(root)
            name = project.roster.of_role(role)[-1].name + "-A"
            run_agent(
                project,
                role,
                name,
                mode=Mode.UNTIL_IDLE,
                echo=lambda _: None,
                should_stop=lambda: False,
            )
        outcome = sprint_outcome(Project(root).store.read())
        if outcome != "running" or Project(root).store.read().revision == before:
            return outcome
    return "running"


def task(root: Path, name: str) -> Task:
    found = Project(root).store.read().find(name)
    assert found is not None
    return found


def plan_answer(*, what: str = "Write greet() in greeter.py.", **changes: Any) -> str:
    """A planner's answer for T001 as an agent would print it."""
    plan = {**plan_values(what), **changes}
    return "Here is the plan.\n```json\n" + json.dumps(plan) + "\n```"


def plan_values(what: str, build: str = "T001-B01", test: str = "T001-T01") -> dict[str, Any]:
    gate = {"name": "greets", "kind": "command", "command": CHECK, "timeout_seconds": 60}
    return {
        "problem": {
            "current_state": ["greeter.py can not greet"],
            "impact": "nobody is greeted",
            "statement": "add greet()",
        },
        "constraints": ["standard library only"],
        "interfaces": ["greeter.greet(name) -> str"],
        "definition_of_done": ["greet() greets"],
        "alternatives": [
            {"key": "function", "title": "A function", "facts": {}, "pros": ["small"], "cons": []}
        ],
        "decision": {
            "chosen": "function",
            "factors": [],
            "totals": {},
            "rationale": ["it is enough"],
            "trade_offs": ["none"],
        },
        "fallback": {"trigger": "it fails", "action": "ask a person", "costs": []},
        "steps": [
            {
                "number": 1,
                "title": "Write greet()",
                "kind": "agent",
                "what": what,
                "exit_gates": ["greet() returns the greeting"],
                "estimate_minutes": 3,
                "deliverables": ["greeter.py"],
            }
        ],
        "size": "S",
        "subtasks": [
            {"id": build, "kind": "build", "title": "Build", "steps": [1], "estimate_minutes": 3},
            {
                "id": test,
                "kind": "test",
                "title": "Test",
                "depends_on": [build],
                "estimate_minutes": 2,
            },
        ],
        "exit_gates": {build: [{"id": "X1", **gate}]},
        "test_plan": {
            "scope": ["greet()"],
            "out_of_scope": ["other languages"],
            "quality_gates": [],
            "acceptance": [{"id": "AC1", **gate, "critical": True}],
            "integration": ["the merge greets"],
            "regression": ["none"],
            "benchmarks": ["none"],
            "checklist": ["run it"],
            "troubleshooting": [],
        },
        "deliverables": ["greeter.py"],
        "risks": [],
        "sprint_impact": ["the sprint is done"],
        "handoff": ["T001-B01 first"],
    }


def crew(
    tmp_path: Path,
    *builder: list[dict[str, Any]],
    planner: list[list[dict[str, Any]]] | None = None,
    agents: dict[str, dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    objective: str = OBJECTIVE,
    more: str = "",
) -> Path:
    """A project whose planner and builder are scripted."""
    plans = planner or [[{"usage": [1000, 200, 0.01]}, {"done": plan_answer()}]]
    return make_project(
        tmp_path,
        {
            "planner-s": {"role": "planner", "script": script(tmp_path / "planner.json", *plans)},
            "builder-s": {
                "role": "builder",
                "script": script(tmp_path / "builder.json", *builder),
                "more": more,
            },
            **(agents or {}),
        },
        config=config,
        objective=objective,
    )


def board(root: Path) -> dict[str, dict[str, Any]]:
    """Every task's row of `oodatcaa status --json`."""
    rows = json.loads(command(root, "status", "--json"))["tasks"]
    return {row["id"]: row for row in rows}


def log(root: Path) -> str:
    return command(root, "log")


def nothing_unproved_is_merged(root: Path) -> None:
    """The target is as it was, or every gate of the story passed on what is in it."""
    project = Project(root)
    story = project.board().story_by_id["T001"]
    if story.integration is None:
        assert git(root, "show", "main:greeter.py") != GOOD
        assert git(root, "tag") == ""
        return
    assert git(root, "show", "main:greeter.py") == GOOD
    seen = [project.evidence.load(name) for name in story.integration.evidence]
    assert seen
    assert {item.verdict for item in seen} == {Verdict.PASSED}
    assert "AC1" in {item.gate.id for item in seen}
