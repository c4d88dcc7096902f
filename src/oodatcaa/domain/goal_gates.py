"""A plan's goals as gates: checked by the framework with evidence, like any other."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.goals import Goals


def goal_gates(goals: Goals) -> tuple[GateSpec, ...]:
    """GT1… truths with a command, GA1… artifacts, GL1… key links; ids follow the plan's order."""
    truths = tuple(
        GateSpec(
            id=f"GT{number}",
            name=truth.statement,
            kind=GateKind.COMMAND,
            command=truth.command,
            statement=truth.statement,
        )
        for number, truth in enumerate(goals.truths, 1)
        if truth.command.strip()
    )
    artifacts = tuple(
        GateSpec(
            id=f"GA{number}",
            name=f"{item.path} is there with substance",
            kind=GateKind.ARTIFACT,
            artifact=item,
            statement=item.provides,
        )
        for number, item in enumerate(goals.artifacts, 1)
    )
    links = tuple(
        GateSpec(
            id=f"GL{number}",
            name=f"{item.source} is connected to {item.target}",
            kind=GateKind.LINK,
            link=item,
            statement=item.via,
        )
        for number, item in enumerate(goals.key_links, 1)
    )
    return (*truths, *artifacts, *links)


def person_gates(goals: Goals) -> tuple[GateSpec, ...]:
    """The truths that only a person can decide, asked for before the target moves."""
    return tuple(
        GateSpec(
            id=f"GT{number}",
            name=truth.statement,
            kind=GateKind.PERSON,
            statement=truth.statement,
        )
        for number, truth in enumerate(goals.truths, 1)
        if not truth.command.strip()
    )
