"""Everything that looks at the queue or moves a task in it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodatcaa.cli.show import as_json, following, say
from oodatcaa.domain.words import Role

if TYPE_CHECKING:
    from oodatcaa.app.project import Project
    from oodatcaa.domain.task import Task

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
TaskId = Annotated[str, typer.Argument(help="T001 or T001-B01")]
StoryId = Annotated[str, typer.Argument(help="T001")]
Owner = Annotated[str, typer.Option("--as", help="who acts; your login name by default")]


def register(app: typer.Typer) -> None:
    verbs: tuple[Callable[..., None], ...] = (negotiate, status, show, claim, heartbeat)
    verbs += (submit, release, approve, reject, cancel, waive)
    verbs += (schema,)
    for command in verbs:
        app.command(command.__name__)(command)


def _who(owner: str) -> str:
    from oodatcaa.app.people import me

    return owner or me()


def _told(task: Task) -> None:
    say(f"{task.id} is {task.status.value}{': ' + task.reason if task.reason else ''}")


def _done(task: Task, json: bool, then: str) -> None:
    """What became of the task, and the next command; `--json` prints the record alone."""
    if json:
        as_json(task)
        return
    _told(task)
    following(then)


def _as(owner: str) -> str:
    """` --as NAME` for the next command, when this one was typed under a name."""
    return f" --as {shlex.quote(owner)}" if owner else ""


def negotiate(json: AsJson = False) -> None:
    """One round: recover, unblock, offer. A round that decides nothing writes nothing."""
    from oodatcaa.app.project import open_project
    from oodatcaa.app.sprint_view import negotiate_and_show
    from oodatcaa.views.sprint import negotiation_text

    project = open_project()
    if project.board().sprint is None and not json:
        say("no sprint; next: oodatcaa sprint new")
        return
    found = negotiate_and_show(project)
    if json:
        as_json(found)
        return
    say(negotiation_text(found, project.board()))
    following("oodatcaa run" if found.offers else "oodatcaa status")


def status(json: AsJson = False) -> None:
    """Where the sprint stands."""
    from oodatcaa.app.project import open_project
    from oodatcaa.views.status import status_rows, status_summary

    board = open_project().board()
    now = datetime.now(UTC)
    if json:
        as_json({"summary": status_summary(board, now), "tasks": status_rows(board, now)})
        return
    if board.sprint is None:
        say("no sprint; next: oodatcaa sprint new")
        return
    for label, text in status_summary(board, now).items():
        say(f"{label:>15}  {text}")
    say()
    for row in status_rows(board, now):
        note = row["note"] or row["title"]
        say(f"  {row['id']:<9} {row['status']:<20} {row['owner']:<13} {note}")
    stuck = next((item.id for item in board.stories if item.status.value == "needs_human"), "")
    following(f"oodatcaa show {stuck}" if stuck else "oodatcaa run")


def show(task: TaskId, json: AsJson = False) -> None:
    """Everything about one task, also of a closed sprint, or that only an imported file knows."""
    from oodatcaa.app.people import known_task
    from oodatcaa.app.project import open_project
    from oodatcaa.domain.task import Story
    from oodatcaa.views.status import show_text

    project = open_project()
    if project.board().find(task) is None and (
        _show_past(project, task, json) or _show_closed(project, task, json)
    ):
        return
    found = known_task(project, task)
    if json:
        as_json(found)
        return
    version = found.plan_version if isinstance(found, Story) else 0
    plan = project.plans.load(task, version) if version else None
    say(show_text(project.board(), task, datetime.now(UTC), plan))
    if isinstance(found, Story) and found.source is not None:
        from oodatcaa.views.imported import source_lines

        for line in source_lines(found.source, project.drafts.get(found.source)):
            say(line)
    waits = isinstance(found, Story) and (found.source is not None and found.source.wants_approval)
    asks = isinstance(found, Story) and bool(found.asked_for)
    answer = f"oodatcaa approve {task} --why …"
    following(answer if waits or asks else f"oodatcaa log --task {task}")


def _show_closed(project: Project, task: str, json: bool) -> bool:
    """What the newest closed sprint that had the task says of it; False when none had it."""
    from oodatcaa.app.history import closed_task
    from oodatcaa.views.status import show_text

    found = closed_task(project, task)
    if found is None:
        return False
    number, board = found
    if json:
        as_json(board.find(task))
        return True
    say(f"of sprint {number}, which is closed")
    say(show_text(board, task, datetime.now(UTC), None))
    following(f"oodatcaa log --sprint {number} --task {task}")
    return True


def _show_past(project: Project, task: str, json: bool) -> bool:
    """What imported files say of a task that is not on the board; False when they say nothing."""
    from oodatcaa.app.past_work import past_work
    from oodatcaa.views.imported import past_lines

    found = past_work(project, task)
    if found and json:
        as_json(found)
    elif found:
        for one in found:
            say("\n".join(past_lines(one)))
        here = next((one.here for one in found if one.here), "")
        live = project.board().sprint is not None
        following(
            f"oodatcaa show {here}"
            if here and live
            else "oodatcaa status"
            if live
            else "oodatcaa sprint new"
        )
    return bool(found)


def claim(
    task: Annotated[str, typer.Argument(help="T001 or T001-B01; empty = the first offer")] = "",
    role: Annotated[Role | None, typer.Option(help="take the first offer for this role")] = None,
    owner: Owner = "",
    json: AsJson = False,
) -> None:
    """Hold a task by hand, until its time to live runs out without a heartbeat."""
    from oodatcaa.app.people import claim_task
    from oodatcaa.app.project import open_project

    person = sys.stdin.isatty()
    held = claim_task(open_project(), task or None, role, _who(owner), at_terminal=person)
    assert held.lease is not None
    if not json:
        say(f"attempt {held.lease.attempt}, for {held.lease.ttl_seconds // 60} minutes")
    again = held.id + _as(owner)
    _done(held, json, f"oodatcaa submit {again}, or oodatcaa heartbeat {again}")


def heartbeat(task: TaskId, owner: Owner = "", json: AsJson = False) -> None:
    """Renew the lease of a task that you hold."""
    from oodatcaa.app.people import heartbeat_task
    from oodatcaa.app.project import open_project

    held = heartbeat_task(open_project(), task, _who(owner))
    _done(held, json, f"oodatcaa submit {task}{_as(owner)}")


def submit(
    task: TaskId,
    plan: Annotated[Path | None, typer.Option(help="the plan record, for a story")] = None,
    failed: Annotated[str, typer.Option(help="hand in a failure with this reason")] = "",
    owner: Owner = "",
    json: AsJson = False,
) -> None:
    """Hand in work; the framework runs every gate itself."""
    from oodatcaa.app.people import submit_task
    from oodatcaa.app.project import open_project

    project = open_project()
    done = submit_task(project, task, _who(owner), plan_file=plan, failure=failed or None)
    _done(done, json, "oodatcaa negotiate")


def release(
    task: TaskId,
    why: Annotated[str, typer.Option(help="the reason, for the log")] = "given back",
    owner: Owner = "",
    json: AsJson = False,
) -> None:
    """Give a task back unfinished."""
    from oodatcaa.app.people import release_task
    from oodatcaa.app.project import open_project

    _done(release_task(open_project(), task, _who(owner), why), json, "oodatcaa negotiate")


def approve(
    stories: Annotated[list[str], typer.Argument(metavar="STORY...", help="T001, or several")],
    why: Annotated[str, typer.Option(help="your reason")],
    owner: Owner = "",
) -> None:
    """Let stories that wait for a person go on, or answer what they ask; of imported ones, let
    their commands run."""
    from oodatcaa.app.people import approve_story
    from oodatcaa.app.project import open_project

    asking = ""
    for story in stories:
        after = approve_story(open_project(), story, _who(owner), why)
        _told(after)
        asking = asking or (story if after.asked_for else "")
    following(f"oodatcaa show {asking}" if asking else "oodatcaa run")


def reject(
    story: StoryId, why: Annotated[str, typer.Option(help="what is wrong")], owner: Owner = ""
) -> None:
    """Say no to work that a story's plan wants you to look at: it is done again."""
    from oodatcaa.app.people import reject_story
    from oodatcaa.app.project import open_project

    _told(reject_story(open_project(), story, _who(owner), why))
    following("oodatcaa run")


def cancel(
    task: TaskId, why: Annotated[str, typer.Option(help="your reason")], owner: Owner = ""
) -> None:
    """Cancel a story with its subtasks, or one subtask."""
    from oodatcaa.app.people import cancel_task
    from oodatcaa.app.project import open_project

    _told(cancel_task(open_project(), task, _who(owner), why))
    following("oodatcaa status")


def waive(
    story: StoryId,
    gate: Annotated[str, typer.Argument(help="AC1, G2, …: see the test plan")],
    why: Annotated[str, typer.Option(help="your reason")],
    hours: Annotated[float, typer.Option(help="how long it holds; there is no default")],
    owner: Owner = "",
) -> None:
    """One gate of a story does not have to pass for a while. For people only."""
    from oodatcaa.app.people import waive_gate
    from oodatcaa.app.project import open_project

    who = _who(owner)
    waived = waive_gate(open_project(), story, gate, who, why, hours)
    until = next(item.until for item in waived.waivers if item.gate_id == gate)
    say(f"{gate} of {story} is waived by {who} until {until:%Y-%m-%d %H:%M} UTC: {why}")
    following("oodatcaa run")


def schema() -> None:
    """The JSON Schema of SPRINT_QUEUE.json."""
    from oodatcaa.state.schema import schema_text

    print(schema_text(), end="")
