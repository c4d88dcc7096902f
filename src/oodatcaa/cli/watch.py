"""Live progress of a crew: a panel on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from oodatcaa.app.activity import Activity
from oodatcaa.app.project import Project
from oodatcaa.cli.scene import Observer, Scene, told
from oodatcaa.cli.show import say
from oodatcaa.domain.board import EventKind
from oodatcaa.domain.rounds import NEGOTIATOR
from oodatcaa.domain.training import GB, TrainProgress

if TYPE_CHECKING:
    from oodatcaa.cli.screen import Terminal

BAR = 24
ROUTINE = frozenset({EventKind.NEGOTIATION, EventKind.CLAIM, EventKind.GATE})
"""Kinds of log entries that the agents' own lines tell already."""


class Watch(Protocol):
    """What a crew tells about itself, several times a second."""

    def tick(self, state: str) -> None: ...


class Lines:
    """Prints what changed since the last tick, line by line: fit for a file."""

    def __init__(self, project: Project) -> None:
        self._observer = Observer(project)
        self._observer.fresh()
        self._seen: dict[str, tuple[int, int]] = {}
        self._steps: dict[str, tuple[str, int]] = {}
        self._state = ""

    def tick(self, state: str) -> None:
        if state not in ("running", self._state):
            self._state = state
            say(state)
        for event in self._observer.fresh():
            echo = event.text.startswith(f"{event.subject}-")  # a story's word for its subtask's
            unblocked = event.kind is EventKind.TRANSITION and event.actor == NEGOTIATOR
            if event.kind not in ROUTINE and not unblocked and not echo:
                say(f"{event.at:%H:%M:%S}Z {event.actor:<13} {told(event)}")
        for activity in self._observer.activities():
            self._lines(activity)
            self._training(activity)

    def _lines(self, activity: Activity) -> None:
        for said in activity.said:
            if said.at < self._observer.since:
                continue
            life, number = self._seen.get(activity.agent, (said.life, said.number - 1))
            missed = said.number - (number if said.life == life else 0) - 1
            if said.life < life or missed < 0:
                continue
            head = f"{said.at:%H:%M:%S}Z {activity.agent:<13}"
            if missed:
                say(f"{head} … {missed} lines left out; they are in agents/{activity.agent}.log")
            self._seen[activity.agent] = (said.life, said.number)
            say(f"{head} {said.text}")

    def _training(self, activity: Activity) -> None:
        progress = activity.progress
        if progress is None:
            return
        mark = (progress.phase, progress.iteration)
        if self._steps.get(activity.agent) != mark:
            self._steps[activity.agent] = mark
            say(f"{activity.at:%H:%M:%S}Z {activity.agent:<13} {bar(progress)}")


class Panel:
    """The panel of `cli.screen`; it takes the terminal at the first tick."""

    def __init__(self, project: Project, terminal: Terminal) -> None:
        self._observer = Observer(project)
        self._terminal = terminal

    def tick(self, state: str) -> None:
        self._terminal.show(self._observer.look(state))

    def last(self) -> Scene:
        return self._observer.look("ended")


@contextmanager
def watching(project: Project, *, plain: bool) -> Iterator[Watch]:
    """A watch of this crew; the terminal is given back however the block ends."""
    if plain or not is_terminal():
        yield Lines(project)
        return
    from oodatcaa.cli.screen import Terminal

    terminal = Terminal()
    panel = Panel(project, terminal)
    scene: Scene | None = None
    try:
        yield panel
        scene = panel.last()
    finally:
        terminal.close(scene)


def is_terminal() -> bool:
    """Whether a person looks at standard output on something that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def bar(progress: TrainProgress) -> str:
    """`training [####----] 12/40 loss 1.32 123 tokens/s 2.1 of 16.0 GB`."""
    share = progress.iteration / progress.iters if progress.iters else 0.0
    filled = round(BAR * min(1.0, share))
    parts = [
        f"{progress.phase} [{'#' * filled}{'-' * (BAR - filled)}]",
        f"{progress.iteration}/{progress.iters}",
    ]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.memory_bytes is not None:
        limit = progress.memory_limit_bytes / GB
        parts.append(f"{progress.memory_bytes / GB:.2f} of {limit:.1f} GB")
    return "  ".join(parts)
