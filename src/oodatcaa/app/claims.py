"""Claim, heartbeat, release: the same verbs for people, built-in agents and outside programs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from oodatcaa.domain.board import Board
from oodatcaa.domain.negotiation import claim as claim_rule
from oodatcaa.domain.negotiation import heartbeat, release
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.ports import Store
from oodatcaa.domain.rounds import Round, lease_key, negotiate
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import ProcessLease, Role, Task
from oodatcaa.errors import RefusedError
from oodatcaa.kit.alive import is_alive, is_stopped, process_identity


def hostname() -> str:
    return socket.gethostname()


def liveness(board: Board) -> tuple[frozenset[str], frozenset[str]]:
    """(dead, alive): lease keys whose process on this host is gone, or runs.

    A stopped process is in neither: it gives no sign, so its time to live alone decides.
    A key names one attempt, so a claim that somebody makes between this look and the lock is
    never mistaken for the dead one.
    """
    dead: set[str] = set()
    alive: set[str] = set()
    here = hostname()
    for task in tasks_of(board):
        lease = task.lease
        if isinstance(lease, ProcessLease) and lease.host == here:
            if not is_alive(lease.pid, lease.process_started_at):
                dead.add(lease_key(task))
            elif not is_stopped(lease.pid):
                alive.add(lease_key(task))
    return frozenset(dead), frozenset(alive)


def run_negotiation(store: Store, policy: Policy) -> Round:
    """One idempotent round; a round that decides nothing writes nothing."""
    dead, alive = liveness(store.read())
    return store.transact(lambda board, now: negotiate(board, policy, now, dead=dead, alive=alive))


def take_from_the_dead(store: Store, policy: Policy) -> None:
    """A round, but only when the owner of a lease on this host is found dead: cheap to repeat."""
    if liveness(store.read())[0]:
        run_negotiation(store, policy)


def claim(
    store: Store,
    policy: Policy,
    *,
    role: Role,
    owner: str,
    task: str | None = None,
    manual: bool = False,
) -> Task:
    """Hold one task. Raises RefusedError when the rules say no."""
    dead, alive = liveness(store.read())
    pid, started = (None, None) if manual else process_identity()
    return store.transact(
        lambda board, now: claim_rule(
            board,
            policy,
            now,
            role=role,
            owner=owner,
            host=hostname(),
            pid=pid,
            process_started_at=started,
            task=task,
            dead=dead,
            alive=alive,
        )
    )


def beat(store: Store, *, task: str, owner: str, attempt: int) -> Task:
    return store.transact(
        lambda board, now: heartbeat(board, now, task=task, owner=owner, attempt=attempt)
    )


def let_go(store: Store, *, task: str, owner: str, attempt: int, why: str) -> Task:
    return store.transact(
        lambda board, now: release(board, now, task=task, owner=owner, attempt=attempt, why=why)
    )


class Heartbeat:
    """Renews a lease in the background; `lost` is set once the lease is somebody else's."""

    def __init__(
        self,
        store: Store,
        task: Task,
        owner: str,
        seconds: float,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_trouble` is told, once per kind, why the lease could not be renewed."""
        self._trouble = on_trouble
        self._beat: Callable[[], Task] = lambda: beat(
            store, task=task.id, owner=owner, attempt=task.attempt
        )
        ttl = task.lease.ttl_seconds if task.lease is not None else 3 * seconds
        self._seconds = min(seconds, ttl / 3)
        self._done = threading.Event()
        self.lost = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{os.getpid()}")
        self._thread.daemon = True

    def _run(self) -> None:
        while not self._done.wait(self._seconds):
            try:
                self._beat()
            except RefusedError as error:
                self.error = error
                self.lost.set()
                return
            except Exception as error:  # noqa: BLE001 - told, and tried again at the next beat
                if str(error) != str(self.error):
                    self._trouble(f"the lease could not be renewed: {error}")
                self.error = error
            else:
                self.error = None

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
