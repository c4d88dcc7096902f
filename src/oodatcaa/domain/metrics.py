"""What a sprint's history says in numbers. Everything here is derived from events; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from statistics import median

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board, Event, EventKind
from oodatcaa.domain.forecast import Forecast, forecast
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.progress import critical_path
from oodatcaa.domain.task import Story, Subtask
from oodatcaa.domain.timeline import WAIT, Spell, Timeline, covered, meaning, timelines


class StateTime(Record):
    """All stays of stories (or of subtasks) in one state."""

    scope: NonEmpty
    status: NonEmpty
    meaning: NonEmpty
    visits: int
    total_seconds: float
    median_seconds: float
    longest_seconds: float


class StoryTime(Record):
    """One story. `lead` is from its start to its end (or now), `cycle` from its first claim;
    `work` is the time in which at least one agent worked on it or a subtask; the rest waited."""

    story: NonEmpty
    title: NonEmpty
    status: NonEmpty
    lead_seconds: float
    cycle_seconds: float | None
    work_seconds: float
    waiting_seconds: float
    blocked_seconds: float = Field(description="part of waiting: for other stories")
    agent_seconds: float = Field(description="all agents' work together, overlaps counted twice")
    adapt_rounds: int
    estimate_minutes: int
    done: bool

    @property
    def ratio(self) -> float | None:
        """Agents' time by the estimate; None before the story is done."""
        return self.agent_seconds / 60 / self.estimate_minutes if self.done else None


class Estimate(Record):
    """A finished subtask: what was estimated, and how long agents held it, all attempts."""

    task: NonEmpty
    estimate_minutes: int
    actual_minutes: float
    attempts: int

    @property
    def ratio(self) -> float:
        return self.actual_minutes / self.estimate_minutes


class Leases(Record):
    """`stale_rate` is expired leases by claims; None before the first claim."""

    claims: int
    expired: int
    released: int
    refused: int

    @property
    def stale_rate(self) -> float | None:
        return self.expired / self.claims if self.claims else None


class PathStep(Record):
    """One story of the chain that decided when the sprint's newest story was done."""

    story: NonEmpty
    waited_for: str
    started_at: Utc
    finished_at: Utc


class SprintMetrics(Record):
    """Seconds are measured by the framework's clock; minutes of estimates are estimates."""

    sprint: int
    title: NonEmpty
    began_at: Utc
    until: Utc
    stories_done: int
    stories_total: int
    subtasks_done: int
    subtasks_total: int
    states: tuple[StateTime, ...]
    stories: tuple[StoryTime, ...]
    estimates: tuple[Estimate, ...]
    estimate_ratio: float | None = Field(description="median of actual by estimated minutes")
    leases: Leases
    adapt_rounds: int
    measured_path: tuple[PathStep, ...]
    remaining_path: tuple[str, ...]
    remaining_minutes: int = Field(description="of the remaining path; planning estimates")
    forecast: Forecast

    @property
    def elapsed_seconds(self) -> float:
        return (self.until - self.began_at).total_seconds()

    def per_hour(self, amount: int) -> float | None:
        hours = self.elapsed_seconds / 3600
        return amount / hours if hours > 0 else None


def measure(
    board: Board, events: Iterable[Event], now: datetime, policy: Policy, *, seed: int = 7
) -> SprintMetrics:
    """The numbers of the board's sprint up to `now`. Raises ValueError without a sprint."""
    sprint = board.sprint
    if sprint is None:
        raise ValueError("no sprint to measure")
    history = tuple(events)
    lines = timelines(board, history)
    rounds = adapt_rounds(history)
    done = [story for story in board.stories if _done_here(lines[story.id])]
    estimates = _estimates(board, lines, now)
    path, minutes = critical_path(board)
    live = [story for story in board.stories if story.status.value != "cancelled"]
    return SprintMetrics(
        sprint=sprint.number,
        title=sprint.title,
        began_at=sprint.created_at,
        until=max(now, sprint.created_at),
        stories_done=len(done),
        stories_total=len([story for story in live if not _done_before(story, lines[story.id])]),
        subtasks_done=len(estimates),
        subtasks_total=len(estimates) + len(_open_subtasks(board)),
        states=_states(lines, now),
        stories=tuple(
            _story(story, lines, rounds, now)
            for story in board.stories
            if not _done_before(story, lines[story.id])
        ),
        estimates=estimates,
        estimate_ratio=median(item.ratio for item in estimates) if estimates else None,
        leases=_leases(history),
        adapt_rounds=sum(rounds.values()),
        measured_path=_measured_path(board, lines),
        remaining_path=path,
        remaining_minutes=minutes,
        forecast=forecast(board, lines, rounds, now, policy, seed=seed),
    )


def adapt_rounds(events: Iterable[Event]) -> Counter[str]:
    """Story -> adapted plans that were accepted."""
    return Counter(
        event.subject
        for event in events
        if (event.before, event.after) == ("adapting", "planning_complete")
    )


def _done_here(line: Timeline) -> bool:
    """Integrated in this sprint; what an earlier one finished has no stay in this one."""
    return line.outcome == "done" and bool(line.spells)


def _done_before(story: Story, line: Timeline) -> bool:
    return story.status.value in ("done", "cancelled") and not line.spells


def _open_subtasks(board: Board) -> list[Subtask]:
    return [item for item in board.subtasks if item.status.value not in ("done", "cancelled")]


def _states(lines: Mapping[str, Timeline], now: datetime) -> tuple[StateTime, ...]:
    grouped: dict[tuple[str, str], list[float]] = {}
    for line in lines.values():
        scope = "story" if line.kind == "story" else "subtask"
        for spell in line.spells:
            grouped.setdefault((scope, spell.status), []).append(spell.seconds(now))
    rows = [
        StateTime(
            scope=scope,
            status=status,
            meaning=_in_words(scope, status),
            visits=len(stays),
            total_seconds=sum(stays),
            median_seconds=median(stays),
            longest_seconds=max(stays),
        )
        for (scope, status), stays in grouped.items()
    ]
    return tuple(sorted(rows, key=lambda row: (row.scope, -row.total_seconds, row.status)))


def _in_words(scope: str, status: str) -> str:
    follows = scope == "subtask" and status == "adapting"
    return "its story is adapted" if follows else meaning(status)


def _story(
    story: Story, lines: Mapping[str, Timeline], rounds: Mapping[str, int], now: datetime
) -> StoryTime:
    own = lines[story.id]
    family = [line for line in lines.values() if line.story == story.id]
    work: list[Spell] = [spell for line in family for spell in line.work()]
    end = own.finished_at or now
    start = own.start or end
    first = min((spell.start for spell in work), default=None)
    lead = max(0.0, (end - start).total_seconds())
    busy = min(lead, covered(work, now))
    return StoryTime(
        story=story.id,
        title=story.title,
        status=story.status.value,
        lead_seconds=lead,
        cycle_seconds=max(0.0, (end - first).total_seconds()) if first else None,
        work_seconds=busy,
        waiting_seconds=lead - busy,
        blocked_seconds=sum(s.seconds(now) for s in own.spells if s.status == "blocked"),
        agent_seconds=sum(spell.seconds(now) for spell in work),
        adapt_rounds=rounds.get(story.id, 0),
        estimate_minutes=story.estimate_minutes,
        done=own.outcome == "done",
    )


def _estimates(board: Board, lines: Mapping[str, Timeline], now: datetime) -> tuple[Estimate, ...]:
    return tuple(
        Estimate(
            task=item.id,
            estimate_minutes=item.estimate_minutes,
            actual_minutes=lines[item.id].work_seconds(now) / 60,
            attempts=len(lines[item.id].work()),
        )
        for item in board.subtasks
        if lines[item.id].outcome == "done" and lines[item.id].work()
    )


def _leases(events: Iterable[Event]) -> Leases:
    counts = Counter(event.kind for event in events)
    return Leases(
        claims=counts[EventKind.CLAIM],
        expired=counts[EventKind.EXPIRE],
        released=counts[EventKind.RELEASE],
        refused=counts[EventKind.REFUSED],
    )


def _measured_path(board: Board, lines: Mapping[str, Timeline]) -> tuple[PathStep, ...]:
    """Back from the story that was done last, each time to the dependency that was done last."""
    ends = {s.id: at for s in board.stories if (at := _end(lines[s.id])) is not None}
    if not ends:
        return ()
    current: str | None = max(ends, key=lambda key: (ends[key], key))
    steps: list[PathStep] = []
    while current is not None and len(steps) <= len(ends):
        story, line = board.story_by_id[current], lines[current]
        before = [needed for needed in story.depends_on if needed in ends]
        last = max(before, key=lambda key: (ends[key], key), default=None)
        start = max(ends[last], line.start or ends[last]) if last else line.start
        end = ends[current]
        steps.append(
            PathStep(
                story=current,
                waited_for=last or "",
                started_at=start or end,
                finished_at=end,
            )
        )
        current = last
    return tuple(reversed(steps))


def _end(line: Timeline) -> datetime | None:
    return line.finished_at if _done_here(line) else None


def waiting_of(metrics: SprintMetrics) -> tuple[StateTime, ...]:
    """The states in which something waited, the longest first."""
    rows = [row for row in metrics.states if row.status in WAIT]
    return tuple(sorted(rows, key=lambda row: -row.total_seconds))
