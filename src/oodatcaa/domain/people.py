"""What people may decide: let a story go on, cancel a task, waive one gate for a while."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.asking import answered, ask, asked_now
from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.evidence import Waiver
from oodatcaa.domain.lifecycle import (
    B,
    S,
    is_cancelled,
    is_done,
    is_finished,
    move,
    moved_event,
    put,
    undone,
    waiting_status,
)
from oodatcaa.domain.question import Asks
from oodatcaa.domain.rounds import blocked_reason, held_back, rounds_left
from oodatcaa.domain.source import Approval as Allowed
from oodatcaa.domain.task import Approval, Failure, Story, StoryStatus, Subtask, SubtaskKind, Task
from oodatcaa.errors import RefusedError


def _story(board: Board, story: str) -> Story:
    found = board.story_by_id.get(story)
    if found is None:
        raise RefusedError("task.unknown", f"there is no story {story}", hint="oodatcaa status")
    return found


def _by_hand(
    before: Task, after: Task, by: str, now: datetime, text: str, details: tuple[str, ...] = ()
) -> Event:
    event = moved_event(before, after, by, now, text, kind=EventKind.MANUAL, details=details)
    return event.evolve(role=None)


def approve(board: Board, now: datetime, *, story: str, by: str, why: str) -> Decision[Story]:
    """Let a story that needs a human go on from where it stopped, or say yes to its plan or merge.

    Lost leases are forgiven; when it goes on to the refiner, at least one more adaptation round
    is allowed. Dependencies that were cancelled are dropped: approving says that it works without
    them. To a question of the plan `why` is the answer; when another one follows at that place,
    the story waits with that. An imported story's commands are approved with it, also while it is
    still blocked.
    Raises RefusedError: task.unknown, approve.not_waiting.
    """
    paused = _story(board, story)
    if paused.source is not None and paused.source.wants_approval:
        paused = paused.evolve(
            source=paused.source.evolve(approved=Allowed(by=by, why=why, at=now))
        )
        board = put(board, paused)
        if paused.status in (S.BLOCKED, S.NEEDS_PLAN):
            return Decision(board, paused, (_allowed(paused, by, why, now),))
    if paused.status is not S.NEEDS_HUMAN:
        raise RefusedError(
            "approve.not_waiting",
            f"{story} is {paused.status.value}; only a story that needs a human is approved",
            hint=f"oodatcaa show {story}",
        )
    question = asked_now(board, paused)
    paused = answered(board, paused, by, why, now)
    board = put(board, paused)
    gone = [
        item if isinstance(item, str) else item.id
        for item in undone(board, paused.depends_on)
        if isinstance(item, str) or is_cancelled(item)
    ]
    kept = tuple(item for item in paused.depends_on if item not in gone)
    paused_now = paused.evolve(depends_on=kept)
    to = _goes_on_to(board, paused_now)
    changes = {**_changes(board, paused_now, to, now), "waits_for": Approval.NONE}
    approved = move(paused_now, to, now, **changes)
    after = put(board, approved)
    details = [f"works without {item}, which was cancelled" for item in gone]
    follow: list[Event] = []
    if to is S.PLANNING_COMPLETE:
        for item in after.subtasks_of(story):
            if item.status is B.NEEDS_HUMAN:
                waits = undone(after, item.depends_on)
                status = waiting_status(item.kind, blocked=bool(waits))
                reason = blocked_reason(after, item) if waits else ""
                free = move(item, status, now, reason=reason)
                after = put(after, free)
                follow.append(_by_hand(item, free, by, now, f"{item.id} goes on with {story}"))
    if approved.extra_rounds != paused.extra_rounds:
        details.append("one more adaptation round is allowed")
    what = {Approval.PLAN: "the plan of ", Approval.MERGE: "the merge of "}
    text = f"{by} approved {what.get(paused.waits_for, '')}{story}: {why}"
    if question is not None:
        text = f"{by} answered {question.title} of {story}: {why}"
    event = _by_hand(paused, approved, by, now, text, tuple(details))
    after, asked = ask(after, story, by, now)
    return Decision(after, after.story_by_id[story], (event, *follow, *asked))


def reject(board: Board, now: datetime, *, story: str, by: str, why: str) -> Decision[Story]:
    """Say no to work that the plan wants looked at: the refiner gets `why`, with one more round
    when none is left, and the work before the question is done again.

    Raises RefusedError: task.unknown, reject.nothing when no such question is asked now.
    """
    paused = _story(board, story)
    question = asked_now(board, paused)
    if question is None or question.asks is not Asks.VERIFY:
        what = f"{story} asks for no look at its work"
        raise RefusedError(
            "reject.nothing",
            what if question is None else f"{what}: it asks {question.title}",
            hint=f"oodatcaa approve {story} --why 'your answer', or oodatcaa cancel {story}",
        )
    looked_at = board.subtask_by_id[paused.asked_for].depends_on
    failure = Failure(
        kind="refused",
        task=looked_at[-1] if looked_at else story,
        summary=f"{by} said no to {question.title}: {why}",
        at=now,
    )
    failed = paused.evolve(failure=failure, asked_for="")
    after = move(failed, S.NEEDS_ADAPT, now, **_changes(board, failed, S.NEEDS_ADAPT, now))
    after = after.evolve(reason=failure.summary)
    event = _by_hand(paused, after, by, now, failure.summary)
    return Decision(put(board, after), after, (event,))


def _allowed(story: Story, by: str, why: str, now: datetime) -> Event:
    assert story.source is not None
    return Event(
        kind=EventKind.MANUAL,
        at=now,
        actor=by,
        subject=story.id,
        text=f"{by} approved the {story.source.commands} commands of {story.source.file}: {why}",
    )


def _goes_on_to(board: Board, story: Story) -> StoryStatus:
    live = [item for item in board.subtasks_of(story.id) if not is_cancelled(item)]
    if undone(board, story.depends_on) or (story.plan_version == 0 and held_back(board, story)):
        return S.BLOCKED
    if story.plan_version == 0:
        return S.NEEDS_PLAN
    if story.waits_for is Approval.MERGE:
        return S.READY_FOR_INTEGRATOR
    if story.waits_for is Approval.PLAN:
        return S.PLANNING_COMPLETE
    was_adapting = story.paused_from in (S.ADAPTING, S.NEEDS_ADAPT)
    failed = any(item.status is B.NEEDS_ADAPT for item in live)
    if was_adapting or failed or not any(item.kind is SubtaskKind.TEST for item in live):
        return S.NEEDS_ADAPT
    if all(is_done(item) for item in live):
        return S.READY_FOR_INTEGRATOR
    lost = {item.id for item in board.subtasks_of(story.id) if is_cancelled(item)}
    stuck = any(needed in lost for item in live for needed in item.depends_on)
    return S.NEEDS_ADAPT if stuck else S.PLANNING_COMPLETE


def _changes(board: Board, story: Story, to: StoryStatus, now: datetime) -> dict[str, object]:
    if to is S.BLOCKED:
        return {"reason": blocked_reason(board, story)}
    if to is S.NEEDS_ADAPT:
        limit = board.sprint.max_adapt_rounds if board.sprint else 0
        extra = max(story.extra_rounds, story.adapt_round + 1 - limit)
        if rounds_left(board) == 0:
            extra = max(extra, story.extra_rounds + 1)
        # The refiner decides on a failure; what a person cancelled is one to plan around.
        failure = story.failure or Failure(
            kind="stuck", task=story.id, summary=story.reason, at=now
        )
        kept = {"reason": story.reason, "extra_rounds": extra, "failure": failure}
        return {**kept, "granted": True}
    return {"failure": None}


def cancel(board: Board, now: datetime, *, task: str, by: str, why: str) -> Decision[Task]:
    """Cancel a story with its subtasks, or one subtask.

    Whoever works on it learns so at the next heartbeat. Stories that wait for a cancelled one,
    and the story of a cancelled subtask, need a human. Raises RefusedError: task.unknown,
    cancel.finished.
    """
    found = board.find(task)
    if found is None:
        raise RefusedError("task.unknown", f"there is no task {task}", hint="oodatcaa status")
    if is_finished(found):
        raise RefusedError(
            "cancel.finished",
            f"{task} is {found.status.value} already",
            hint=f"oodatcaa show {task}",
        )
    text = f"{by} cancelled {task}: {why}"
    if isinstance(found, Story):
        return _cancel_story(board, now, found, by, why, text)
    gone = move(found, B.CANCELLED, now, reason=why)
    board = put(board, gone)
    events = [_by_hand(found, gone, by, now, text)]
    story = board.story_by_id[found.story]
    if story.status is S.PLANNING_COMPLETE:
        reason = f"{task} was cancelled: {why}"
        stopped = move(story, S.NEEDS_HUMAN, now, reason=reason)
        board = put(board, stopped)
        events.append(_by_hand(story, stopped, by, now, reason))
    return Decision(board, gone, tuple(events))


def _cancel_story(
    board: Board, now: datetime, story: Story, by: str, why: str, text: str
) -> Decision[Task]:
    gone = move(story, S.CANCELLED, now, reason=why)
    board = put(board, gone)
    events = [_by_hand(story, gone, by, now, text)]
    for item in board.subtasks_of(story.id):
        if not is_finished(item):
            subtask: Subtask = move(item, B.CANCELLED, now, reason=f"{story.id} was cancelled")
            board = put(board, subtask)
            events.append(_by_hand(item, subtask, by, now, f"{item.id} goes with {story.id}"))
    for other in board.stories:
        if story.id in other.depends_on and other.status in (S.BLOCKED, S.NEEDS_PLAN):
            reason = f"depends on {story.id}, which was cancelled: {why}"
            waits = move(other, S.NEEDS_HUMAN, now, reason=reason)
            board = put(board, waits)
            events.append(_by_hand(other, waits, by, now, reason))
    return Decision(board, gone, tuple(events))


def waive(board: Board, now: datetime, *, story: str, waiver: Waiver) -> Decision[Story]:
    """Record that one gate of the story does not have to pass until a moment.

    It replaces an earlier waiver of the same gate. Raises RefusedError: task.unknown,
    waive.finished, waive.over.
    """
    found = _story(board, story)
    if is_finished(found):
        raise RefusedError(
            "waive.finished",
            f"{story} is {found.status.value} already",
            hint=f"oodatcaa show {story}",
        )
    if waiver.until <= now:
        raise RefusedError(
            "waive.over",
            f"the waiver ends {waiver.until:%Y-%m-%d %H:%M} UTC, which is in the past",
            hint=f"oodatcaa waive {story} {waiver.gate_id} --hours 24 --why …",
        )
    others = tuple(item for item in found.waivers if item.gate_id != waiver.gate_id)
    waived = found.evolve(waivers=(*others, waiver))
    event = Event(
        kind=EventKind.WAIVER,
        at=now,
        actor=waiver.by,
        subject=story,
        text=f"{waiver.by} waived {waiver.gate_id} of {story} until "
        f"{waiver.until:%Y-%m-%d %H:%M} UTC: {waiver.why}",
    )
    return Decision(put(board, waived), waived, (event,))
