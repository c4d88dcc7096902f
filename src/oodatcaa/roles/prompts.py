"""What external agents are told: their role's prose, then facts from records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from oodatcaa.domain.agents import AgentDefinition
from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import Plan, Step
from oodatcaa.domain.task import Failure, Story, Subtask

RULES = (
    "Work only in the current folder: it is the story's own git worktree.",
    "Do not switch branches, do not push, do not touch other worktrees or .oodatcaa/.",
    "Leave your changes in the folder; whatever you do not commit is committed for you.",
    "The framework itself runs every check at the commit. What you say about them counts for "
    "nothing, so run them yourself before you end.",
)


def build_prompt(
    definition: AgentDefinition, plan: Plan, story: Story, subtask: Subtask, step: Step
) -> str:
    """The prompt of a builder for one step."""
    parts = [
        _head(definition, story),
        _section("The goal", [plan.goal]),
        _section(f"Your step: {step.title}", [step.what]),
        _bullets("What a person answered", _answers(story)),
        _section("The message if you commit", [step.message]) if step.message else "",
        _bullets("What must hold when you are done", step.exit_gates),
        _bullets("Files that are promised", step.deliverables),
        _bullets("Checks that the framework will run", _checks(plan, subtask)),
        _bullets("Constraints", plan.constraints),
        _trouble(plan, story),
        _bullets("Rules", RULES),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def record_prompt(
    definition: AgentDefinition,
    story: Story,
    task: str,
    facts: Iterable[tuple[str, Iterable[str]]],
    schema: dict[str, Any],
) -> str:
    """The prompt of an agent that returns one record as JSON."""
    parts = [
        _head(definition, story),
        task,
        *(_bullets(title, lines) for title, lines in facts),
        "# The answer\n\nEnd with exactly one JSON object in a ```json block and nothing after it. "
        "It must fit this JSON Schema:",
        "```json\n" + json.dumps(schema, separators=(",", ":")) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def again_prompt(problems: Iterable[str]) -> str:
    """What goes back to an agent whose record was refused: everything that is wrong with it."""
    return (
        "# Your answer was refused\n\n"
        + "\n".join(f"- {problem}" for problem in problems)
        + "\n\nAnswer again with the whole corrected JSON object in one ```json block.\n"
    )


def _head(definition: AgentDefinition, story: Story) -> str:
    return (definition.prompt or f"# {definition.name}\n\n{definition.description}") + (
        f"\n\n# Story {story.id}: {story.title}"
    )


def _section(title: str, lines: Iterable[str]) -> str:
    return f"# {title}\n\n" + "\n\n".join(lines)


def _bullets(title: str, lines: Iterable[str]) -> str:
    listed = [f"- {line}" for line in lines if line]
    return f"# {title}\n\n" + "\n".join(listed) if listed else ""


def _answers(story: Story) -> list[str]:
    return [f"{item.title}: {item.by} said: {item.why}" for item in story.answers]


def _checks(plan: Plan, subtask: Subtask) -> list[str]:
    gates = (
        *plan.exit_gates.get(subtask.id, ()),
        *plan.test_plan.acceptance,
        *plan.test_plan.quality_gates,
    )
    return list(dict.fromkeys(gate_line(gate) for gate in gates))


def gate_line(gate: GateSpec) -> str:
    parts = [gate.statement or gate.name]
    if gate.command:
        parts.append(f"`{gate.command}`")
    if gate.paths:
        parts.append("files: " + ", ".join(gate.paths))
    return ": ".join(parts)


def _trouble(plan: Plan, story: Story) -> str:
    lines = [f"Lesson of an earlier round: {lesson}" for lesson in story.lessons]
    if plan.adaptation is not None:
        lines.append(f"The last attempt failed: {plan.adaptation.trigger}")
        lines += [f"Now: {rung}" for rung in plan.adaptation.rungs]
        lines += list(plan.adaptation.failed)
    return _bullets("What went wrong before", lines)


def failure_lines(failure: Failure) -> tuple[str, ...]:
    """A failure as facts for a prompt."""
    return (f"{failure.kind}: {failure.summary}", *failure.gates)
