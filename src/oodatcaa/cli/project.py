"""init and sprint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from oodatcaa.cli.show import as_json, following, say

sprint_app = typer.Typer(help="Open and close sprints.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.command("doctor")(doctor)
    app.add_typer(sprint_app, name="sprint")


def init(
    commit: Annotated[
        bool | None,
        typer.Option("--commit/--no-commit", help="commit what was written; asked on a terminal"),
    ] = None,
) -> None:
    """Write OBJECTIVE.md, the configuration and the agents; never over what is there."""
    from oodatcaa.app.init import init_project

    done = init_project(Path.cwd(), commit=bool(commit))
    for path in done.written:
        say(f"wrote {path}")
    for path in done.kept:
        say(f"kept  {path} (it was there)")
    asks = commit is None and sys.stdin.isatty() and sys.stdout.isatty()
    left = len(done.uncommitted)
    if asks and left and typer.confirm(f"commit these {left} files?", default=True):
        done = init_project(Path.cwd(), commit=True)
    if done.commit:
        say(f"committed as {done.commit[:12]}")
    following(done.next_command)


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="mend what is safe")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check everything against everything; say what it means and what would mend it."""
    from oodatcaa.app.doctor import diagnose, mend
    from oodatcaa.app.project import open_project
    from oodatcaa.cli.examination import as_data, tell
    from oodatcaa.errors import EXIT_STATE

    project = open_project()
    mended = mend(project) if repair else ()
    found = diagnose(project)
    if json:
        as_json(as_data(found, mended))
    else:
        tell(found, mended)
    if not found.sound:
        raise typer.Exit(EXIT_STATE)


@sprint_app.command("new")
def sprint_new() -> None:
    """Turn OBJECTIVE.md into stories."""
    from oodatcaa.app.people import me
    from oodatcaa.app.project import open_project
    from oodatcaa.app.sprints import new_sprint

    board = new_sprint(open_project(), say, by=me())
    assert board.sprint is not None
    say(f"sprint {board.sprint.number}: {board.sprint.title}")
    for story in board.stories:
        waits = f"  after {', '.join(story.depends_on)}" if story.depends_on else ""
        say(f"  {story.id}  {story.status.value:<12} {story.title}{waits}")
    following("oodatcaa run")


@sprint_app.command("close")
def sprint_close() -> None:
    """Archive the sprint into one commit and a tag; what is unfinished moves on to the next."""
    from oodatcaa.app.archiving import RETROSPECTIVE, end_sprint
    from oodatcaa.app.people import me
    from oodatcaa.app.project import open_project

    closed = end_sprint(open_project(), me())
    where = f"{closed.commit[:12]} on {closed.target}, tag {closed.tag}"
    say(f"sprint {closed.number} is closed: {where}")
    say(f"read: {closed.folder / RETROSPECTIVE}")
    for story in closed.carried.unfinished:
        say(f"  {story.id} moves on: {story.title}")
    following("oodatcaa sprint new")
