"""Stories, subtasks and the leases under which agents hold them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record, Said, SomeSaid, Utc
from oodatcaa.domain.question import Answer, Question
from oodatcaa.domain.source import Source
from oodatcaa.domain.waiver import Waiver
from oodatcaa.domain.words import Approval as Approval
from oodatcaa.domain.words import ArtefactKind as ArtefactKind
from oodatcaa.domain.words import Role as Role
from oodatcaa.domain.words import StoryKind as StoryKind
from oodatcaa.domain.words import StoryStatus as StoryStatus
from oodatcaa.domain.words import SubtaskKind as SubtaskKind
from oodatcaa.domain.words import SubtaskStatus as SubtaskStatus

StoryId = Annotated[str, Field(pattern=r"^T\d{3,}$")]
SubtaskId = Annotated[str, Field(pattern=r"^T\d{3,}-[BT]\d{2,}$")]
TaskId = Annotated[str, Field(pattern=r"^T\d{3,}(-[BT]\d{2,})?$")]


class _Lease(Record):
    owner: NonEmpty = Field(description="agent name, for example builder-A")
    role: Role
    host: NonEmpty
    attempt: PositiveInt = Field(description="the fencing token: only the newest result counts")
    ttl_seconds: PositiveInt
    claimed_at: Utc
    heartbeat_at: Utc
    courtesy: bool = Field(
        default=False,
        description="last renewed on behalf of a living owner that had not renewed it itself",
    )


class ProcessLease(_Lease):
    """Held by a living process of this project; a dead owner on this host is noticed at once."""

    kind: Literal["process"]
    pid: PositiveInt
    process_started_at: float = Field(description="seconds since the epoch, as the OS reports it")


class ManualLease(_Lease):
    """Held by a person or an outside agent that types commands: time to live and heartbeat only."""

    kind: Literal["manual"]


Lease = Annotated[ProcessLease | ManualLease, Field(discriminator="kind")]


class Artefact(Record):
    """Something a step made. Weights and data are named by hash and live outside git."""

    kind: ArtefactKind
    ref: NonEmpty = Field(description="run id, data folder, or path at the commit")
    sha256: str = ""


class Failure(Record):
    """Why a task went to needs_adapt, in the form the refiner decides on."""

    kind: NonEmpty = Field(description="memory_gate, gate, plan, merge, crash …")
    task: TaskId
    summary: SomeSaid
    gates: tuple[Said, ...] = Field(default=(), description="one line per gate that did not pass")
    layer: str | None = None
    needed_bytes: int | None = None
    limit_bytes: int | None = None
    evidence: tuple[str, ...] = ()
    at: Utc


class _Task(Record):
    title: NonEmpty
    estimate_minutes: PositiveInt
    depends_on: tuple[TaskId, ...] = ()
    status_since: Utc
    created_at: Utc
    attempt: int = Field(default=0, ge=0, description="the last attempt number handed out")
    expiries: int = Field(default=0, ge=0, description="leases lost in a row in this state")
    lease: Lease | None = None
    reason: Said = Field(default="", description="why it is blocked, waits for a person, …")
    evidence: tuple[str, ...] = ()
    commit: str = Field(default="", description="the submitted commit")
    failure: Failure | None = None


class Integration(Record):
    """The proof that a story is in the target branch."""

    target: NonEmpty
    merge_commit: NonEmpty
    tag: NonEmpty
    evidence: tuple[str, ...] = Field(min_length=1, description="the gates that ran on the merge")
    artefacts: tuple[str, ...] = ()
    at: Utc


class Story(_Task):
    id: StoryId
    slug: NonEmpty
    kind: StoryKind
    goal: str = ""
    status: StoryStatus
    plan_version: int = Field(default=0, ge=0)
    adapt_round: int = Field(default=0, ge=0)
    waivers: tuple[Waiver, ...] = ()
    integration: Integration | None = None
    approval: Approval = Approval.NONE
    waits_for: Approval = Field(
        default=Approval.NONE, description="the approval that a story in needs_human waits for"
    )
    granted: bool = Field(
        default=False, description="a person said to try again what the policy had given up"
    )
    lessons: tuple[SomeSaid, ...] = Field(
        default=(), description="why earlier plans were thrown away; the next planner reads them"
    )
    extra_rounds: int = Field(
        default=0, ge=0, description="adaptation rounds that people allowed beyond the sprint's"
    )
    source: Source | None = Field(default=None, description="the plan it was imported from")
    files: tuple[str, ...] = Field(
        default=(), description="files that no other story may change while this one is under way"
    )
    asked_for: str = Field(
        default="", description="the subtask that begins once a person answered its question"
    )
    answers: tuple[Answer, ...] = Field(
        default=(), description="what people answered to the questions of its plan"
    )
    paused_from: StoryStatus | None = Field(
        default=None, description="where a story that needs a human came from, so that it can go on"
    )

    @property
    def branch(self) -> str:
        return f"feat/{self.id}-{self.slug}"


class Subtask(_Task):
    id: SubtaskId
    story: StoryId
    kind: SubtaskKind
    status: SubtaskStatus
    plan_version: PositiveInt
    steps: tuple[int, ...] = ()
    asks: tuple[Question, ...] = Field(
        default=(), description="what a person has to answer before it begins"
    )
    artefacts: tuple[Artefact, ...] = ()


Task = Story | Subtask


def story_of(task_id: str) -> str:
    """`T001-B01` -> `T001`; a story's id is returned as it is."""
    return task_id.split("-", 1)[0]


def slugify(text: str, limit: int = 40) -> str:
    """A branch-safe slug of `text`: lower case ASCII words joined by dashes, at most `limit`."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:limit].rstrip("-") or "story"
