"""Placed tasks become records of the board. What is not true here any more is said in a finding."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from oodatcaa.domain.board import Event, EventKind
from oodatcaa.domain.task import (
    Failure,
    Story,
    StoryKind,
    StoryStatus,
    Subtask,
    SubtaskStatus,
    slugify,
)
from oodatcaa.importers.findings import Findings, as_json
from oodatcaa.importers.oodatcaa.identity import Placed, Placement
from oodatcaa.importers.oodatcaa.links import Links
from oodatcaa.importers.oodatcaa.words import (
    ACTIVE_WORDS,
    DEFAULT_MINUTES,
    SIZE_MINUTES,
    story_status,
    subtask_status,
)

TaskT = TypeVar("TaskT", Story, Subtask)
FINISHED = frozenset({"done", "cancelled"})


@dataclass(slots=True)
class Mapped:
    stories: list[Story]
    subtasks: list[Subtask]
    notes: list[Event]


class Mapper:
    def __init__(
        self, placement: Placement, links: Links, findings: Findings, now: datetime
    ) -> None:
        self.placement = placement
        self.links = links
        self.findings = findings
        self.now = now
        self.subtask_status: dict[str, SubtaskStatus] = {}
        self.story_status: dict[str, StoryStatus] = {}
        self.why: dict[str, str] = {}

    def map(self) -> Mapped:
        for subtask in self.placement.subtasks:
            self.subtask_status[subtask.id] = self._subtask_status(subtask)
        for story in self.placement.stories:
            self.story_status[story.id] = self._story_status(story)
        stories = [s for s in map(self._story, self.placement.stories) if s is not None]
        subtasks = [s for s in map(self._subtask, self.placement.subtasks) if s is not None]
        notes = [note for task in self.placement.all() for note in self._notes(task)]
        self._say_what_is_missing()
        return Mapped(stories, subtasks, sorted(notes, key=lambda note: note.at))

    def _subtask_status(self, task: Placed) -> SubtaskStatus:
        assert task.raw is not None
        status = subtask_status(task.raw.status, task.kind)
        if status is None:
            self._unknown(task)
            return SubtaskStatus.NEEDS_HUMAN
        self._translated(task, status.value)
        if status is SubtaskStatus.BLOCKED and task.raw.status != "blocked":
            self._explain(task, f"{task.raw.status} in the old queue")
        doubts = self.links.doubts.get(task.id, ())
        if doubts and status.value not in FINISHED:
            self._explain(task, *doubts)
            return SubtaskStatus.NEEDS_HUMAN
        return status

    def _story_status(self, task: Placed) -> StoryStatus:
        if task.raw is None:
            parts = {self.subtask_status[child.id].value for child in task.children}
            if parts <= FINISHED:
                return StoryStatus.DONE if "done" in parts else StoryStatus.CANCELLED
            self._explain(task, "the imported file has only its subtasks")
            return StoryStatus.NEEDS_HUMAN
        status = story_status(task.raw.status, planned=bool(task.children))
        if status is None:
            self._unknown(task)
            return StoryStatus.NEEDS_HUMAN
        self._translated(task, status.value)
        status = self._against_subtasks(task, status)
        doubts = self.links.doubts.get(task.id, ())
        if doubts and status.value not in FINISHED:
            self._explain(task, *doubts)
            return StoryStatus.NEEDS_HUMAN
        return status

    def _against_subtasks(self, task: Placed, status: StoryStatus) -> StoryStatus:
        """What the story's word is worth in the light of its subtasks."""
        open_parts = [c for c in task.children if self.subtask_status[c.id].value not in FINISHED]
        named = ", ".join(
            f"{c.old} is {c.raw.status or 'without status'}" for c in open_parts if c.raw
        )
        if status is StoryStatus.DONE and open_parts:
            self.findings.error(
                "story.done_open_subtasks", task.line, f"{task.old} is done, but {named}"
            )
            self._explain(task, f"the old queue calls it done, but {named}")
            return StoryStatus.NEEDS_HUMAN
        if status is StoryStatus.CANCELLED and open_parts:
            self.findings.warning(
                "story.cancelled_open_subtasks",
                task.line,
                f"{task.old} is cancelled, but {named}; they are cancelled with it",
            )
            for part in open_parts:
                self.subtask_status[part.id] = SubtaskStatus.CANCELLED
        behind = status in (StoryStatus.PLANNING_COMPLETE, StoryStatus.NEEDS_PLAN)
        if behind and task.children and not open_parts:
            self.findings.warning(
                "story.behind",
                task.line,
                f"{task.old} is {status.value}, but all its subtasks are finished",
            )
            if any(self.subtask_status[c.id] is SubtaskStatus.DONE for c in task.children):
                return StoryStatus.READY_FOR_INTEGRATOR
            self._explain(task, "all its subtasks were cancelled")
            return StoryStatus.NEEDS_HUMAN
        return status

    def _unknown(self, task: Placed) -> None:
        assert task.raw is not None
        word = task.raw.status
        code, what = (
            ("status.unknown", f"unknown status {word!r}")
            if word
            else (
                "status.missing",
                "no status",
            )
        )
        self.findings.error(code, task.line, f"{task.old}: {what}; a person has to decide", word)
        self._explain(task, f"the old queue gives it {what}")

    def _translated(self, task: Placed, status: str) -> None:
        assert task.raw is not None
        word = task.raw.status
        if word == status:
            return
        if word in ACTIVE_WORDS and status not in FINISHED:
            self.findings.info(
                "status.released",
                task.line,
                f"{task.old} was {word}; nobody holds a lease on it here, so it is {status}",
            )
        else:
            self.findings.info("status.mapped", task.line, f"{task.old}: {word} becomes {status}")

    def _explain(self, task: Placed, *reasons: str) -> None:
        before = self.why.get(task.id)
        self.why[task.id] = "; ".join([*([before] if before else []), *reasons])

    def _story(self, task: Placed) -> Story | None:
        status = self.story_status[task.id]
        raw = task.raw
        slug = self._slug(task)
        values: dict[str, Any] = {
            **self._common(task, status.value, sum(map(self._minutes, task.children))),
            "id": task.id,
            "slug": slug,
            "kind": StoryKind.CUSTOM,
            "goal": raw.goal if raw else "",
            "status": status,
            "plan_version": 1 if task.children else 0,
            "adapt_round": raw.adapt_round if raw else 0,
            "paused_from": self._paused_from(task) if status == "needs_human" else None,
        }
        return self._checked(Story, task, values)

    def _paused_from(self, task: Placed) -> StoryStatus:
        """Where the story goes on when a person approves it."""
        planned = bool(task.children)
        status = story_status(task.raw.status, planned=planned) if task.raw else None
        if status is None or status.value in FINISHED or status is StoryStatus.NEEDS_HUMAN:
            return StoryStatus.PLANNING_COMPLETE if planned else StoryStatus.NEEDS_PLAN
        return status

    def _slug(self, task: Placed) -> str:
        """The rest of the old branch's name, so that the story stays on its branch."""
        title = slugify(task.raw.title if task.raw and task.raw.title else task.old)
        branch = task.raw.branch if task.raw else ""
        start = f"feat/{task.id}-"
        if branch.startswith(start) and slugify(branch[len(start) :], 200) == branch[len(start) :]:
            return branch[len(start) :]
        return title

    def _subtask(self, task: Placed) -> Subtask | None:
        assert task.raw is not None
        status = self.subtask_status[task.id]
        values: dict[str, Any] = {
            **self._common(task, status.value, 0),
            "id": task.id,
            "story": task.story,
            "kind": task.kind,
            "status": status,
            "plan_version": 1,
            "steps": task.raw.steps,
        }
        return self._checked(Subtask, task, values)

    def _common(self, task: Placed, status: str, parts: int) -> dict[str, Any]:
        raw = task.raw
        known = [f.moment.at for f in raw.times if f.moment.at <= self.now] if raw else []
        created = [
            fact.moment.at
            for fact in (raw.times if raw else ())
            if fact.role == "create" and fact.moment.at <= self.now
        ]
        reason = "; ".join(
            text for text in (self.why.get(task.id, ""), raw.reason if raw else "") if text
        )
        if status in ("blocked", "needs_human") and not reason:
            waits = ", ".join(self.links.depends[task.id])
            reason = f"waits for {waits}" if waits else "the old queue does not say why"
        failure = None
        if status == "needs_adapt":
            failure = Failure(
                kind="imported",
                task=task.id,
                summary=reason or "the old queue does not say why",
                at=max(known, default=self.now),
            )
        return {
            "title": (raw.title if raw else "") or f"{task.old} (its record is missing)",
            "estimate_minutes": (self._minutes(task) if raw else 0) or parts or DEFAULT_MINUTES,
            "depends_on": tuple(self.links.depends[task.id]),
            "status_since": max(known, default=self.now),
            "created_at": min([*created, *known], default=self.now),
            "reason": reason,
            "commit": raw.commit if raw else "",
            "failure": failure,
        }

    def _minutes(self, task: Placed) -> int:
        """The estimate in the file, by its size otherwise; 0 when it says neither."""
        if task.raw is None:
            return 0
        return task.raw.minutes or SIZE_MINUTES.get(task.raw.size, 0)

    def _checked(self, record: type[TaskT], task: Placed, values: dict[str, Any]) -> TaskT | None:
        try:
            return record.model_validate(values)
        except ValidationError as error:
            self.findings.error(
                "task.invalid",
                task.line,
                f"{task.old} does not fit on the board: "
                + "; ".join(str(item["msg"]) for item in error.errors()),
                task.raw.found.content if task.raw else "",
            )
            return None

    def _notes(self, task: Placed) -> list[Event]:
        raw = task.raw
        if raw is None:
            return []
        actor = raw.owner or "import"
        newest = max((f.moment.at for f in raw.times if f.moment.at <= self.now), default=self.now)
        texts: list[tuple[datetime, str]] = [(newest, f"{key}: {text}") for key, text in raw.notes]
        texts += [
            (min(fact.moment.at, self.now), f"{fact.key}: {fact.raw}") for fact in raw.all_times()
        ]
        said = {"branch": raw.branch, "size": raw.size, "type": raw.type, "owner": raw.owner}
        said["goal"] = raw.goal if task.story else ""  # a subtask on the board has none
        texts += [(newest, f"{key}: {text}") for key, text in said.items() if text]
        if raw.lease is not None:
            texts.append((newest, f"lease: {as_json(raw.lease.raw)}"))
        if raw.status:
            texts.append((newest, f"status in the imported queue: {raw.status}"))
        return [
            Event(kind=EventKind.NOTE, at=at, actor=actor, subject=task.id, text=text)
            for at, text in texts
        ]

    def _say_what_is_missing(self) -> None:
        """What is the same for many tasks is said once."""
        done = [s.old for s in self.placement.stories if self.story_status[s.id] == "done"]
        if done:
            self.findings.info(
                "done.unproven",
                None,
                f"done by the old queue's word, without a proof of integration: {', '.join(done)}",
            )
        unplanned = [
            story.old
            for story in self.placement.stories
            if story.children and self.story_status[story.id].value not in FINISHED
        ]
        if unplanned:
            self.findings.warning(
                "plan.missing",
                None,
                "open stories whose plan is prose of the old process, no record of this board: "
                + ", ".join(unplanned),
            )
        guessed = [
            task.old for task in self.placement.all() if task.raw and task.raw.minutes is None
        ]
        if guessed:
            self.findings.info(
                "estimate.assumed",
                None,
                f"no estimate in minutes, taken from size or subtasks: {', '.join(guessed)}",
            )
