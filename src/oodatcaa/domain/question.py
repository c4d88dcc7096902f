"""What a plan wants to hear from a person before some of its work begins."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record, Utc


class Asks(StrEnum):
    """`verify`: look at what was built; `decide`: choose; `act`: do what no agent can."""

    VERIFY = "verify"
    DECIDE = "decide"
    ACT = "act"


class Question(Record):
    asks: Asks
    title: NonEmpty
    text: NonEmpty = Field(description="everything that the person has to read, word for word")


class Answer(Record):
    """A person's word on one question, told to whoever works on."""

    title: NonEmpty
    question: NonEmpty
    after: tuple[str, ...] = Field(
        default=(), description="the subtasks whose work was there to be looked at"
    )
    by: NonEmpty
    why: NonEmpty
    at: Utc


def unanswered(
    questions: Iterable[Question], answers: Iterable[Answer], after: tuple[str, ...]
) -> tuple[Question, ...]:
    """The questions that are still open for a subtask that begins after the subtasks `after`.

    A look at work counts for that work alone: what was built anew is looked at anew. A decision
    stays decided.
    """
    given = tuple(answers)
    return tuple(
        question
        for question in questions
        if not any(
            answer.question == question.text
            and answer.title == question.title
            and (question.asks is not Asks.VERIFY or answer.after == after)
            for answer in given
        )
    )
