"""A target branch: whose turn it is to move it, and which of its moves are the framework's own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from oodatcaa.app.isolation import INTEGRATIONS
from oodatcaa.app.project import Project
from oodatcaa.app.work import Claimed
from oodatcaa.kit.files import write_atomic
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


def write_ahead(project: Project, target: str, old: str, new: str, names: str) -> None:
    """Say which move of the target is the framework's own, before it happens."""
    text = f"{target} {old} {new} {names}\n"
    write_atomic(project.work / INTEGRATIONS / f"{new}.txt", text)
