"""What the demo does to its own crew: kill -9 of a builder in mid-training."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from datetime import datetime

from oodatcaa.app.activity import read_activities
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.task import ProcessLease, StoryKind, story_of
from oodatcaa.domain.training import TrainProgress
from oodatcaa.kit.alive import is_alive

ACTOR = "demo"
SHARE = 0.6
"""Of the iterations done when it strikes: past a checkpoint, and far from the end."""


@dataclass
class DeliberateKill:
    """Looks with every tick; strikes once in a project, at a builder of a training story."""

    project: Project
    _over: bool = False

    def tick(self, state: str) -> None:
        if self._over or state != "running":
            return
        for activity in read_activities(self.project.work):
            progress = activity.progress
            if progress is not None and self._trains(activity.task, progress):
                self._over = True
                if not self._struck_before():
                    self._strike(activity.task, progress)
                return

    def _trains(self, task: str, progress: TrainProgress) -> bool:
        board = self.project.store.read()
        story = board.story_by_id.get(story_of(task))
        far = progress.iteration >= SHARE * progress.iters
        return (
            story is not None
            and story.kind is StoryKind.TRAIN
            and progress.phase == "training"
            and far
        )

    def _struck_before(self) -> bool:
        return any(item.event.actor == ACTOR for item in self.project.store.history())

    def _strike(self, task: str, progress: TrainProgress) -> None:
        held = self.project.store.read().find(task)
        lease = held.lease if held is not None else None
        if not isinstance(lease, ProcessLease) or lease.host != socket.gethostname():
            return
        if not is_alive(lease.pid, lease.process_started_at):
            return
        try:
            os.kill(lease.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it came to its end in this very moment

        def note(board: Board, now: datetime) -> Decision[None]:
            text = (
                f"killed {lease.owner} (process {lease.pid}) with SIGKILL, on purpose, in "
                f"iteration {progress.iteration} of {progress.iters}: another one goes on from "
                "the checkpoint"
            )
            event = Event(kind=EventKind.NOTE, at=now, actor=ACTOR, subject=task, text=text)
            return Decision(board, None, (event,))

        self.project.store.transact(note)
