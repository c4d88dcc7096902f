"""By hand a person decides what the work is, never that it is done."""

from __future__ import annotations

from typing import Any

import pytest

from crew_boards import NOW, POLICY, fresh_board, later, planned, proof, take
from oodatcaa.domain.board import Board, Offer
from oodatcaa.domain.editing import EDITABLE, edit_problems
from oodatcaa.domain.lifecycle import B, S, legal
from oodatcaa.domain.question import Answer, Asks, Question
from oodatcaa.domain.task import Approval, Failure, ManualLease, Role, Story, Subtask
from oodatcaa.domain.waiver import Waiver


def lease(role: Role, attempt: int) -> ManualLease:
    return ManualLease(
        kind="manual",
        owner="eve",
        role=role,
        host="x",
        attempt=attempt,
        ttl_seconds=5400,
        claimed_at=NOW,
        heartbeat_at=NOW,
    )


def forge(board: Board, task: str, **changes: Any) -> tuple[Board, str]:
    found = board.find(task)
    assert found is not None
    forged = board.evolve(offers=()).with_task(found.evolve(**changes))
    assert legal(board, forged, POLICY) == ()
    return forged, "\n".join(edit_problems(board, forged, POLICY))


def test_forge_a_done_story_by_edits() -> None:
    """Each step is one that the crew may take; none of them is a hand's to take."""
    board = planned(fresh_board(), "T001")
    made_up = {"status": B.DONE, "lease": None, "evidence": ("made-up",), "commit": "deadbeef"}
    held = {"status": B.IN_PROGRESS, "lease": lease(Role.BUILDER, 1), "attempt": 1}
    board, text = forge(board, "T001-B01", **held)
    for field in ("status can not be set from ready to in_progress", "lease", "attempt"):
        assert field in text
    board, text = forge(board, "T001-B01", **made_up)
    for field in ("status can not be set from in_progress to done", "lease", "evidence", "commit"):
        assert f"T001-B01: {field}" in text
    board, text = forge(board, "T001-T01", status=B.AWAITING_TEST)
    assert "status can not be set from blocked to awaiting_test" in text
    held = {"status": B.TESTING, "lease": lease(Role.TESTER, 1), "attempt": 1}
    board, text = forge(board, "T001-T01", **held)
    assert "status can not be set from awaiting_test to testing" in text
    board, text = forge(board, "T001-T01", **made_up)
    assert "status can not be set from testing to done" in text
    board, text = forge(board, "T001", status=S.READY_FOR_INTEGRATOR, commit="deadbeef")
    assert "status can not be set from planning_complete to ready_for_integrator" in text
    held = {"status": S.INTEGRATING, "lease": lease(Role.INTEGRATOR, 2), "attempt": 2}
    board, text = forge(board, "T001", **held)
    assert "status can not be set from ready_for_integrator to integrating" in text
    board, text = forge(board, "T001", status=S.DONE, lease=None, integration=proof("T001"))
    assert "T001: integration can not be changed by hand" in text


FAILURE = Failure(kind="gate", task="T001", summary="made up", at=NOW)
VALUES: dict[str, Any] = {
    "lease": lease(Role.PLANNER, 1),
    "attempt": 7,
    "evidence": ("made-up",),
    "commit": "deadbeef",
    "failure": FAILURE,
    "integration": proof("T001"),
    "waivers": (Waiver(gate_id="AC1", why="because", by="eve", at=NOW, until=later(60)),),
    "plan_version": 9,
    "adapt_round": 9,
    "extra_rounds": 50,
    "expiries": 9,
    "status_since": later(1),
    "created_at": later(1),
    "granted": True,
    "approval": Approval.MERGE,
    "waits_for": Approval.PLAN,
    "paused_from": S.PLANNING,
    "lessons": ("made up",),
    "asked_for": "T001-B01",
    "answers": (Answer(title="Look", question="Well?", by="eve", why="yes", at=NOW),),
    "asks": (Question(asks=Asks.VERIFY, title="Look", text="Well?"),),
    "slug": "another-branch",
    "files": ("a.py",),
    "artefacts": (),
    "steps": (9,),
}


@pytest.mark.parametrize("name", [name for name in VALUES if name in Story.model_fields])
def test_what_the_crew_vouches_for_is_not_edited(name: str) -> None:
    board = planned(fresh_board(), "T001")
    story = board.story_by_id["T001"]
    text = edit_problems(board, board.with_task(story.evolve(**{name: VALUES[name]})), POLICY)
    assert f"T001: {name} can not be changed by hand" in text


def test_every_field_is_either_a_persons_or_the_crews() -> None:
    decided = EDITABLE | {"status", "id", "story", "kind", "source"}
    for record in (Story, Subtask):
        assert set(record.model_fields) - decided <= set(VALUES)


def test_a_lease_is_neither_stolen_nor_prolonged() -> None:
    board = take(fresh_board(), Role.PLANNER, "T001")
    story = board.story_by_id["T001"]
    assert story.lease is not None
    for changes in ({"owner": "mallory"}, {"heartbeat_at": later(99)}, {"ttl_seconds": 10**6}):
        stolen = board.with_task(story.evolve(lease=story.lease.evolve(**changes)))
        assert edit_problems(board, stolen) == ("T001: lease can not be changed by hand",)


def test_every_error_of_an_edit_is_listed() -> None:
    board = planned(fresh_board(), "T001")
    story, step = board.story_by_id["T001"], board.subtask_by_id["T001-B01"]
    edited = board.with_task(story.evolve(extra_rounds=50, expiries=3))
    edited = edited.with_task(step.evolve(attempt=9)).evolve(
        offers=(*board.offers, Offer(task="T001-B01", role=Role.BUILDER, rank=7))
    )
    text = "\n".join(edit_problems(board, edited))
    for part in ("T001: extra_rounds", "T001: expiries", "T001-B01: attempt", "an offer is made"):
        assert part in text


def test_what_a_person_decides_is_taken_over() -> None:
    board = planned(fresh_board(), "T001")
    story, step = board.story_by_id["T003"], board.subtask_by_id["T001-B01"]
    edited = board.with_task(
        story.evolve(title="Other", goal="Other", estimate_minutes=5, depends_on=("T001",))
    ).with_task(step.evolve(reason="look here first"))
    assert edit_problems(board, edited, POLICY) == ()


def test_a_person_cancels_also_what_is_held() -> None:
    board = take(fresh_board(), Role.PLANNER, "T001")
    story = board.story_by_id["T001"]
    gone = board.evolve(offers=()).with_task(story.evolve(status=S.CANCELLED, lease=None))
    assert edit_problems(board, gone, POLICY) == ()
    dropped = board.with_task(story.evolve(lease=None))
    assert "T001: lease can not be changed by hand" in edit_problems(board, dropped, POLICY)


def test_a_new_task_begins_at_nothing() -> None:
    board = planned(fresh_board(), "T001")
    story = board.story_by_id["T002"].evolve(id="T009", status=S.NEEDS_PLAN, depends_on=())
    assert edit_problems(board, board.with_task(story), POLICY) == ()
    ahead = story.evolve(
        attempt=3, extra_rounds=2, plan_version=1, evidence=("E1",), commit="deadbeef"
    )
    text = "\n".join(edit_problems(board, board.with_task(ahead), POLICY))
    for name in ("attempt", "extra_rounds", "plan_version", "evidence", "commit"):
        assert f"T009 is new: {name} can not be given by hand" in text
    step = board.subtask_by_id["T001-B01"].evolve(id="T001-B09")
    assert edit_problems(board, board.with_task(step), POLICY) == ()
    other = board.with_task(step.evolve(plan_version=5))
    assert "plan_version is 5, but T001 is at 1" in "\n".join(edit_problems(board, other, POLICY))
