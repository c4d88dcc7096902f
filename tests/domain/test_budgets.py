"""Nine budgets: minutes, tokens and cost of a subtask, a story and a sprint."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from oodatcaa.domain.agents import Call, Limits, Usage
from oodatcaa.domain.budgets import Budgets, over, spent, unsaid
from oodatcaa.domain.rungs import FailureClass, classify
from oodatcaa.domain.task import Failure, Role, story_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USED = Usage(calls=1, seconds=600.0, input_tokens=800, output_tokens=200, cost_usd=0.5)
LIMITS = {
    "minutes": (Limits(minutes=30), "30.0 of 30 minutes"),
    "tokens": (Limits(tokens=3000), "3,000 of 3,000 tokens"),
    "cost": (Limits(cost_usd=1.5), "$1.5000 of $1.5000"),
}
CIRCLES = {
    "subtask": ("T001-B01", "T001-B01", "T001-B01"),
    "story": ("T001", "T001-B01", "T001-B02"),
    "sprint": ("T001-B01", "T002", "T003-B01"),
}


def call(task: str, used: Usage = USED) -> Call:
    return Call(
        id=task,
        agent="a",
        definition="a",
        runner="r",
        role=Role.BUILDER,
        story=story_of(task),
        task=task,
        attempt=1,
        started_at=NOW,
        usage=used,
    )


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("circle", CIRCLES)
def test_each_is_reached_by_its_own_circle_alone(circle: str, kind: str) -> None:
    limits, words = LIMITS[kind]
    budgets = Budgets.model_validate({circle: limits})
    calls = [call(task) for task in CIRCLES[circle]]
    task = CIRCLES[circle][0]
    assert over(budgets, spent(calls[:2], story=story_of(task), task=task)) is None
    why = (circle, f"the {circle}'s budget is used up: {words}")
    assert over(budgets, spent(calls, story=story_of(task), task=task)) == why
    elsewhere = over(budgets, spent(calls, story="T009", task="T009-B01"))
    assert elsewhere == (why if circle == "sprint" else None)


@pytest.mark.parametrize("circle", CIRCLES)
def test_what_follows_a_used_up_budget(circle: str) -> None:
    failure = Failure(kind="budget", task="T001-B01", summary="x", layer=circle, at=NOW)
    wanted = FailureClass.BUDGET if circle == "subtask" else FailureClass.PERSON
    assert classify(failure) is wanted


def test_the_widest_budget_is_named_and_unknown_is_never_nothing() -> None:
    tight = Limits(tokens=1)
    budgets = Budgets(subtask=tight, story=tight, sprint=tight)
    found = over(budgets, spent([call("T001-B01")], story="T001", task="T001-B01"))
    assert found is not None
    assert found[0] == "sprint"
    silent = Usage().as_call(60.0)
    assert over(budgets, spent([call("T001", silent)], story="T001", task="T001")) is None
    assert "did not say its tokens" in unsaid(budgets, Limits(), silent)
