"""A target branch: whose turn it is to move it, and which of its moves are the framework's own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime

from oodatcaa.app.claimed import Claimed
from oodatcaa.app.isolation import move_line
from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.negotiation import held_task
from oodatcaa.kit.locks import FileLock

WAIT_SECONDS = 0.5


@contextmanager
def turn(claimed: Claimed) -> Iterator[None]:
    """Wait until no other integrator works on the sprint's target, then hold it.

    Raises StoppedError when the agent is asked to stop while it waits.
    """
    target = claimed.project.sprint().target_branch
    folder = claimed.project.work / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", target)
    lock = FileLock(
        folder / f"integrate-{name}.lock",
        code="integration.busy",
        what=f"the integration queue of {target}",
    )
    with closing(lock):
        told = False
        while not lock.try_acquire():
            claimed.stop_if_asked()
            if not told:
                claimed.broadcast.say(f"{claimed.task.id} waits: another integrator is at {target}")
            told = True
            time.sleep(WAIT_SECONDS)
        try:
            yield
        finally:
            lock.release()


def write_ahead(
    claimed: Claimed, target: str, old: str, new: str, names: str, evidence: tuple[str, ...]
) -> None:
    """Say in the journal which move of the target is the framework's own, before it happens.

    Raises RefusedError `lease.lost` for an attempt that does not hold the story any more.
    """
    task = claimed.task

    def write(board: Board, now: datetime) -> Decision[None]:
        held_task(board, task.id, claimed.owner, claimed.attempt, code="lease.lost")
        event = Event(
            kind=EventKind.MERGE,
            at=now,
            actor=claimed.owner,
            role=claimed.role,
            subject=task.id,
            attempt=claimed.attempt,
            text=f"{target} moves to {new[:12]} with {names}",
            details=(move_line(target, old, new),),
            evidence=evidence,
        )
        return Decision(board, None, (event,))

    claimed.project.store.transact(write)
