"""One agent's loop: negotiate, claim, work under a heartbeat, submit, repeat."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from oodatcaa.app.activity import Broadcast
from oodatcaa.app.claims import Heartbeat, claim, let_go
from oodatcaa.app.project import Project
from oodatcaa.app.sprint_view import negotiate_and_show
from oodatcaa.domain.negotiation import Claim, Stop, next_action
from oodatcaa.domain.submission import fail_task
from oodatcaa.domain.task import Failure, Role, Task
from oodatcaa.errors import OodatcaaError, RefusedError, StateError

LATE = frozenset({"submission.late", "submission.wrong_state", "lease.lost", "lease.not_yours"})
"""Refusals that mean: somebody else holds the task by now, or it moved on."""
POLL_SECONDS = 0.3
ROUND_SECONDS = 1.0
"""A dead owner is looked for so often even when nothing else happens; it is noticed within 2 s."""


class Mode(StrEnum):
    ONCE = "once"
    UNTIL_IDLE = "until_idle"
    UNTIL_DONE = "until_done"


@dataclass
class Outcome:
    """How an agent's loop ended."""

    reason: str
    tasks: int = 0
    failed: bool = False


def run_agent(
    project: Project,
    role: Role,
    name: str,
    *,
    mode: Mode,
    echo: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> Outcome:
    """Work until told to stop, idle (`once`, `until_idle`), or the sprint ends.

    Raises OodatcaaError for what makes all work impossible (no objective, unreadable queue).
    """
    project.objective()
    acting = project.roster.acting(role, name)
    broadcast = Broadcast(project.work, name, role, echo)
    outcome = Outcome("stopped")
    waker = _Waker(project)
    if not acting.builtin:
        echo(f"{name} is {acting.name}, run by {acting.runner}")
    try:
        while not should_stop():
            step = _next(project, role, name)
            if isinstance(step, Stop):
                outcome.reason = step.why
                return outcome
            if isinstance(step, str):
                if mode is not Mode.UNTIL_DONE:
                    outcome.reason = f"idle: {step}"
                    return outcome
                broadcast.idle(step)
                waker.wait(should_stop)
                continue
            outcome.tasks += 1
            outcome.failed |= not _work(project, role, name, step, broadcast, should_stop)
            if mode is Mode.ONCE:
                outcome.reason = "one task done"
                return outcome
        return outcome
    finally:
        broadcast.close()
        project.store.flush()


def _next(project: Project, role: Role, name: str) -> Task | Stop | str:
    """A claimed task, a reason to stop, or why there is nothing to do right now."""
    negotiate_and_show(project)
    board = project.store.read()
    action = next_action(board, project.policy, role, datetime.now(UTC))
    if isinstance(action, Stop):
        return action
    if not isinstance(action, Claim):
        return action.why
    try:
        return claim(project.store, project.policy, role=role, owner=name)
    except RefusedError as error:
        # Another agent was faster; that is how claims are meant to work.
        return error.message


def _work(
    project: Project,
    role: Role,
    name: str,
    task: Task,
    broadcast: Broadcast,
    should_stop: Callable[[], bool],
) -> bool:
    """False when the work failed or was given back."""
    # Imported late: an idle agent needs neither git nor the training side.
    from oodatcaa.app.claimed import Claimed, StoppedError
    from oodatcaa.app.desk import Workshop
    from oodatcaa.app.outside import OutsideAgents
    from oodatcaa.app.work import WORK

    broadcast.on(task.id)
    broadcast.say(f"{task.id} claimed (attempt {task.attempt}): {task.title}")
    started = datetime.now(UTC)
    beat_seconds = project.policy.heartbeat_seconds
    with Heartbeat(project.store, task, name, beat_seconds, broadcast.say) as heart:

        def stopping() -> bool:
            return should_stop() or heart.lost.is_set()

        workshop = Workshop(project)
        try:
            agents = OutsideAgents(
                project, agent=name, role=role, task=task, say=broadcast.say, should_stop=stopping
            )
            desk = workshop.desk(
                name,
                project.objective(),
                broadcast=broadcast,
                should_stop=stopping,
                agents=agents,
            )
            WORK[role](
                Claimed(project, workshop, desk, broadcast, task, name, role, started, stopping)
            )
            return True
        except StoppedError:
            why = "the lease was lost" if heart.lost.is_set() else "the agent was stopped"
            broadcast.say(f"{task.id} given back: {why}")
            if not heart.lost.is_set():
                _give_back(project, task, name, why)
        except RefusedError as error:
            # A late result, a lost lease: refused as progress; the evidence is kept. Whatever else
            # was refused would be refused again: given back, it would be claimed for ever.
            broadcast.say(f"{task.id} refused: {error.message}")
            if error.code in LATE or heart.lost.is_set():
                _give_back(project, task, name, f"refused: {error.message}")
            else:
                _fail(project, task, name, error.code, error.message)
        except StateError as error:
            # The queue's files, not the work: the next attempt goes on from what is there.
            broadcast.say(f"{task.id} given back: {error.message}")
            _give_back(project, task, name, error.message)
        except OodatcaaError as error:
            broadcast.say(f"{task.id} failed: {error.message}")
            _fail(project, task, name, error.code, error.message)
        except Exception as error:  # noqa: BLE001 - one broken task must not end the agent
            log = project.work / "scratch" / f"crash-{task.id}-{task.attempt}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
            broadcast.say(f"{task.id} crashed: {error}; traceback in {log}")
            _fail(project, task, name, "crash", f"{type(error).__name__}: {error} ({log.name})")
    return False


def _give_back(project: Project, task: Task, name: str, why: str) -> None:
    try:
        let_go(project.store, task=task.id, owner=name, attempt=task.attempt, why=why)
    except RefusedError:
        # Already somebody else's or already moved on: there is nothing to give back.
        return


def _fail(project: Project, task: Task, name: str, kind: str, summary: str) -> None:
    failure = Failure(kind=kind, task=task.id, summary=summary, at=datetime.now(UTC))
    try:
        project.store.transact(
            lambda board, now: fail_task(
                board, now, task=task.id, owner=name, attempt=task.attempt, failure=failure
            )
        )
    except RefusedError as error:
        _give_back(project, task, name, f"{summary}; {error.message}")


class _Waker:
    """Waits until the queue changed, or until it is time to look for dead owners again."""

    def __init__(self, project: Project) -> None:
        self._store = project.store
        self._seen = project.store.read().revision

    def wait(self, should_stop: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ROUND_SECONDS
        while time.monotonic() < deadline and not should_stop():
            time.sleep(POLL_SECONDS)
            revision = self._store.read().revision
            if revision != self._seen:
                self._seen = revision
                return
