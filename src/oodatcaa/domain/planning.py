"""Handing in a plan: a new version says which subtasks there are, which stay and which go."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.asking import ask, open_questions
from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.handover import held_story, settle
from oodatcaa.domain.lifecycle import (
    WAITS_FOR_ANSWER,
    B,
    S,
    initial_subtask,
    is_cancelled,
    is_done,
    is_finished,
    move,
    moved_event,
    put,
    waiting_status,
)
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.rounds import rounds_allowed
from oodatcaa.domain.task import Approval, Story, SubtaskKind
from oodatcaa.errors import RefusedError


def submit_plan(
    board: Board,
    now: datetime,
    *,
    story: str,
    owner: str,
    attempt: int,
    plan: Plan,
    unapproved: tuple[str, ...] = (),
) -> Decision[Story]:
    """Accept a plan or an adapted plan: the story becomes `planning_complete`, or waits for a
    person's approval of the plan, as it does when it has commands that nobody approved.

    New subtasks are created, those in `plan.keeps` stay (failed ones can be worked on again, a
    definition in `plan.subtasks` replaces the old one), every other unfinished one is cancelled.
    Raises RefusedError: submission.late, plan.wrong_story, plan.wrong_version, plan.subtasks,
    plan.rounds_used_up.
    """
    held = held_story(board, story, owner, attempt, S.PLANNING, S.ADAPTING)
    _check_plan(board, held, plan)
    adapting = held.status is S.ADAPTING
    asks = held.approval is Approval.PLAN or bool(unapproved)
    planned = move(
        held,
        S.NEEDS_HUMAN if asks else S.PLANNING_COMPLETE,
        now,
        plan_version=plan.version,
        adapt_round=held.adapt_round + (1 if adapting else 0),
        failure=None,
        granted=False,
        reason=_asks(held, plan, unapproved) if asks else "",
        waits_for=Approval.PLAN if asks else Approval.NONE,
    )
    events = [_planned_event(held, planned, plan, now, unapproved)]
    after = put(board, planned)
    for item in board.subtasks_of(story):
        if item.id not in plan.keeps and not is_finished(item):
            gone = move(item, B.CANCELLED, now, reason=f"replaced by plan v{plan.version}")
            after = put(after, gone)
            text = f"{item.id} is replaced by plan v{plan.version}"
            events.append(moved_event(item, gone, owner, now, text))
    after, kept = _place(after, planned, plan, owner, now)
    events += kept
    after, settled = settle(after, story, owner, now)
    after, asked = ask(after, story, owner, now)
    final = after.story_by_id[story]
    return Decision(after, final, (*events, *settled, *asked))


def _asks(story: Story, plan: Plan, unapproved: tuple[str, ...]) -> str:
    if not unapproved:
        return f"a person has to approve plan v{plan.version}"
    one = len(unapproved) == 1
    return (
        f"{len(unapproved)} command{'' if one else 's'} of plan v{plan.version} "
        f"wait{'s' if one else ''} for your approval: oodatcaa log --task {story.id}, then "
        f"oodatcaa approve {story.id} --why …"
    )


def fingerprint_line(plan: Plan) -> str:
    """How the history says which plan was accepted."""
    return f"{fingerprint_start(plan)}{plan.fingerprint}"


def fingerprint_start(plan: Plan) -> str:
    return f"plan v{plan.version} is sha256 "


def plan_fit(board: Board, story: Story, plan: Plan) -> list[str]:
    """Why `submit_plan` would refuse this plan for the story as it stands; empty = it fits."""
    try:
        _check_plan(board, story, plan)
    except RefusedError as error:
        return list(error.details) or [error.message]
    return []


def _check_plan(board: Board, story: Story, plan: Plan) -> None:
    if plan.story != story.id:
        raise RefusedError(
            "plan.wrong_story",
            f"the plan is for {plan.story}, the claim for {story.id}",
            hint=f"oodatcaa show {story.id}",
        )
    if plan.version != story.plan_version + 1:
        raise RefusedError(
            "plan.wrong_version",
            f"{story.id} has plan v{story.plan_version}: the next is v{story.plan_version + 1}, "
            f"not v{plan.version}",
            hint=f"oodatcaa show {story.id}",
        )
    allowed = rounds_allowed(board, story)
    if story.status is S.ADAPTING and story.adapt_round >= allowed:
        raise RefusedError(
            "plan.rounds_used_up",
            f"{story.adapt_round} of {allowed} adaptation rounds are used up",
            hint=f"oodatcaa approve {story.id} allows one more",
        )
    problems = _subtask_problems(board, story, plan)
    if problems:
        raise RefusedError(
            "plan.subtasks",
            f"plan v{plan.version} of {story.id} does not fit its subtasks: {problems[0]}",
            hint="keep a subtask by naming it in keeps; give new work a new id",
            details=problems,
        )


def _subtask_problems(board: Board, story: Story, plan: Plan) -> list[str]:
    """Everything about the plan's subtasks that does not fit those that exist already."""
    problems: list[str] = []
    for kept in plan.keeps:
        item = board.subtask_by_id.get(kept)
        if item is None or item.story != story.id:
            problems.append(f"{kept} can not be kept: it does not exist")
        elif is_cancelled(item):
            problems.append(f"{kept} can not be kept: it was cancelled")
    for wanted in plan.subtasks:
        item = board.subtask_by_id.get(wanted.id)
        if item is not None and wanted.id not in plan.keeps:
            problems.append(f"{wanted.id} exists already ({item.status.value})")
        elif item is not None and item.lease and wanted.depends_on != item.depends_on:
            problems.append(f"{wanted.id} is being worked on; keep it with its dependencies")
    if problems:
        return problems
    return _graph_problems(board, _needs_after(board, plan))


def _needs_after(board: Board, plan: Plan) -> dict[str, tuple[str, ...]]:
    """Unfinished subtask -> what it depends on, as the plan leaves them."""
    needs = {item: board.subtask_by_id[item].depends_on for item in plan.keeps}
    needs |= {item.id: item.depends_on for item in plan.subtasks}
    return {item: wanted for item, wanted in needs.items() if not _done(board, item)}


def _graph_problems(board: Board, needs: dict[str, tuple[str, ...]]) -> list[str]:
    """Work that can never start, and work that nobody would verify."""
    problems = [
        f"{item} depends on {needed}, which is neither done nor kept"
        for item, wanted in needs.items()
        for needed in wanted
        if needed not in needs and not _done(board, needed)
    ]
    below = {item: _everything_below(item, needs) for item in needs}
    problems += [f"{item} depends on itself" for item in needs if item in below[item]]
    tests = [item for item in needs if _is_test(item)]
    if not tests:
        problems.append("every test subtask is done already: nobody would verify the new work")
    verified = frozenset().union(*(below[test] for test in tests))
    problems += [
        f"{item} is verified by no test subtask: none depends on it"
        for item in needs
        if tests and not _is_test(item) and item not in verified
    ]
    return problems


def _is_test(subtask: str) -> bool:
    return subtask.split("-")[1].startswith("T")


def _everything_below(start: str, needs: dict[str, tuple[str, ...]]) -> frozenset[str]:
    found: set[str] = set()
    front = list(needs.get(start, ()))
    while front:
        item = front.pop()
        if item not in found:
            found.add(item)
            front += needs.get(item, ())
    return frozenset(found)


def _done(board: Board, subtask: str) -> bool:
    item = board.subtask_by_id.get(subtask)
    return item is not None and is_done(item)


def free_subtask_id(board: Board, story: str, kind: SubtaskKind, taken: int = 0) -> str:
    """The next unused id of that kind, for example `T003-B02`; `taken` skips ids that the plan
    in the making already uses."""
    letter = "B" if kind is SubtaskKind.BUILD else "T"
    used = [
        int(item.id.split("-")[1][1:])
        for item in board.subtasks_of(story)
        if item.id.split("-")[1][0] == letter
    ]
    return f"{story}-{letter}{max(used, default=0) + 1 + taken:02d}"


def _place(
    board: Board, story: Story, plan: Plan, owner: str, now: datetime
) -> tuple[Board, list[Event]]:
    """Create the plan's subtasks, and put the kept ones where they can go on.

    What is done stays as it was done, whatever the plan says about it now.
    """
    for wanted in plan.subtasks:
        old = board.subtask_by_id.get(wanted.id)
        fields = {
            "title": wanted.title,
            "steps": wanted.steps,
            "depends_on": wanted.depends_on,
            "estimate_minutes": wanted.estimate_minutes,
            "asks": wanted.asks,
            "plan_version": plan.version,
        }
        if old is None:
            ids = {"id": wanted.id, "story": story.id, "kind": wanted.kind}
            board = put(board, initial_subtask(board, now, **ids, **fields))
        elif not is_done(old):
            board = put(board, old.evolve(**fields))
    events: list[Event] = []
    for kept in plan.keeps:
        item = board.subtask_by_id[kept]
        if is_done(item) or item.lease is not None:
            continue
        waits = _waits_for(board, item.depends_on)
        waits = waits or (WAITS_FOR_ANSWER if open_questions(board, item) else "")
        to = waiting_status(item.kind, blocked=bool(waits))
        if item.status is not to:
            after = move(item, to, now, reason=waits, failure=None)
            board = put(board, after)
            text = f"{kept} is kept by plan v{plan.version}"
            events.append(moved_event(item, after, owner, now, text))
    return board, events


def _waits_for(board: Board, depends_on: tuple[str, ...]) -> str:
    waits = [needed for needed in depends_on if not _done(board, needed)]
    return f"waits for {', '.join(waits)}" if waits else ""


def _planned_event(
    before: Story, after: Story, plan: Plan, now: datetime, unapproved: tuple[str, ...]
) -> Event:
    note = plan.adaptation
    text = f"plan v{plan.version} of {before.id}: {len(plan.subtasks)} subtasks, size {plan.size}"
    details = [f"{item.id} {item.title} ({item.estimate_minutes} min)" for item in plan.subtasks]
    details += [f"keeps {kept}" for kept in plan.keeps]
    details += [f"not approved yet: {line}" for line in unapproved]
    details.append(fingerprint_line(plan))
    if note is not None:
        text = f"adaptation round {after.adapt_round}: {note.trigger}; {text}"
        details = [*note.rungs, *details]
    event = moved_event(before, after, before.lease.owner if before.lease else "planner", now, text)
    return event.evolve(kind=EventKind.PLAN, details=tuple(details))
