"""Opening and closing sprints, the stories of an objective, and the derived counters."""

from __future__ import annotations

import pytest

from crew_boards import NOW, OBJECTIVE, POLICY, build, finish, fresh_board, planned, sprint, take
from oodatcaa.domain.board import Board, EventKind
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
    board = finish(finish(fresh_board(), "T001"), "T002")
    board = build(planned(board, "T003", builds=2), "T003-B01")
    board = board.with_task(board.story_by_id["T005"].evolve(depends_on=()))
    closed = close_sprint(board, NOW, by="Kim")
    assert (closed.board.sprint, closed.board.stories, closed.board.subtasks) == (None, (), ())
    assert closed.value.sprint == 1
    assert [story.id for story in closed.value.unfinished] == ["T003", "T004", "T005"]
    carried = {story.id: story for story in closed.value.stories}
    assert sorted(carried) == ["T001", "T002", "T003", "T004", "T005"]  # what T003 builds on too
    assert carried["T001"] == board.story_by_id["T001"]
    assert carried["T003"].depends_on == ("T001", "T002")
    assert (carried["T003"].status, carried["T003"].plan_version) == (StoryStatus.NEEDS_PLAN, 1)
    assert carried["T004"].reason == "waits for T003"
    assert carried["T003"].attempt == board.story_by_id["T003"].attempt
    assert closed.events[0].kind is EventKind.SPRINT
    assert "2 of 5 stories integrated" in closed.events[0].text
    parts = {item.id: item for item in closed.value.subtasks}
    assert parts["T003-B01"] == board.subtask_by_id["T003-B01"]
    assert parts["T003-B02"].status.value == "cancelled"
    second = sprint().evolve(number=2)
    again = open_sprint(
        closed.board,
        NOW,
        sprint=second,
        stories=closed.value.stories,
        subtasks=closed.value.subtasks,
    ).board
    assert invariants(again, POLICY) == ()
    assert again.story_by_id["T003"].status is StoryStatus.NEEDS_PLAN


def test_a_finished_story_that_nobody_builds_on_stays_behind() -> None:
    board = finish(finish(fresh_board(), "T001"), "T002")
    for story in ("T003", "T004", "T005"):
        board = finish(board, story)
    assert close_sprint(board, NOW, by="Kim").value.stories == ()


def test_ids_go_on_where_an_earlier_sprint_ended() -> None:
    stories = stories_for(OBJECTIVE, NOW, first=6)
    assert [story.id for story in stories] == ["T006", "T007", "T008", "T009", "T010"]
    assert stories[2].depends_on == ("T006", "T007")
    assert stories[4].depends_on == ("T009",)


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
