"""One negotiation round: recover lost leases, unblock what is ready, offer what comes next.

A round is a pure function of the board, the policy, the time and what is known about owners.
It is idempotent: a second round right after the first returns the same board object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import Field

from oodatcaa.domain.asking import ask, open_questions
from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board, Decision, Event, EventKind, Offer
from oodatcaa.domain.lifecycle import (
    WAITS_FOR_ANSWER,
    B,
    S,
    Status,
    give_back,
    is_cancelled,
    is_finished,
    move,
    moved_event,
    put,
    role_wanted,
    undone,
    waiting_status,
    wip,
)
from oodatcaa.domain.offering import briefly, offers_for
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.progress import critical_path
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import Role, Story, Subtask, Task

NEGOTIATOR = "negotiator"


class Round(Record):
    """What one round found and decided. `changed` is False when it decided nothing."""

    changed: bool
    recovered: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()
    unblocked: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()
    waiting: dict[str, str] = Field(default_factory=dict)
    wip: dict[str, tuple[int, int]] = Field(
        default_factory=dict, description="role -> (used, limit)"
    )
    critical_path: tuple[str, ...] = ()
    critical_minutes: int = 0
    needs_human: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Work:
    """A round in the making."""

    board: Board
    now: datetime
    events: list[Event] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    unblocked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def moved(self, before: Task, after: Task, text: str, kind: EventKind) -> None:
        """Put `after` on the board and write down how it came about."""
        self.board = put(self.board, after)
        event = moved_event(before, after, NEGOTIATOR, self.now, text, kind=kind)
        self.events.append(event.evolve(role=None))


def lease_key(task: Task) -> str:
    """`T001-B01#2`: names one attempt. In `dead` and `alive` it is safer than the bare task id,
    which would also match a claim that somebody made since the owner was looked at."""
    return f"{task.id}#{task.attempt}"


def negotiate(
    board: Board,
    policy: Policy,
    now: datetime,
    *,
    dead: frozenset[str] = frozenset(),
    alive: frozenset[str] = frozenset(),
) -> Decision[Round]:
    """One round. `dead` and `alive` name tasks (or `lease_key`s) whose owner process is known to
    have ended, or to run; what is in neither is judged by its time to live alone. An owner that
    runs but gives no sign within OWNER_SECONDS after that loses its task all the same.

    Deciding nothing returns the same board and no events. Never raises for a sound board.
    """
    if board.sprint is None:
        notes = ("no sprint; next: oodatcaa sprint new",)
        return Decision(board, Round(changed=False, notes=notes))
    work = _Work(board, now)
    _recover(work, policy, dead, alive)
    _unblock(work)
    _ask(work)
    _exhausted(work)
    _stuck(work)
    _block(work)
    offers = offers_for(work.board, policy)
    fresh = {offer.task for offer in offers} - {offer.task for offer in board.offers}
    if offers != work.board.offers:
        work.board = work.board.evolve(offers=offers)
    value = _round(work, policy, changed=work.board is not board)
    if work.events or fresh:
        work.events.append(_summary(value, fresh, now))
    return Decision(work.board, value, tuple(work.events))


def _summary(value: Round, fresh: set[str], now: datetime) -> Event:
    parts = []
    if value.recovered:
        parts.append(f"recovered {', '.join(value.recovered)}")
    if value.unblocked:
        parts.append(f"unblocked {', '.join(value.unblocked)}")
    if fresh:
        parts.append(
            "offered "
            + ", ".join(f"{o.task} to {o.role.value}" for o in value.offers if o.task in fresh)
        )
    details = [" ".join(part for part in line if part) for line in briefly(value.waiting)]
    details += [f"{task} needs a human" for task in value.needs_human]
    text = "; ".join(parts) or "looked at what waits"
    return Event(
        kind=EventKind.NEGOTIATION,
        at=now,
        actor=NEGOTIATOR,
        subject="sprint",
        text=text,
        details=tuple(details),
    )


def _round(work: _Work, policy: Policy, *, changed: bool) -> Round:
    board = work.board
    path, minutes = critical_path(board)
    used = wip(board)
    return Round(
        changed=changed,
        recovered=tuple(work.recovered),
        renewed=tuple(work.renewed),
        unblocked=tuple(work.unblocked),
        offers=board.offers,
        waiting=waiting(board),
        wip={role.value: (used[role], policy.wip.of(role)) for role in Role},
        critical_path=path,
        critical_minutes=minutes,
        needs_human=tuple(
            task.id for task in tasks_of(board) if task.status.value == S.NEEDS_HUMAN.value
        ),
        notes=tuple(work.notes),
    )


def waiting(board: Board) -> dict[str, str]:
    """Task id -> why nobody may claim it now, for everything that is blocked, or claimable but
    beyond the WIP limit of its role."""
    found: dict[str, str] = {}
    offered = {offer.task for offer in board.offers}
    for task in tasks_of(board):
        if task.status.value == S.BLOCKED.value:
            found[task.id] = blocked_reason(board, task)
        elif (role := role_wanted(board, task)) is not None and task.id not in offered:
            found[task.id] = f"waits for a free {role.value} (WIP limit)"
    return found


def blocked_reason(board: Board, task: Task) -> str:
    """`waits for T001 (needs_adapt: memory_gate …)`; the status is named only when it is trouble,
    so that the text does not change with every ordinary step of the other task."""
    names = [_trouble(needed) for needed in undone(board, task.depends_on)]
    if not names and isinstance(task, Subtask) and open_questions(board, task):
        return WAITS_FOR_ANSWER
    if not names and isinstance(task, Subtask):
        names = [_trouble(board.story_by_id[task.story])]
    reasons = [f"waits for {', '.join(names)}"] if names else []
    if isinstance(task, Story):
        reasons += [held_back(board, task)] if held_back(board, task) else []
        if task.source is not None and task.source.wants_approval:
            reasons.append(
                f"its {task.source.commands} commands wait for oodatcaa approve {task.id}"
            )
    return "; ".join(reasons) or "waits for the next negotiation"


def held_back(board: Board, story: Story) -> str:
    """What keeps a story from being planned beside its dependencies; empty = nothing.

    Something that only a new import can settle, or a story under way that changes the same files:
    of several that could begin, the one with the lowest id goes first.
    """
    if story.source is not None and story.source.held_back:
        return story.source.held_back
    for other in board.stories if story.files else ():
        told = other.id == story.id or other.id in story.depends_on
        if other.files and not told and _goes_first(other, story):
            shared = set(story.files).intersection(other.files)
            if shared:
                return f"waits for {_trouble(other)}: both change {min(shared)}"
    return ""


def _goes_first(other: Story, story: Story) -> bool:
    """Of two stories that change the same files; what is blocked itself holds nobody up."""
    if is_finished(other) or other.status is S.BLOCKED:
        return False
    if other.status is S.NEEDS_HUMAN:
        return other.plan_version > 0
    if other.status is S.NEEDS_PLAN:
        waits = other.source is not None and other.source.wants_approval
        return not waits and (story.status is S.BLOCKED or other.id < story.id)
    return True


def _trouble(task: Task | str) -> str:
    if isinstance(task, str):
        return f"{task} (does not exist)"
    if task.status.value in ("needs_adapt", "adapting", "needs_human", "cancelled"):
        why = f"{task.failure.kind}: {task.failure.summary}" if task.failure else task.reason
        return f"{task.id} ({task.status.value}{': ' + why if why else ''})"
    return task.id


def _named(task: Task, names: frozenset[str]) -> bool:
    return task.id in names or lease_key(task) in names


def is_expired(task: Task, now: datetime) -> bool:
    """Whether the lease was not renewed for longer than its time to live."""
    lease = task.lease
    return lease is not None and now > lease.heartbeat_at + timedelta(seconds=lease.ttl_seconds)


OWNER_SECONDS = 60
"""How long an owner that runs may take, after a sleep of the machine, to renew its own lease."""


def renewed_for_owner(task: Task, now: datetime) -> Task:
    """Give an owner that is known to run OWNER_SECONDS to renew its lease: once, until it gives a
    sign itself. A process that hangs runs too, and must not hold its task for long."""
    lease = task.lease
    assert lease is not None
    left = min(OWNER_SECONDS, lease.ttl_seconds)
    reckoned = now + timedelta(seconds=left - lease.ttl_seconds)
    renewed = lease.evolve(heartbeat_at=max(reckoned, lease.heartbeat_at), courtesy=True)
    return task.evolve(lease=renewed)


def _recover(work: _Work, policy: Policy, dead: frozenset[str], alive: frozenset[str]) -> None:
    for task in tasks_of(work.board):
        if task.lease is None:
            continue
        if _named(task, dead):
            why = f"its process on {task.lease.host} is gone"
        elif not is_expired(task, work.now):
            continue
        elif _named(task, alive) and not task.lease.courtesy:
            work.board = work.board.with_task(renewed_for_owner(task, work.now))
            work.renewed.append(task.id)
            continue
        else:
            why = f"no heartbeat since {task.lease.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC"
        _take_back(work, policy, task, f"{task.lease.owner} lost its lease: {why}")


def _take_back(work: _Work, policy: Policy, task: Task, why: str) -> None:
    lost = task.expiries + 1
    work.recovered.append(task.id)
    if lost < policy.max_expiries:
        after = move(task, give_back(task), work.now, expiries=lost)
        work.moved(task, after, why, EventKind.EXPIRE)
    else:
        reason = f"{lost} leases in a row were lost; the last: {why}"
        human: Status = S.NEEDS_HUMAN if isinstance(task, Story) else B.NEEDS_HUMAN
        after = move(task, human, work.now, expiries=lost, reason=reason)
        work.moved(task, after, reason, EventKind.EXPIRE)
        if isinstance(task, Subtask):
            story = work.board.story_by_id[task.story]
            if story.status is S.PLANNING_COMPLETE:
                stuck = move(story, S.NEEDS_HUMAN, work.now, reason=f"{task.id}: {reason}")
                work.moved(story, stuck, f"{task.id} is stuck", EventKind.TRANSITION)
    if isinstance(task, Story):
        work.board, events = free_adapting(work.board, task, NEGOTIATOR, work.now)
        work.events += events


def free_adapting(
    board: Board, story: Story, actor: str, now: datetime
) -> tuple[Board, tuple[Event, ...]]:
    """Put the story's `adapting` subtasks back in `needs_adapt`: they follow the story's lease."""
    events: list[Event] = []
    for item in board.subtasks_of(story.id):
        if item.status is B.ADAPTING:
            free = move(item, B.NEEDS_ADAPT, now, reason=item.reason)
            board = put(board, free)
            text = f"{story.id} is no longer being adapted"
            events.append(moved_event(item, free, actor, now, text))
    return board, tuple(events)


def _unblock(work: _Work) -> None:
    for task in tasks_of(work.board):
        if task.status.value != S.BLOCKED.value:
            continue
        if isinstance(task, Subtask):
            story = work.board.story_by_id[task.story]
            if story.status is not S.PLANNING_COMPLETE or undone(work.board, task.depends_on):
                continue
            if open_questions(work.board, task):
                continue
            after: Task = move(task, waiting_status(task.kind, blocked=False), work.now)
        else:
            if undone(work.board, task.depends_on) or held_back(work.board, task):
                continue
            after = move(task, S.NEEDS_PLAN, work.now)
        work.unblocked.append(task.id)
        text = "everything it waited for is done" if task.depends_on else "nothing blocks it"
        work.moved(task, after, text, EventKind.TRANSITION)


def _ask(work: _Work) -> None:
    """Stories that have come to a question of their plan go to a person."""
    for story in work.board.stories:
        work.board, events = ask(work.board, story.id, NEGOTIATOR, work.now)
        work.events += events


def _exhausted(work: _Work) -> None:
    """Stories in needs_adapt whose adaptation rounds are used up go to a person."""
    for story in work.board.stories:
        allowed = rounds_allowed(work.board, story)
        if story.status is S.NEEDS_ADAPT and story.adapt_round >= allowed:
            last = story.failure.summary if story.failure else story.reason
            reason = f"{story.adapt_round} of {allowed} adaptation rounds are used up"
            reason += f"; the last failure: {last}" if last else ""
            after = move(story, S.NEEDS_HUMAN, work.now, reason=reason)
            work.moved(story, after, reason, EventKind.TRANSITION)


def _stuck(work: _Work) -> None:
    """Stories whose plan waits for a subtask that can not come any more go to a person."""
    for story in work.board.stories:
        if story.status is not S.PLANNING_COMPLETE:
            continue
        for item in work.board.subtasks_of(story.id):
            if is_finished(item):
                continue
            gone = [d for d in undone(work.board, item.depends_on) if _is_gone(d)]
            if gone:
                names = ", ".join(_trouble(needed) for needed in gone)
                reason = f"{item.id} depends on {names}"
                after = move(story, S.NEEDS_HUMAN, work.now, reason=reason)
                work.moved(story, after, reason, EventKind.TRANSITION)
                break


def rounds_allowed(board: Board, story: Story) -> int:
    """The story's adaptation rounds with those that people granted it, but never more than the
    sprint still has for all its stories together."""
    if board.sprint is None:
        return story.extra_rounds
    own = board.sprint.max_adapt_rounds + story.extra_rounds
    return min(own, story.adapt_round + rounds_left(board))


def rounds_left(board: Board) -> int:
    """Rounds that the sprint still has. Those that people granted a story do not count."""
    limit = board.sprint.max_sprint_rounds if board.sprint else 0
    used = sum(max(0, item.adapt_round - item.extra_rounds) for item in board.stories)
    return max(0, limit - used)


def _block(work: _Work) -> None:
    """Keep what waits for others blocked, with a reason that a person can read."""
    for task in tasks_of(work.board):
        if isinstance(task, Story) and task.status in (S.NEEDS_PLAN, S.BLOCKED):
            gone = [d for d in undone(work.board, task.depends_on) if _is_gone(d)]
            if gone:
                reason = f"depends on {', '.join(_trouble(item) for item in gone)}"
                after = move(task, S.NEEDS_HUMAN, work.now, reason=reason)
                work.moved(task, after, reason, EventKind.TRANSITION)
                continue
            task = work.board.story_by_id[task.id]
            if task.status is S.NEEDS_PLAN and (
                undone(work.board, task.depends_on) or held_back(work.board, task)
            ):
                reason = blocked_reason(work.board, task)
                blocked = move(task, S.BLOCKED, work.now, reason=reason)
                work.moved(task, blocked, reason, EventKind.TRANSITION)
                continue
            if task.status is S.NEEDS_PLAN and task.source and task.source.wants_approval:
                reason = task.source.reason(task.id)
                after = move(task, S.NEEDS_HUMAN, work.now, reason=reason)
                work.moved(task, after, reason, EventKind.TRANSITION)
    for task in tasks_of(work.board):
        if task.status.value == S.BLOCKED.value:
            reason = blocked_reason(work.board, task)
            if reason != task.reason:
                work.board = work.board.with_task(task.evolve(reason=reason))


def _is_gone(task: Task | str) -> bool:
    return isinstance(task, str) or is_cancelled(task)


def can_move(board: Board) -> bool:
    """Whether anything can still happen without a person: held, claimable or unblockable."""
    for task in tasks_of(board):
        if task.lease is not None or role_wanted(board, task) is not None:
            return True
        if task.status.value != S.BLOCKED.value or undone(board, task.depends_on):
            continue
        if isinstance(task, Story):
            if not held_back(board, task):
                return True
        elif board.story_by_id[task.story].status is S.PLANNING_COMPLETE:
            return True
    return False


def all_finished(board: Board) -> bool:
    return all(is_finished(story) for story in board.stories)
