"""Rounds, claims and leases, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from crew_boards import (
    NOW,
    POLICY,
    build,
    failure,
    finish,
    fresh_board,
    later,
    plan_for,
    planned,
    take,
    verify,
)
from oodatcaa.domain.board import Board, Decision, EventKind
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.lifecycle import legal, move
from oodatcaa.domain.negotiation import (
    Claim,
    Stop,
    Wait,
    claim,
    heartbeat,
    lease_key,
    negotiate,
    next_action,
    release,
    renew_after_sleep,
    sprint_outcome,
)
from oodatcaa.domain.submission import fail_task, give_up, submit_plan
from oodatcaa.domain.task import Role, StoryStatus, SubtaskStatus, Task
from oodatcaa.errors import RefusedError


def process(board: Board, role: Role, owner: str, **more: Any) -> Decision[Task]:
    values = {"host": "here", "pid": 7, "process_started_at": 1.0, **more}
    return claim(board, POLICY, values.pop("now", NOW), role=role, owner=owner, **values)


def refused(board: Board, role: Role, owner: str, **more: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        process(board, role, owner, **more)
    assert caught.value.hint
    return caught.value


# -- rounds ----------------------------------------------------------------------------------------


def test_without_a_sprint_a_round_says_what_comes_next() -> None:
    empty = Board()
    settled = negotiate(empty, POLICY, NOW)
    assert settled.board is empty
    assert settled.value.notes == ("no sprint; next: oodatcaa sprint new",)


def test_a_round_offers_the_critical_path_and_tells_why_the_rest_waits() -> None:
    settled = negotiate(fresh_board(), POLICY, NOW)
    found = settled.value
    assert [(o.task, o.role, o.rank) for o in found.offers] == [("T001", Role.PLANNER, 1)]
    assert found.critical_path == ("T001", "T003", "T004", "T005")
    assert found.waiting["T002"] == "waits for a free planner (WIP limit)"
    assert found.waiting["T003"] == "waits for T001, T002"
    assert found.wip["builder"] == (0, 3)
    assert [event.kind for event in settled.events] == [EventKind.NEGOTIATION]


def test_a_second_round_decides_nothing() -> None:
    first = negotiate(fresh_board(), POLICY, NOW)
    second = negotiate(first.board, POLICY, later(5))
    assert second.board is first.board
    assert second.events == ()
    assert (first.value.changed, second.value.changed) == (True, False)


def test_a_story_is_unblocked_when_all_it_waits_for_is_integrated() -> None:
    board = negotiate(finish(fresh_board(), "T001"), POLICY, NOW).board
    assert board.story_by_id["T003"].status is StoryStatus.BLOCKED
    settled = negotiate(finish(board, "T002"), POLICY, NOW)
    assert settled.value.unblocked == ("T003",)
    assert settled.board.story_by_id["T003"].status is StoryStatus.NEEDS_PLAN


def test_what_waits_for_a_failed_story_says_which_failure() -> None:
    board = take(planned(fresh_board(), "T001"), Role.BUILDER, "T001-B01")
    failed = fail_task(
        board,
        NOW,
        task="T001-B01",
        owner="builder-A",
        attempt=1,
        failure=failure("T001-B01", layer="before"),
    ).board
    settled = negotiate(failed, POLICY, NOW)
    why = settled.value.waiting["T003"]
    assert why.startswith("waits for T001 (needs_adapt: memory_gate: 50 GB needed")
    assert settled.board.story_by_id["T003"].reason == why
    assert "T003" in settled.value.waiting
    assert [(o.task, o.role) for o in settled.value.offers if o.role is Role.REFINER] == [
        ("T001", Role.REFINER)
    ]


def test_a_silent_lease_is_taken_back_only_after_its_time_to_live() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann", task="T001").board
    assert negotiate(board, POLICY, later(30)).value.recovered == ()
    late = negotiate(board, POLICY, later(30.1))
    assert late.value.recovered == ("T001",)
    story = late.board.story_by_id["T001"]
    assert (story.status, story.attempt, story.expiries) == (StoryStatus.NEEDS_PLAN, 1, 1)
    assert any(event.kind is EventKind.EXPIRE for event in late.events)


def test_a_dead_owner_is_noticed_at_once_but_a_newer_claim_is_not_mistaken_for_it() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann", task="T001").board
    key = lease_key(board.story_by_id["T001"])
    assert negotiate(board, POLICY, NOW, dead=frozenset({"T001"})).value.recovered == ("T001",)
    again = process(board, Role.PLANNER, "bob", task="T001", dead=frozenset({key}), pid=8).board
    assert again.story_by_id["T001"].attempt == 2
    assert negotiate(again, POLICY, NOW, dead=frozenset({key})).board is again


def test_after_too_many_lost_leases_a_person_is_asked() -> None:
    board = planned(fresh_board(), "T001")
    for _ in range(POLICY.max_expiries):
        board = take(board, Role.BUILDER, "T001-B01")
        board = negotiate(board, POLICY, NOW, dead=frozenset({"T001-B01"})).board
    assert board.subtask_by_id["T001-B01"].status is SubtaskStatus.NEEDS_HUMAN
    assert board.story_by_id["T001"].status is StoryStatus.NEEDS_HUMAN
    assert "3 leases in a row" in board.story_by_id["T001"].reason


def test_used_up_rounds_need_a_person() -> None:
    board = build(planned(fresh_board(rounds=0), "T001"), "T001-B01", Verdict.FAILED)
    settled = negotiate(board, POLICY, NOW)
    assert settled.value.needs_human == ("T001",)
    assert "0 of 0 adaptation rounds" in settled.board.story_by_id["T001"].reason


def test_offers_never_exceed_the_free_wip_and_follow_the_longest_path() -> None:
    board = planned(fresh_board(), "T001", builds=3, parallel=True)
    board = take(board, Role.BUILDER, "T001-B02", "bob")
    board = planned(board, "T002", builds=3, parallel=True)
    offers = negotiate(board, POLICY, NOW).value.offers
    builder = [offer.task for offer in offers if offer.role is Role.BUILDER]
    assert builder == ["T001-B01", "T001-B03"]


# -- after a sleep ---------------------------------------------------------------------------------


def test_a_living_owner_keeps_its_lease_after_a_sleep() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann", task="T001").board
    settled = negotiate(board, POLICY, later(600), alive=frozenset({"T001"}))
    assert (settled.value.recovered, settled.value.renewed) == ((), ("T001",))
    woken = renew_after_sleep(board, later(600), frozenset({"T001#1"}))
    assert woken.value == ("T001",)
    assert negotiate(woken.board, POLICY, later(601)).value.recovered == ()
    assert renew_after_sleep(board, later(600), frozenset()).board is board


def test_an_owner_that_lives_but_hangs_loses_its_task_in_the_end() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann", task="T001").board
    alive = frozenset({"T001"})
    once = negotiate(board, POLICY, later(600), alive=alive).board
    assert negotiate(once, POLICY, later(1200), alive=alive).value.recovered == ("T001",)
    beat = heartbeat(once, later(601), task="T001", owner="ann", attempt=1).board
    assert negotiate(beat, POLICY, later(1200), alive=alive).value.renewed == ("T001",)


# -- claims ----------------------------------------------------------------------------------------


def test_a_claim_takes_the_first_offer_under_a_new_attempt_number() -> None:
    got = process(fresh_board(), Role.PLANNER, "ann")
    assert (got.value.id, got.value.attempt) == ("T001", 1)
    assert got.value.lease is not None
    assert got.value.lease.kind == "process"
    assert got.events[-1].kind is EventKind.CLAIM
    manual = process(fresh_board(), Role.PLANNER, "ann", pid=None, process_started_at=None)
    assert manual.value.lease is not None
    assert manual.value.lease.kind == "manual"


def test_claiming_what_one_holds_only_renews_the_heartbeat() -> None:
    first = process(fresh_board(), Role.PLANNER, "ann")
    again = process(first.board, Role.PLANNER, "ann", now=later(600))
    assert (again.value.id, again.value.attempt) == ("T001", 1)
    assert again.value.lease is not None
    assert again.value.lease.heartbeat_at == later(600)
    assert not [event for event in again.events if event.kind is EventKind.CLAIM]


def test_a_new_process_of_the_same_name_gets_a_new_attempt_unless_the_old_one_lives() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann").board
    assert process(board, Role.PLANNER, "ann", pid=8).value.attempt == 2
    error = refused(board, Role.PLANNER, "ann", pid=8, alive=frozenset({"T001#1"}))
    assert error.code == "claim.owner_busy"


def test_every_refusal_has_its_own_code() -> None:
    board = planned(fresh_board(), "T001", builds=2)
    held = process(board, Role.PLANNER, "ann", task="T002").board
    assert refused(Board(), Role.PLANNER, "bob").code == "claim.no_sprint"
    assert refused(held, Role.PLANNER, "bob", task="T042").code == "claim.unknown_task"
    error = refused(held, Role.PLANNER, "bob", task="T002")
    assert error.code == "claim.held"
    assert "ann since 2026-01-30 12:00:00" in error.message
    assert refused(held, Role.TESTER, "bob", task="T001-B01").code == "claim.wrong_role"
    assert refused(held, Role.BUILDER, "bob", task="T001-B02").code == "claim.not_claimable"
    assert refused(held, Role.PLANNER, "bob", task="T003").code == "claim.not_claimable"
    assert refused(held, Role.BUILDER, "ann").code == "claim.owner_busy"
    assert refused(held, Role.INTEGRATOR, "bob").code == "claim.nothing"
    busy = process(fresh_board(), Role.PLANNER, "ann").board
    assert refused(busy, Role.PLANNER, "bob").code == "claim.wip"
    assert refused(busy, Role.PLANNER, "bob", task="T002").code == "claim.wip"


def test_a_refiner_holds_the_story_and_its_failed_subtasks_follow() -> None:
    board = build(planned(fresh_board(), "T001"), "T001-B01", Verdict.FAILED)
    got = process(board, Role.REFINER, "rex")
    assert got.value.status is StoryStatus.ADAPTING
    assert got.board.subtask_by_id["T001-B01"].status is SubtaskStatus.ADAPTING
    back = release(got.board, NOW, task="T001", owner="rex", attempt=2, why="lunch")
    assert back.board.subtask_by_id["T001-B01"].status is SubtaskStatus.NEEDS_ADAPT
    assert {event.subject for event in back.events} == {"T001", "T001-B01"}
    lost = negotiate(got.board, POLICY, NOW, dead=frozenset({"T001"})).board
    assert lost.subtask_by_id["T001-B01"].status is SubtaskStatus.NEEDS_ADAPT


# -- heartbeat and release -------------------------------------------------------------------------


def test_a_heartbeat_renews_and_writes_no_history() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann").board
    beat = heartbeat(board, later(20), task="T001", owner="ann", attempt=1)
    assert beat.events == ()
    assert negotiate(beat.board, POLICY, later(45)).value.recovered == ()


@pytest.mark.parametrize(("owner", "attempt"), [("ann", 2), ("bob", 1)])
def test_a_lost_lease_is_told_to_whoever_thinks_he_has_it(owner: str, attempt: int) -> None:
    board = process(fresh_board(), Role.PLANNER, "ann").board
    for act in (heartbeat, release):
        more: dict[str, Any] = {"why": "x"} if act is release else {}
        with pytest.raises(RefusedError) as caught:
            act(board, NOW, task="T001", owner=owner, attempt=attempt, **more)
        assert caught.value.code == "lease.lost"


def test_a_released_task_is_free_under_the_next_attempt() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann").board
    free = release(board, NOW, task="T001", owner="ann", attempt=1, why="lunch").board
    assert process(free, Role.PLANNER, "bob", task="T001").value.attempt == 2


# -- what to do next -------------------------------------------------------------------------------


def test_an_agent_is_told_to_claim_to_wait_or_to_stop() -> None:
    board = fresh_board()
    assert next_action(board, POLICY, Role.PLANNER, NOW) == Claim("T001")
    assert isinstance(next_action(board, POLICY, Role.BUILDER, NOW), Wait)
    assert next_action(Board(), POLICY, Role.BUILDER, NOW) == Stop("no sprint")
    for story in board.stories:
        board = finish(board, story.id)
    assert next_action(board, POLICY, Role.BUILDER, NOW) == Stop("sprint done")
    assert sprint_outcome(board) == "done"


def test_agents_stop_for_a_person_only_when_nothing_else_moves() -> None:
    board = take(fresh_board(), Role.PLANNER, "T001")
    stuck = give_up(board, NOW, story="T001", owner="planner-A", attempt=1, reason="no").board
    assert next_action(stuck, POLICY, Role.PLANNER, NOW) == Claim("T002")
    assert isinstance(next_action(stuck, POLICY, Role.TESTER, NOW), Wait)
    assert sprint_outcome(stuck) == "running"
    rest = finish(stuck, "T002")
    assert next_action(rest, POLICY, Role.TESTER, NOW) == Stop("needs a human")
    assert sprint_outcome(rest) == "needs_human"


def test_waiting_names_who_is_at_work() -> None:
    board = take(planned(fresh_board(), "T001"), Role.BUILDER, "T001-B01")
    action = next_action(board, POLICY, Role.TESTER, NOW)
    assert isinstance(action, Wait)
    assert "T001-B01 (builder-A)" in action.why


def test_a_plan_handed_in_by_hand_leaves_no_offer_that_does_not_stand() -> None:
    board = process(fresh_board(), Role.PLANNER, "ann").board
    story = board.story_by_id["T001"]
    done = submit_plan(board, NOW, story="T001", owner="ann", attempt=1, plan=plan_for(story))
    assert all(done.board.find(offer.task) for offer in done.board.offers)


def test_a_plan_that_waits_for_a_cancelled_subtask_needs_a_person() -> None:
    board = planned(fresh_board(), "T001", builds=2)
    gone = move(board.subtask_by_id["T001-B01"], SubtaskStatus.CANCELLED, NOW)
    edited = board.with_task(gone)
    assert legal(board, edited) == ()
    settled = negotiate(edited, POLICY, NOW)
    assert settled.value.needs_human == ("T001",)
    assert "T001-B02 depends on T001-B01 (cancelled)" in settled.board.story_by_id["T001"].reason


@pytest.mark.parametrize(
    ("role", "minutes"),
    [
        (Role.PLANNER, 30),
        (Role.BUILDER, 90),
        (Role.TESTER, 45),
        (Role.REFINER, 45),
        (Role.INTEGRATOR, 30),
    ],
)
def test_each_roles_lease_lives_as_long_as_documented(role: Role, minutes: int) -> None:
    waiting = planned(fresh_board(), "T001")
    broken = build(waiting, "T001-B01", Verdict.FAILED)
    board, task = {
        Role.PLANNER: (fresh_board(), "T001"),
        Role.BUILDER: (waiting, "T001-B01"),
        Role.TESTER: (build(waiting, "T001-B01"), "T001-T01"),
        Role.REFINER: (negotiate(broken, POLICY, NOW).board, "T001"),
        Role.INTEGRATOR: (verify(build(waiting, "T001-B01"), "T001-T01"), "T001"),
    }[role]
    held = take(board, role, task).find(task)
    assert held is not None
    assert held.lease is not None
    assert held.lease.ttl_seconds == 60 * minutes
    assert POLICY.heartbeat_seconds == 15
