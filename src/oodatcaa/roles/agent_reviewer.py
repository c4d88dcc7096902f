"""A review by an external agent: it may add checks or veto; it can not pass anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from oodatcaa.domain.agents import AgentDefinition
from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.definition import explain
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Story
from oodatcaa.domain.trivial import ends_well_anyway
from oodatcaa.roles.desk import Agents
from oodatcaa.roles.prompts import gate_line, record_prompt
from oodatcaa.roles.records import ask, schema_of, schema_problems
from oodatcaa.roles.tester import Examination

TASK = """\
# Your task

Review what was built: the current folder is a fresh checkout of the submitted commit. The \
framework runs the checks below itself. Add checks that are missing, and veto what must not be \
merged, with the reason. An empty review is a fine answer."""


class AddedCheck(Record):
    """One more command that must end with 0 at the commit."""

    name: NonEmpty
    command: NonEmpty
    why: NonEmpty
    timeout_seconds: int = Field(default=600, ge=1, le=7200)


class Review(Record):
    """What a reviewer hands in."""

    summary: str = ""
    checks: tuple[AddedCheck, ...] = Field(default=(), max_length=10)
    veto: tuple[NonEmpty, ...] = Field(default=(), description="reasons against accepting it")


def review(
    agents: Agents,
    definition: AgentDefinition,
    story: Story,
    plan: Plan,
    found: Examination,
    checkout: Path,
) -> Examination:
    """The examination with the agent's checks and vetoes. Raises AgentFailedError."""

    def check(data: Any) -> tuple[Review | None, list[str]]:
        problems = schema_problems(Review, data)
        if problems:
            return None, problems
        try:
            return Review.model_validate_json(json.dumps(data)), []
        except ValidationError as error:
            return None, explain(error)

    facts = [
        ("The goal", [plan.goal]),
        ("What was to be done", [f"{step.title}: {step.what}" for step in plan.steps]),
        ("Checks that the framework runs", [gate_line(gate) for gate in found.gates]),
    ]
    prompt = record_prompt(definition, story, TASK, facts, schema_of(Review))
    return added(found, ask(agents, definition, prompt, check, cwd=checkout), definition.name)


def added(found: Examination, made: Review, by: str) -> Examination:
    """Every given gate stays; a check that would pass whatever was built adds nothing."""
    extra = tuple(
        GateSpec(
            id=f"TA{number}",
            name=item.name,
            kind=GateKind.COMMAND,
            command=item.command,
            timeout_seconds=item.timeout_seconds,
            statement=f"added by {by}: {item.why}",
        )
        for number, item in enumerate(made.checks, 1)
        if not ends_well_anyway(item.command)
    )
    return Examination(
        gates=(*found.gates, *extra),
        veto=(*found.veto, *(f"{by}: {reason}" for reason in made.veto)),
    )
