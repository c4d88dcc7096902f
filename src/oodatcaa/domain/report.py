"""What a role leaves behind for people: facts from records and events, not prose of an agent."""

from __future__ import annotations

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.task import Role, StoryId, TaskId


class Action(Record):
    """One thing that was done, for example one plan step."""

    title: NonEmpty
    outcome: NonEmpty = Field(description="done, failed, skipped")
    minutes: float
    estimate_minutes: float | None = None
    facts: tuple[str, ...] = ()


class Deliverable(Record):
    path: NonEmpty
    what: str = ""
    size_bytes: int | None = None


class Metric(Record):
    """`source` says measured, derived, or estimated from what."""

    name: NonEmpty
    value: NonEmpty
    source: NonEmpty


class Challenge(Record):
    """From an event: a refused gate, a lost lease, an adaptation. Never invented."""

    what: NonEmpty
    solution: str = ""
    at: Utc | None = None


class Report(Record):
    story: StoryId
    task: TaskId
    title: NonEmpty
    role: Role
    agent: NonEmpty
    attempt: int
    started_at: Utc
    finished_at: Utc
    outcome: NonEmpty = Field(description="complete, needs adaptation, …")
    objective: str = ""
    summary: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()
    deliverables: tuple[Deliverable, ...] = ()
    metrics: tuple[Metric, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    challenges: tuple[Challenge, ...] = ()
    decisions: tuple[str, ...] = ()
    handoff: tuple[str, ...] = ()
    sprint_impact: tuple[str, ...] = ()
    lessons: tuple[str, ...] = Field(default=(), description="derived from events and estimates")
    next_steps: tuple[str, ...] = ()
    commit: str = ""
