"""What an import hands back: what was understood, and every single thing that was not."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board, Event
from oodatcaa.domain.draft import DraftStep, DraftStory
from oodatcaa.domain.formats import ImportKind
from oodatcaa.domain.task import Story, Subtask


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


def _counted(severity: Severity, number: int) -> str:
    return severity.value + "s" * (severity is not Severity.INFO and number != 1)


class Imported(Record):
    """The result of an import. Nothing of the file is missing from it: what has no place in a
    story, subtask, note or draft is in a finding's `content`."""

    kind: ImportKind
    source: NonEmpty
    file_sha256: str = ""
    unused_maps: tuple[str, ...] = Field(default=(), description="paths to map that it never names")
    stories: tuple[Story, ...] = ()
    subtasks: tuple[Subtask, ...] = ()
    drafts: tuple[DraftStory, ...] = ()
    done: tuple[str, ...] = Field(
        default=(), description="keys of work that the file says is finished or given up"
    )
    past: tuple[str, ...] = Field(
        default=(), description="what `done` is, one line each, as far as the file says"
    )
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

    @property
    def empty(self) -> bool:
        """Not one piece of work was found, neither open nor over."""
        return not (self.stories or self.drafts or self.done)

    @property
    def told(self) -> tuple[str, ...]:
        """What is over there. It comes in as a fact to be told, never as work done: no evidence
        of this project stands behind it."""
        return tuple(f"over in {self.source}, not proven here: {x}" for x in self.past or self.done)

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)

    def lines(self, width: int = 160) -> tuple[str, ...]:
        """A plain summary: what was recovered, then one line a finding, in the file's order.

        A finding's content is cut to `width` characters here; it is complete in `findings`.
        """
        counts = ", ".join(
            f"{self.count(severity)} {_counted(severity, self.count(severity))}"
            for severity in Severity
        )
        made = [
            f"{number} {name if number != 1 else one}"
            for number, name, one in (
                (len(self.stories), "stories", "story"),
                (len(self.subtasks), "subtasks", "subtask"),
                (len(self.drafts), "plans", "plan"),
                (len(self.notes), "notes", "note"),
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
    "DraftStep",
    "DraftStory",
    "Finding",
    "ImportKind",
    "Imported",
    "Severity",
    "SprintFacts",
]
