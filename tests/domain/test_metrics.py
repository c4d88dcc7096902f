"""A sprint's numbers, by example and for any walk through the tables."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from crew_boards import NOW, POLICY, fresh_board, sprint
from oodatcaa.domain.board import Board, Event, EventKind
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.forecast import Forecast, forecast, quantile, samples
from oodatcaa.domain.metrics import SprintMetrics, adapt_rounds, measure
from oodatcaa.domain.states import STORY_TABLE, SUBTASK_TABLE, Row
from oodatcaa.domain.task import Role, Story, StoryKind, StoryStatus, Subtask, SubtaskKind
from oodatcaa.domain.timeline import WORK, covered, timelines
from oodatcaa.views.metrics import metrics_page, metrics_text
from recorded_sprint import Recorded


def numbers(played: Recorded, seed: int = 7) -> SprintMetrics:
    return measure(played.board, played.events, played.now, POLICY, seed=seed)


def one_story_done() -> Recorded:
    played = Recorded()
    played.wait(2)
    played.story("T001", plan=3, build=10, test=4, merge=1)
    return played


def test_a_story_from_its_start_to_its_end() -> None:
    found = numbers(one_story_done())
    story = found.stories[0]
    assert (story.story, story.done, story.adapt_rounds) == ("T001", True, 0)
    assert story.lead_seconds == 20 * 60
    assert story.cycle_seconds == 18 * 60
    assert story.work_seconds == 18 * 60
    assert story.waiting_seconds == 2 * 60
    assert story.agent_seconds == 18 * 60
    times = {(row.scope, row.status): row.total_seconds / 60 for row in found.states}
    assert times["story", "planning"] == 3
    assert times["subtask", "in_progress"] == 10
    assert times["subtask", "blocked"] == 10  # the test waited for the build
    assert times["story", "blocked"] == 60  # T003, T004 and T005, for twenty minutes each
    assert [(e.task, e.actual_minutes, e.estimate_minutes) for e in found.estimates] == [
        ("T001-B01", 10, 5),
        ("T001-T01", 4, 2),
    ]
    assert found.estimate_ratio == 2
    assert found.per_hour(found.stories_done) == 3
    assert [step.story for step in found.measured_path] == ["T001"]
    assert found.remaining_path[0] in ("T002", "T003")


def test_lost_leases_count_against_claims() -> None:
    played = Recorded()
    played.plan("T001", 1)
    for _ in range(2):
        attempt = played.take(Role.BUILDER, "T001-B01")
        played.wait(6)
        played.round(f"T001-B01#{attempt}")
    played.build("T001-B01", 5)
    found = numbers(played)
    assert (found.leases.claims, found.leases.expired) == (4, 2)
    assert found.leases.stale_rate == 0.5
    assert found.estimates[0].attempts == 3
    assert found.estimates[0].actual_minutes == 17
    assert numbers(Recorded()).leases.stale_rate is None


def test_adaptation_rounds_and_what_they_cost() -> None:
    played = Recorded()
    played.plan("T002", 1)
    played.build("T002-B01", 2, Verdict.FAILED)
    played.wait(5)
    played.adapt("T002", 3, first=2)
    found = numbers(played)
    assert found.adapt_rounds == 1
    story = next(row for row in found.stories if row.story == "T002")
    assert story.adapt_rounds == 1
    assert story.waiting_seconds == 5 * 60
    assert {r.status: r.total_seconds for r in found.states if r.scope == "story"}[
        "adapting"
    ] == 180


def test_the_measured_path_goes_back_through_what_was_done_last() -> None:
    played = Recorded()
    played.story("T001", plan=1, build=1, test=1, merge=1)
    played.story("T002", plan=1, build=5, test=1, merge=1)
    played.story("T003", plan=1, build=1, test=1, merge=1)
    path = numbers(played).measured_path
    assert [(step.story, step.waited_for) for step in path] == [("T002", ""), ("T003", "T002")]
    assert path[1].started_at == path[0].finished_at


def test_what_an_earlier_sprint_finished_is_not_counted_again() -> None:
    board = one_story_done().board
    assert board.sprint is not None
    later = NOW + timedelta(days=1)
    board = board.evolve(sprint=board.sprint.evolve(number=2, created_at=later))
    found = measure(board, (), later + timedelta(hours=1), POLICY)
    assert [story.story for story in found.stories] == ["T002", "T003", "T004", "T005"]
    assert (found.stories_done, found.stories_total, found.subtasks_done) == (0, 4, 0)


def test_no_forecast_is_better_than_one_from_nothing() -> None:
    found = numbers(one_story_done()).forecast
    assert found.p50_minutes is None
    assert found.why_not == "too few measurements: 2 finished subtasks, 5 are needed"
    assert "too few measurements" in metrics_text(numbers(one_story_done()))


def far_enough(factor: float = 2) -> Recorded:
    """T001 to T003 are done, every subtask in `factor` times its estimate; nothing else varies."""
    played = Recorded()
    for story in ("T001", "T002", "T003"):
        played.story(story, plan=1, build=5 * factor, test=2 * factor, merge=3)
    return played


def test_a_forecast_from_equal_measurements_is_the_plain_schedule() -> None:
    played = far_enough()
    found = numbers(played).forecast
    left = [played.board.story_by_id[key] for key in ("T004", "T005")]
    measured = {s.id: 14 / s.estimate_minutes for s in played.board.stories[:3]}
    low = sum(1 + min(measured.values()) * s.estimate_minutes + 3 for s in left)
    high = sum(1 + max(measured.values()) * s.estimate_minutes + 3 for s in left)
    assert found.p50_minutes is not None
    assert found.p95_minutes is not None
    assert low <= found.p50_minutes <= found.p95_minutes <= high
    played.plan("T004", 1)
    lines = timelines(played.board, played.events)
    only = played.board.evolve(stories=played.board.stories[:4])
    exact = forecast(only, lines, {}, played.now, POLICY)
    assert (exact.p50_minutes, exact.p95_minutes) == (2 * 5 + 2 * 2 + 3, 2 * 5 + 2 * 2 + 3)
    assert exact.p50_at == played.now + timedelta(minutes=17)
    assert "0 of 4 plans" in " ".join(exact.derived)


def test_work_under_way_is_expected_to_take_what_is_left_of_it() -> None:
    played = far_enough()
    played.plan("T004", 1)
    played.take(Role.BUILDER, "T004-B01")
    only = played.board.evolve(stories=played.board.stories[:4])
    for spent, left in ((4, 6), (30, 30)):  # 10 is the longest that was ever needed
        now = played.now + timedelta(minutes=spent)
        found = forecast(only, timelines(only, played.events), {}, now, POLICY)
        assert found.p50_minutes == pytest.approx(left + 4 + 3)


def test_rounds_that_happened_make_later_ends_later() -> None:
    played = far_enough()
    lines = timelines(played.board, played.events)
    calm = forecast(played.board, lines, {}, played.now, POLICY)
    rough = forecast(played.board, lines, {"T001": 2, "T002": 2}, played.now, POLICY)
    assert calm.p50_minutes is not None
    assert rough.p50_minutes is not None
    assert rough.p50_minutes > calm.p50_minutes
    assert "4 of 7 plans had to be adapted" in " ".join(rough.derived)


@settings(max_examples=10, deadline=None)
@given(some.integers(0, 2**32), some.floats(0.2, 5))
def test_a_forecast_repeats_itself_and_its_quantiles_are_in_order(seed: int, factor: float) -> None:
    played = far_enough(factor)
    played.wait(7).plan("T004", 2)
    lines = timelines(played.board, played.events)

    def made() -> Forecast:
        return forecast(played.board, lines, {"T001": 1}, played.now, POLICY, seed=seed, runs=60)

    found = made()
    assert found == made()
    assert found.p50_minutes is not None
    assert found.p80_minutes is not None
    assert found.p95_minutes is not None
    assert 0 < found.p50_minutes <= found.p80_minutes <= found.p95_minutes


@given(some.lists(some.floats(0, 1e6), min_size=1, max_size=60), some.floats(0.01, 1))
def test_a_quantile_is_the_smallest_value_that_enough_others_do_not_exceed(
    values: list[float], share: float
) -> None:
    values.sort()
    found = quantile(values, share)
    below = [value for value in values if value <= found]
    assert found in values
    assert len(below) >= share * len(values) - 1e-9
    assert len([value for value in values if value < found]) < share * len(values) + 1e-9


gaps = some.floats(0, 500, allow_nan=False)


@some.composite
def walks(draw: some.DrawFn) -> tuple[Board, list[Event], datetime]:
    """Tasks that walk through their tables at random moments, and the events of that."""
    stories, subtasks, events = [], [], []
    now = NOW
    for number in range(1, draw(some.integers(1, 3)) + 1):
        status, at, moves = _walk(draw, STORY_TABLE, StoryStatus.NEEDS_PLAN, f"T{number:03d}", None)
        stories.append(_story(number, status, at))
        events += moves
        now = max(now, at)
        for kind, first in ((SubtaskKind.BUILD, "ready"), (SubtaskKind.TEST, "awaiting_test")):
            name = f"T{number:03d}-{kind.value[0].upper()}01"
            start = next(row.source for row in SUBTASK_TABLE if row.source.value == first)
            status, at, moves = _walk(draw, SUBTASK_TABLE, start, name, kind)
            subtasks.append(_subtask(name, kind, status, at))
            events += moves
            now = max(now, at)
    board = Board(sprint=sprint(), stories=tuple(stories), subtasks=tuple(subtasks))
    return board, sorted(events, key=lambda e: e.at), now + timedelta(seconds=draw(gaps))


def _walk(
    draw: some.DrawFn, table: tuple[Row, ...], status: object, name: str, kind: object
) -> tuple[object, datetime, list[Event]]:
    at, moves = NOW, []
    for _ in range(draw(some.integers(0, 8))):
        rows = [row for row in table if row.source is status and row.kind in (None, kind)]
        if not rows:
            break
        row = draw(some.sampled_from(rows))
        at += timedelta(seconds=draw(gaps))
        what = EventKind.CLAIM if row.name == "claim" else EventKind.TRANSITION
        if row.name == "release or expire":
            what = EventKind.EXPIRE
        moves.append(
            Event(
                kind=what,
                at=at,
                actor="a",
                subject=name,
                before=row.source.value,
                after=row.target.value,
                text=row.name,
            )
        )
        status = row.target
    return status, at, moves


def _story(number: int, status: object, since: datetime) -> Story:
    return (
        fresh_board()
        .stories[0]
        .evolve(id=f"T{number:03d}", status=status, status_since=since, kind=StoryKind.CUSTOM)
    )


def _subtask(name: str, kind: SubtaskKind, status: object, since: datetime) -> Subtask:
    return Subtask.model_validate(
        {
            "id": name,
            "story": name.split("-")[0],
            "kind": kind,
            "status": status,
            "title": name,
            "estimate_minutes": 3,
            "status_since": since,
            "created_at": NOW,
            "plan_version": 1,
        }
    )


@settings(max_examples=60, deadline=None)
@given(walks())
def test_the_stays_of_a_task_cover_its_life_without_gap_or_overlap(
    walk: tuple[Board, list[Event], datetime],
) -> None:
    board, events, now = walk
    for line in timelines(board, events).values():
        end = line.finished_at or now
        assert sum(s.seconds(now) for s in line.spells) == pytest.approx(
            (end - NOW).total_seconds(), abs=1e-3
        )
        for one, other in zip(line.spells, line.spells[1:], strict=False):
            assert one.end == other.start
        assert (line.finished_at is None) == (line.outcome == "")


@settings(max_examples=60, deadline=None)
@given(walks(), some.integers(0, 99))
def test_numbers_of_any_walk_add_up(walk: tuple[Board, list[Event], datetime], seed: int) -> None:
    board, events, now = walk
    found = measure(board, events, now, POLICY, seed=seed)
    lines = timelines(board, events)
    total = sum(s.seconds(now) for line in lines.values() for s in line.spells)
    assert sum(row.total_seconds for row in found.states) == pytest.approx(total, abs=1e-2)
    for story in found.stories:
        assert story.work_seconds + story.waiting_seconds == pytest.approx(story.lead_seconds)
        assert 0 <= story.work_seconds <= story.agent_seconds + 1e-6
        assert story.cycle_seconds is None or story.cycle_seconds <= story.lead_seconds + 1e-6
    assert found.leases.claims == sum(1 for event in events if event.kind is EventKind.CLAIM)
    assert found.stories_done <= found.stories_total <= len(board.stories)
    assert found.adapt_rounds == sum(adapt_rounds(events).values())
    known = samples(board, lines, adapt_rounds(events), now)
    assert 0 <= known.adapt_share <= 1
    assert SprintMetrics.model_validate_json(found.model_dump_json()) == found
    assert f"Sprint {found.sprint} in numbers" in metrics_page(found)
    assert metrics_text(found)
    assert found == measure(board, events, now, POLICY, seed=seed)


@given(some.lists(some.tuples(some.floats(0, 100), some.floats(0, 50)), max_size=8))
def test_time_that_overlaps_counts_once(pairs: list[tuple[float, float]]) -> None:
    from oodatcaa.domain.timeline import Spell

    spells = [
        Spell(
            status="testing",
            start=NOW + timedelta(minutes=start),
            end=NOW + timedelta(minutes=start + length),
        )
        for start, length in pairs
    ]
    found = covered(spells, NOW)
    total = sum(spell.seconds(NOW) for spell in spells)
    longest = max((spell.seconds(NOW) for spell in spells), default=0)
    assert longest - 1e-6 <= found <= total + 1e-6
    assert "adapting" in WORK
