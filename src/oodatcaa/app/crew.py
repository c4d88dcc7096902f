"""`oodatcaa run`: the whole crew as processes, until the sprint is done or needs a person."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from oodatcaa.app.activity import forget
from oodatcaa.app.claims import run_negotiation, take_from_the_dead
from oodatcaa.app.notify import Notifier
from oodatcaa.app.project import Project
from oodatcaa.app.starting import reclaim
from oodatcaa.domain.negotiation import sprint_outcome
from oodatcaa.domain.notices import sprint_done
from oodatcaa.domain.task import Role
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.locks import FileLock
from oodatcaa.kit.process import Child

MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 600.0
"""So many deaths within this time mean that an agent keeps dying; over a night some are normal."""
LEAST_LIFE_SECONDS = 3.0
"""An agent that ends in peace sooner than this, while there is a sprint, counts as dying."""
STOP_GRACE_SECONDS = 150.0
"""Longer than a training child gets for ending its iteration and saving a checkpoint."""
TICK_SECONDS = 0.25
ROUND_SECONDS = 1.0
STOPPING = "stopping; agents save what they have (Ctrl-C again ends them at once)"


@dataclass
class Member:
    """One agent process of the crew."""

    name: str
    role: Role
    child: Child | None = None
    started: float = 0.0
    deaths: list[float] = field(default_factory=list)
    """When it died, or ended at once although there is a sprint (monotonic seconds)."""

    def keeps_dying(self, now: float) -> bool:
        self.deaths = [at for at in self.deaths if now - at < RESTART_WINDOW_SECONDS]
        return len(self.deaths) > MAX_RESTARTS


@dataclass(frozen=True)
class CrewOutcome:
    """`done`, `needs_human`, `stopped` (Ctrl-C) or `crew_failed`; with the seconds it took."""

    result: str
    seconds: float
    problems: tuple[str, ...] = ()


@dataclass
class Crew:
    """Starts the agents, restarts those that die, and ends them all when the sprint has ended."""

    project: Project
    on_tick: Callable[[str], None] = lambda _: None
    also: Callable[[str], None] = lambda _: None
    """Called after `on_tick`; an error of it is a problem to tell, not the crew's end."""
    members: list[Member] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _stopping: bool = False
    _notifier: Notifier = field(init=False)
    _impatient: bool = False

    def run(self) -> CrewOutcome:
        """Raises RefusedError when a crew already works here, or there is no sprint."""
        self.project.objective()
        _ = self.project.config
        self.project.sprint()
        lock = FileLock(
            self.project.work / "crew.lock", code="crew.active", what="the crew of this project"
        )
        self.project.work.mkdir(parents=True, exist_ok=True)
        if not lock.try_acquire():
            raise RefusedError(
                "crew.active",
                f"a crew already works here: {lock.holder() or 'its process is not known'}",
                hint="oodatcaa status",
            )
        began = time.monotonic()
        try:
            self._notifier = Notifier(self.project)
        except OodatcaaError:
            lock.release()
            raise
        handlers = self._catch_signals()
        forget(self.project.work)
        try:
            self.problems += reclaim(self.project, "crew")
            self._recover_runs()
            result = self._loop()
        finally:
            self._stop_all()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            lock.release()
        run_negotiation(self.project.store, self.project.policy)
        self.project.store.flush()
        seconds = time.monotonic() - began
        self._say_goodbye(result, seconds)
        return CrewOutcome(result, seconds, tuple(self.problems))

    def _say_goodbye(self, result: str, seconds: float) -> None:
        self._notifier.look()
        if result == "done":
            sprint = self.project.sprint()
            self._notifier.tell(sprint_done(sprint.number, sprint.title, seconds))
        self._notifier.close()
        self.problems += self._notifier.problems

    def _recover_runs(self) -> None:
        from oodatcaa.app.desk import Workshop

        for run in Workshop(self.project).runs.recover():
            self.problems.append(f"run {run.run_id} was left by a dead process: kept as failed")

    def _loop(self) -> str:
        self._enlist()
        looked = time.monotonic()
        while True:
            if self._stopping:
                return "stopped"
            outcome = sprint_outcome(self.project.store.read())
            if outcome in ("done", "needs_human"):
                return outcome
            if not self._keep_alive():
                return "crew_failed"
            self._tell("running")
            self._notifier.look()
            if time.monotonic() - looked > ROUND_SECONDS:  # while every agent is busy
                take_from_the_dead(self.project.store, self.project.policy)
                looked = time.monotonic()
            time.sleep(TICK_SECONDS)

    def _tell(self, state: str) -> None:
        """A terminal that went away must not end the night's work."""
        try:
            self.on_tick(state)
        except OSError as error:
            self.problems.append(f"nobody could be told any more: {error}")
            self.on_tick = lambda _: None
        try:
            self.also(state)
        except (OSError, OodatcaaError) as error:
            self.problems.append(str(error))
            self.also = lambda _: None

    def _enlist(self) -> None:
        sizes = self.project.config.crew
        wip = self.project.policy.wip
        for role in Role:
            count = min(int(getattr(sizes, role.value)), wip.of(role))
            agents = self.project.roster.of_role(role)
            for number in range(count):
                agent, letter = agents[number % len(agents)], chr(ord("A") + number // len(agents))
                self.members.append(Member(f"{agent.name}-{letter}", role))

    def _keep_alive(self) -> bool:
        """Start what is not running. False when an agent keeps dying: a person has to look."""
        now = time.monotonic()
        for member in self.members:
            if member.child is not None:
                code = member.child.poll()
                if code is None:
                    continue
                member.child = None
                if code != 0 or now - member.started < LEAST_LIFE_SECONDS:
                    member.deaths.append(now)
                if code != 0:
                    self.problems.append(f"{member.name} ended with {code}; see {self.log(member)}")
            if member.keeps_dying(now):
                return False
            member.child = self._start(member)
            member.started = now
        return True

    def log(self, member: Member) -> Path:
        return self.project.work / "agents" / f"{member.name}.log"

    def _start(self, member: Member) -> Child:
        path = self.log(member)
        path.parent.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "oodatcaa", "agent", member.role.value, "--name", member.name]
        return Child.start(argv, cwd=self.project.root, env=dict(os.environ), log_path=path)

    def _catch_signals(self) -> dict[int, Any]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._impatient = self._stopping  # the second Ctrl-C: the person does not want to wait
            self._stopping = True

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup
            numbers.append(signal.SIGHUP)
        return {int(number): signal.signal(number, stop) for number in numbers}

    def _stop_all(self) -> None:
        """Ask every agent to end, wait for checkpoints, and leave no process behind."""
        children = [member.child for member in self.members if member.child is not None]
        for child in children:
            child.ask_to_stop()
        asked = time.monotonic()
        while any(child.poll() is None for child in children):
            if self._impatient or time.monotonic() - asked > STOP_GRACE_SECONDS:
                break
            if self._stopping:
                self._tell(STOPPING)
            time.sleep(TICK_SECONDS)
        for child in children:
            child.kill()


def explain(outcome: CrewOutcome, again: str = "oodatcaa run") -> OodatcaaError | None:
    """The error that a command ends with; None when the sprint is done. `again` goes on."""
    from oodatcaa.errors import EXIT_INTERRUPTED, EXIT_NEEDS_HUMAN

    if outcome.result == "needs_human":
        return OodatcaaError(
            "sprint.needs_human",
            "the sprint can not go on without a person",
            hint="oodatcaa status, then oodatcaa approve T00x --why …",
            exit_code=EXIT_NEEDS_HUMAN,
        )
    if outcome.result == "stopped":
        return OodatcaaError(
            "crew.stopped",
            "stopped; everything is kept",
            hint=f"{again} goes on where it was",
            exit_code=EXIT_INTERRUPTED,
        )
    if outcome.result == "crew_failed":
        return OodatcaaError(
            "crew.failed",
            "an agent died again and again",
            hint=f"read the logs named above, then {again}",
            details=outcome.problems[-5:],
        )
    return None
