"""Adapts a story that trains nothing: the policy's way, which an agent may widen and explain."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from oodatcaa.domain.adapted import GiveUp
from oodatcaa.domain.agents import AgentDefinition
from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.board import Board
from oodatcaa.domain.definition import explain
from oodatcaa.domain.plan import AdaptationNote, Plan
from oodatcaa.domain.rounds import rounds_allowed
from oodatcaa.domain.rungs import FailureClass, Way, bounded, classify, next_way
from oodatcaa.domain.task import Failure, Story
from oodatcaa.roles.desk import Agents, Desk
from oodatcaa.roles.prompts import failure_lines, record_prompt
from oodatcaa.roles.quick_fix import quick_fix
from oodatcaa.roles.records import AgentFailedError, ask, schema_of, schema_problems

TASK = """\
# Your task

A story failed. Say what has to change, as one JSON object. `way` is `quick fix` (the same plan, \
what failed is done again with your advice), `start over` (a new plan, with your lesson) or \
`human` (only a person can decide)."""


class AdaptationProposal(Record):
    """What a refining agent hands in. The policy bounds it: no way narrower than its own."""

    way: Way
    reason: NonEmpty = Field(description="what went wrong, and why this way")
    changes: tuple[NonEmpty, ...] = Field(
        default=(), max_length=10, description="what the builder or planner has to do differently"
    )


@dataclass(frozen=True)
class StartOver:
    """Back to the planner with this lesson."""

    lesson: str


def refine_custom(
    desk: Desk, board: Board, story: Story, previous: Plan, failure: Failure
) -> Plan | StartOver | GiveUp:
    """The next plan version, a start-over, or a person. What a person approved is tried once more
    whatever the policy says. An agent that fails to answer is left out."""
    found = classify(failure)
    round = story.adapt_round + 1
    way = next_way(
        found,
        round=round,
        max_rounds=rounds_allowed(board, story),
        repeated=_seen_before(desk, story, found),
    )
    if way is Way.HUMAN and story.granted:
        way = Way.QUICK_FIX
    reason, changes = "", tuple[str, ...]()
    definition = desk.agents.acting() if desk.agents is not None else None
    if desk.agents is not None and definition is not None and not definition.builtin:
        proposal = _proposal(desk, desk.agents, definition, story, failure, way)
        if proposal is not None:
            way = bounded(proposal.way, way)
            reason, changes = proposal.reason, proposal.changes
    trigger = f"{_about(found)}{failure.summary}"
    if way is Way.HUMAN:
        return GiveUp(
            reason="; ".join((trigger, *filter(None, (reason,)))),
            hint=f"mend it, then: oodatcaa approve {story.id}",
        )
    if way is Way.START_OVER:
        return StartOver("; ".join((trigger, *filter(None, (reason,)), *changes)))
    note = AdaptationNote(
        round=round,
        trigger=trigger,
        rungs=(
            f"{way.value}: what failed is done again",
            *_conflict(board, found),
            *filter(None, (reason,)),
            *changes,
        ),
        failed=failure.gates,
    )
    return quick_fix(desk, board, story, previous, failure, note)


def _about(found: FailureClass) -> str:
    """How a trigger begins, in notes and lessons."""
    return f"{found.value}: "


def _seen_before(desk: Desk, story: Story, found: FailureClass) -> bool:
    """Whether an earlier round of the story was about this class."""
    plans = (desk.plan_version(story.id, number) for number in range(1, story.plan_version + 1))
    triggers = [plan.adaptation.trigger for plan in plans if plan.adaptation is not None]
    return any(line.startswith(_about(found)) for line in (*triggers, *story.lessons))


def _conflict(board: Board, found: FailureClass) -> tuple[str, ...]:
    """The branch is built upon, so the conflict has to be resolved on it."""
    if found is not FailureClass.CONFLICT or board.sprint is None:
        return ()
    target = board.sprint.target_branch
    return (f"merge {target} into this branch here in the worktree and resolve the conflicts",)


def _proposal(
    desk: Desk,
    agents: Agents,
    definition: AgentDefinition,
    story: Story,
    failure: Failure,
    way: Way,
) -> AdaptationProposal | None:
    def check(data: Any) -> tuple[AdaptationProposal | None, list[str]]:
        problems = schema_problems(AdaptationProposal, data)
        if problems:
            return None, problems
        try:
            return AdaptationProposal.model_validate_json(json.dumps(data)), []
        except ValidationError as error:
            return None, explain(error)

    facts = [
        ("The failure", list(failure_lines(failure))),
        ("What the policy would do", [way.value]),
        ("Lessons so far", list(story.lessons)),
    ]
    prompt = record_prompt(definition, story, TASK, facts, schema_of(AdaptationProposal))
    try:
        return ask(agents, definition, prompt, check, cwd=desk.checkout())
    except AgentFailedError as error:
        if error.kind == "stopped":
            raise
        agents.note(f"{definition.name} proposed nothing usable, the policy decides", error.details)
        return None
