"""Whether a plan that was written outside of the framework may be one: the same check for every way
in (an external planner, `oodatcaa submit --plan`, MCP), with all errors at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError, model_validator

from oodatcaa.domain.board import Board
from oodatcaa.domain.definition import explain
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.goal_gates import goal_gates
from oodatcaa.domain.plan import Plan, Step, StepKind, plan_problems
from oodatcaa.domain.planning import plan_fit
from oodatcaa.domain.task import Story, StoryKind, StoryStatus, SubtaskKind
from oodatcaa.domain.trivial import ends_badly_anyway, ends_well_anyway
from oodatcaa.roles.desk import Desk
from oodatcaa.roles.plan_parts import readable_parts
from oodatcaa.roles.records import schema_problems

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

FIXED = ("story", "kind", "version", "branch", "goal", "memory_limit_bytes")
"""What a plan that is handed in whole may repeat, but not say otherwise."""

TITLE_CHARS, COMMAND_CHARS, TEXT_CHARS = 300, 3_900, 40_000
"""A command has to stand whole in the history, where a person reads what they approve."""

STEP_KINDS = frozenset({StepKind.AGENT, StepKind.COMMAND})


class _Unjudged(Plan):
    """A plan whose coherence is looked at together with everything else."""

    @model_validator(mode="after")
    def _is_coherent(self) -> _Unjudged:
        return self


def handed_in_plan(
    desk: Desk, board: Board, story: Story, data: Any
) -> tuple[Plan | None, list[str]]:
    """(plan, problems) of a whole plan record from outside, for a story of any kind.

    What the framework knows better may be left out; where the plan says it, it has to be the same.
    A step for an agent may be done by whoever holds the subtask.
    """
    if not isinstance(data, dict):
        return None, ["Plan: it is not a JSON object"]
    owned = owned_by_framework(desk, board, story)
    if not story.goal and data.get("goal"):
        owned["goal"] = data["goal"]  # the story has none of its own: its plan may word it
    problems = [
        f"{name}: the framework sets it to {json.dumps(owned[name])}, the plan says "
        f"{json.dumps(data[name])[:100]}; leave it out"
        for name in FIXED
        if name in data and data[name] != owned[name]
    ]
    problems += _other_quality_gates(desk, data)
    fixed = {name: owned[name] for name in FIXED}
    plan, found = checked_plan(desk, board, story, {**owned, **data, **fixed}, lambda _: True)
    problems += found
    return (None, problems) if problems else (plan, [])


def checked_plan(
    desk: Desk,
    board: Board,
    story: Story,
    data: dict[str, Any],
    builder_for: Callable[[str], bool],
) -> tuple[Plan | None, list[str]]:
    """(plan, problems) of a whole plan record: schema, coherence, place on the board, and whether
    its steps can be done and its checks can fail. `builder_for` knows the agents of steps.

    The project's quality gates are in every plan: more may be added, none left out.
    """
    data = _with_quality_gates(desk, data)
    problems = schema_problems(Plan, data)
    text = json.dumps(data)
    try:
        plan: Plan = _Unjudged.model_validate_json(text)
    except ValidationError as error:
        # The same places again, in pydantic's words; only what a schema can not say is news.
        problems = problems or [part for line in explain(error) for part in line.split("; ")]
    else:
        if not problems:
            problems = _judged(desk, board, story, plan, builder_for)
            return (None, problems) if problems else (Plan.model_validate_json(text), [])
    found = readable_parts(data)
    problems += [*found.problems, *_doable(found.plan, found.steps, found.gates, builder_for)]
    problems += [*_empty_checks(desk, found.gates), *_too_long(data)]
    if {"story", "version", "subtasks", "keeps"} <= found.known and not found.problems:
        problems += plan_fit(board, story, found.plan)
    if "goals" in found.known:
        problems += _lost_goals(desk, story, found.plan)
    return None, list(dict.fromkeys(problems))


def _judged(
    desk: Desk, board: Board, story: Story, plan: Plan, builder_for: Callable[[str], bool]
) -> list[str]:
    """What is wrong with a plan all of which can be read."""
    gates = _gates(plan)
    return [
        *plan_problems(plan),
        *_doable(plan, plan.steps, gates, builder_for),
        *_empty_checks(desk, gates),
        *_too_long(plan.model_dump(mode="json")),
        *plan_fit(board, story, plan),
        *_lost_goals(desk, story, plan),
    ]


def owned_by_framework(desk: Desk, board: Board, story: Story) -> dict[str, Any]:
    """The values of `OWNED` for the story's next plan."""
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
    ids = {gate["id"] for gate in quality}
    test_plan, exits, subtasks = (data.get(k) for k in ("test_plan", "exit_gates", "subtasks"))
    if isinstance(test_plan, dict):
        more = _others(test_plan.get("quality_gates"), ids)
        data = {**data, "test_plan": {**test_plan, "quality_gates": [*quality, *more]}}
    if isinstance(exits, dict) and isinstance(subtasks, list):
        builds = [
            str(item.get("id"))
            for item in subtasks
            if isinstance(item, dict) and item.get("kind") == SubtaskKind.BUILD.value
        ]
        if builds and isinstance(exits.get(builds[-1]), list):
            own = _others(exits[builds[-1]], ids)
            data = {**data, "exit_gates": {**exits, builds[-1]: [*own, *quality]}}
    return data


def _others(gates: Any, ids: set[str]) -> list[Any]:
    if not isinstance(gates, list):
        return []
    return [gate for gate in gates if not (isinstance(gate, dict) and gate.get("id") in ids)]


def _other_quality_gates(desk: Desk, data: dict[str, Any]) -> list[str]:
    """Where a plan names one of the project's own checks and means another one by it."""
    ours = {gate.id: gate for gate in desk.quality_gates}
    test_plan, exits = data.get("test_plan"), data.get("exit_gates")
    named = list(exits.values()) if isinstance(exits, dict) else []
    if isinstance(test_plan, dict):
        named += [test_plan.get("quality_gates"), test_plan.get("acceptance")]
    rows = [row for rows in named if isinstance(rows, list) for row in rows]
    problems = []
    for row in rows:
        gate = ours.get(str(row.get("id"))) if isinstance(row, dict) else None
        if gate is not None and not _same(gate, row):
            problems.append(
                f"gate {gate.id}: it is the project's own check {gate.name!r}; no plan changes it"
            )
    return list(dict.fromkeys(problems))


def _same(gate: GateSpec, row: dict[str, Any]) -> bool:
    try:
        return GateSpec.model_validate_json(json.dumps(row)) == gate
    except ValidationError:
        return False


def _doable(
    plan: Plan,
    steps: Sequence[Step],
    gates: Sequence[GateSpec],
    builder_for: Callable[[str], bool],
) -> list[str]:
    """Steps that nobody can do."""
    problems = []
    for step in steps:
        if step.kind not in STEP_KINDS and plan.kind is StoryKind.CUSTOM:
            kinds = " or ".join(sorted(kind.value for kind in STEP_KINDS))
            problems.append(f"step {step.number}: kind must be {kinds}, not {step.kind.value}")
        elif step.kind is StepKind.COMMAND and not step.command.strip():
            problems.append(f"step {step.number}: kind command needs a command")
        elif step.kind is StepKind.AGENT and not builder_for(step.agent):
            who = f"agent {step.agent!r}" if step.agent else "external builder"
            problems.append(f"step {step.number}: there is no {who} in this project")
    if plan.kind is not StoryKind.CUSTOM:
        return problems
    return problems + [
        f"gate {gate.id}: this story trains nothing, a metric decides nothing"
        for gate in gates
        if gate.kind is GateKind.METRIC
    ]


def _too_long(value: Any, place: str = "") -> list[str]:
    if isinstance(value, str):
        name = place.rpartition(".")[2]
        short = TITLE_CHARS if name in ("title", "name", "id") else TEXT_CHARS
        bound = COMMAND_CHARS if name == "command" else short
        return [f"{place}: {len(value)} characters, at most {bound}"] * (len(value) > bound)
    if not isinstance(value, dict | list):
        return []
    rows = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        problem for key, item in rows for problem in _too_long(item, f"{place}.{key}".lstrip("."))
    ]


def _empty_checks(desk: Desk, gates: Sequence[GateSpec]) -> list[str]:
    return [
        f"gate {gate.id}: {why}"
        for gate in gates
        if gate not in desk.quality_gates and (why := _checks_nothing(gate))
    ]


def _gates(plan: Plan) -> list[GateSpec]:
    """Everything that decides, each once."""
    exits = [gate for gates in plan.exit_gates.values() for gate in gates]
    tests = plan.test_plan
    every = (*tests.acceptance, *tests.quality_gates, *goal_gates(plan.goals), *exits)
    return list(dict.fromkeys(every))


def _checks_nothing(gate: GateSpec) -> str:
    if gate.kind is GateKind.FILES and not gate.paths:
        return "it names no file"
    if gate.kind is not GateKind.COMMAND or (gate.preset and not gate.command.strip()):
        return ""
    fails = gate.expect == "failure"
    decides_nothing = ends_badly_anyway if fails else ends_well_anyway
    if not decides_nothing(gate.command):
        return ""
    return f"its command would {'fail' if fails else 'pass'} whatever was built"


def _lost_goals(desk: Desk, story: Story, plan: Plan) -> list[str]:
    """Another way may be taken when a story is adapted, but what must be true in the end stays."""
    previous = desk.plan_of(story.id) if story.status is StoryStatus.ADAPTING else None
    if previous is None or plan.goals == previous.goals:
        return []
    return [f"goals: those of plan v{previous.version} stay when a story is adapted"]
