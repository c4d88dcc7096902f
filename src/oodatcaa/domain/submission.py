"""Handing in work: what a result does to the board, decided by the evidence alone.

Every function checks the fencing token first. A result of an attempt that is no longer the
current one raises RefusedError `submission.late`: the caller keeps its evidence, the board stays
as it is. A lease past its time to live that nobody took back still counts.
"""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.evidence import Evidence, GateSpec, Verdict, verdict_of
from oodatcaa.domain.handover import held_story, held_subtask, settle
from oodatcaa.domain.lifecycle import (
    B,
    S,
    is_finished,
    move,
    moved_event,
    put,
)
from oodatcaa.domain.negotiation import held_task
from oodatcaa.domain.people import approve, cancel, waive
from oodatcaa.domain.planning import free_subtask_id, submit_plan
from oodatcaa.domain.rounds import free_adapting, rounds_allowed
from oodatcaa.domain.task import (
    Artefact,
    Failure,
    Integration,
    Story,
    Subtask,
    SubtaskKind,
    Task,
)
from oodatcaa.errors import RefusedError

__all__ = [
    "approve",
    "cancel",
    "fail_task",
    "free_subtask_id",
    "give_up",
    "integration_failed",
    "start_over",
    "submit_build",
    "submit_integration",
    "submit_plan",
    "submit_test",
    "waive",
]


def submit_build(
    board: Board,
    now: datetime,
    *,
    subtask: str,
    owner: str,
    attempt: int,
    commit: str,
    artefacts: tuple[Artefact, ...],
    evidence: tuple[Evidence, ...],
    gates: tuple[GateSpec, ...],
    failure: Failure | None,
) -> Decision[Subtask]:
    """Accept a build: `done` when every exit gate holds at `commit`, otherwise `needs_adapt` for
    the subtask and its story. A given `failure` is never overruled by passed gates.

    Raises RefusedError: submission.late, .wrong_task, .no_commit, .evidence_mismatch.
    """
    held = held_subtask(board, subtask, owner, attempt, SubtaskKind.BUILD)
    return _judge(board, now, held, commit, artefacts, evidence, gates, failure)


def submit_test(
    board: Board,
    now: datetime,
    *,
    subtask: str,
    owner: str,
    attempt: int,
    commit: str,
    artefacts: tuple[Artefact, ...] = (),
    evidence: tuple[Evidence, ...],
    gates: tuple[GateSpec, ...],
    failure: Failure | None = None,
) -> Decision[Subtask]:
    """Accept a verification: `done` when all criteria and gates hold at `commit`. The last
    subtask that becomes done makes the story `ready_for_integrator` with that commit.

    Raises RefusedError like `submit_build`.
    """
    held = held_subtask(board, subtask, owner, attempt, SubtaskKind.TEST)
    return _judge(board, now, held, commit, artefacts, evidence, gates, failure)


def _judge(
    board: Board,
    now: datetime,
    held: Subtask,
    commit: str,
    artefacts: tuple[Artefact, ...],
    evidence: tuple[Evidence, ...],
    gates: tuple[GateSpec, ...],
    failure: Failure | None,
) -> Decision[Subtask]:
    if failure is None and not commit:
        raise RefusedError(
            "submission.no_commit",
            f"{held.id} was handed in without a commit",
            hint="commit the work, then hand it in again",
        )
    _check_evidence(held, commit, evidence)
    story = board.story_by_id[held.story]
    problems = verdict_of(evidence, gates) + _unwaived(story, evidence, now)
    ids = tuple(item.id for item in evidence)
    if problems and failure is None:
        kind = _kind(evidence, gates, problems)
        failure = Failure(
            kind=kind, task=held.id, summary=problems[0], gates=problems, evidence=ids, at=now
        )
    if failure is not None:
        held = held.evolve(commit=commit, artefacts=artefacts, evidence=held.evidence + ids)
        return _failed(board, now, held, failure)
    return _passed(board, now, held, commit, artefacts, ids)


def _kind(
    evidence: tuple[Evidence, ...], gates: tuple[GateSpec, ...], problems: tuple[str, ...]
) -> str:
    """`not_run` when nothing failed but something could not be checked: building again would not
    help, a person may waive it or bring what was missing."""
    left = [item for item in evidence if not item.acceptable]
    only = len(left) == len(problems) and {item.gate.id for item in evidence} >= {
        gate.id for gate in gates
    }
    unchecked = all(item.verdict is Verdict.NOT_RUN for item in left)
    return "not_run" if left and only and unchecked else "gate"


def _check_evidence(held: Subtask, commit: str, evidence: tuple[Evidence, ...]) -> None:
    problems = []
    for item in evidence:
        problems += _elsewhere(item, commit) + _not_of(item, held)
    _refuse_mismatch(held, problems)


def _check_merge_evidence(
    held: Story, commit: str, integration: Integration, evidence: tuple[Evidence, ...]
) -> None:
    problems = []
    for item in evidence:
        shared = item.story == item.task != held.id and item.verdict is Verdict.PASSED
        problems += _elsewhere(item, commit) + ([] if shared else _not_of(item, held))
    if integration.evidence != tuple(item.id for item in evidence):
        problems.append("the proof names other evidence than was handed in")
    _refuse_mismatch(held, problems)


def _elsewhere(item: Evidence, commit: str) -> list[str]:
    if item.commit == commit:
        return []
    return [f"{item.id} was gathered at {item.commit[:12]}, not {commit[:12]}"]


def _not_of(item: Evidence, held: Task) -> list[str]:
    if (item.task, item.attempt) == (held.id, held.attempt):
        return []
    return [
        f"{item.id} belongs to {item.task} attempt {item.attempt}, "
        f"not to {held.id} attempt {held.attempt}"
    ]


def _refuse_mismatch(held: Task, problems: list[str]) -> None:
    if problems:
        raise RefusedError(
            "submission.evidence_mismatch",
            f"evidence of {held.id} does not belong to this submission: {problems[0]}",
            hint=f"oodatcaa submit {held.id} gathers it again",
            details=problems,
        )


def _unwaived(story: Story, evidence: tuple[Evidence, ...], now: datetime) -> tuple[str, ...]:
    """Waived gates for which the story holds no waiver that is still valid."""
    valid = {waiver.gate_id for waiver in story.waivers if waiver.at <= now < waiver.until}
    return tuple(
        f"{item.gate.id} {item.gate.name}: nobody waived it, or the waiver ran out"
        for item in evidence
        if item.verdict is Verdict.WAIVED and item.gate.id not in valid
    )


def _passed(
    board: Board,
    now: datetime,
    held: Subtask,
    commit: str,
    artefacts: tuple[Artefact, ...],
    ids: tuple[str, ...],
) -> Decision[Subtask]:
    actor = held.lease.owner if held.lease else "nobody"
    done = move(
        held,
        B.DONE,
        now,
        commit=commit,
        artefacts=artefacts,
        evidence=held.evidence + ids,
        failure=None,
    )
    gates = "1 gate" if len(ids) == 1 else f"{len(ids)} gates"
    text = f"{held.id} is done: {gates} passed at {commit[:12]}"
    event = moved_event(held, done, actor, now, text, evidence=ids)
    story = board.story_by_id[held.story]
    after = put(board, done, story.evolve(commit=commit))
    after, settled = settle(after, held.story, actor, now)
    return Decision(after, done, (event, *settled))


def _failed(board: Board, now: datetime, held: Subtask, failure: Failure) -> Decision[Subtask]:
    actor = held.lease.owner if held.lease else "nobody"
    failed = move(held, B.NEEDS_ADAPT, now, reason=failure.summary, failure=failure)
    event = moved_event(
        held,
        failed,
        actor,
        now,
        f"{held.id} failed: {failure.summary}",
        details=failure.gates,
        evidence=failure.evidence,
    )
    story = board.story_by_id[held.story]
    if story.status is not S.PLANNING_COMPLETE:
        # Somebody adapts it or decides about it already; the failure is there for them to see.
        noted = story if story.failure else story.evolve(failure=failure)
        return Decision(put(board, failed, noted), failed, (event,))
    waits = move(story, S.NEEDS_ADAPT, now, reason=failure.summary, failure=failure)
    moved = moved_event(story, waits, actor, now, f"{held.id} failed ({failure.kind})")
    return Decision(put(board, failed, waits), failed, (event, moved))


def fail_task(
    board: Board, now: datetime, *, task: str, owner: str, attempt: int, failure: Failure
) -> Decision[Task]:
    """A step crashed before there was anything to hand in.

    Subtask: `needs_adapt`, with its story. Story: `integrating` goes to `needs_adapt`; a crashed
    planner or refiner can not be helped by the refiner, so a person is asked.
    """
    held = held_task(board, task, owner, attempt, code="submission.late")
    if isinstance(held, Subtask):
        decision = _failed(board, now, held, failure)
        return Decision(decision.board, decision.value, decision.events)
    human = held.status is not S.INTEGRATING
    stopped = _stop(board, now, held, failure.summary, failure, human=human)
    return Decision(stopped.board, stopped.value, stopped.events)


def start_over(
    board: Board, now: datetime, *, story: str, owner: str, attempt: int, lesson: str
) -> Decision[Story]:
    """The refiner throws the plan away: back to the planner, who reads `lesson`.

    It counts as an adaptation round. Unfinished subtasks are cancelled; what is committed on the
    branch stays. Raises RefusedError: submission.late, .wrong_state, plan.rounds_used_up.
    """
    held = held_story(board, story, owner, attempt, S.ADAPTING)
    allowed = rounds_allowed(board, held)
    if held.adapt_round >= allowed:
        raise RefusedError(
            "plan.rounds_used_up",
            f"{held.adapt_round} of {allowed} adaptation rounds are used up",
            hint=f"oodatcaa approve {story} allows one more",
        )
    again = move(
        held,
        S.NEEDS_PLAN,
        now,
        reason=lesson,
        failure=None,
        granted=False,
        adapt_round=held.adapt_round + 1,
        lessons=(*held.lessons, lesson),
    )
    board = put(board, again)
    events = [moved_event(held, again, owner, now, f"start over: {lesson}")]
    for item in board.subtasks_of(story):
        if not is_finished(item):
            gone = move(item, B.CANCELLED, now, reason="the story starts over")
            board = put(board, gone)
            events.append(moved_event(item, gone, owner, now, f"{item.id}: {gone.reason}"))
    return Decision(board, again, tuple(events))


def give_up(
    board: Board, now: datetime, *, story: str, owner: str, attempt: int, reason: str
) -> Decision[Story]:
    """The planner, refiner or integrator sees no way on: `needs_human` with `reason`."""
    held = held_story(board, story, owner, attempt)
    return _stop(board, now, held, reason, held.failure, human=True)


def integration_failed(
    board: Board,
    now: datetime,
    *,
    story: str,
    owner: str,
    attempt: int,
    failure: Failure,
    human: bool,
) -> Decision[Story]:
    """The merge or its gates failed: to a person (a dirty target, say) or to the refiner."""
    held = held_story(board, story, owner, attempt, S.INTEGRATING)
    return _stop(board, now, held, failure.summary, failure, human=human)


def _stop(
    board: Board, now: datetime, held: Story, reason: str, failure: Failure | None, *, human: bool
) -> Decision[Story]:
    actor = held.lease.owner if held.lease else "nobody"
    to = S.NEEDS_HUMAN if human else S.NEEDS_ADAPT
    stopped = move(held, to, now, reason=reason or "no reason was given", failure=failure)
    board = put(board, stopped)
    board, freed = free_adapting(board, stopped, actor, now)
    event = moved_event(
        held,
        stopped,
        actor,
        now,
        f"{held.id}: {stopped.reason}",
        details=failure.gates if failure else (),
        evidence=failure.evidence if failure else (),
    )
    return Decision(board, stopped, (event, *freed))


def submit_integration(
    board: Board,
    now: datetime,
    *,
    story: str,
    owner: str,
    attempt: int,
    integration: Integration,
    commit: str,
    evidence: tuple[Evidence, ...],
    gates: tuple[GateSpec, ...],
) -> Decision[Story]:
    """The story is in the target branch, and `integration` proves it: `done`.

    `evidence` was gathered at `commit`, the merge that was checked, and holds for every one of
    `gates`. A gate that ran once for several stories of a batch is evidence of one of them.
    Raises RefusedError: submission.late, .no_evidence, .evidence_mismatch, .gates.
    """
    held = held_story(board, story, owner, attempt, S.INTEGRATING)
    if not integration.evidence:
        raise RefusedError(
            "submission.no_evidence",
            f"no gate ran on the merge of {story}",
            hint=f"oodatcaa submit {story} runs them",
        )
    _check_merge_evidence(held, commit, integration, evidence)
    problems = verdict_of(evidence, gates) + _unwaived(held, evidence, now)
    if problems:
        raise RefusedError(
            "submission.gates",
            f"the gates do not hold on the merge of {story}: {problems[0]}",
            hint=f"oodatcaa submit {story} runs them again",
            details=problems,
        )
    done = move(
        held,
        S.DONE,
        now,
        integration=integration,
        failure=None,
        evidence=held.evidence + integration.evidence,
    )
    actor = held.lease.owner if held.lease else "nobody"
    merge = integration.merge_commit[:12]
    text = f"{story} is in {integration.target} as {merge}, tagged {integration.tag}"
    event = moved_event(
        held,
        done,
        actor,
        now,
        text,
        details=integration.artefacts,
        evidence=integration.evidence,
    )
    return Decision(put(board, done), done, (event,))
