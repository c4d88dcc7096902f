"""What follows a failure: the table, the retries, the budgets."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.domain.agents import Call, Ending, Limits, Turn, Usage
from oodatcaa.domain.board import Event, EventKind
from oodatcaa.domain.budgets import Budgets, Spent, over, reached, spent
from oodatcaa.domain.notices import NoticeKind, notices
from oodatcaa.domain.retry import pause_before_retry, session_for_retry
from oodatcaa.domain.rungs import LADDER, FailureClass, Way, bounded, classify, next_way
from oodatcaa.domain.task import Failure, Role

NOW = datetime(2026, 1, 30, tzinfo=UTC)
F, W = FailureClass, Way


def failure(kind: str, layer: str | None = None) -> Failure:
    return Failure(kind=kind, task="T001-B01", summary="it failed", layer=layer, at=NOW)


@pytest.mark.parametrize(
    ("kind", "layer", "found"),
    [
        ("gate", None, F.GATE),
        ("veto", None, F.GATE),
        ("merge", None, F.CONFLICT),
        ("timeout", None, F.TIMEOUT),
        ("memory_gate", "during", F.MEMORY),
        ("agent_error", None, F.AGENT_ERROR),
        ("invalid_output", None, F.INVALID_OUTPUT),
        ("budget", "subtask", F.BUDGET),
        ("budget", "call", F.BUDGET),
        ("budget", "story", F.PERSON),
        ("budget", "sprint", F.PERSON),
        ("denied", None, F.PERSON),
        ("isolation", None, F.TRESPASS),
        ("isolation.unreadable", None, F.TRESPASS),
        ("something new", None, F.CRASHED),
    ],
)
def test_every_failure_has_a_class(kind: str, layer: str | None, found: FailureClass) -> None:
    assert classify(failure(kind, layer)) is found


def test_the_ladder() -> None:
    ways = [next_way(F.GATE, round=n, max_rounds=9) for n in range(1, 5)]
    assert ways == [W.QUICK_FIX, W.QUICK_FIX, W.START_OVER, W.HUMAN]
    assert next_way(F.BUDGET, round=1, max_rounds=3) is W.START_OVER
    assert next_way(F.PERSON, round=1, max_rounds=3) is W.HUMAN
    assert next_way(F.GATE, round=2, max_rounds=1) is W.HUMAN


def test_a_second_trespass_is_a_persons_business() -> None:
    assert next_way(F.TRESPASS, round=3, max_rounds=3) is W.QUICK_FIX
    assert next_way(F.TRESPASS, round=2, max_rounds=3, repeated=True) is W.HUMAN
    assert next_way(F.GATE, round=2, max_rounds=3, repeated=True) is W.QUICK_FIX


@given(st.sampled_from(F), st.integers(1, 20), st.integers(0, 20))
def test_every_ladder_ends_at_a_person(found: FailureClass, round: int, allowed: int) -> None:
    way = next_way(found, round=round, max_rounds=allowed)
    if round > min(allowed, len(LADDER[found])):
        assert way is W.HUMAN
    for proposed in Way:
        assert bounded(proposed, way) in (proposed, way)
        assert bounded(W.HUMAN, way) is W.HUMAN
        assert bounded(W.QUICK_FIX, way) is way


def test_pauses_double_up_to_a_ceiling_and_end() -> None:
    def pause(tries: int, ending: Ending = Ending.ERROR) -> float | None:
        return pause_before_retry(ending, tries, retries=4, base=5, ceiling=30)

    assert [pause(tries) for tries in range(1, 6)] == [5, 10, 20, 30, None]
    assert pause_before_retry(Ending.ERROR, 10_000, retries=10**6, base=5, ceiling=30) == 30
    for ending in set(Ending) - {Ending.ERROR}:
        assert pause(1, ending) is None


def test_a_session_that_is_not_known_any_more_is_left() -> None:
    lost = Turn(ending=Ending.ERROR, session="s-1")
    assert session_for_retry(lost, "s-1") == ""
    assert session_for_retry(lost, "") == "s-1"
    worked = lost.evolve(usage=Usage(input_tokens=5))
    assert session_for_retry(worked, "s-1") == "s-1"


def test_a_limit_is_reached_by_what_is_known_only() -> None:
    tokens = Limits(tokens=100)
    assert reached(tokens, Usage(input_tokens=99)) == ""
    assert reached(tokens, Usage(input_tokens=90, output_tokens=10)) == "100 of 100 tokens"
    assert reached(tokens, Usage().as_call(60)) == ""
    assert reached(Limits(cost_usd=0.5), Usage(cost_usd=0.5)) == "$0.5000 of $0.5000"
    assert reached(Limits(minutes=1), Usage(seconds=60)) == "1.0 of 1 minutes"


def call(name: str, story: str, task: str, tokens: int | None) -> Call:
    return Call(
        id=name,
        agent="builder-A",
        definition="builder-x",
        runner="x",
        role=Role.BUILDER,
        story=story,
        task=task,
        attempt=1,
        started_at=NOW,
        usage=Usage(input_tokens=tokens).as_call(30),
    )


def test_calls_add_up_around_a_task_and_the_widest_circle_speaks() -> None:
    calls = [
        call("1", "T001", "T001-B01", 10),
        call("2", "T001", "T001-B02", 20),
        call("3", "T002", "T002-B01", None),
    ]
    used = spent(calls, story="T001", task="T001-B01")
    assert (used.subtask.tokens, used.story.tokens, used.sprint.tokens) == (10, 30, 30)
    assert (used.sprint.calls, used.sprint.unknown_tokens) == (3, 1)
    limits = Budgets(subtask=Limits(tokens=10), story=Limits(tokens=31))
    assert over(limits, used) == (
        "subtask",
        "the subtask's budget is used up: 10 of 10 tokens",
    )
    wide = limits.evolve(sprint=Limits(minutes=1.5))
    assert (over(wide, used) or ("", ""))[0] == "sprint"
    assert over(Budgets(), used) is None
    assert over(limits, Spent()) is None


def event(subject: str, after: str, text: str = "why") -> Event:
    return Event(
        kind=EventKind.TRANSITION,
        at=NOW,
        actor="builder-A",
        subject=subject,
        before="planning_complete",
        after=after,
        text=text,
    )


def test_people_are_told_about_stories_that_need_them_and_about_the_memory_gate() -> None:
    found = notices(
        [
            event("T001", "needs_human"),
            event("T001-B01", "needs_human"),
            event("T002", "needs_adapt", "T002-B01 failed (gate)"),
            event("T003", "needs_adapt", "T003-B01 failed (memory_gate)"),
            event("T004", "done"),
        ]
    )
    assert [item.kind for item in found] == [NoticeKind.NEEDS_HUMAN, NoticeKind.MEMORY_GATE]
    assert found[0].title == "T001 needs a person"
