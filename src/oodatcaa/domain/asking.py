"""Stops a story where its plan wants a person's answer, and takes the answer."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.board import Board, Event
from oodatcaa.domain.lifecycle import B, S, move, moved_event, put, undone
from oodatcaa.domain.question import Answer, Question, unanswered
from oodatcaa.domain.task import Story, Subtask


def open_questions(board: Board, subtask: Subtask) -> tuple[Question, ...]:
    """What a person has to answer before `subtask` may begin, in the plan's order."""
    story = board.story_by_id[subtask.story]
    return unanswered(subtask.asks, story.answers, subtask.depends_on)


def asked_now(board: Board, story: Story) -> Question | None:
    """The question that the story waits with; None when it waits for something else."""
    subtask = board.subtask_by_id.get(story.asked_for)
    if subtask is None or story.status is not S.NEEDS_HUMAN:
        return None
    return next(iter(open_questions(board, subtask)), None)


def ask(board: Board, story_id: str, actor: str, now: datetime) -> tuple[Board, tuple[Event, ...]]:
    """The story in `needs_human` when all work before one of its questions is done."""
    story = board.story_by_id[story_id]
    if story.status is not S.PLANNING_COMPLETE:
        return board, ()
    for item in board.subtasks_of(story_id):
        if item.status is not B.BLOCKED or undone(board, item.depends_on):
            continue
        questions = open_questions(board, item)
        if not questions:
            continue
        reason = (
            f"asks before {item.id}: {questions[0].title}: oodatcaa show {story_id}, then "
            f"oodatcaa approve {story_id} --why 'your answer'"
        )
        paused = move(story, S.NEEDS_HUMAN, now, reason=reason, asked_for=item.id)
        event = moved_event(
            story,
            paused,
            actor,
            now,
            f"{item.id} waits for a person's answer: {questions[0].title}",
            details=tuple(line for line in questions[0].text.split("\n") if line.strip()),
        )
        return put(board, paused), (event.evolve(role=None),)
    return board, ()


def answered(board: Board, story: Story, by: str, why: str, now: datetime) -> Story:
    """The story with the answer to what it asks; the same one when it asks nothing."""
    question = asked_now(board, story)
    if question is None:
        return story.evolve(asked_for="") if story.asked_for else story
    answer = Answer(
        title=question.title,
        question=question.text,
        after=board.subtask_by_id[story.asked_for].depends_on,
        by=by,
        why=why,
        at=now,
    )
    return story.evolve(answers=(*story.answers, answer), asked_for="")
