"""Verbs for people and outside agents: claim, heartbeat, submit, release, approve, cancel …"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from oodatcaa.app import claims
from oodatcaa.app.activity import Broadcast
from oodatcaa.app.hands import refuse_agents_hands
from oodatcaa.app.isolation import keep_look, kept_look, look, refuse_trespass
from oodatcaa.app.project import Project
from oodatcaa.domain import people, submission
from oodatcaa.domain.evidence import Waiver
from oodatcaa.domain.goal_gates import goal_gates, person_gates
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.states import role_holding, role_wanted, tasks_of
from oodatcaa.domain.task import Artefact, Failure, ProcessLease, Role, Story, Subtask, Task
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.roles.desk import BuildResult


def gate_ids(plan: Plan) -> tuple[str, ...]:
    """Every gate that can decide about a story, the framework's own additions included."""
    tests = plan.test_plan
    exits = [gate for gates in plan.exit_gates.values() for gate in gates]
    goals = (*goal_gates(plan.goals), *person_gates(plan.goals))
    every = (*exits, *tests.quality_gates, *tests.acceptance, *goals)
    return tuple(dict.fromkeys([*(gate.id for gate in every), "TX1", "M1"]))


def me() -> str:
    """The name under which a person acts unless told otherwise."""
    return getpass.getuser()


def known_task(project: Project, task_id: str) -> Task:
    """Raises RefusedError for an id that is not on the board."""
    task = project.board().find(task_id)
    if task is None:
        raise RefusedError(
            "task.unknown", f"there is no task {task_id}", hint="oodatcaa status lists them"
        )
    return task


def claim_task(
    project: Project,
    task_id: str | None,
    role: Role | None,
    owner: str,
    *,
    at_terminal: bool = False,
) -> Task:
    """A manual lease on a named task, or on the first one offered to a role.

    Stock is taken of what lies outside of a story's worktree: `submit_task` and `release_task`
    refuse what changed there meanwhile. Not for a person `at_terminal`, whose own checkout is
    theirs to edit.
    """
    if task_id is not None and role is None:
        board = project.board()
        task = known_task(project, task_id)
        role = role_wanted(board, task) or role_holding(task)
        if role is None:
            raise RefusedError(
                "claim.not_claimable",
                f"{task_id} is {task.status.value}: {task.reason or 'nobody can claim it now'}",
                hint="oodatcaa negotiate shows what can be claimed",
            )
    if role is None:
        raise OodatcaaError("claim.what", "name a task or a role", hint="oodatcaa negotiate")
    held = claims.claim(
        project.store, project.policy, role=role, owner=owner, task=task_id, manual=True
    )
    if not at_terminal:
        keep_look(project, look(project, held.id, held.attempt), owner)
    return held


def _held(project: Project, task_id: str, owner: str) -> Task:
    task = known_task(project, task_id)
    if task.lease is None or task.lease.owner != owner:
        holder = f"held by {task.lease.owner}" if task.lease else "held by nobody"
        raise RefusedError(
            "lease.not_yours", f"{task_id} is {holder}", hint=f"oodatcaa claim {task_id}"
        )
    return task


def heartbeat_task(project: Project, task_id: str, owner: str) -> Task:
    task = _held(project, task_id, owner)
    return claims.beat(project.store, task=task_id, owner=owner, attempt=task.attempt)


def release_task(project: Project, task_id: str, owner: str, why: str) -> Task:
    """Give a task back. What its holder changed outside of its worktree stays its failure.

    Raises RefusedError `person.needed` for an agent that lets a process's task go, and
    OodatcaaError `isolation`.
    """
    task = _held(project, task_id, owner)
    if isinstance(task.lease, ProcessLease):
        refuse_agents_hands(project, "release", "person.needed")
    refuse_strayed(project, task, owner)
    return claims.let_go(project.store, task=task_id, owner=owner, attempt=task.attempt, why=why)


def submit_task(
    project: Project,
    task_id: str,
    owner: str,
    *,
    plan_file: Path | None,
    failure: str | None,
    say: Callable[[str], None] = print,
) -> Task:
    """Hand in what was done by hand; the framework runs every gate itself.

    A story in planning or adapting needs `plan_file`; a build or test subtask is checked at the
    head of its story's branch; a story in integrating is merged. With `failure` it goes to the
    refiner (or a person) with that reason.
    """
    from oodatcaa.app.claimed import Claimed
    from oodatcaa.app.desk import Workshop
    from oodatcaa.app.work import do_integrate, do_test, finish_build

    task = _held(project, task_id, owner)
    assert task.lease is not None
    role = task.lease.role
    _must_hand_in_itself(task)
    refuse_strayed(project, task, owner)
    if failure is not None:
        return hand_in_failure(project, task, owner, "reported", failure)
    if role in (Role.PLANNER, Role.REFINER):
        return _submit_plan_file(project, task, owner, plan_file)
    broadcast = Broadcast(project.work, owner, role, say)
    workshop = Workshop(project)
    desk = workshop.desk(owner, project.objective(), broadcast=broadcast)
    claimed = Claimed(
        project,
        workshop,
        desk,
        broadcast,
        task,
        owner,
        role,
        task.lease.claimed_at,
        lambda: False,
    )
    with claims.Heartbeat(project.store, task, owner, project.policy.heartbeat_seconds):
        if isinstance(task, Subtask) and role is Role.BUILDER:
            plan = claimed.plan()
            commit = project.repo.resolve(plan.branch)
            finish_build(claimed, plan, BuildResult(commit, (), (), _artefacts(task), (), None))
        elif isinstance(task, Subtask):
            do_test(claimed)
        else:
            do_integrate(claimed)
    broadcast.close()
    return known_task(project, task_id)


def _must_hand_in_itself(task: Task) -> None:
    """What a process of the crew holds it hands in itself, after a look at what its agent did."""
    lease = task.lease
    if isinstance(lease, ProcessLease) and lease.pid != os.getpid():
        raise RefusedError(
            "lease.not_yours",
            f"{task.id} is held by a process ({lease.owner}, pid {lease.pid}), which hands it in",
            hint=f"wait for it, or take it away: oodatcaa release {task.id} --as {lease.owner}",
        )


def refuse_strayed(project: Project, task: Task, owner: str) -> None:
    """When stock was taken at the claim: what changed since outside of the worktree ends the
    attempt, as it would for an agent of the crew. Raises OodatcaaError `isolation`."""
    try:
        before = kept_look(project, task.id, task.attempt)
        if before is not None:
            refuse_trespass(project, before, owner)
    except OodatcaaError as error:
        hand_in_failure(project, task, owner, error.code, error.message)
        raise


def _artefacts(task: Subtask) -> tuple[Artefact, ...]:
    return task.artefacts


def hand_in_failure(project: Project, task: Task, owner: str, kind: str, why: str) -> Task:
    """The attempt is over without work to check: to the refiner, or to a person."""
    failure = Failure(kind=kind, task=task.id, summary=why, at=datetime.now(UTC))
    return project.store.transact(
        lambda board, now: submission.fail_task(
            board, now, task=task.id, owner=owner, attempt=task.attempt, failure=failure
        )
    )


def _submit_plan_file(project: Project, task: Task, owner: str, path: Path | None) -> Task:
    from oodatcaa.app.allowing import unapproved

    assert isinstance(task, Story)
    if path is None:
        raise OodatcaaError(
            "submit.no_plan",
            f"{task.id} is {task.status.value}: what is handed in is a plan record",
            hint=f"oodatcaa submit {task.id} --plan FILE.json (docs/reference/plan.md)",
        )
    plan = _read_plan(project, task, owner, path)
    asked = unapproved(project, task, plan)
    project.plans.propose(plan, task.attempt)
    accepted = project.store.transact(
        lambda board, now: submission.submit_plan(
            board,
            now,
            story=task.id,
            owner=owner,
            attempt=task.attempt,
            plan=plan,
            unapproved=asked,
        )
    )
    project.plans.accept(plan, task.attempt)
    return accepted


def _read_plan(project: Project, story: Story, owner: str, path: Path) -> Plan:
    """The plan in a file, held to the rules for plans from outside.

    Raises OodatcaaError submit.no_plan, plan.invalid with every problem.
    """
    from oodatcaa.app.desk import Workshop
    from oodatcaa.roles.plan_check import handed_in_plan
    from oodatcaa.roles.planner.imported import refuse_unapproved

    refuse_unapproved(story)
    desk = Workshop(project).desk(owner, project.objective())
    plan: Plan | None = None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OodatcaaError(
            "submit.no_plan", f"there is no file {path}", hint="check it"
        ) from error
    except (ValueError, RecursionError) as error:
        problems = [f"Plan: the JSON can not be read: {error}"]
    else:
        plan, problems = handed_in_plan(desk, project.board(), story, data)
    if plan is None:
        raise OodatcaaError(
            "plan.invalid",
            f"{path} is not a valid plan: {len(problems)} problem{'s'[: len(problems) != 1]}",
            hint="mend it and submit again; the claim is still yours",
            details=problems,
        )
    return plan


def approve_story(project: Project, story: str, by: str, why: str) -> Story:
    """Raises RefusedError `person.needed` for an agent of the crew, and what the rule raises."""
    _no_agent(project, by, "approve")
    return project.store.transact(
        lambda board, now: people.approve(board, now, story=story, by=by, why=why)
    )


def reject_story(project: Project, story: str, by: str, why: str) -> Story:
    """Raises RefusedError `person.needed` for an agent of the crew, and what the rule raises."""
    _no_agent(project, by, "reject")
    return project.store.transact(
        lambda board, now: people.reject(board, now, story=story, by=by, why=why)
    )


def cancel_task(project: Project, task: str, by: str, why: str) -> Task:
    """Raises RefusedError `person.needed` for an agent of the crew, and what the rule raises."""
    _no_agent(project, by, "cancel")
    return project.store.transact(
        lambda board, now: people.cancel(board, now, task=task, by=by, why=why)
    )


def waive_gate(project: Project, story: str, gate: str, by: str, why: str, hours: float) -> Story:
    """One gate of a story does not have to pass for `hours`; written down with who and why.

    Raises RefusedError: waive.no_reason, waive.not_a_person, waive.no_plan, waive.unknown_gate,
    and what
    `domain.people.waive` raises.
    """
    if not why.strip():
        raise RefusedError(
            "waive.no_reason",
            "a waiver needs a reason",
            hint=f"oodatcaa waive {story} {gate} --why …",
        )
    _must_be_a_person(project, by)
    _must_be_a_gate(project, story, gate)
    return project.store.transact(
        lambda board, now: people.waive(
            board,
            now,
            story=story,
            waiver=Waiver(gate_id=gate, by=by, why=why, at=now, until=now + timedelta(hours=hours)),
        )
    )


def _no_agent(project: Project, name: str, verb: str) -> None:
    """Whoever works as a process of the crew can not decide for a person."""
    refuse_agents_hands(project, verb, "person.needed")
    held = [
        task.id
        for task in tasks_of(project.board())
        if isinstance(task.lease, ProcessLease) and task.lease.owner == name
    ]
    if held or _is_crew(project, name):
        what = f"works on {held[0]}" if held else "is an agent of the crew"
        raise RefusedError(
            "person.needed",
            f"{name} {what}; only a person can {verb}",
            hint=f"a person types it: oodatcaa {verb} … --as YOUR-NAME",
        )


def _is_crew(project: Project, name: str) -> bool:
    crew = {f"{role.value}-" for role in Role} | {
        f"{item.name}-" for item in project.roster.definitions
    }
    return any(name.startswith(start) for start in crew)


def _must_be_a_person(project: Project, name: str) -> None:
    """An agent of the crew, or whoever holds a task under that name, can not waive."""
    refuse_agents_hands(project, "waive", "waive.not_a_person")
    holds = [
        task.id
        for task in tasks_of(project.board())
        if task.lease is not None and task.lease.owner == name
    ]
    if holds or _is_crew(project, name):
        what = f"holds {holds[0]}" if holds else "is an agent of the crew"
        raise RefusedError(
            "waive.not_a_person",
            f"{name} {what}; who does the work can not waive its checks",
            hint="a person waives it: --as YOUR-NAME",
        )


def _asked_about(project: Project, story: Story, plan: Plan) -> tuple[str, ...]:
    """The gate that asks whether the tested commit may change objective, configuration, agents."""
    from oodatcaa.app.ground_rules import asked_gates
    from oodatcaa.app.tested import tested_commit

    try:
        tested = tested_commit(project, story, plan.branch)
        return tuple(g.id for g in asked_gates(project, tested, project.sprint().target_branch))
    except OodatcaaError:
        return ()  # nothing is tested yet


def _must_be_a_gate(project: Project, story: str, gate: str) -> None:
    found = project.board().story_by_id.get(story)
    if found is None:
        return
    if found.plan_version == 0:
        raise RefusedError(
            "waive.no_plan",
            f"{story} has no plan yet, so it has no gate {gate!r} to waive",
            hint=f"wait for its plan: oodatcaa show {story}",
        )
    plan = project.plans.load(story, found.plan_version)
    known = (*gate_ids(plan), *_asked_about(project, found, plan))
    if gate not in known:
        raise RefusedError(
            "waive.unknown_gate",
            f"{story} has no gate {gate!r}; there are {', '.join(known)}",
            hint=f"oodatcaa show {story}",
        )
