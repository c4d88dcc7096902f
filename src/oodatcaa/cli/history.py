"""What happened, and what it says in numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from oodatcaa.cli.show import as_json, following, say

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Number = Annotated[
    int | None, typer.Option("--sprint", help="a closed sprint instead of the open one")
]


def register(app: typer.Typer) -> None:
    app.command("log")(log)
    app.command("metrics")(metrics)


def log(
    task: Annotated[str, typer.Option(help="only this task; a story means its subtasks too")] = "",
    agent: Annotated[str, typer.Option(help="only this agent or person")] = "",
    since: Annotated[
        str, typer.Option(help="2h, 1d12h, 2026-01-30, 2026-01-30T08:00 (UTC) or with a zone")
    ] = "",
    sprint: Number = None,
    everything: Annotated[
        bool, typer.Option("--all", help="closed sprints too, oldest first")
    ] = False,
    json: AsJson = False,
) -> None:
    """What happened, oldest first, across rotated logs."""
    from oodatcaa.app.history import entries
    from oodatcaa.app.project import open_project
    from oodatcaa.kit.clock import parse_moment, utc_now

    start = parse_moment(since, utc_now()) if since else None
    project = open_project()
    found = list(
        entries(
            project,
            sprint=sprint,
            everything=everything,
            task=task,
            agent=agent,
            since=start,
        )
    )
    if json:
        as_json([{"sprint": one.sprint, **one.logged.model_dump(mode="json")} for one in found])
        return
    shown: int | None = None
    for one in found:
        event = one.logged.event
        if everything and one.sprint is not None and one.sprint != shown:
            say(f"sprint {one.sprint}")
            shown = one.sprint
        moved = f" {event.before} -> {event.after}" if event.before or event.after else ""
        say(f"{event.at:%Y-%m-%d %H:%M:%S}Z {event.actor} {event.subject}{moved}: {event.text}")
    if not found:
        say("no entry fits")
    if sprint is not None:
        following(f"oodatcaa metrics --sprint {sprint}")
    else:
        following("oodatcaa metrics" if project.board().sprint else "oodatcaa sprint new")


def metrics(
    sprint: Number = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    json: AsJson = False,
) -> None:
    """Cycle and waiting times, estimates against actuals, lost leases, a forecast of the end."""
    from oodatcaa.app.history import sprint_metrics
    from oodatcaa.app.project import open_project
    from oodatcaa.views.metrics import metrics_json, metrics_page, metrics_text

    found = sprint_metrics(open_project(), sprint)
    if json:
        as_json(metrics_json(found))
    elif markdown:
        say(metrics_page(found).rstrip("\n"))
    else:
        say(metrics_text(found))
        following("oodatcaa log" if sprint is None else f"oodatcaa log --sprint {sprint}")
