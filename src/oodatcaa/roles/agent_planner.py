"""A plan written by an external agent, for a story that the built-in planner has no recipe for."""

from __future__ import annotations

from typing import Any

from oodatcaa.domain.agents import AgentDefinition
from oodatcaa.domain.board import Board
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.planning import free_subtask_id
from oodatcaa.domain.task import Story, SubtaskKind
from oodatcaa.roles.desk import Agents, Desk
from oodatcaa.roles.plan_check import OWNED, checked_plan, owned_by_framework
from oodatcaa.roles.prompts import gate_line, record_prompt
from oodatcaa.roles.records import ask, schema_of

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
    owned = owned_by_framework(desk, board, story)

    def check(data: Any) -> tuple[Plan | None, list[str]]:
        return checked_plan(
            desk, board, story, {**data, **owned}, lambda name: agents.builder(name) is not None
        )

    prompt = record_prompt(
        definition, story, TASK, _facts(desk, board, story), schema_of(Plan, OWNED)
    )
    return ask(agents, definition, prompt, check, cwd=desk.checkout())


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
