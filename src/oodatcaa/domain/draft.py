"""A plan of another tool, ready to become a story and a plan. Nothing in it was run."""

from __future__ import annotations

import hashlib

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.goals import Goals
from oodatcaa.domain.source import Leftover
from oodatcaa.domain.task import StoryKind

EXCHANGE_FORMAT = "oodatcaa-plans"
EXCHANGE_VERSION = 1
"""What `oodatcaa export --to json` writes and `oodatcaa import` reads back."""


class DraftStep(Record):
    number: int = Field(ge=1)
    title: NonEmpty
    kind: str = Field(
        default="auto",
        description="auto (somebody works), check (commands decide), commit, checkpoint:…",
    )
    files: tuple[str, ...] = ()
    action: str = ""
    done: str = Field(default="", description="when the plan's author calls it done")
    gates: tuple[str, ...] = Field(default=(), description="ids of the gates of this step")
    estimate_minutes: int | None = None
    needs_human: bool = Field(default=False, description="a checkpoint that waits for a person")


class DraftStory(Record):
    """One piece of work. Its content alone gives `fingerprint`, the same in every import."""

    key: NonEmpty = Field(description="how other plans refer to it, for example 14-05")
    title: NonEmpty
    slug: NonEmpty
    kind: StoryKind = StoryKind.CUSTOM
    goal: str = ""
    purpose: str = ""
    output: str = ""
    phase: str = ""
    wave: int | None = None
    autonomous: bool = True
    prefer_id: str = Field(default="", description="the id it would like to keep, when it is free")
    estimate_minutes: int | None = None
    priority: int | None = Field(default=None, description="0 is the most urgent")
    depends_on: tuple[str, ...] = Field(default=(), description="keys of other plans")
    files: tuple[str, ...] = ()
    goals: Goals = Goals()
    steps: tuple[DraftStep, ...] = ()
    gates: tuple[GateSpec, ...] = Field(
        default=(), description="from verify commands (V…), artifacts (F…) and criteria (AC…)"
    )
    statements: tuple[str, ...] = Field(
        default=(), description="criteria in words that no command decides"
    )
    references: tuple[str, ...] = Field(default=(), description="files the plan wants to be read")
    leftovers: tuple[Leftover, ...] = Field(
        default=(), description="what has no counterpart, word for word"
    )

    @property
    def commands(self) -> tuple[str, ...]:
        """Everything that would be run as a command, in order: what a person has to approve."""
        found = [gate.command for gate in self.gates if gate.kind is GateKind.COMMAND]
        found += [truth.command for truth in self.goals.truths if truth.command]
        return tuple(dict.fromkeys(found))

    @property
    def paths(self) -> tuple[str, ...]:
        """Every repository path that the plan writes or promises."""
        found = [*self.files, *(path for step in self.steps for path in step.files)]
        found += [item.path for item in self.goals.artifacts]
        return tuple(dict.fromkeys(path for path in found if path))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
