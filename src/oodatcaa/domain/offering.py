"""What each role may claim, in which order it is offered, and how what waits is told to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from oodatcaa.domain.board import Board, Offer
from oodatcaa.domain.lifecycle import role_wanted, wip
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.progress import longest_paths
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import Role, Task


def ranked(board: Board, role: Role) -> tuple[Task, ...]:
    """Everything `role` may claim, the start of the longest remaining path first."""
    return queues(board).get(role, ())


def queues(board: Board) -> dict[Role, tuple[Task, ...]]:
    """`ranked` for every role that is wanted anywhere."""
    wanted: dict[Role, list[Task]] = {}
    for task in tasks_of(board):
        role = role_wanted(board, task)
        if role is not None:
            wanted.setdefault(role, []).append(task)
    paths = longest_paths(board) if wanted else {}
    return {
        role: tuple(sorted(tasks, key=lambda task: (-paths[task.id], task.id)))
        for role, tasks in wanted.items()
    }


def offers_for(board: Board, policy: Policy) -> tuple[Offer, ...]:
    """Offers along the critical path, never more than a role's free WIP."""
    used, wanted = wip(board), queues(board)
    offers: list[Offer] = []
    for role in Role:
        free = max(0, policy.wip.of(role) - used[role])
        offers += [
            Offer(task=task.id, role=role, rank=rank)
            for rank, task in enumerate(wanted.get(role, ())[:free], 1)
        ]
    return tuple(offers)


def briefly(waiting: Mapping[str, str], most: int = 10) -> list[tuple[str, str]]:
    """`waiting` for people: after `most` tasks with one reason only how many more there are.

    (task id, why) in the order given; such a line has no id.
    """
    same = Counter(waiting.values())
    shown: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    for task, why in waiting.items():
        shown[why] += 1
        if shown[why] <= most or same[why] == most + 1:
            found.append((task, why))
        elif shown[why] == most + 1:
            found.append(("", f"{same[why] - most} more: {why}"))
    return found
