"""The verbs of an agent in another program: what it asks for, as plain data; the rules are ours.

It claims under a manual lease, works in the story's worktree, and hands in; the framework runs
every gate itself, after a look whether anything outside of that worktree was changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from oodatcaa.app import people
from oodatcaa.app.project import Project
from oodatcaa.app.sprint_view import negotiate_and_show
from oodatcaa.app.starting import tidy_worktree
from oodatcaa.domain.board import Event
from oodatcaa.domain.evidence import Evidence, GateSpec
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.states import role_holding, tasks_of
from oodatcaa.domain.task import Role, Story, Subtask, Task, story_of
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.views.plan_parts import gate_rule
from oodatcaa.views.status import status_rows, status_summary

Data = dict[str, Any]
Outcome = Literal["done", "failed", "release"]
LOG_LINES = 50
OUTPUT_CHARS = 4_000


@dataclass(frozen=True)
class OutsideDesk:
    """One agent's view of one project; every method may raise OodatcaaError with a hint."""

    project: Project
    owner: str

    def status(self) -> Data:
        board, now = self.project.board(), datetime.now(UTC)
        if board.sprint is None:
            return {"sprint": None, "next": "a person types: oodatcaa sprint new"}
        mine = [
            task.id for task in tasks_of(board) if task.lease and task.lease.owner == self.owner
        ]
        return {
            "you": self.owner,
            "you_hold": mine,
            "summary": status_summary(board, now),
            "tasks": [
                {key: row[key] for key in ("id", "status", "owner", "title", "note")}
                for row in status_rows(board, now)
            ],
        }

    def next(self, role: Role | None) -> Data:
        """What can be claimed now, best first."""
        negotiate_and_show(self.project)
        board = self.project.board()
        offers = [
            {"task": offer.task, "role": offer.role.value, "title": task.title}
            for offer in sorted(board.offers, key=lambda item: item.rank)
            if (task := board.find(offer.task)) and role in (None, offer.role)
        ]
        if offers:
            return {"offers": offers, "next": f"claim {offers[0]['task']}"}
        return {"offers": [], "next": "nothing can be claimed now; ask again later, see status"}

    def claim(self, task: str, role: Role | None) -> Data:
        """Hold a task, and everything that is needed to do it."""
        negotiate_and_show(self.project)  # what became free a moment ago can be claimed by name
        held = people.claim_task(self.project, task or None, role, self.owner)
        assert held.lease is not None
        role = held.lease.role
        found: Data = {
            "task": held.id,
            "role": role.value,
            "attempt": held.attempt,
            "heartbeat_within_minutes": held.lease.ttl_seconds // 60,
            "title": held.title,
            **self._failure(held),
        }
        if isinstance(held, Subtask):
            found |= self._subtask(held, role)
        elif role in (Role.PLANNER, Role.REFINER):
            found["hand_in"] = (
                "submit with `plan`: a plan record; its schema: plan with schema=true"
            )
            found["goal"] = held.goal
        else:
            found["hand_in"] = "submit: the framework merges, checks and moves the target itself"
        return found

    def _failure(self, held: Task) -> Data:
        story = held if isinstance(held, Story) else self.project.board().story_by_id[held.story]
        failure = held.failure or story.failure
        if failure is None:
            return {}
        return {"last_failure": {"summary": failure.summary, "gates": list(failure.gates)}}

    def _subtask(self, held: Subtask, role: Role) -> Data:
        plan = self._plan(held.story)
        if role is not Role.BUILDER:
            return {"hand_in": "submit: the framework runs the gates", **_gates(plan, held)}
        target = self.project.sprint().target_branch
        path = self.project.repo.story_worktree(held.story, plan.branch, target)
        tidy_worktree(self.project, held, self.owner, plan)
        return {
            "work_in": str(path),
            "branch": plan.branch,
            "goal": plan.goal,
            "steps": [_step(plan, number) for number in held.steps],
            "rules": [
                f"change files only below {path}; anything else refuses the attempt",
                "what you leave uncommitted there is committed when you submit",
                "the framework runs the gates itself; saying that tests pass changes nothing",
            ],
            **_gates(plan, held),
        }

    def heartbeat(self, task: str) -> Data:
        held = people.heartbeat_task(self.project, task, self.owner)
        assert held.lease is not None
        return {"task": held.id, "heartbeat_within_minutes": held.lease.ttl_seconds // 60}

    def submit(
        self,
        task: str,
        outcome: Outcome,
        reason: str,
        plan: Data | None,
        say: Callable[[str], None],
    ) -> Data:
        """Hand in, report a failure, or give back. The answer says what the gates saw."""
        if outcome == "release":
            freed = people.release_task(self.project, task, self.owner, reason or "given back")
            return {"task": freed.id, "status": freed.status.value}
        held = people.known_task(self.project, task)
        failure = (reason or "the agent reported a failure") if outcome == "failed" else None
        mine = held.lease is not None and held.lease.owner == self.owner
        if mine and outcome == "done" and role_holding(held) is Role.BUILDER:
            self._collect(held)
        file = None
        if plan is not None:
            file = self.project.work / "scratch" / self.owner / f"plan-{held.id}.json"
            write_atomic(file, json.dumps(plan))
        people.submit_task(self.project, task, self.owner, plan_file=file, failure=failure, say=say)
        return self._outcome(held)

    def _collect(self, held: Task) -> None:
        """Check that the agent kept to its worktree, then commit what it left there."""
        assert isinstance(held, Subtask)
        people.refuse_strayed(self.project, held, self.owner)
        plan = self._plan(held.story)
        target = self.project.sprint().target_branch
        path = self.project.repo.story_worktree(held.story, plan.branch, target)
        self.project.repo.commit_files(path, None, f"[impl] {held.story} {held.title}")

    def _outcome(self, held: Task) -> Data:
        now = people.known_task(self.project, held.id)
        seen = self.project.evidence.of_story(story_of(held.id), task=held.id, attempt=held.attempt)
        return {
            "task": now.id,
            "status": now.status.value,
            "reason": now.reason,
            "gates": [_seen(item) for item in seen],
        }

    def evidence(self, task: str, evidence_id: str) -> Data:
        """The newest evidence of each gate; with an id, that one with the end of its output."""
        from oodatcaa.app.evidence import stored

        if evidence_id:
            item = self.project.evidence.load(evidence_id)
            return {**_seen(item), "command": item.command, "output": item.output_tail}
        return {"task": task, "gates": [_seen(item) for item in stored(self.project, task)]}

    def plan(self, story: str, schema: bool) -> Data:
        """The newest plan of a story, or the schema of a plan record."""
        if schema:
            return Plan.model_json_schema()
        return self._plan(story_of(story)).model_dump(mode="json", exclude_defaults=True)

    def log(self, task: str, lines: int) -> list[str]:
        events = [
            item.event for item in self.project.store.history() if task in ("", item.event.subject)
        ]
        return [_line(event) for event in events[-min(lines, LOG_LINES) :]]

    def _plan(self, story_id: str) -> Plan:
        story = people.known_task(self.project, story_id)
        version = story.plan_version if isinstance(story, Story) else 0
        if version == 0:
            raise OodatcaaError(
                "plan.none", f"{story_id} has no plan yet", hint="a planner claims it first"
            )
        return self.project.plans.load(story_id, version)


def _step(plan: Plan, number: int) -> Data:
    step = plan.steps[number - 1]
    found: Data = {"number": number, "title": step.title, "what": step.what}
    found["must_hold_afterwards"] = list(step.exit_gates)
    if step.command:
        found["command"] = step.command
    if step.deliverables:
        found["deliverables"] = list(step.deliverables)
    return found


def _gates(plan: Plan, held: Subtask) -> Data:
    exits = plan.exit_gates.get(held.id, ())
    tests = plan.test_plan
    return {
        "exit_gates": [_gate(gate) for gate in exits],
        "acceptance": [_gate(gate) for gate in (*tests.acceptance, *tests.quality_gates)],
    }


def _gate(gate: GateSpec) -> str:
    return f"{gate.id} {gate.name}: {gate_rule(gate)}"


def _seen(item: Evidence) -> Data:
    return {
        "id": item.id,
        "gate": f"{item.gate.id} {item.gate.name}",
        "verdict": item.verdict.value,
        "detail": item.detail,
        "commit": item.commit[:12],
    }


def _line(event: Event) -> str:
    moved = f" {event.before} -> {event.after}" if event.before or event.after else ""
    return f"{event.at:%Y-%m-%d %H:%M:%S}Z {event.actor} {event.subject}{moved}: {event.text}"


def open_desk(start: Path | None, owner: str) -> OutsideDesk:
    from oodatcaa.app.project import open_project

    return OutsideDesk(open_project(start), owner)
