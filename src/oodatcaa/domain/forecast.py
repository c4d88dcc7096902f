"""When the sprint will end: a seeded Monte Carlo over what was measured in this very sprint.

Each simulated end lays out the work that is left under the WIP limits, every piece with a duration
drawn from the measured ones. Pure: the same history and seed give the same answer.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import Field

from oodatcaa.domain.base import Record, Utc
from oodatcaa.domain.board import Board
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.progress import INTEGRATION_MINUTES
from oodatcaa.domain.rounds import rounds_allowed
from oodatcaa.domain.states import is_finished
from oodatcaa.domain.task import Role, Story, StoryStatus, Subtask, SubtaskKind
from oodatcaa.domain.timeline import Timeline

RUNS = 1000
NEEDED = 5
"""Finished subtasks below which a forecast would only pretend to know."""
UNPLANNED = (StoryStatus.NEEDS_PLAN, StoryStatus.BLOCKED, StoryStatus.PLANNING)
FAILED = (StoryStatus.NEEDS_ADAPT, StoryStatus.ADAPTING)
MERGING = (StoryStatus.READY_FOR_INTEGRATOR, StoryStatus.INTEGRATING)


class Forecast(Record):
    """Minutes from now to the end. Without `p50` there is none, and `why_not` says why."""

    p50_minutes: float | None = None
    p80_minutes: float | None = None
    p95_minutes: float | None = None
    p50_at: Utc | None = None
    p80_at: Utc | None = None
    p95_at: Utc | None = None
    why_not: str = ""
    runs: int = 0
    seed: int = 0
    derived: tuple[str, ...] = Field(default=(), description="how, one line each")


class Samples(Record):
    """What was measured: minutes of pieces without an estimate, and actual by estimated minutes
    of those with one."""

    minutes: dict[str, tuple[float, ...]]
    ratios: dict[str, tuple[float, ...]]
    rounds: int
    planned: int

    @property
    def adapt_share(self) -> float:
        """Of the plans handed in, the share that had to be adapted."""
        return min(1.0, self.rounds / self.planned) if self.planned else 0.0


def samples(
    board: Board, lines: Mapping[str, Timeline], rounds: Mapping[str, int], now: datetime
) -> Samples:
    """Measured pieces: finished subtasks, accepted plans, integrations; all attempts together."""
    minutes: dict[str, list[float]] = {"planning": [], "adapting": [], "integrating": []}
    ratios: dict[str, list[float]] = {"build": [], "test": [], "story": []}
    for item in board.subtasks:
        line = lines[item.id]
        if line.outcome == "done" and line.work():
            ratios[item.kind.value].append(line.work_seconds(now) / 60 / item.estimate_minutes)
    planned = sum(rounds.values())
    for story in board.stories:
        line = lines[story.id]
        seen = {spell.status for spell in line.spells}
        planned += "planning_complete" in seen
        for status, done in (
            ("planning", "planning_complete" in seen),
            ("adapting", rounds.get(story.id, 0) > 0),
            ("integrating", line.outcome == "done"),
        ):
            spent = sum(s.seconds(now) for s in line.spells if s.status == status and s.end) / 60
            share = max(1, rounds.get(story.id, 0)) if status == "adapting" else 1
            if done and status in seen:
                minutes[status] += [spent / share] * share
        if line.outcome == "done" and "planning" in seen:
            parts = [lines[item.id] for item in board.subtasks_of(story.id)]
            work = sum(part.work_seconds(now) for part in parts) / 60
            ratios["story"].append(work / story.estimate_minutes)
    return Samples(
        minutes={key: tuple(found) for key, found in minutes.items()},
        ratios={key: tuple(found) for key, found in ratios.items()},
        rounds=sum(rounds.values()),
        planned=planned,
    )


def forecast(
    board: Board,
    lines: Mapping[str, Timeline],
    rounds: Mapping[str, int],
    now: datetime,
    policy: Policy,
    *,
    seed: int = 7,
    runs: int = RUNS,
) -> Forecast:
    """P50, P80 and P95 of the sprint's end; or why there is no forecast."""
    left = [story for story in board.stories if not is_finished(story)]
    if not left:
        return Forecast(why_not="nothing is left to do")
    known = samples(board, lines, rounds, now)
    finished = len(known.ratios["build"]) + len(known.ratios["test"])
    if finished < NEEDED:
        return Forecast(
            why_not=f"too few measurements: {finished} finished subtask"
            f"{'s' if finished != 1 else ''}, {NEEDED} are needed"
        )
    chance = random.Random(seed)
    ends = sorted(
        _schedule(tuple(_Layout(board, lines, known, now, chance).pieces()), policy)
        for _ in range(runs)
    )
    p50, p80, p95 = (quantile(ends, share) for share in (0.5, 0.8, 0.95))
    return Forecast(
        p50_minutes=p50,
        p80_minutes=p80,
        p95_minutes=p95,
        p50_at=now + timedelta(minutes=p50),
        p80_at=now + timedelta(minutes=p80),
        p95_at=now + timedelta(minutes=p95),
        runs=runs,
        seed=seed,
        derived=_how(left, known, policy, runs, seed),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _how(
    left: Sequence[Story], known: Samples, policy: Policy, runs: int, seed: int
) -> tuple[str, ...]:
    counts = ", ".join(
        f"{len(found)} x {name}"
        for name, found in {**known.ratios, **known.minutes}.items()
        if found and name != "story"
    )
    lines = [
        f"{runs} simulated ends of the {len(left)} open stories (seed {seed}), each piece of work "
        "drawn from what this sprint measured for its kind",
        f"measured: {counts}; subtasks as actual by estimated minutes",
        f"adaptation: {known.rounds} of {known.planned} plans had to be adapted, so each open "
        f"story is adapted with a chance of {known.adapt_share:.0%}",
        "agents at work at once: "
        + ", ".join(f"{role.value} {policy.wip.of(role)}" for role in Role),
        "not foreseen: waiting for memory, for people, or for a crew that does not run",
    ]
    if not known.minutes["integrating"]:
        lines.append(f"no integration was measured yet: {INTEGRATION_MINUTES} min is assumed")
    asked = [story.id for story in left if story.status is StoryStatus.NEEDS_HUMAN]
    if asked:
        lines.append(f"{', '.join(asked)} taken as if a person answered now")
    return tuple(lines)


@dataclass(frozen=True)
class _Piece:
    """Work of one agent. `needs` are places in the list of pieces, all before its own."""

    role: Role
    minutes: float
    needs: tuple[int, ...]


class _Layout:
    """The pieces of one simulated end, in an order in which every need comes first."""

    def __init__(
        self,
        board: Board,
        lines: Mapping[str, Timeline],
        known: Samples,
        now: datetime,
        chance: random.Random,
    ) -> None:
        self._board, self._lines, self._known, self._now = board, lines, known, now
        self._chance = chance
        self._made: list[_Piece] = []
        self._end: dict[str, int] = {}

    def pieces(self) -> Iterator[_Piece]:
        for story in _in_order(self._board):
            start = tuple(self._end[n] for n in story.depends_on if n in self._end)
            self._end[story.id] = self._story(story, start)
        yield from self._made

    def _add(self, role: Role, minutes: float, needs: tuple[int, ...]) -> int:
        self._made.append(_Piece(role, minutes, needs))
        return len(self._made) - 1

    def _story(self, story: Story, start: tuple[int, ...]) -> int:
        state = story.status
        if state is StoryStatus.NEEDS_HUMAN and story.paused_from is not None:
            state = story.paused_from
        if state in MERGING:
            return self._add(Role.INTEGRATOR, self._fixed("integrating", story), start)
        rounds = self._rounds(story, forced=state in FAILED)
        if state in UNPLANNED:
            start = (self._add(Role.PLANNER, self._fixed("planning", story), start),)
            start = (self._add(Role.BUILDER, self._whole(story), start),)
        elif state not in FAILED:
            start = self._subtasks(story, start)
        for _ in range(rounds):
            start = (self._add(Role.REFINER, self._fixed("adapting", story), start),)
            start = (self._add(Role.BUILDER, self._again(story), start),)
        return self._add(Role.INTEGRATOR, self._fixed("integrating", None), start)

    def _rounds(self, story: Story, *, forced: bool) -> int:
        allowed = max(1, rounds_allowed(self._board, story) - story.adapt_round)
        count = 1 if forced else 0
        while count < allowed and self._chance.random() < self._known.adapt_share:
            count += 1
        return count

    def _subtasks(self, story: Story, start: tuple[int, ...]) -> tuple[int, ...]:
        ends: dict[str, int] = {}
        left = {i.id: i for i in self._board.subtasks_of(story.id) if not is_finished(i)}
        while left:
            free = [i for i in left.values() if not any(n in left for n in i.depends_on)]
            for item in free or list(left.values()):  # a circle is cut, invariants report it
                needs = tuple(ends[n] for n in item.depends_on if n in ends)
                role = Role.BUILDER if item.kind is SubtaskKind.BUILD else Role.TESTER
                ends[item.id] = self._add(role, self._subtask(item), needs or start)
                del left[item.id]
        return tuple(ends.values()) or start

    def _subtask(self, item: Subtask) -> float:
        pool = self._known.ratios[item.kind.value] or self._pooled()
        return self._draw([ratio * item.estimate_minutes for ratio in pool], item.id)

    def _whole(self, story: Story) -> float:
        pool = self._known.ratios["story"] or self._pooled()
        return self._chance.choice(pool) * story.estimate_minutes

    def _again(self, story: Story) -> float:
        """What an adaptation costs: the story's work once more."""
        parts = [item.estimate_minutes for item in self._board.subtasks_of(story.id)]
        newest = sum(parts[-2:]) if parts else story.estimate_minutes
        return self._chance.choice(self._pooled()) * newest

    def _fixed(self, status: str, story: Story | None) -> float:
        pool = self._known.minutes[status] or (
            self._known.minutes["planning"] if status == "adapting" else ()
        )
        held = story is not None and story.status.value == status
        return self._draw(pool or [INTEGRATION_MINUTES], story.id if held and story else "")

    def _pooled(self) -> tuple[float, ...]:
        return (*self._known.ratios["build"], *self._known.ratios["test"])

    def _draw(self, minutes: Sequence[float], task: str) -> float:
        """A duration; for work that somebody holds now, what is left of one that is longer than
        it took already. When none was ever that long it is taken to be half done."""
        spent = self._spent(task)
        if not spent:
            return self._chance.choice(minutes)
        longer = [value - spent for value in minutes if value > spent]
        return self._chance.choice(longer) if longer else spent

    def _spent(self, task: str) -> float:
        line = self._lines.get(task)
        work = line.work() if line is not None else ()
        return work[-1].seconds(self._now) / 60 if work and work[-1].end is None else 0.0


def _in_order(board: Board) -> tuple[Story, ...]:
    """Unfinished stories, each after what it depends on; circles are cut."""
    left = {story.id: story for story in board.stories if not is_finished(story)}
    ordered: list[Story] = []
    while left:
        free = [s for s in left.values() if not any(n in left for n in s.depends_on)]
        for story in free or [next(iter(left.values()))]:
            ordered.append(left.pop(story.id))
    return tuple(ordered)


def _schedule(pieces: Sequence[_Piece], policy: Policy) -> float:
    """Minutes until the last piece is done: first come, first served, under the WIP limits."""
    slots = {role: [0.0] * max(1, policy.wip.of(role)) for role in Role}
    dependents: list[list[int]] = [[] for _ in pieces]
    open_needs = [len(piece.needs) for piece in pieces]
    ready_at = [0.0] * len(pieces)
    for place, piece in enumerate(pieces):
        for needed in piece.needs:
            dependents[needed].append(place)
    queue = [(0.0, place) for place, count in enumerate(open_needs) if count == 0]
    heapq.heapify(queue)
    end = 0.0
    while queue:
        ready, place = heapq.heappop(queue)
        piece = pieces[place]
        start = max(ready, heapq.heappop(slots[piece.role]))
        done = start + piece.minutes
        heapq.heappush(slots[piece.role], done)
        end = max(end, done)
        for other in dependents[place]:
            ready_at[other] = max(ready_at[other], done)
            open_needs[other] -= 1
            if open_needs[other] == 0:
                heapq.heappush(queue, (ready_at[other], other))
    return end
