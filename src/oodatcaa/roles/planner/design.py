"""What one kind of story contributes to its plan; `assemble` turns it into the record."""

from __future__ import annotations

from dataclasses import dataclass, field

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import (
    Alternative,
    Fallback,
    PlanDecision,
    Problem,
    Risk,
    Size,
    Step,
    StepKind,
    Trouble,
)
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.question import Question

DOCS = "docs/training"


@dataclass(frozen=True)
class Group:
    """The steps of one build subtask and what must hold before it may be submitted."""

    title: str
    steps: tuple[int, ...]
    gates: tuple[GateSpec, ...]
    asks: tuple[Question, ...] = ()
    """What a person has to answer before it begins."""


@dataclass(frozen=True)
class Checks:
    """The story's own part of the test plan."""

    acceptance: tuple[GateSpec, ...]
    minutes: int
    scope: tuple[str, ...]
    out_of_scope: tuple[str, ...]
    integration: tuple[str, ...]
    regression: tuple[str, ...]
    benchmarks: tuple[str, ...]
    troubleshooting: tuple[Trouble, ...]
    asks: tuple[Question, ...] = ()
    """What a person has to answer before the tests begin."""


@dataclass(frozen=True)
class Design:
    problem: Problem
    constraints: tuple[str, ...]
    interfaces: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    decision: PlanDecision
    fallback: Fallback
    size: Size
    steps: tuple[Step, ...]
    groups: tuple[Group, ...]
    checks: Checks
    risks: tuple[Risk, ...]
    handoff: tuple[str, ...]
    backend: str
    params: QLoRA
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Forced:
    """An adaptation decided elsewhere: the planner writes it down and does not decide again."""

    previous: QLoRA
    reason: str


def step(
    number: int,
    kind: StepKind,
    title: str,
    what: str,
    holds: tuple[str, ...],
    minutes: int = 1,
    *,
    document: str = "",
    command: str = "",
    files: tuple[str, ...] = (),
    critical: bool = False,
) -> Step:
    """A step whose deliverables are paths below docs/training/."""
    return Step(
        number=number,
        kind=kind,
        title=title,
        what=what,
        exit_gates=holds,
        estimate_minutes=max(1, minutes),
        document=document,
        command=command,
        deliverables=tuple(f"{DOCS}/{name}" for name in files),
        critical=critical,
    )
