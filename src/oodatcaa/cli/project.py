"""init and sprint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oodatcaa.cli.show import following, say

sprint_app = typer.Typer(help="Open a sprint.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.add_typer(sprint_app, name="sprint")


def init(
    commit: Annotated[bool, typer.Option("--commit", help="commit what was written")] = False,
) -> None:
    """Write OBJECTIVE.md, the configuration and the agents; never over what is there."""
    from oodatcaa.app.init import init_project

    done = init_project(Path.cwd(), commit=commit)
    for path in done.written:
        say(f"wrote {path}")
    for path in done.kept:
        say(f"kept  {path} (it was there)")
    if done.commit:
        say(f"committed as {done.commit[:12]}")
    following(done.next_command)


@sprint_app.command("new")
def sprint_new() -> None:
    """Turn OBJECTIVE.md into stories."""
    from oodatcaa.app.project import open_project
    from oodatcaa.app.sprints import new_sprint

    board = new_sprint(open_project())
    assert board.sprint is not None
    say(f"sprint {board.sprint.number}: {board.sprint.title}")
    for story in board.stories:
        waits = f"  after {', '.join(story.depends_on)}" if story.depends_on else ""
        say(f"  {story.id}  {story.status.value:<12} {story.title}{waits}")
    following("oodatcaa run")
