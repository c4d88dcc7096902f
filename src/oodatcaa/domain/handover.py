"""What every hand-over shares: who holds the task, and what follows from the last subtask."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.board import Board, Event
from oodatcaa.domain.lifecycle import S, is_cancelled, is_done, move, moved_event, put
from oodatcaa.domain.negotiation import held_task
from oodatcaa.domain.task import Approval, Story, StoryStatus, Subtask, SubtaskKind
from oodatcaa.errors import RefusedError


def held_story(board: Board, story: str, owner: str, attempt: int, *states: StoryStatus) -> Story:
    held = held_task(board, story, owner, attempt, code="submission.late")
    if not isinstance(held, Story):
        raise RefusedError("submission.wrong_task", f"{story} is no story", hint="oodatcaa status")
    if states and held.status not in states:
        raise RefusedError(
            "submission.wrong_state",
            f"{story} is {held.status.value}; this is handed in from "
            + " or ".join(state.value for state in states),
            hint=f"oodatcaa show {story}",
        )
    return held


def held_subtask(
    board: Board, subtask: str, owner: str, attempt: int, kind: SubtaskKind
) -> Subtask:
    held = held_task(board, subtask, owner, attempt, code="submission.late")
    if not isinstance(held, Subtask) or held.kind is not kind:
        raise RefusedError(
            "submission.wrong_task",
            f"{subtask} is no {kind.value} subtask",
            hint=f"oodatcaa show {subtask}",
        )
    return held


def settle(
    board: Board, story_id: str, actor: str, now: datetime
) -> tuple[Board, tuple[Event, ...]]:
    """A story whose every live subtask is done becomes ready for the integrator."""
    story = board.story_by_id[story_id]
    live = [item for item in board.subtasks_of(story_id) if not is_cancelled(item)]
    if story.status is not S.PLANNING_COMPLETE or not all(is_done(item) for item in live):
        return board, ()
    if not any(item.kind is SubtaskKind.TEST for item in live):
        return board, ()
    text = f"every subtask of {story_id} is done"
    if story.approval is Approval.MERGE:
        reason = f"{text}: a person has to approve the merge"
        ready = move(story, S.NEEDS_HUMAN, now, reason=reason, waits_for=Approval.MERGE)
    else:
        ready = move(story, S.READY_FOR_INTEGRATOR, now)
    event = moved_event(story, ready, actor, now, text)
    return put(board, ready), (event,)
