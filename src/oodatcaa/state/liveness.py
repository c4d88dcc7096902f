"""Which claims are held by processes of this host that no longer live."""

from __future__ import annotations

import socket

from oodatcaa.domain.board import Board
from oodatcaa.domain.task import ProcessLease, Task
from oodatcaa.kit.alive import is_alive


def dead_process_leases(board: Board, host: str | None = None) -> set[str]:
    """Ids of tasks whose process lease is owned by a dead process of this host.

    A pid that was given to another process since counts as dead: its start time differs. Leases
    of other hosts, and manual ones, end by their time to live only.
    """
    here = host if host is not None else socket.gethostname()
    tasks: tuple[Task, ...] = (*board.stories, *board.subtasks)
    return {
        task.id
        for task in tasks
        if isinstance(task.lease, ProcessLease)
        and task.lease.host == here
        and not is_alive(task.lease.pid, task.lease.process_started_at)
    }
