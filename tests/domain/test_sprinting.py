"""Opening and closing sprints, the stories of an objective, and the derived counters."""

from __future__ import annotations

import pytest

from crew_boards import NOW, OBJECTIVE, POLICY, build, finish, fresh_board, planned, sprint, take
from oodatcaa.domain.board import Board, EventKind
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.lifecycle import invariants
from oodatcaa.domain.progress import critical_path, longest_paths, progress
from oodatcaa.domain.sprinting import close_sprint, open_sprint, stories_for
from oodatcaa.domain.task import Role, StoryKind, StoryStatus
from oodatcaa.errors import RefusedError


def test_an_objective_becomes_five_stories_in_order() -> None:
    stories = stories_for(OBJECTIVE, NOW)
    assert [(story.id, story.kind, story.depends_on) for story in stories] == [
        ("T001", StoryKind.FRAMEWORK, ()),
        ("T002", StoryKind.DATA, ()),
        ("T003", StoryKind.TRAIN, ("T001", "T002")),
        ("T004", StoryKind.EVALUATE, ("T003",)),
        ("T005", StoryKind.PUBLISH, ("T004",)),
    ]
    assert [story.status.value for story in stories] == ["needs_plan"] * 2 + ["blocked"] * 3
    assert "test_loss_drop >= 0.1" in stories[3].goal
    large = stories_for(OBJECTIVE.evolve(model="Qwen/Qwen2.5-Coder-7B-Instruct"), NOW)
    assert "Qwen2.5" in large[0].goal
    assert all(a.estimate_minutes < b.estimate_minutes for a, b in zip(stories, large, strict=True))


def test_one_sprint_at_a_time_and_only_sound_stories() -> None:
    board = fresh_board()
    stories = board.stories
    with pytest.raises(RefusedError, match="sprint 1"):
        open_sprint(board, NOW, sprint=sprint(), stories=stories)
    with pytest.raises(RefusedError) as caught:
        open_sprint(Board(), NOW, sprint=sprint(), stories=())
    assert caught.value.code == "sprint.no_stories"
    broken = (stories[2], stories[0].evolve(status=StoryStatus.CANCELLED))
    with pytest.raises(RefusedError) as caught:
        open_sprint(Board(), NOW, sprint=sprint(), stories=broken)
    assert caught.value.code == "sprint.invalid"
    assert len(caught.value.details) >= 1


def test_unfinished_stories_move_on_and_can_be_opened_again() -> None:
    board = finish(fresh_board(), "T001")
    board = build(planned(board, "T002"), "T002-B01", Verdict.FAILED)
    closed = close_sprint(board, NOW, by="Kim")
    assert (closed.board.sprint, closed.board.stories) == (None, ())
    carried = {story.id: story for story in closed.value}
    assert sorted(carried) == ["T002", "T003", "T004", "T005"]
    assert carried["T003"].depends_on == ("T002",)
    assert (carried["T002"].status, carried["T002"].plan_version) == (StoryStatus.NEEDS_PLAN, 1)
    assert carried["T002"].attempt == board.story_by_id["T002"].attempt
    assert closed.events[0].kind is EventKind.SPRINT
    assert "1 of 5 stories integrated" in closed.events[0].text
    again = open_sprint(closed.board, NOW, sprint=sprint(), stories=closed.value).board
    assert invariants(again, POLICY) == ()


def test_a_sprint_that_is_being_worked_on_is_not_closed() -> None:
    board = take(fresh_board(), Role.PLANNER, "T001")
    with pytest.raises(RefusedError) as caught:
        close_sprint(board, NOW, by="Kim")
    assert caught.value.code == "sprint.busy"
    assert caught.value.details == ("T001 is held by planner-A",)
    with pytest.raises(RefusedError) as caught:
        close_sprint(Board(), NOW, by="Kim")
    assert caught.value.code == "sprint.none"


def test_the_objective_counts_integrated_stories_by_their_minutes() -> None:
    board = planned(finish(fresh_board(), "T002"), "T001", builds=2)
    found = progress(board)
    minutes = {story.id: story.estimate_minutes for story in board.stories}
    assert found.objective_percent == round(100 * minutes["T002"] / sum(minutes.values()), 1)
    assert (found.stories_done, found.stories_total) == (1, 5)
    assert (found.subtasks_done, found.subtasks_total) == (2, 5)
    rest = minutes["T003"] + minutes["T004"] + minutes["T005"]
    assert found.remaining_minutes == rest + 5 + 5 + 2
    assert "T003: waits for T001" in found.blocked
    assert progress(Board()).objective_percent == 0.0


def test_the_critical_path_is_the_longest_chain_of_what_is_left() -> None:
    board = fresh_board()
    minutes = {story.id: story.estimate_minutes for story in board.stories}
    ids, total = critical_path(board)
    assert ids == ("T001", "T003", "T004", "T005")
    assert total == sum(minutes[item] for item in ids)
    after = planned(finish(board, "T001"), "T002", builds=2)
    ids, total = critical_path(after)
    assert ids == ("T002", "T003", "T004", "T005")
    paths = longest_paths(after)
    assert paths["T002-B01"] == total
    assert paths["T002-T01"] == total - 10
    assert critical_path(Board()) == ((), 0)
