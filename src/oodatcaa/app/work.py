"""Do the work of one claim: call the role, let the framework check, submit, report.

Every function here runs under a heartbeat (see `app.agent`). A lost lease surfaces at the
submission, where the attempt number decides; the evidence gathered until then is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from oodatcaa.app.allowing import only_allowed
from oodatcaa.app.checking import Checker, story_gates
from oodatcaa.app.claimed import Claimed, watching_outside
from oodatcaa.app.desk import StoryWorkspace
from oodatcaa.app.plan_work import do_adapt, do_plan
from oodatcaa.app.starting import step_kinds, tidy_worktree
from oodatcaa.app.tested import commit_to_test
from oodatcaa.domain import submission
from oodatcaa.domain.evidence import Evidence, GateSpec
from oodatcaa.domain.plan import Plan, StepKind
from oodatcaa.domain.report import Metric
from oodatcaa.domain.task import Failure, Role, Subtask
from oodatcaa.errors import StateError
from oodatcaa.roles.agent_reviewer import review
from oodatcaa.roles.builder import build
from oodatcaa.roles.desk import BuildResult
from oodatcaa.roles.records import AgentFailedError
from oodatcaa.roles.tester import Examination, examine
from oodatcaa.views.units import words


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
    with watching_outside(claimed) if outside else nullcontext():
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
    with watching_outside(claimed), place as checkout:
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
