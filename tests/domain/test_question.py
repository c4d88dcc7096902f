"""Which of a plan's questions are still open."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from oodatcaa.domain.question import Answer, Asks, Question, unanswered

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("asks", "asked_anew"), [(Asks.VERIFY, True), (Asks.DECIDE, False), (Asks.ACT, False)]
)
def test_a_look_counts_for_the_work_that_was_looked_at_and_a_decision_for_good(
    asks: Asks, asked_anew: bool
) -> None:
    question = Question(asks=asks, title="step 2", text="Is it blue?")
    other = Question(asks=asks, title="step 3", text="Is it blue?")
    answer = Answer(
        title="step 2", question="Is it blue?", after=("T001-B01",), by="ada", why="yes", at=NOW
    )
    assert unanswered((question, other), (), ("T001-B01",)) == (question, other)
    assert unanswered((question, other), (answer,), ("T001-B01",)) == (other,)
    built_anew = unanswered((question,), (answer,), ("T001-B03",))
    assert built_anew == ((question,) if asked_anew else ())
