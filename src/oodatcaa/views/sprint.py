"""SPRINT_PLAN.md and what a negotiation prints: who does what next, and why others wait."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.negotiation import Round
from oodatcaa.domain.offering import briefly
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.progress import progress
from oodatcaa.domain.task import Failure, Role, Story, SubtaskStatus, Task
from oodatcaa.views.markdown import bullets, code, facts, link, page, prose, section, stop, table
from oodatcaa.views.units import count, listing, memory, minutes, moment, percent, words

NO_SPRINT = "There is no sprint. Next: `oodatcaa sprint new`."
_ACT: dict[Role, str] = {
    Role.PLANNER: "plan it",
    Role.BUILDER: "build it",
    Role.TESTER: "verify it",
    Role.REFINER: "adapt the plan",
    Role.INTEGRATOR: "merge it",
}


def sprint_plan(board: Board, round: Round, now: datetime, policy: Policy) -> str:
    """The sprint as it stands at `now`. Links assume that `plans/` and `reports/` lie beside."""
    sprint = board.sprint
    if sprint is None:
        return page("Sprint plan", NO_SPRINT)
    return page(
        f"Sprint {sprint.number}: {sprint.title}",
        _head(board, sprint, now),
        section("Waiting for a person", _human(board, round)),
        section("Who does what next", _offers(board, round)),
        section("In work", _in_work(board)),
        section("Waiting", _waiting(board, round)),
        section("Needs adaptation", _failures(board)),
        section("Critical path", _critical(round)),
        section("Stories", _stories(board)),
        section("Work in progress", _wip(board, round, policy)),
        section("What this round did", _did(round)),
    )


def _head(board: Board, sprint: Sprint, now: datetime) -> str:
    state = progress(board)
    return facts(
        [
            ("Objective", f"{prose(sprint.objective_id)} (sha256 "
             f"{code(sprint.objective_sha256[:8])})" if sprint.objective_sha256
             else prose(sprint.objective_id)),
            ("Target branch", code(sprint.target_branch)),
            ("Memory limit", memory(sprint.memory_limit_bytes)),
            ("Started", moment(sprint.created_at)),
            ("As of", f"{moment(now)}, queue revision {board.revision}"),
            ("Progress", f"{state.stories_done} of {count(state.stories_total, 'story', 'stories')}"
             f" integrated, {percent(state.objective_percent / 100)} of the estimated work; "
             f"{state.subtasks_done} of {count(state.subtasks_total, 'planned subtask')} done"),
            ("Left", f"about {minutes(state.remaining_minutes)} of work (estimate)"
             if state.remaining_minutes else None),
        ]
    )  # fmt: skip


def _titled(board: Board, task_id: str) -> str:
    task = board.find(task_id)
    return prose(task.title) if task else "unknown task"


def _human(board: Board, round: Round) -> str:
    return bullets(
        f"{task_id} {_titled(board, task_id)}: {stop(_reason(board.find(task_id)))} "
        f"Look with `oodatcaa show {task_id}`, then `oodatcaa approve {task_id}` or "
        f"`oodatcaa cancel {task_id}`."
        for task_id in round.needs_human
    )


def _reason(task: Task | None) -> str:
    if task is None:
        return "no reason was given"
    text = task.reason or (task.failure.summary if task.failure else "")
    return text or "no reason was given"


def _offers(board: Board, round: Round) -> str:
    rows = []
    for offer in round.offers:
        task = board.find(offer.task)
        rows.append(
            (
                offer.role.value,
                str(offer.rank),
                offer.task,
                _titled(board, offer.task),
                _ACT[offer.role],
                minutes(task.estimate_minutes) if task else "",
                code(f"oodatcaa agent {offer.role.value}"),
            )
        )
    return table(("Role", "Rank", "Task", "Title", "To do", "Estimate", "By hand"), rows, "lrlllrl")


def _tasks(board: Board) -> tuple[Task, ...]:
    return board.stories + board.subtasks


def _in_work(board: Board) -> str:
    rows = [
        (task.id, prose(task.title), words(task.status.value), prose(task.lease.owner),
         str(task.lease.attempt), moment(task.lease.claimed_at))
        for task in _tasks(board)
        if task.lease is not None
    ]  # fmt: skip
    return table(("Task", "Title", "State", "Owner", "Attempt", "Since"), rows, "llllrl")


def _waiting(board: Board, round: Round) -> str:
    rows = [
        (task_id, _titled(board, task_id) if task_id else "", prose(why))
        for task_id, why in briefly(_still(round))
    ]
    return table(("Task", "Title", "Why"), rows)


def _still(round: Round) -> dict[str, str]:
    return {task: why for task, why in round.waiting.items() if task not in round.needs_human}


def _failures(board: Board) -> str:
    """One line a story; its failed subtask carries the same failure and is not said twice."""
    return bullets(
        f"{task.id} {prose(task.title)}{_where(task)}: {stop(_failure(task.failure))}"
        for task in board.stories
        if task.failure is not None and task.status.value in ("needs_adapt", "adapting")
    )


def _where(task: Task) -> str:
    failed = task.failure.task if task.failure else task.id
    return f" (failed in {failed})" if failed != task.id else ""


def _failure(failure: Failure) -> str:
    """Kind, layer and sizes are added only where the summary does not say them."""
    text = failure.summary
    if words(failure.kind) not in text and failure.kind not in text:
        text = f"{words(failure.kind)}: {text}"
    if failure.layer and failure.layer not in text:
        text += f" (layer {failure.layer})"
    if failure.needed_bytes is not None and failure.limit_bytes is not None and "GB" not in text:
        text += f" ({memory(failure.needed_bytes)} needed, limit {memory(failure.limit_bytes)})"
    return text


def _critical(round: Round) -> str:
    if not round.critical_path:
        return ""
    length = f", about {minutes(round.critical_minutes)} (estimate)"
    chain = " → ".join(round.critical_path) + (length if round.critical_minutes else "")
    return f"{chain}. Whatever is late on it makes the sprint late."


def _stories(board: Board) -> str:
    rows = [
        (story.id, prose(story.title), words(story.status.value), _parts(board, story),
         ", ".join(story.depends_on) or "nothing", minutes(story.estimate_minutes),
         _story_link(story))
        for story in board.stories
    ]  # fmt: skip
    head = ("Story", "Title", "State", "Subtasks done", "Depends on", "Estimate", "Plan")
    return table(head, rows, "lllllrl")


def _parts(board: Board, story: Story) -> str:
    parts = [
        item for item in board.subtasks_of(story.id) if item.status is not SubtaskStatus.CANCELLED
    ]
    done = sum(item.status is SubtaskStatus.DONE for item in parts)
    return f"{done} of {len(parts)}" if parts else "not planned"


def _story_link(story: Story) -> str:
    if not story.plan_version:
        return "none yet"
    return link(f"version {story.plan_version}", f"plans/{story.id}/AGENT_PLAN.md")


def _wip(board: Board, round: Round, policy: Policy) -> str:
    holders: dict[Role, list[str]] = {role: [] for role in Role}
    for task in _tasks(board):
        if task.lease is not None:
            holders[task.lease.role].append(task.id)
    rows = [
        (role.value, str(round.wip.get(role.value, (len(holders[role]), 0))[0]),
         str(policy.wip.of(role)), ", ".join(holders[role]) or "free")
        for role in Role
    ]  # fmt: skip
    return table(("Role", "In work", "Limit", "Tasks"), rows, "lrrl")


def _did(round: Round) -> str:
    return bullets(prose(line) for line in round_lines(round))


def round_lines(round: Round) -> tuple[str, ...]:
    """What a round recovered, renewed, unblocked and noted; raw text, one line each."""
    lines = []
    for names, what in (
        (round.recovered, "Recovered from a lost lease"),
        (round.renewed, "Lease renewed, because its owner is alive"),
        (round.unblocked, "Unblocked"),
    ):
        if names:
            lines.append(f"{what}: {listing(names)}.")
    return (*lines, *round.notes)


def negotiation_text(round: Round, board: Board | None = None) -> str:
    """A round in plain text for a terminal; titles are added when the board is given."""

    def name(task_id: str) -> str:
        task = board.find(task_id) if board else None
        return f"{task_id} {task.title}" if task else task_id

    lines = [*round_lines(round)]
    width = max((len(offer.role.value) for offer in round.offers), default=0)
    lines += [f"{offer.role.value.ljust(width)}  {name(offer.task)}" for offer in round.offers]
    lines += [
        f"waits: {name(task_id)}: {why}" if task_id else f"waits: {why}"
        for task_id, why in briefly(_still(round))
    ]
    lines += [f"needs a person: {name(task_id)}" for task_id in round.needs_human]
    if round.critical_path:
        length = f" (about {minutes(round.critical_minutes)})" if round.critical_minutes else ""
        lines.append(f"critical path: {' -> '.join(round.critical_path)}{length}")
    if not lines:
        return "Nothing to decide: nothing is offered and nothing waits."
    if not round.changed and board is not None and board.sprint is not None:
        lines.insert(0, "Nothing changed since the last round.")
    return "\n".join(lines)
