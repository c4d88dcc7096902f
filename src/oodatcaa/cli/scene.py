"""What a watcher of a crew gets to see, gathered from the queue and the agents' activity files."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from oodatcaa.app.activity import Activity, read_activities
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board, Event
from oodatcaa.domain.progress import Progress, progress
from oodatcaa.domain.training import TrainProgress

KEPT_NEWS = 40


@dataclass(frozen=True)
class Training:
    """A run that goes on now. `left_seconds` is extrapolated from the iterations seen so far."""

    agent: str
    task: str
    now: TrainProgress
    peak_bytes: int = 0
    left_seconds: float | None = None


@dataclass(frozen=True)
class Scene:
    """One look at the crew."""

    at: datetime
    title: str
    state: str
    progress: Progress
    stories: tuple[tuple[str, str], ...]
    running_seconds: float
    limit_bytes: int
    agents: tuple[Activity, ...] = ()
    training: tuple[Training, ...] = ()
    news: tuple[tuple[datetime, str, str], ...] = ()


@dataclass
class _Pace:
    """When a run was first seen at which iteration, and the most memory seen since."""

    iteration: int
    at: datetime
    peak: int = 0


@dataclass
class Observer:
    """Looks at the project again and again; reads the log only when the queue moved."""

    project: Project
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    _revision: int = -1
    _told: tuple[int, int] | None = None
    _told_revision: int = -1
    _news: deque[tuple[datetime, str, str]] = field(default_factory=lambda: deque(maxlen=KEPT_NEWS))
    _paces: dict[str, _Pace] = field(default_factory=dict)

    def activities(self) -> tuple[Activity, ...]:
        """The agents of this crew. What a killed agent of an earlier crew left is not news."""
        return tuple(item for item in read_activities(self.project.work) if item.at >= self.since)

    def fresh(self) -> tuple[Event, ...]:
        """The log entries since the last call, oldest first; the first call tells none."""
        revision = self.project.store.read().revision
        if revision == self._told_revision:
            return ()
        self._told_revision = revision
        history = list(self.project.store.history())
        told, self._told = self._told, (history[-1].seq, history[-1].index) if history else (0, 0)
        if told is None:
            return ()
        return tuple(item.event for item in history if (item.seq, item.index) > told)

    def look(self, state: str = "running") -> Scene:
        now = datetime.now(UTC)
        board = self.project.store.read()
        self._read_news(board)
        agents = tuple(item for item in self.activities() if not item.over)
        sprint = board.sprint
        return Scene(
            at=now,
            title=f"sprint {sprint.number}: {sprint.title}" if sprint else "no sprint",
            state=state,
            progress=progress(board),
            stories=tuple((story.id, story.status.value) for story in board.stories),
            running_seconds=(now - self.since).total_seconds(),
            limit_bytes=sprint.memory_limit_bytes if sprint else 0,
            agents=agents,
            training=tuple(
                self._training(item, item.progress)
                for item in agents
                if item.progress is not None and item.progress.phase not in ("finished", "failed")
            ),
            news=tuple(self._news),
        )

    def _read_news(self, board: Board) -> None:
        if board.revision == self._revision:
            return
        self._revision = board.revision
        self._news.clear()
        events = (item.event for item in self.project.store.history())
        self._news.extend((event.at, event.actor, told(event)) for event in events)

    def _training(self, activity: Activity, seen: TrainProgress) -> Training:
        pace = self._paces.setdefault(seen.run_id, _Pace(seen.iteration, activity.at))
        pace.peak = max(pace.peak, seen.memory_bytes or 0)
        done, spent = seen.iteration - pace.iteration, (activity.at - pace.at).total_seconds()
        left = (seen.iters - seen.iteration) * spent / done if done > 0 else None
        return Training(activity.agent, activity.task, seen, pace.peak, left)


def told(event: Event) -> str:
    """The entry in one line, for beside its actor: what happened, and to which task."""
    text = event.text.removeprefix(f"{event.actor} ")
    return text if event.subject == "sprint" or event.subject in text else f"{event.subject} {text}"
