"""What the log still knows when the journal that it was written from is lost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from oodatcaa.domain.board import Board
from oodatcaa.domain.lifecycle import move, put
from oodatcaa.domain.ports import Logged
from oodatcaa.domain.states import give_back, role_holding
from oodatcaa.domain.task import Task

_LISTED = 50


def with_attempts(
    board: Board, logged: Sequence[Logged], now: datetime
) -> tuple[Board, tuple[str, ...]]:
    """No attempt that the log saw handed out is handed out again; and what was changed for it.

    A lease of an attempt that a later one followed is ended: its holder is not the newest.
    """
    newest: dict[str, int] = {}
    for one in logged:
        event = one.event
        newest[event.subject] = max(newest.get(event.subject, 0), event.attempt or 0)
    said = []
    for key, attempt in newest.items():
        task = board.find(key)
        if task is not None and attempt > task.attempt:
            said.append(f"{key}: attempt {task.attempt} -> {attempt}, as the log knows")
            board = put(board, _at_attempt(task, attempt, now))
    return board, tuple(said)


def _at_attempt(task: Task, attempt: int, now: datetime) -> Task:
    held = task.lease is not None and role_holding(task) is not None
    back = move(task, give_back(task), now) if held else task
    return back.evolve(attempt=attempt)


def lost_steps(logged: Sequence[Logged], *, after: int) -> tuple[str, ...]:
    """The steps later than transaction `after`: what the board does not show any more."""
    steps = [
        f"{one.seq}.{one.index} {one.event.subject}: {one.event.before} -> {one.event.after}"
        for one in logged
        if one.seq > after and one.event.before != one.event.after
    ]
    more = len(steps) - _LISTED
    return (*steps[:_LISTED], *([f"{more} more steps, see the log"] if more > 0 else []))
