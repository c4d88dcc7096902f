"""The planner's and the refiner's claims: a plan is made or changed, and handed in."""

from __future__ import annotations

from oodatcaa.app.allowing import unapproved
from oodatcaa.app.claimed import Claimed, looking_around
from oodatcaa.domain import submission
from oodatcaa.domain.adapted import GiveUp
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.report import Deliverable, Metric
from oodatcaa.domain.task import StoryKind
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.custom_refiner import StartOver
from oodatcaa.roles.planning import make_plan
from oodatcaa.roles.refiner import refine
from oodatcaa.views.units import listing


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
