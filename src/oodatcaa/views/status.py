"""What `status` and `show` print: plain rows and text; the command line makes them pretty."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, TypedDict

from oodatcaa.domain.asking import asked_now, open_questions
from oodatcaa.domain.board import Board
from oodatcaa.domain.progress import critical_path, progress
from oodatcaa.domain.question import Asks
from oodatcaa.domain.states import is_finished
from oodatcaa.domain.task import Story, Subtask, Task
from oodatcaa.views.units import (
    count,
    duration,
    memory,
    minutes,
    moment,
    percent,
    printable,
    short,
    words,
)

if TYPE_CHECKING:
    from oodatcaa.domain.plan import Plan


class StatusRow(TypedDict):
    """One line of `status`. Everything is text for people; `--json` speaks the board itself."""

    id: str
    kind: str
    title: str
    status: str
    owner: str
    since: str
    estimate: str
    note: str


def status_rows(board: Board, now: datetime) -> tuple[StatusRow, ...]:
    """Stories in order, each followed by its subtasks; cancelled subtasks are left out."""
    rows: list[StatusRow] = []
    for story in board.stories:
        rows.append(_row(board, story, now))
        rows += [
            _row(board, item, now)
            for item in board.subtasks_of(story.id)
            if item.status.value != "cancelled"
        ]
    return tuple(rows)


def _row(board: Board, task: Task, now: datetime) -> StatusRow:
    return {
        "id": task.id,
        "kind": "story" if isinstance(task, Story) else task.kind.value,
        "title": task.title,
        "status": words(task.status.value),
        "owner": task.lease.owner if task.lease else "",
        "since": _ago(task.status_since, now),
        "estimate": minutes(task.estimate_minutes),
        "note": _note(board, task, now),
    }


def _ago(then: datetime, now: datetime) -> str:
    seconds = max(0.0, (now - then).total_seconds())
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)


def _note(board: Board, task: Task, now: datetime) -> str:
    if task.lease is not None:
        silent = _ago(task.lease.heartbeat_at, now)
        return f"attempt {task.lease.attempt}, last heartbeat {silent} ago"
    if task.failure is not None and task.status.value in ("needs_adapt", "adapting"):
        return f"{task.failure.kind}: {task.failure.summary}"
    if isinstance(task, Story) and task.integration is not None:
        return f"merged as {short(task.integration.merge_commit)}, tag {task.integration.tag}"
    offer = next((offer for offer in board.offers if offer.task == task.id), None)
    if offer is not None:
        return f"offered to a {offer.role.value}"
    return task.reason


def status_summary(board: Board, now: datetime) -> dict[str, str]:
    """The head of `status`: label -> text, in the order to show. Empty without a sprint."""
    sprint = board.sprint
    if sprint is None:
        return {}
    state = progress(board)
    path, length = critical_path(board)
    found = {
        "sprint": f"{sprint.number}, {sprint.title}",
        "objective": sprint.objective_id,
        "running for": _ago(sprint.created_at, now),
        "memory limit": memory(sprint.memory_limit_bytes),
        "progress": f"{state.stories_done} of {count(state.stories_total, 'story', 'stories')} "
        f"integrated ({percent(state.objective_percent / 100)} of the estimated work)",
        "left": f"about {minutes(state.remaining_minutes)} (estimate)",
        "critical path": " -> ".join(path) + (f" (about {minutes(length)})" if path else ""),
        "needs a person": "; ".join(state.needs_human),
    }
    return {label: text for label, text in found.items() if text}


def show_text(board: Board, task_id: str, now: datetime, plan: Plan | None = None) -> str:
    """Everything about one task as plain text. Raises KeyError for an unknown task."""
    task = board.find(task_id)
    if task is None:
        raise KeyError(task_id)
    pairs = _story_pairs(task) if isinstance(task, Story) else _subtask_pairs(task)
    pairs = [
        ("status", f"{words(task.status.value)} for {_ago(task.status_since, now)}"),
        ("why", task.reason),
        *pairs,
        ("estimate", minutes(task.estimate_minutes)),
        ("depends on", ", ".join(task.depends_on)),
        ("owner", _holder(task, now)),
        ("attempts", str(task.attempt) if task.attempt else ""),
        ("commit", task.commit),
        ("failure", f"{task.failure.kind}: {task.failure.summary}" if task.failure else ""),
        ("evidence", ", ".join(task.evidence)),
    ]
    width = max(len(label) for label, text in pairs if text)
    lines = [f"{task.id}  {task.title}"]
    lines += [f"  {label.ljust(width)}  {text}" for label, text in pairs if text]
    if task.failure is not None:
        lines += [f"    {line}" for line in task.failure.gates]
    if isinstance(task, Story):
        lines += _parts(board, task, plan)
        lines += _questions(board, task)
    return "\n".join(lines)


def _holder(task: Task, now: datetime) -> str:
    lease = task.lease
    if lease is None:
        return ""
    process = f", process {lease.pid}" if lease.kind == "process" else ""
    return (
        f"{lease.owner} on {lease.host}{process}, attempt {lease.attempt}, since "
        f"{moment(lease.claimed_at)}, last heartbeat {_ago(lease.heartbeat_at, now)} ago"
    )


def _story_pairs(story: Story) -> list[tuple[str, str]]:
    pairs = [
        ("goal", story.goal),
        ("branch", story.branch),
        ("plan", f"version {story.plan_version}" if story.plan_version else "not planned yet"),
        ("adapted", count(story.adapt_round, "round") if story.adapt_round else ""),
        ("waived", ", ".join(f"{w.gate_id} by {w.by} until {moment(w.until)}"
                             for w in story.waivers)),
    ]  # fmt: skip
    if story.integration is not None:
        found = story.integration
        pairs.append(
            ("merged", f"{short(found.merge_commit)} into {found.target}, tag {found.tag}, "
             f"{moment(found.at)}")
        )  # fmt: skip
    return pairs


def _subtask_pairs(subtask: Subtask) -> list[tuple[str, str]]:
    made = [f"{item.kind.value} {item.ref}" for item in subtask.artefacts]
    return [
        ("story", subtask.story),
        ("kind", subtask.kind.value),
        ("plan", f"version {subtask.plan_version}"),
        ("steps", ", ".join(str(step) for step in subtask.steps)),
        ("made", ", ".join(made)),
    ]


def _questions(board: Board, story: Story) -> list[str]:
    """What people answered, what is asked now, and what will be."""
    lines = []
    for answer in story.answers:
        lines.append(f"  answered  {answer.title}")
        lines.append(f"    {answer.by} {moment(answer.at)}: {answer.why}")
    now = asked_now(board, story)
    for item in board.subtasks_of(story.id):
        for question in () if is_finished(item) else open_questions(board, item):
            word = "ASKED NOW" if question == now else "to be asked"
            lines.append(f"  {word}  {question.title}, before {item.id}")
            lines += [f"    {line}" for line in question.text.split("\n")]
    if now is not None:
        lines.append(f"  the work so far is on branch {story.branch}")
        lines.append(f"  answer it: oodatcaa approve {story.id} --why 'your answer'")
        if now.asks is Asks.VERIFY:
            lines.append(f"  or say no: oodatcaa reject {story.id} --why 'what is wrong'")
    return [printable(line) for line in lines]


def _parts(board: Board, story: Story, plan: Plan | None) -> list[str]:
    parts = board.subtasks_of(story.id)
    width = max((len(words(item.status.value)) for item in parts), default=0)
    lines = [
        f"  {item.id}  {words(item.status.value).ljust(width)}  {item.title}" for item in parts
    ]
    if plan is not None:
        lines += ["  acceptance criteria"]
        for gate in plan.test_plan.acceptance:
            decides = str(gate.bound) if gate.bound else gate.command or ", ".join(gate.paths)
            critical = " (critical)" if gate.critical else ""
            lines.append(f"    {gate.id}  {gate.name}{critical}: {decides}")
    return lines
