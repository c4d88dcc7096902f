"""Who works on what: claims, leases and what an agent should do next.

Negotiation offers (people see it as *assigned*); only a claim moves a task. Every claim runs a
negotiation round first, so nobody needs a central process that never dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.lifecycle import (
    B,
    S,
    Status,
    give_back,
    is_finished,
    move,
    moved_event,
    put,
    role_wanted,
    wip,
)
from oodatcaa.domain.offering import offers_for, ranked
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.rounds import (
    Round,
    all_finished,
    blocked_reason,
    can_move,
    free_adapting,
    is_expired,
    lease_key,
    negotiate,
    renewed_for_owner,
    rounds_allowed,
    waiting,
)
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import (
    Lease,
    ManualLease,
    ProcessLease,
    Role,
    Subtask,
    Task,
)
from oodatcaa.errors import RefusedError

__all__ = [
    "Claim",
    "Round",
    "Stop",
    "Wait",
    "claim",
    "heartbeat",
    "is_expired",
    "lease_key",
    "negotiate",
    "next_action",
    "release",
    "renew_after_sleep",
    "rounds_allowed",
    "sprint_outcome",
    "waiting",
]


@dataclass(frozen=True)
class Claim:
    """There is work: claim `task` (another agent may be faster; then ask again)."""

    task: str


@dataclass(frozen=True)
class Wait:
    """Nothing for this role now, but something else still moves."""

    why: str


@dataclass(frozen=True)
class Stop:
    """`sprint done`, `needs a human` or `no sprint`: waiting would be in vain."""

    why: Literal["sprint done", "needs a human", "no sprint"]


@dataclass(frozen=True)
class _Claimant:
    role: Role
    owner: str
    host: str
    pid: int | None
    process_started_at: float | None


def claim(
    board: Board,
    policy: Policy,
    now: datetime,
    *,
    role: Role,
    owner: str,
    host: str,
    pid: int | None,
    process_started_at: float | None,
    task: str | None = None,
    dead: frozenset[str] = frozenset(),
    alive: frozenset[str] = frozenset(),
) -> Decision[Task]:
    """Negotiate, then give `owner` the task (None = the first offer for `role`).

    `pid` None makes a manual lease. The value is the claimed task; its lease holds the attempt
    number that every later call must name. Claiming what one already holds is no new claim: same
    attempt, heartbeat renewed, no event. The same owner name in another process takes its own
    task over under a new attempt, unless the old process is known to be alive.
    Raises RefusedError: claim.no_sprint, .unknown_task, .owner_busy, .held, .wrong_role,
    .not_claimable, .wip, .nothing.
    """
    if board.sprint is None:
        raise RefusedError("claim.no_sprint", "no sprint is open", hint="oodatcaa sprint new")
    who = _Claimant(role, owner, host, pid, process_started_at)
    held = _held_by(board, owner)
    mine = held is not None and _same_process(held, who)
    own = frozenset({lease_key(held)}) if held is not None and mine else frozenset()
    gone = dead
    if held is not None and not mine and not {held.id, lease_key(held)} & alive:
        gone = dead | {lease_key(held)}
    settled = negotiate(board, policy, now, dead=gone, alive=alive | own)
    held = _held_by(settled.board, owner)
    if held is not None:
        return _reclaim(settled, now, who, held, task)
    chosen = _choose(settled.board, policy, role, task)
    return _grant(settled, policy, now, who, chosen)


def _held_by(board: Board, owner: str) -> Task | None:
    for task in tasks_of(board):
        if task.lease is not None and task.lease.owner == owner:
            return task
    return None


def _same_process(task: Task, who: _Claimant) -> bool:
    lease = task.lease
    if isinstance(lease, ProcessLease):
        same = (lease.host, lease.pid, lease.process_started_at)
        return same == (who.host, who.pid, who.process_started_at)
    return who.pid is None


def _reclaim(
    settled: Decision[Round], now: datetime, who: _Claimant, held: Task, asked: str | None
) -> Decision[Task]:
    lease = held.lease
    assert lease is not None
    if lease.role is not who.role or asked not in (None, held.id) or not _same_process(held, who):
        raise RefusedError(
            "claim.owner_busy",
            f"{who.owner} holds {held.id} as {lease.role.value} since "
            f"{lease.claimed_at:%Y-%m-%d %H:%M:%S} UTC; one owner holds one task",
            hint=f"finish it, or: oodatcaa release {held.id}",
        )
    renewed = held.evolve(lease=lease.evolve(heartbeat_at=now, courtesy=False))
    return Decision(settled.board.with_task(renewed), renewed, settled.events)


def _choose(board: Board, policy: Policy, role: Role, asked: str | None) -> Task:
    candidates = ranked(board, role)
    if asked is not None:
        task = board.find(asked)
        if task is None:
            raise RefusedError(
                "claim.unknown_task", f"there is no task {asked}", hint="oodatcaa status"
            )
        _check_claimable(board, role, task)
        candidates = (task,)
    used, limit = wip(board)[role], policy.wip.of(role)
    if not candidates:
        raise RefusedError(
            "claim.nothing", f"there is nothing for a {role.value} now", hint="oodatcaa status"
        )
    if used >= limit:
        raise RefusedError(
            "claim.wip",
            f"{used} {role.value} task{'s are' if used != 1 else ' is'} being worked on, "
            f"the WIP limit is {limit}",
            hint="oodatcaa status; the limit is wip." + role.value + " in .oodatcaa/config.toml",
        )
    return candidates[0]


def _check_claimable(board: Board, role: Role, task: Task) -> None:
    if task.lease is not None:
        raise RefusedError(
            "claim.held",
            f"{task.id} is held by {task.lease.owner} since "
            f"{task.lease.claimed_at:%Y-%m-%d %H:%M:%S} UTC",
            hint="oodatcaa negotiate takes it back once its lease has run out",
        )
    wanted = role_wanted(board, task)
    if wanted is None:
        why = task.reason
        if isinstance(task, Subtask) and not is_finished(task):
            why = why or f"its story is {board.story_by_id[task.story].status.value}"
        raise RefusedError(
            "claim.not_claimable",
            f"{task.id} is {task.status.value} and can not be claimed" + (why and f": {why}"),
            hint=f"oodatcaa show {task.id}",
        )
    if wanted is not role:
        raise RefusedError(
            "claim.wrong_role",
            f"{task.id} is {task.status.value}: it wants a {wanted.value}, not a {role.value}",
            hint=f"oodatcaa claim --role {wanted.value} {task.id}",
        )


def _grant(
    settled: Decision[Round], policy: Policy, now: datetime, who: _Claimant, task: Task
) -> Decision[Task]:
    attempt = task.attempt + 1
    to: dict[Role, Status] = {
        Role.PLANNER: S.PLANNING,
        Role.REFINER: S.ADAPTING,
        Role.INTEGRATOR: S.INTEGRATING,
        Role.BUILDER: B.IN_PROGRESS,
        Role.TESTER: B.TESTING,
    }
    lease = _lease(policy, now, who, attempt)
    held = move(task, to[who.role], now, lease=lease, attempt=attempt)
    board = put(settled.board, held)
    followers: list[Event] = []
    for item in board.subtasks_of(held.id) if who.role is Role.REFINER else ():
        if item.status is B.NEEDS_ADAPT:
            follows = move(item, B.ADAPTING, now, reason=item.reason)
            board = put(board, follows)
            followers.append(moved_event(item, follows, who.owner, now, f"with {held.id}"))
    offers = offers_for(board, policy)
    board = board if offers == board.offers else board.evolve(offers=offers)
    event = Event(
        kind=EventKind.CLAIM,
        at=now,
        actor=who.owner,
        role=who.role,
        subject=held.id,
        before=task.status.value,
        after=held.status.value,
        attempt=attempt,
        text=f"{who.owner} claimed {held.id} (attempt {attempt})",
        details=(f"{lease.kind} lease on {who.host}, {lease.ttl_seconds} s to live",),
    )
    return Decision(board, held, (*settled.events, event, *followers))


def _lease(policy: Policy, now: datetime, who: _Claimant, attempt: int) -> Lease:
    ttl = policy.lease_minutes.seconds(who.role)
    if who.pid is None:
        return ManualLease(
            kind="manual",
            owner=who.owner,
            role=who.role,
            host=who.host,
            attempt=attempt,
            ttl_seconds=ttl,
            claimed_at=now,
            heartbeat_at=now,
        )
    return ProcessLease(
        kind="process",
        owner=who.owner,
        role=who.role,
        host=who.host,
        attempt=attempt,
        ttl_seconds=ttl,
        claimed_at=now,
        heartbeat_at=now,
        pid=who.pid,
        process_started_at=who.process_started_at or 0.0,
    )


def held_task(board: Board, task: str, owner: str, attempt: int, *, code: str) -> Task:
    """The task that `owner` holds under `attempt`. Raises RefusedError `code` otherwise, and
    `task.unknown` when there is no such task."""
    found = board.find(task)
    if found is None:
        raise RefusedError("task.unknown", f"there is no task {task}", hint="oodatcaa status")
    lease = found.lease
    if lease is not None and (lease.owner, lease.attempt) == (owner, attempt):
        return found
    now_held = f"held by {lease.owner}, attempt {lease.attempt}" if lease else found.status.value
    raise RefusedError(
        code,
        f"{owner} no longer holds {task} under attempt {attempt}; it is {now_held}",
        hint=f"oodatcaa show {task}; a late result is kept as evidence, never counted as progress",
    )


def heartbeat(
    board: Board, now: datetime, *, task: str, owner: str, attempt: int
) -> Decision[Task]:
    """Renew the lease; no event. Raises RefusedError `lease.lost` when it is no longer held."""
    held = held_task(board, task, owner, attempt, code="lease.lost")
    assert held.lease is not None
    if now <= held.lease.heartbeat_at and not held.lease.courtesy:
        return Decision(board, held)
    renewed = held.evolve(
        lease=held.lease.evolve(heartbeat_at=max(now, held.lease.heartbeat_at), courtesy=False)
    )
    return Decision(board.with_task(renewed), renewed)


def release(
    board: Board, now: datetime, *, task: str, owner: str, attempt: int, why: str
) -> Decision[Task]:
    """Give the task back unfinished; the next claim gets a new attempt number.

    Raises RefusedError `lease.lost` when it is no longer held.
    """
    held = held_task(board, task, owner, attempt, code="lease.lost")
    assert held.lease is not None
    free = move(held, give_back(held), now)
    board = put(board, free)
    event = moved_event(
        held, free, owner, now, f"{owner} gave {task} back: {why}", kind=EventKind.RELEASE
    )
    if isinstance(free, Subtask):
        return Decision(board, free, (event,))
    board, freed = free_adapting(board, free, owner, now)
    return Decision(board, free, (event, *freed))


def renew_after_sleep(
    board: Board, now: datetime, alive: frozenset[str]
) -> Decision[tuple[str, ...]]:
    """Renew every lease whose local owner is known to be alive (task ids or `lease_key`s).

    The clock jumps when a machine wakes up; a living owner must not lose its task to that. It is
    done once per lease until the owner renews it itself. The value names the renewed tasks. No
    event: only leases change.
    """
    renewed: list[str] = []
    for task in tasks_of(board):
        if task.lease is None or task.lease.courtesy or not is_expired(task, now):
            continue
        if {task.id, lease_key(task)} & alive:
            board = board.with_task(renewed_for_owner(task, now))
            renewed.append(task.id)
    return Decision(board, tuple(renewed))


def next_action(board: Board, policy: Policy, role: Role, now: datetime) -> Claim | Wait | Stop:
    """What an agent of `role` should do now, as negotiation would see it; decides nothing.

    Leases are judged by their time to live only; pass the board after a round that knew better.
    """
    settled = negotiate(board, policy, now).board
    for offer in settled.offers:
        if offer.role is role:
            return Claim(offer.task)
    outcome = sprint_outcome(settled)
    if outcome == "none":
        return Stop("no sprint")
    if outcome == "done":
        return Stop("sprint done")
    if outcome == "needs_human":
        return Stop("needs a human")
    return Wait(_why_wait(settled, policy, role))


def _why_wait(board: Board, policy: Policy, role: Role) -> str:
    if ranked(board, role):
        return f"the WIP limit of {policy.wip.of(role)} {role.value} is reached"
    held = [f"{task.id} ({task.lease.owner})" for task in tasks_of(board) if task.lease is not None]
    if held:
        return f"nothing for the {role.value} yet; in work: {', '.join(held)}"
    blocked = [item for item in board.stories if item.status is S.BLOCKED]
    why = "; ".join(f"{item.id} {blocked_reason(board, item)}" for item in blocked)
    return f"nothing for the {role.value} yet" + (f"; {why}" if why else "")


def sprint_outcome(board: Board) -> Literal["none", "running", "done", "needs_human"]:
    """`needs_human` only when nothing else can move any more; `done` when every story is
    integrated or cancelled."""
    if board.sprint is None:
        return "none"
    if all_finished(board):
        return "done"
    return "running" if can_move(board) else "needs_human"
