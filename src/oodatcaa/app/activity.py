"""What each agent is doing right now: one small file per agent, for people who watch.

Nothing is decided from these files; the queue alone says who holds what.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.task import Role
from oodatcaa.domain.training import TrainProgress
from oodatcaa.kit.files import write_atomic

FOLDER = "activity"
PROGRESS_SECONDS = 0.25
KEPT_LINES = 40


class Said(Record):
    """One line of an agent. `life` tells its processes apart, `number` counts within one."""

    life: int
    number: int
    at: Utc
    text: str


class Activity(Record):
    agent: NonEmpty
    role: Role
    task: str = ""
    text: str = ""
    said: tuple[Said, ...] = Field(
        default=(), description="the newest lines, for who looks only now and then"
    )
    over: bool = Field(default=False, description="its process came to its end")
    progress: TrainProgress | None = None
    since: Utc = Field(description="when this task, or being idle, began")
    at: Utc


class Broadcast:
    """Tells watchers what one agent does; also prints each line through `echo`."""

    def __init__(self, work: Path, agent: str, role: Role, echo: Callable[[str], None]) -> None:
        self._path = work / FOLDER / f"{agent}.json"
        self._agent, self._role, self._echo = agent, role, echo
        self._task = ""
        self._text = ""
        self._said: deque[Said] = deque(maxlen=KEPT_LINES)
        self._life = time.time_ns()
        self._over = False
        self._last = 0.0
        self._since = datetime.now(UTC)

    def on(self, task: str) -> None:
        self._task = task
        self._since = datetime.now(UTC)

    def say(self, text: str) -> None:
        self._text = text
        number = self._said[-1].number + 1 if self._said else 1
        self._said.append(Said(life=self._life, number=number, at=datetime.now(UTC), text=text))
        self._echo(text)
        self._write(None)

    def idle(self, why: str) -> None:
        if (self._task, self._text) != ("", why):
            if self._task:
                self._since = datetime.now(UTC)
            self._task, self._text = "", why
            self._write(None)

    def progress(self, progress: TrainProgress) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS or progress.phase in ("finished", "failed"):
            self._last = now
            self._write(progress)

    def close(self) -> None:
        """Its last lines stay for whoever has not looked yet; `forget` removes them."""
        self._over = True
        self._write(None)

    def _write(self, progress: TrainProgress | None) -> None:
        activity = Activity(
            agent=self._agent,
            role=self._role,
            task=self._task,
            text=self._text,
            said=tuple(self._said),
            over=self._over,
            progress=progress,
            since=self._since,
            at=datetime.now(UTC),
        )
        write_atomic(self._path, activity.model_dump_json() + "\n")


def forget(work: Path) -> None:
    """Remove what agents left whose process came to its end."""
    for path in (work / FOLDER).glob("*.json"):
        try:
            over = Activity.model_validate_json(path.read_bytes()).over
        except (OSError, ValidationError):
            continue
        if over:
            path.unlink(missing_ok=True)


def read_activities(work: Path) -> tuple[Activity, ...]:
    """Every agent's newest activity, by name. A half-vanished file is simply not shown."""
    found: list[Activity] = []
    for path in sorted((work / FOLDER).glob("*.json")):
        try:
            found.append(Activity.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, ValidationError):
            continue
    return tuple(found)
