"""Do the work of one claim: call the role, let the framework check, submit, report.

Every function here runs under a heartbeat (see `app.agent`). A lost lease surfaces at the
submission, where the attempt number decides; the evidence gathered until then is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from oodatcaa.app.accepted import accepted_plan
from oodatcaa.app.activity import Broadcast
from oodatcaa.app.allowing import only_allowed, unapproved
from oodatcaa.app.checking import Checker, story_gates
from oodatcaa.app.desk import StoryWorkspace, Workshop
from oodatcaa.app.isolation import watching
from oodatcaa.app.project import Project
from oodatcaa.app.reports import compose, report_name, write_report
from oodatcaa.app.starting import step_kinds, tidy_worktree
from oodatcaa.app.tested import commit_to_test
from oodatcaa.domain import submission
from oodatcaa.domain.adapted import GiveUp
from oodatcaa.domain.evidence import Evidence, GateSpec
from oodatcaa.domain.plan import Plan, StepKind
from oodatcaa.domain.report import Deliverable, Metric, Report
from oodatcaa.domain.task import Failure, Role, Story, StoryKind, Subtask, Task
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.roles.agent_reviewer import review
from oodatcaa.roles.builder import build
from oodatcaa.roles.custom_refiner import StartOver
from oodatcaa.roles.desk import BuildResult, Desk
from oodatcaa.roles.planning import make_plan
from oodatcaa.roles.records import AgentFailedError
from oodatcaa.roles.refiner import refine
from oodatcaa.roles.tester import Examination, examine
from oodatcaa.views.units import listing, words


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
    with _watching(claimed), repo.check_worktree(repo.resolve(name), label) as path:
        yield replace(claimed.desk, checkout=lambda: path)


def _watching(claimed: Claimed) -> AbstractContextManager[None]:
    return watching(claimed.project, claimed.task.id, claimed.attempt, claimed.owner)


def do_plan(claimed: Claimed) -> None:
    story = claimed.story()
    board = claimed.project.board()
    try:
        with looking_around(claimed, claimed.project.sprint().target_branch) as desk:
            plan = make_plan(desk, board, story)
    except OodatcaaError as error:
        claimed.stop_if_asked()
        _give_up(claimed, f"no plan could be made: {error}")
        return
    _submit_plan(claimed, plan)


def do_adapt(claimed: Claimed) -> None:
    story = claimed.story()
    board = claimed.project.board()
    try:
        where = story.branch if claimed.project.repo.try_resolve(story.branch) else ""
        with looking_around(claimed, where or claimed.project.sprint().target_branch) as desk:
            decided = refine(desk, board, story)
    except OodatcaaError as error:
        claimed.stop_if_asked()
        decided = GiveUp(reason=f"no adaptation could be made: {error}")
    if isinstance(decided, GiveUp):
        _give_up(claimed, decided.reason)
        return
    if isinstance(decided, StartOver):
        _start_over(claimed, decided.lesson)
        return
    _submit_plan(claimed, decided)


def _submit_plan(claimed: Claimed, plan: Plan) -> None:
    claimed.stop_if_asked()
    project, story = claimed.project, claimed.story()
    # What an imported plan runs was asked about at its import; the built-in planner makes nothing
    # up: its commands are the objective's.
    agents = claimed.desk.agents
    written = story.kind is StoryKind.CUSTOM and story.source is None
    by_agent = written and agents is not None and not agents.acting().builtin
    asked = unapproved(project, story, plan) if by_agent else ()
    project.plans.propose(plan, claimed.attempt)
    project.store.transact(
        lambda board, now: submission.submit_plan(
            board,
            now,
            story=story.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            plan=plan,
            unapproved=asked,
        )
    )
    project.plans.accept(plan, claimed.attempt)
    claimed.broadcast.say(f"{story.id} plan v{plan.version} accepted")
    folder = project.plans.folder(story.id)
    claimed.report(
        "complete",
        plan,
        summary=_plan_summary(plan),
        decisions=plan.decision.rationale,
        deliverables=tuple(
            Deliverable(path=path.name, size_bytes=path.stat().st_size)
            for path in sorted(folder.glob("*"))
        ),
        metrics=plan_metrics(plan),
        handoff=plan.handoff,
    )


def _plan_summary(plan: Plan) -> tuple[str, ...]:
    lines = [
        f"{len(plan.steps)} steps in {len(plan.subtasks)} subtasks (size {plan.size.value}), "
        f"estimated {plan.estimate_minutes} minutes",
        f"chosen: {plan.decision.chosen}",
        *(f"{item.id}: {item.title}{_steps(item.steps)}" for item in plan.subtasks),
    ]
    if plan.adaptation is not None:
        lines = [*(f"adapted: {rung}" for rung in plan.adaptation.rungs), *lines]
    return tuple(lines)


def _steps(numbers: tuple[int, ...]) -> str:
    if not numbers:
        return ""
    return f" (step{'s' if len(numbers) > 1 else ''} {listing([str(n) for n in numbers])})"


def plan_metrics(plan: Plan) -> tuple[Metric, ...]:
    gates = plan.test_plan
    counts = {
        "alternatives compared": len(plan.alternatives),
        "decision factors": len(plan.decision.factors),
        "steps": len(plan.steps),
        "subtasks": len(plan.subtasks),
        "acceptance criteria": len(gates.acceptance),
        "quality gates": len(gates.quality_gates),
        "risks": len(plan.risks),
        "deliverables": len(plan.deliverables),
    }
    return tuple(
        Metric(name=name, value=str(value), source="counted in the plan record")
        for name, value in counts.items()
    )


def _give_up(claimed: Claimed, reason: str) -> None:
    story = claimed.story()
    claimed.project.store.transact(
        lambda board, now: submission.give_up(
            board,
            now,
            story=story.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            reason=reason,
        )
    )
    claimed.broadcast.say(f"{story.id} needs a person: {reason}")
    plan = claimed.plan() if story.plan_version else None
    claimed.report("needs a person", plan, summary=(reason,))


def _start_over(claimed: Claimed, lesson: str) -> None:
    claimed.stop_if_asked()
    story = claimed.story()
    claimed.project.store.transact(
        lambda board, now: submission.start_over(
            board,
            now,
            story=story.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            lesson=lesson,
        )
    )
    claimed.broadcast.say(f"{story.id} starts over: {lesson}")
    claimed.report("starts over", claimed.plan(), summary=(lesson,))


def workspace_of(claimed: Claimed, plan: Plan) -> StoryWorkspace:
    story = claimed.story()
    base = claimed.project.sprint().target_branch
    return StoryWorkspace(claimed.project, story.id, plan.branch, base)


def do_build(claimed: Claimed) -> None:
    assert isinstance(claimed.task, Subtask)
    plan = claimed.plan()
    workspace = workspace_of(claimed, plan)
    tidy_worktree(claimed.project, claimed.task, claimed.owner, plan)
    # Commands and agents of a plan are hands that are not the framework's own.
    outside = step_kinds(plan, claimed.task) & {StepKind.AGENT, StepKind.COMMAND}
    desk = replace(claimed.desk, verify=partial(_verify, claimed))
    with _watching(claimed) if outside else nullcontext():
        result = build(desk, plan, claimed.story(), claimed.task, workspace)
        claimed.stop_if_asked()
    finish_build(claimed, plan, result)


def _verify(
    claimed: Claimed, gates: tuple[GateSpec, ...], plan: Plan, subtask: Subtask, commit: str
) -> tuple[Evidence, ...]:
    checker = Checker(claimed.project, claimed.desk)
    return checker.run(gates, plan, subtask, commit, say=claimed.broadcast.say)


def finish_build(claimed: Claimed, plan: Plan, result: BuildResult) -> None:
    """Check what was built at its commit and hand it in, or hand in the failure."""
    assert isinstance(claimed.task, Subtask)
    subtask = claimed.task
    gates = plan.exit_gates.get(subtask.id, ())
    evidence: tuple[Evidence, ...] = ()
    if result.failure is None:
        evidence = Checker(claimed.project, claimed.desk).run(
            gates, plan, subtask, result.commit, say=claimed.broadcast.say
        )
        claimed.stop_if_asked()
    claimed.project.store.transact(
        lambda board, now: submission.submit_build(
            board,
            now,
            subtask=subtask.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            commit=result.commit,
            artefacts=result.artefacts,
            evidence=evidence,
            gates=gates,
            failure=result.failure,
        )
    )
    _after_submission(claimed, plan, evidence, result)


def do_test(claimed: Claimed) -> None:
    assert isinstance(claimed.task, Subtask)
    plan, subtask = claimed.plan(), claimed.task
    commit = commit_to_test(claimed.project, plan.story, plan.branch)
    repo, target = claimed.project.repo, claimed.project.sprint().target_branch
    examination = examine(plan, repo.paths_at(commit), repo.links_out(commit, target))
    examination, failure = _reviewed(claimed, plan, examination, commit)
    evidence = Checker(claimed.project, claimed.desk).run(
        examination.gates, plan, subtask, commit, say=claimed.broadcast.say
    )
    claimed.stop_if_asked()
    if examination.veto:
        failure = Failure(
            kind="veto",
            task=subtask.id,
            summary=f"the tester vetoes: {examination.veto[0]}",
            gates=examination.veto,
            at=datetime.now(UTC),
        )
    claimed.project.store.transact(
        lambda board, now: submission.submit_test(
            board,
            now,
            subtask=subtask.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            commit=commit,
            evidence=evidence,
            gates=examination.gates,
            failure=failure,
        )
    )
    _after_submission(claimed, plan, evidence, None, commit=commit)


def _reviewed(
    claimed: Claimed, plan: Plan, examination: Examination, commit: str
) -> tuple[Examination, Failure | None]:
    """The examination with what an external tester adds to it; the framework's checks run also
    when that one fails, but then nobody reviewed the work and it is not accepted."""
    agents = claimed.desk.agents
    if agents is None or agents.acting().builtin:
        return examination, None
    place = claimed.project.repo.check_worktree(commit, f"review-{claimed.task.id}")
    with _watching(claimed), place as checkout:
        try:
            found = review(agents, agents.acting(), claimed.story(), plan, examination, checkout)
            return only_allowed(claimed.project, agents, plan, examination, found), None
        except AgentFailedError as error:
            claimed.stop_if_asked()
            failure = Failure(
                kind=error.kind,
                task=claimed.task.id,
                summary=error.message,
                gates=error.details,
                layer=error.circle or None,
                at=datetime.now(UTC),
            )
            return examination, failure


def _after_submission(
    claimed: Claimed,
    plan: Plan,
    evidence: tuple[Evidence, ...],
    result: BuildResult | None,
    commit: str = "",
) -> None:
    board = claimed.project.board()
    task = board.find(claimed.task.id)
    if task is None:
        raise StateError("queue.task_vanished", f"{claimed.task.id} vanished from the queue")
    accepted = task.status.value == "done"
    outcome = "complete" if accepted else "needs adaptation"
    why = f": {task.failure.summary}" if task.failure and not accepted else ""
    claimed.broadcast.say(f"{task.id} {words(task.status.value)}{why}")
    measured = tuple(
        Metric(
            name=item.gate.bound.metric.replace("_", " "),
            value=item.detail,
            source="recomputed by the framework from the artefacts",
        )
        for item in evidence
        if item.gate.bound is not None and item.measured is not None
    )
    failed = (task.failure.summary,) if task.failure and not accepted else ()
    claimed.report(
        outcome,
        plan,
        evidence,
        actions=result.actions if result else (),
        deliverables=result.deliverables if result else (),
        metrics=(*(result.metrics if result else ()), *measured),
        summary=failed,
        handoff=plan.handoff if result else (),
        commit=result.commit if result else commit,
    )


def do_integrate(claimed: Claimed) -> None:
    from oodatcaa.app.integrate import integrate

    story = claimed.story()
    plan = claimed.plan()
    gates = story_gates(plan)
    outcome = integrate(claimed, story, plan, gates)
    claimed.broadcast.say(f"{story.id} {outcome}")


WORK: dict[Role, Callable[[Claimed], None]] = {
    Role.PLANNER: do_plan,
    Role.BUILDER: do_build,
    Role.TESTER: do_test,
    Role.REFINER: do_adapt,
    Role.INTEGRATOR: do_integrate,
}
