"""One claim, what is needed to work on it, and where its agent looks around."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from oodatcaa.app.accepted import accepted_plan
from oodatcaa.app.activity import Broadcast
from oodatcaa.app.desk import Workshop
from oodatcaa.app.isolation import watching
from oodatcaa.app.project import Project
from oodatcaa.app.reports import compose, report_name, write_report
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.report import Report
from oodatcaa.domain.task import Role, Story, Task
from oodatcaa.roles.desk import Desk


class StoppedError(Exception):
    """The agent was asked to stop (Ctrl-C, lost lease): nothing is submitted, nothing is lost."""


@dataclass(frozen=True)
class Claimed:
    """One claim and everything that is needed to work on it."""

    project: Project
    workshop: Workshop
    desk: Desk
    broadcast: Broadcast
    task: Task
    owner: str
    role: Role
    started_at: datetime
    should_stop: Callable[[], bool]

    @property
    def attempt(self) -> int:
        return self.task.attempt

    def story(self) -> Story:
        if isinstance(self.task, Story):
            return self.task
        return self.project.board().story_by_id[self.task.story]

    def plan(self) -> Plan:
        story = self.story()
        return accepted_plan(self.project, story)

    def composed(
        self,
        outcome: str,
        plan: Plan | None,
        evidence: tuple[Evidence, ...] = (),
        **parts: object,
    ) -> Report:
        """The completion report of this claim as the board stands now; it is not written."""
        story = self.project.board().story_by_id[self.story().id]
        return compose(
            self.project,
            task=self.task,
            story=story,
            role=self.role,
            agent=self.owner,
            attempt=self.attempt,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            outcome=outcome,
            plan=plan,
            evidence=evidence,
            **parts,
        )

    def report(
        self,
        outcome: str,
        plan: Plan | None,
        evidence: tuple[Evidence, ...] = (),
        **parts: object,
    ) -> None:
        report = self.composed(outcome, plan, evidence, **parts)
        version = plan.version if plan else 0
        write_report(self.project, report, report_name(self.role, self.task, version))

    def stop_if_asked(self) -> None:
        if self.should_stop():
            raise StoppedError


@contextmanager
def looking_around(claimed: Claimed, name: str) -> Iterator[Desk]:
    """The claim's desk; for an external agent with a throw-away checkout of the branch `name`, for
    an agent never works in the checkout of a person. What it changes elsewhere refuses it."""
    agents = claimed.desk.agents
    if agents is None or agents.acting().builtin:
        yield claimed.desk
        return
    repo = claimed.project.repo
    label = f"{claimed.role.value}-{claimed.task.id}"
    with watching_outside(claimed), repo.check_worktree(repo.resolve(name), label) as path:
        yield replace(claimed.desk, checkout=lambda: path)


def watching_outside(claimed: Claimed) -> AbstractContextManager[None]:
    return watching(claimed.project, claimed.task.id, claimed.attempt, claimed.owner)
