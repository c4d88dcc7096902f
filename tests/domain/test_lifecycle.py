"""The tables, the only function that assigns a status, and what is found wrong with a board."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import oodatcaa.domain
from crew_boards import NOW, POLICY, build, finish, fresh_board, later, planned, take, verify
from oodatcaa.domain.board import Board, Offer
from oodatcaa.domain.lifecycle import (
    STORY_TABLE,
    SUBTASK_TABLE,
    B,
    S,
    invariants,
    legal,
    mermaid,
    move,
    put,
)
from oodatcaa.domain.task import Role
from oodatcaa.errors import RefusedError


def test_every_status_can_be_reached_and_left_unless_it_is_final() -> None:
    for table, states, starts in (
        (STORY_TABLE, S, {S.NEEDS_PLAN, S.BLOCKED}),
        (SUBTASK_TABLE, B, {B.READY, B.AWAITING_TEST, B.BLOCKED}),
    ):
        assert {row.target for row in table} | starts == set(states)
        left = {row.source for row in table}
        assert {state.value for state in states if state not in left} == {"done", "cancelled"}
        assert len({(row.source, row.target, row.kind) for row in table}) == len(table)


def test_the_way_of_a_story_and_of_its_subtasks_is_in_the_tables() -> None:
    steps = {(row.source.value, row.target.value) for row in STORY_TABLE}
    way = ["needs_plan", "planning", "planning_complete", "ready_for_integrator", "integrating"]
    assert set(zip(way, [*way[1:], "done"], strict=True)) <= steps


def test_a_move_outside_the_tables_is_refused() -> None:
    story = fresh_board().story_by_id["T001"]
    with pytest.raises(RefusedError) as caught:
        move(story, S.DONE, NOW)
    assert caught.value.code == "lifecycle.forbidden"


def test_a_build_never_waits_for_a_tester() -> None:
    board = planned(fresh_board(), "T001")
    with pytest.raises(RefusedError):
        move(board.subtask_by_id["T001-B01"], B.TESTING, NOW)


def test_a_move_ends_the_lease_and_progress_forgives_lost_leases() -> None:
    held = take(fresh_board(), Role.PLANNER, "T001").story_by_id["T001"].evolve(expiries=2)
    back = move(held, S.NEEDS_PLAN, later(1))
    assert (back.lease, back.expiries, back.status_since) == (None, 2, later(1))
    assert move(held, S.PLANNING_COMPLETE, NOW).expiries == 0


def test_a_story_that_stops_remembers_where_it_came_from() -> None:
    held = take(fresh_board(), Role.PLANNER, "T001").story_by_id["T001"]
    stopped = move(held, S.NEEDS_HUMAN, NOW, reason="why")
    assert stopped.paused_from is S.PLANNING
    assert move(stopped, S.NEEDS_PLAN, NOW).paused_from is None


def test_no_other_module_assigns_a_status() -> None:
    """Records of reports may have a field of that name; a task gets its status in one module."""
    folder = Path(str(oodatcaa.domain.__file__)).parent
    modules = sorted(folder.glob("*.py"))
    found = []
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and not _makes_another_record(node):
                found += [module.name for word in node.keywords if word.arg == "status"]
    assert len(modules) > 15
    assert found == []


def _makes_another_record(call: ast.Call) -> bool:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    return name[:1].isupper() and name not in ("Story", "Subtask")


def test_the_diagrams_show_every_row_of_the_tables() -> None:
    for kind, table in (("story", STORY_TABLE), ("subtask", SUBTASK_TABLE)):
        text = mermaid("story" if kind == "story" else "subtask")
        assert text.startswith("stateDiagram-v2\n")
        for row in table:
            arrow = f"{row.source.value} --> {row.target.value}"
            assert (arrow in text) == (row.target.value != "cancelled")


# -- boards written by hand ------------------------------------------------------------------------


def test_boards_of_ordinary_work_are_sound_at_every_step() -> None:
    board = fresh_board()
    acts: tuple[Callable[[Board], Board], ...] = (
        lambda b: planned(b, "T001", builds=2),
        lambda b: build(b, "T001-B01"),
        lambda b: build(b, "T001-B02"),
        lambda b: verify(b, "T001-T01"),
    )
    for act in acts:
        board = act(board)
        assert invariants(board, POLICY) == ()


def test_a_jump_over_the_tables_is_named() -> None:
    old = fresh_board()
    jumped = old.story_by_id["T001"].evolve(status=S.DONE)
    text = "\n".join(legal(old, old.with_task(jumped)))
    assert "T001 can not go from needs_plan to done" in text
    assert "without proof of integration" in text


def test_numbers_that_fence_do_not_go_back_and_tasks_do_not_vanish() -> None:
    old = finish(fresh_board(), "T001")
    back = old.story_by_id["T001"].evolve(attempt=0, plan_version=0, evidence=("made-up",))
    text = "\n".join(legal(old, old.with_task(back)))
    assert "attempt goes back from 2 to 0" in text
    assert "plan_version goes back" in text
    assert "its evidence can not be changed" in text
    gone = old.evolve(subtasks=old.subtasks[1:])
    assert any("T001-B01 vanished" in line for line in legal(old, gone))
    older = old.evolve(revision=3), old.evolve(revision=2)
    assert any("revision 2 is older" in line for line in legal(*older))


def test_references_that_lead_nowhere_and_circles_are_all_named() -> None:
    board = planned(fresh_board(), "T001", builds=2)
    dangling = board.with_task(board.story_by_id["T003"].evolve(depends_on=("T009",)))
    assert any("T003 depends on T009" in line for line in invariants(dangling, POLICY))
    ring = board.with_task(board.story_by_id["T001"].evolve(depends_on=("T004",)))
    assert any("circle of dependencies" in line for line in invariants(ring, POLICY))
    orphan = board.evolve(stories=board.stories[1:])
    assert any("T001-B01 belongs to no story" in line for line in invariants(orphan, POLICY))


def test_leases_and_states_belong_together() -> None:
    held = take(fresh_board(), Role.PLANNER, "T001")
    story = held.story_by_id["T001"]
    without = held.with_task(story.evolve(lease=None))
    assert any("planning without a lease" in line for line in invariants(without, POLICY))
    idle = held.with_task(held.story_by_id["T002"].evolve(lease=story.lease))
    text = "\n".join(invariants(idle, POLICY))
    assert "T002 is needs_plan, which nobody can hold" in text
    assert "planner-A holds 2 tasks" in text
    assert "WIP limit is 1" in text
    stale = held.with_task(story.evolve(attempt=5))
    assert any("lease of attempt 1, task at 5" in line for line in invariants(stale, POLICY))


def test_done_without_evidence_is_found() -> None:
    board = build(planned(fresh_board(), "T001"), "T001-B01")
    bare = board.with_task(board.subtask_by_id["T001-B01"].evolve(evidence=()))
    assert any("done without evidence" in line for line in invariants(bare, POLICY))


def test_work_ahead_of_its_dependencies_is_found() -> None:
    board = fresh_board()
    early = board.with_task(board.story_by_id["T001"].evolve(depends_on=("T002",)))
    ahead = take(board, Role.PLANNER, "T001").story_by_id["T001"].evolve(depends_on=("T002",))
    assert invariants(early, POLICY) == ()
    assert any("depends on T002, which is not done" in line
               for line in invariants(board.with_task(ahead), POLICY))  # fmt: skip


def test_offers_that_nobody_can_take_are_found_and_withdrawn() -> None:
    board = fresh_board().evolve(offers=(Offer(task="T003", role=Role.PLANNER, rank=1),))
    assert any("can not claim it" in line for line in invariants(board, POLICY))
    assert put(board, board.story_by_id["T001"]).offers == ()


def test_a_new_task_starts_at_the_beginning() -> None:
    old = fresh_board()
    done = finish(old, "T001").subtask_by_id["T001-B01"]
    new = old.with_task(done)
    assert any("is new, but already done" in line for line in legal(old, new))
