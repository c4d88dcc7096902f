"""A plan written by an external agent, for a story that the built-in planner has no recipe for."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from oodatcaa.domain.agents import AgentDefinition
from oodatcaa.domain.board import Board
from oodatcaa.domain.definition import explain
from oodatcaa.domain.evidence import GateKind
from oodatcaa.domain.plan import Plan, StepKind
from oodatcaa.domain.planning import free_subtask_id, plan_fit
from oodatcaa.domain.task import Story, SubtaskKind
from oodatcaa.roles.desk import Agents, Desk
from oodatcaa.roles.prompts import gate_line, record_prompt
from oodatcaa.roles.records import ask, schema_of, schema_problems

OWNED = frozenset(
    {
        "story",
        "kind",
        "version",
        "title",
        "created_at",
        "author",
        "goal",
        "adaptation",
        "base_commit",
        "branch",
        "traceability",
        "inventory",
        "keeps",
        "backend",
        "model",
        "params",
        "memory_limit_bytes",
        "inputs",
        "source_sha256",
    }
)
"""What the framework knows better than any agent, and fills in itself."""

STEP_KINDS = frozenset({StepKind.AGENT, StepKind.COMMAND})
EMPTY_COMMANDS = frozenset({"true", ":", "exit 0", "/bin/true", "exit"})
TASK = """\
# Your task

Write the plan for this story as one JSON object. You plan; builders build it later, testers test \
it, and the framework itself runs every check. Look at the code in the current folder first, and \
change nothing in it."""


def plan_by_agent(
    desk: Desk, agents: Agents, definition: AgentDefinition, board: Board, story: Story
) -> Plan:
    """The story's next plan. Raises AgentFailedError when the agent does not come to a valid one.

    The project's quality gates are in every plan: an agent can add gates, not leave them out.
    """
    owned = _owned(desk, board, story)

    def check(data: Any) -> tuple[Plan | None, list[str]]:
        return checked_plan(desk, agents, board, story, {**data, **owned})

    prompt = record_prompt(
        definition, story, TASK, _facts(desk, board, story), schema_of(Plan, OWNED)
    )
    return ask(agents, definition, prompt, check, cwd=desk.checkout())


def checked_plan(
    desk: Desk, agents: Agents, board: Board, story: Story, data: dict[str, Any]
) -> tuple[Plan | None, list[str]]:
    """(plan, problems) of a whole plan record: schema, coherence, place on the board."""
    data = _with_quality_gates(desk, data)
    problems = schema_problems(Plan, data)
    if problems:
        return None, problems
    try:
        plan = Plan.model_validate_json(json.dumps(data))
    except ValidationError as error:
        return None, [part for line in explain(error) for part in line.split("; ")]
    problems = [*_doable(plan, agents), *plan_fit(board, story, plan)]
    return (None, problems) if problems else (plan, [])


def _owned(desk: Desk, board: Board, story: Story) -> dict[str, Any]:
    inventory, objective = desk.inventory(), desk.objective
    waiting = [other.id for other in board.stories if story.id in other.depends_on]
    return {
        "story": story.id,
        "kind": story.kind.value,
        "version": story.plan_version + 1,
        "title": story.title,
        "created_at": desk.now().isoformat(),
        "author": desk.agent,
        "goal": story.goal or story.title,
        "adaptation": None,
        "base_commit": inventory.commit,
        "branch": story.branch,
        "traceability": {
            "objective": objective.id,
            "objective_sha256": objective.sha256,
            "epic": objective.title,
            "sprint": board.sprint.number if board.sprint else 1,
            "depends_on": list(story.depends_on),
            "unblocks": waiting,
        },
        "inventory": inventory.model_dump(mode="json"),
        "keeps": [],
        "backend": objective.backends[0],
        "model": objective.model,
        "params": objective.qlora.model_dump(mode="json"),
        "memory_limit_bytes": objective.memory_limit_bytes,
        "inputs": {},
        "source_sha256": None,
    }


def _with_quality_gates(desk: Desk, data: dict[str, Any]) -> dict[str, Any]:
    """The project's own checks in the test plan and behind the last build subtask."""
    quality = [gate.model_dump(mode="json") for gate in desk.quality_gates]
    test_plan, exits = data.get("test_plan"), data.get("exit_gates")
    if isinstance(test_plan, dict):
        data = {**data, "test_plan": {**test_plan, "quality_gates": quality}}
    subtasks = data.get("subtasks")
    if isinstance(exits, dict) and isinstance(subtasks, list):
        builds = [
            str(item.get("id"))
            for item in subtasks
            if isinstance(item, dict) and item.get("kind") == SubtaskKind.BUILD.value
        ]
        if builds and isinstance(exits.get(builds[-1]), list):
            names = {gate["id"] for gate in quality}
            own = [
                gate
                for gate in exits[builds[-1]]
                if not (isinstance(gate, dict) and gate.get("id") in names)
            ]
            data = {**data, "exit_gates": {**exits, builds[-1]: [*own, *quality]}}
    return data


def _doable(plan: Plan, agents: Agents) -> list[str]:
    """Steps that nobody can do, and checks that check nothing."""
    problems = []
    for step in plan.steps:
        if step.kind not in STEP_KINDS:
            kinds = " or ".join(sorted(kind.value for kind in STEP_KINDS))
            problems.append(f"step {step.number}: kind must be {kinds}, not {step.kind.value}")
        elif step.kind is StepKind.COMMAND and not step.command.strip():
            problems.append(f"step {step.number}: kind command needs a command")
        elif step.kind is StepKind.AGENT and agents.builder(step.agent) is None:
            who = f"agent {step.agent!r}" if step.agent else "external builder"
            problems.append(f"step {step.number}: there is no {who} in this project")
    exits = [gate for gates in plan.exit_gates.values() for gate in gates]
    for gate in (*plan.test_plan.acceptance, *exits):
        if gate.kind is GateKind.METRIC:
            problems.append(f"gate {gate.id}: this story trains nothing, a metric decides nothing")
        elif gate.kind is GateKind.COMMAND and gate.command.strip() in {"", *EMPTY_COMMANDS}:
            problems.append(f"gate {gate.id}: its command would pass whatever was built")
        elif gate.kind is GateKind.FILES and not gate.paths:
            problems.append(f"gate {gate.id}: it names no file")
    return problems


def _facts(desk: Desk, board: Board, story: Story) -> list[tuple[str, list[str]]]:
    build = free_subtask_id(board, story.id, SubtaskKind.BUILD)
    test = free_subtask_id(board, story.id, SubtaskKind.TEST)
    inventory = desk.inventory()
    return [
        ("The goal", [story.goal or story.title]),
        (
            "What is there",
            [f"{row.place}: {row.files} files, {row.lines} lines" for row in inventory.rows],
        ),
        (
            "Rules for the plan",
            [
                f"Subtask ids go on from {build} (build) and {test} (test); 2 to 4 subtasks, the "
                "last one a test that depends on every build.",
                "Steps are of kind `agent` (an external agent writes code in the story's worktree; "
                "put everything it must know into `what`) or `command`.",
                "Every step belongs to exactly one build subtask.",
                "Acceptance criteria and exit gates are commands or files that decide alone; "
                "{python} is the interpreter of the project's environment.",
            ],
        ),
        (
            "The project's own checks, added by the framework",
            [gate_line(g) for g in desk.quality_gates],
        ),
        ("Lessons of earlier plans", list(story.lessons)),
    ]
