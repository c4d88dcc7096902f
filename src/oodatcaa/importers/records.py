"""What an import hands back: what was understood, and every single thing that was not."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board, Event
from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.task import Story, StoryKind, Subtask


class ImportKind(StrEnum):
    """Formats that are understood."""

    OODATCAA = "oodatcaa"
    GSD = "gsd"


class Severity(StrEnum):
    """`error`: something is damaged, missing or impossible; `warning`: two things contradict each
    other or a decision was taken; `info`: a translation, or content that has no place here."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Finding(Record):
    code: NonEmpty = Field(description="stable, for example dependency.unknown")
    severity: Severity
    place: NonEmpty = Field(description="file:line, or the file alone")
    message: NonEmpty
    content: str = Field(default="", description="what was not mapped, in full")

    def __str__(self) -> str:
        return f"{self.severity.value:<7} {self.place}: {self.message} [{self.code}]"


class SprintFacts(Record):
    """What the file says about the sprint as a whole; None and "" where it is silent."""

    number: int | None = None
    name: str = ""
    goal: str = ""
    status: str = Field(default="", description="the old process's own word")
    created_at: Utc | None = None
    updated_at: Utc | None = None
    wip_limits: dict[str, int] = Field(default_factory=dict)
    lease_minutes: dict[str, float] = Field(default_factory=dict)


class DraftStep(Record):
    number: int = Field(ge=1)
    title: NonEmpty
    kind: str = Field(default="auto", description="the task's type attribute")
    files: tuple[str, ...] = ()
    action: str = ""
    done: str = Field(default="", description="when the plan's author calls it done")
    gates: tuple[str, ...] = Field(default=(), description="ids of the gates of this step")
    estimate_minutes: int | None = None
    needs_human: bool = Field(default=False, description="a checkpoint that waits for a person")


class DraftArtifact(Record):
    path: str
    provides: str = ""
    contains: str = ""


class DraftLink(Record):
    source: str
    to: str
    via: str = ""
    pattern: str = ""


class MustHaves(Record):
    truths: tuple[str, ...] = ()
    artifacts: tuple[DraftArtifact, ...] = ()
    links: tuple[DraftLink, ...] = ()


class DraftStory(Record):
    """A plan of another tool, ready to become a story and a plan. No command in it was run."""

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
    depends_on: tuple[str, ...] = Field(default=(), description="keys of other plans")
    files: tuple[str, ...] = ()
    must_haves: MustHaves = MustHaves()
    steps: tuple[DraftStep, ...] = ()
    gates: tuple[GateSpec, ...] = Field(
        default=(), description="from verify commands (V…), artifacts (F…) and criteria (AC…)"
    )
    statements: tuple[str, ...] = Field(
        default=(), description="criteria in words that no command decides"
    )
    references: tuple[str, ...] = Field(default=(), description="files the plan wants to be read")


class Imported(Record):
    """The result of an import. Nothing of the file is missing from it: what has no place in a
    story, subtask, note or draft is in a finding's `content`."""

    kind: ImportKind
    source: NonEmpty
    stories: tuple[Story, ...] = ()
    subtasks: tuple[Subtask, ...] = ()
    drafts: tuple[DraftStory, ...] = ()
    sprint: SprintFacts = SprintFacts()
    notes: tuple[Event, ...] = Field(default=(), description="the old history, oldest first")
    renamed: dict[str, str] = Field(
        default_factory=dict, description="id in the file -> id on the board, for every task"
    )
    findings: tuple[Finding, ...] = ()

    @property
    def board(self) -> Board:
        """The imported tasks as a board without a sprint; the caller adds that."""
        return Board(stories=self.stories, subtasks=self.subtasks)

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)

    def lines(self, width: int = 160) -> tuple[str, ...]:
        """A plain summary: what was recovered, then one line a finding, in the file's order.

        A finding's content is cut to `width` characters here; it is complete in `findings`.
        """
        counts = ", ".join(
            f"{self.count(severity)} {severity.value}{'s' * (severity is not Severity.INFO)}"
            for severity in Severity
        )
        made = [
            f"{number} {name}"
            for number, name in (
                (len(self.stories), "stories"),
                (len(self.subtasks), "subtasks"),
                (len(self.drafts), "plans"),
                (len(self.notes), "notes"),
            )
            if number
        ]
        lines = [f"{self.source}: {', '.join(made) or 'nothing'} recovered; {counts}"]
        for finding in self.findings:
            lines.append(str(finding))
            if finding.content:
                text = " ".join(finding.content.split())
                lines.append(f"        {text[:width]}{' …' if len(text) > width else ''}")
        return tuple(lines)


__all__ = [
    "DraftArtifact",
    "DraftLink",
    "DraftStep",
    "DraftStory",
    "Finding",
    "ImportKind",
    "Imported",
    "MustHaves",
    "Severity",
    "SprintFacts",
]
