"""Handing in work: only evidence counts, and only under the newest attempt."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from crew_boards import (
    AC,
    GATE,
    NOW,
    POLICY,
    build,
    checked,
    failure,
    finish,
    fresh_board,
    later,
    plan_for,
    planned,
    proof,
    seen,
    take,
    verify,
)
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.evidence import Evidence, Verdict, Waiver
from oodatcaa.domain.lifecycle import invariants
from oodatcaa.domain.negotiation import negotiate
from oodatcaa.domain.submission import (
    approve,
    cancel,
    fail_task,
    free_subtask_id,
    give_up,
    integration_failed,
    submit_build,
    submit_integration,
    submit_plan,
    submit_test,
    waive,
)
from oodatcaa.domain.task import Integration, Role, Story, StoryStatus, Subtask, SubtaskKind
from oodatcaa.errors import RefusedError


def held_build(**more: Any) -> Board:
    return take(planned(fresh_board(**more), "T001"), Role.BUILDER, "T001-B01")


def hand_in(board: Board, *evidence: Evidence, **more: Any) -> Decision[Subtask]:
    values: dict[str, Any] = {
        "subtask": "T001-B01",
        "owner": "builder-A",
        "attempt": 1,
        "commit": "c1",
        "artefacts": (),
        "gates": (GATE,),
        "failure": None,
        **more,
    }
    return submit_build(board, NOW, evidence=evidence, **values)


def refusal(act: Any, *args: Any, **more: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        act(*args, **more)
    return caught.value


def adapting(board: Board, story: str = "T001") -> Story:
    return take(board, Role.REFINER, story).story_by_id[story]


def replan(board: Board, **more: Any) -> Decision[Story]:
    board = take(board, Role.REFINER, "T001")
    story = board.story_by_id["T001"]
    return submit_plan(
        board,
        later(1),
        story="T001",
        owner="refiner-A",
        attempt=story.attempt,
        plan=plan_for(story, **more),
    )


# -- builds and tests ------------------------------------------------------------------------------


def test_a_build_is_done_when_its_gates_hold_at_its_commit() -> None:
    board = held_build()
    item = board.subtask_by_id["T001-B01"]
    done = hand_in(board, seen(item, GATE))
    assert done.value.status.value == "done"
    assert done.value.evidence == ("T001-B01-1-X1",)
    assert done.events[0].evidence == ("T001-B01-1-X1",)
    assert done.board.story_by_id["T001"].commit == "c1"


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.CRASHED, Verdict.NOT_RUN])
def test_anything_but_passed_needs_an_adaptation(verdict: Verdict) -> None:
    board = held_build()
    failed = hand_in(board, seen(board.subtask_by_id["T001-B01"], GATE, verdict))
    story = failed.board.story_by_id["T001"]
    assert (failed.value.status.value, story.status.value) == ("needs_adapt", "needs_adapt")
    assert story.failure is not None
    assert story.failure.gates == (f"X1 it runs: {verdict.value} (as seen)",)


def test_a_gate_without_evidence_was_not_run_and_no_gate_accepts_nothing() -> None:
    board = held_build()
    assert "not run" in hand_in(board).value.reason
    assert "no gate is defined" in hand_in(board, gates=()).value.reason


def test_a_known_failure_is_never_overruled_by_passed_gates() -> None:
    board = held_build()
    item = board.subtask_by_id["T001-B01"]
    failed = hand_in(board, seen(item, GATE), failure=failure("T001-B01", layer="during"))
    story = failed.board.story_by_id["T001"]
    assert story.failure is not None
    assert (story.status.value, story.failure.layer) == ("needs_adapt", "during")


def test_evidence_of_another_commit_attempt_or_task_is_refused() -> None:
    board = held_build()
    item = board.subtask_by_id["T001-B01"]
    others = (
        seen(item, GATE, commit="c0"),
        seen(item, GATE, attempt=2),
        seen(item.evolve(id="T001-B09"), GATE),
    )
    error = refusal(hand_in, board, *others)
    assert error.code == "submission.evidence_mismatch"
    assert len(error.details) == 3
    assert refusal(hand_in, board, commit="").code == "submission.no_commit"


def test_a_late_result_is_refused_as_progress() -> None:
    board = held_build()
    item = board.subtask_by_id["T001-B01"]
    lost = negotiate(board, POLICY, NOW, dead=frozenset({"T001-B01"})).board
    assert refusal(hand_in, lost, seen(item, GATE)).code == "submission.late"
    taken = take(lost, Role.BUILDER, "T001-B01", "bob")
    assert refusal(hand_in, taken, seen(item, GATE)).code == "submission.late"
    again = take(lost, Role.BUILDER, "T001-B01")
    assert refusal(hand_in, again, seen(item, GATE)).code == "submission.late"


def test_a_lease_past_its_time_that_nobody_took_back_still_counts() -> None:
    board = held_build()
    item = board.subtask_by_id["T001-B01"]
    assert hand_in(board, seen(item, GATE)).value.status.value == "done"


def test_the_last_subtask_makes_the_story_ready_at_the_tested_commit() -> None:
    board = verify(build(planned(fresh_board(), "T001"), "T001-B01"), "T001-T01")
    story = board.story_by_id["T001"]
    assert (story.status, story.commit) == (StoryStatus.READY_FOR_INTEGRATOR, "c1")


def test_a_build_can_not_be_handed_in_as_a_test() -> None:
    board = held_build()
    error = refusal(
        submit_test,
        board,
        NOW,
        subtask="T001-B01",
        owner="builder-A",
        attempt=1,
        commit="c1",
        evidence=(),
        gates=(AC,),
    )
    assert error.code == "submission.wrong_task"


def test_a_waived_gate_counts_only_while_the_story_holds_the_waiver() -> None:
    board = held_build()
    waived = seen(board.subtask_by_id["T001-B01"], GATE, Verdict.WAIVED)
    assert hand_in(board, waived).value.status.value == "needs_adapt"
    waiver = Waiver(gate_id="X1", by="Kim", why="known", at=NOW, until=later(5))
    allowed = waive(board, NOW, story="T001", waiver=waiver).board
    assert hand_in(allowed, waived).value.status.value == "done"
    over = waiver.evolve(at=NOW - timedelta(days=1), until=NOW)
    ended = allowed.with_task(allowed.story_by_id["T001"].evolve(waivers=(over,)))
    assert hand_in(ended, waived).value.status.value == "needs_adapt"
    assert refusal(waive, board, NOW, story="T001", waiver=over).code == "waive.over"


def test_a_second_failure_does_not_hide_the_first() -> None:
    board = planned(fresh_board(), "T001", builds=2, parallel=True)
    board = take(board, Role.BUILDER, "T001-B02", "bob")
    board = build(board, "T001-B01", Verdict.FAILED)
    more = failure("T001-B02", "crash")
    board = fail_task(board, NOW, task="T001-B02", owner="bob", attempt=1, failure=more).board
    story = board.story_by_id["T001"]
    assert story.failure is not None
    assert story.failure.task == "T001-B01"
    assert board.subtask_by_id["T001-B02"].failure == more


# -- plans -----------------------------------------------------------------------------------------


def test_a_plan_creates_its_subtasks_blocked_or_claimable() -> None:
    board = planned(fresh_board(), "T001", builds=2)
    states = {item.id: (item.status.value, item.reason) for item in board.subtasks}
    assert states == {
        "T001-B01": ("ready", ""),
        "T001-B02": ("blocked", "waits for T001-B01"),
        "T001-T01": ("blocked", "waits for T001-B01, T001-B02"),
    }


def test_a_plan_for_another_story_or_version_is_refused() -> None:
    board = take(fresh_board(), Role.PLANNER, "T001")
    who = {"story": "T001", "owner": "planner-A", "attempt": 1}
    other = plan_for(board.story_by_id["T002"])
    assert refusal(submit_plan, board, NOW, plan=other, **who).code == "plan.wrong_story"
    second = plan_for(board.story_by_id["T001"], 2)
    assert refusal(submit_plan, board, NOW, plan=second, **who).code == "plan.wrong_version"


def test_an_adapted_plan_keeps_what_it_names_and_cancels_the_rest() -> None:
    board = planned(fresh_board(), "T001", builds=3)
    board = build(build(board, "T001-B01"), "T001-B02", Verdict.FAILED)
    done = replan(board, first=4, keeps=("T001-B01",))
    states = {item.id: item.status.value for item in done.board.subtasks}
    assert states == {
        "T001-B01": "done",
        "T001-B02": "cancelled",
        "T001-B03": "cancelled",
        "T001-T01": "cancelled",
        "T001-B04": "ready",
        "T001-T04": "blocked",
    }
    assert (done.value.plan_version, done.value.adapt_round, done.value.failure) == (2, 1, None)
    assert invariants(done.board, POLICY) == ()


def test_a_failed_subtask_that_is_kept_can_be_worked_on_again() -> None:
    board = build(planned(fresh_board(), "T001"), "T001-B01", Verdict.FAILED)
    held = take(board, Role.REFINER, "T001")
    plan = plan_for(held.story_by_id["T001"], keeps=("T001-B01", "T001-T01"))
    done = submit_plan(held, NOW, story="T001", owner="refiner-A", attempt=2, plan=plan)
    item = done.board.subtask_by_id["T001-B01"]
    assert (item.status.value, item.failure, item.plan_version) == ("ready", None, 2)
    assert "T001-B01" in {event.subject for event in done.events}


def test_a_plan_must_name_new_work_anew_and_have_all_of_it_verified() -> None:
    board = build(planned(fresh_board(), "T001"), "T001-B01", Verdict.FAILED)
    error = refusal(replan, board)
    assert error.code == "plan.subtasks"
    assert "T001-B01 exists already (adapting)" in error.details
    lonely = planned(fresh_board(), "T001", builds=2, parallel=True)
    lonely = build(lonely, "T001-B01", Verdict.FAILED)
    text = "\n".join(refusal(replan, lonely, first=3, keeps=("T001-B02",)).details)
    assert "T001-B02 is verified by no test subtask" in text
    text = "\n".join(refusal(replan, lonely, first=3, keeps=("T001-T01",)).details)
    assert "T001-T01 depends on T001-B01, which is neither done nor kept" in text
    assert (
        "T001-B77 can not be kept" in refusal(replan, lonely, first=3, keeps=("T001-B77",)).message
    )


def test_no_more_rounds_than_the_sprint_allows() -> None:
    board = build(planned(fresh_board(rounds=1), "T001"), "T001-B01", Verdict.FAILED)
    held = take(board, Role.REFINER, "T001")
    used = held.with_task(held.story_by_id["T001"].evolve(adapt_round=1))
    plan = plan_for(used.story_by_id["T001"], first=2)
    who = {"story": "T001", "owner": "refiner-A", "attempt": 2}
    assert refusal(submit_plan, used, NOW, plan=plan, **who).code == "plan.rounds_used_up"


def test_free_ids_count_cancelled_subtasks_too() -> None:
    board = planned(fresh_board(), "T001", builds=2)
    assert free_subtask_id(board, "T001", SubtaskKind.BUILD) == "T001-B03"
    assert free_subtask_id(board, "T001", SubtaskKind.TEST, taken=1) == "T001-T03"


# -- integration -----------------------------------------------------------------------------------


def ready() -> Board:
    board = verify(build(planned(fresh_board(), "T001"), "T001-B01"), "T001-T01")
    return take(board, Role.INTEGRATOR, "T001")


def test_done_needs_the_proof_of_integration() -> None:
    board = ready()
    who: dict[str, Any] = {"story": "T001", "owner": "integrator-A", "attempt": 2}
    with pytest.raises(ValidationError):
        Integration(target="main", merge_commit="m", tag="t", evidence=(), at=NOW)
    who |= checked(board, "T001")
    bare = proof("T001").model_copy(update={"evidence": ()})
    error = refusal(submit_integration, board, NOW, integration=bare, **who)
    assert error.code == "submission.no_evidence"
    done = submit_integration(board, NOW, integration=proof("T001"), **who)
    assert (done.value.status, done.value.integration) == (StoryStatus.DONE, proof("T001"))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"commit": "m0"}, "submission.evidence_mismatch"),
        ({"attempt": 1}, "submission.evidence_mismatch"),
        ({"task": "T001-T01"}, "submission.evidence_mismatch"),
        ({"id": "T001-X9"}, "submission.evidence_mismatch"),
        ({"verdict": Verdict.FAILED}, "submission.gates"),
        ({"verdict": Verdict.WAIVED}, "submission.gates"),
        ({"gate": AC}, "submission.gates"),
    ],
)
def test_an_integration_counts_only_with_green_evidence_of_its_own_merge(
    wrong: dict[str, Any], code: str
) -> None:
    board = ready()
    who = {"story": "T001", "owner": "integrator-A", "attempt": 2, "integration": proof("T001")}
    assert (
        refusal(submit_integration, board, NOW, **who, **checked(board, "T001", **wrong)).code
        == code
    )


def test_a_gate_that_ran_once_for_a_batch_counts_for_each_story() -> None:
    board = ready()
    shared = checked(board, "T001", task="T002", attempt=7)
    done = submit_integration(
        board,
        NOW,
        story="T001",
        owner="integrator-A",
        attempt=2,
        integration=proof("T001"),
        **shared,
    )
    assert done.value.status is StoryStatus.DONE


@pytest.mark.parametrize(("human", "status"), [(True, "needs_human"), (False, "needs_adapt")])
def test_a_failed_integration_goes_to_a_person_or_to_the_refiner(human: bool, status: str) -> None:
    trouble = failure("T001", "merge", summary="the target is dirty")
    stopped = integration_failed(
        ready(), NOW, story="T001", owner="integrator-A", attempt=2, failure=trouble, human=human
    )
    assert (stopped.value.status.value, stopped.value.reason) == (status, "the target is dirty")


def test_after_a_person_mended_the_target_the_integration_is_tried_again() -> None:
    board = integration_failed(
        ready(),
        NOW,
        story="T001",
        owner="integrator-A",
        attempt=2,
        failure=failure("T001", "merge"),
        human=True,
    ).board
    on = approve(board, NOW, story="T001", by="Kim", why="committed it")
    assert (on.value.status, on.value.failure) == (StoryStatus.READY_FOR_INTEGRATOR, None)


# -- people ----------------------------------------------------------------------------------------


def test_approving_allows_one_more_round_after_the_refiner_gave_up() -> None:
    board = build(planned(fresh_board(rounds=0), "T001"), "T001-B01", Verdict.FAILED)
    stuck = negotiate(board, POLICY, NOW).board
    on = approve(stuck, NOW, story="T001", by="Kim", why="once more")
    assert on.value.status is StoryStatus.NEEDS_ADAPT
    again = negotiate(on.board, POLICY, NOW)
    assert again.value.needs_human == ()
    assert replan(on.board, first=2).value.adapt_round == 1
    error = refusal(approve, on.board, NOW, story="T001", by="Kim", why="?")
    assert error.code == "approve.not_waiting"


def test_approving_a_planner_that_gave_up_plans_again() -> None:
    board = take(fresh_board(), Role.PLANNER, "T001")
    board = give_up(board, NOW, story="T001", owner="planner-A", attempt=1, reason="no").board
    on = approve(board, NOW, story="T001", by="Kim", why="try again")
    assert on.value.status is StoryStatus.NEEDS_PLAN


def test_approving_frees_a_subtask_that_lost_too_many_leases() -> None:
    board = planned(fresh_board(), "T001")
    for _ in range(POLICY.max_expiries):
        board = take(board, Role.BUILDER, "T001-B01")
        board = negotiate(board, POLICY, NOW, dead=frozenset({"T001-B01"})).board
    on = approve(board, NOW, story="T001", by="Kim", why="more memory now")
    item = on.board.subtask_by_id["T001-B01"]
    assert (item.status.value, item.expiries) == ("ready", 0)
    assert on.value.status is StoryStatus.PLANNING_COMPLETE


def test_cancelling_a_story_takes_its_subtasks_and_asks_about_what_waits_for_it() -> None:
    board = take(planned(fresh_board(), "T001"), Role.BUILDER, "T001-B01")
    gone = cancel(board, NOW, task="T001", by="Kim", why="not needed")
    assert {item.status.value for item in gone.board.subtasks} == {"cancelled"}
    waits = gone.board.story_by_id["T003"]
    assert waits.status is StoryStatus.NEEDS_HUMAN
    assert waits.reason == "depends on T001, which was cancelled: not needed"
    assert gone.board.story_by_id["T004"].status is StoryStatus.BLOCKED
    late = refusal(hand_in, gone.board, seen(board.subtask_by_id["T001-B01"], GATE))
    assert late.code == "submission.late"
    on = approve(gone.board, NOW, story="T003", by="Kim", why="works without")
    assert on.value.depends_on == ("T002",)
    assert on.value.status is StoryStatus.BLOCKED
    assert invariants(on.board, POLICY) == ()


def test_a_cancelled_subtask_is_planned_around() -> None:
    board = planned(fresh_board(), "T001")
    gone = cancel(board, NOW, task="T001-B01", by="Kim", why="another way")
    assert gone.board.story_by_id["T001"].status is StoryStatus.NEEDS_HUMAN
    on = approve(gone.board, NOW, story="T001", by="Kim", why="plan around it")
    assert on.value.status is StoryStatus.NEEDS_ADAPT
    assert on.value.failure is not None
    assert replan(on.board, first=2).value.status is StoryStatus.PLANNING_COMPLETE


def test_what_is_done_can_not_be_cancelled_and_what_is_not_there_is_named() -> None:
    board = finish(fresh_board(), "T001")
    assert refusal(cancel, board, NOW, task="T001", by="K", why="x").code == "cancel.finished"
    assert refusal(cancel, board, NOW, task="T099", by="K", why="x").code == "task.unknown"
    assert refusal(approve, board, NOW, story="T099", by="K", why="x").code == "task.unknown"
