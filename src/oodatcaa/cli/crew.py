"""agent and run."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from oodatcaa.cli.show import following, say
from oodatcaa.domain.words import Role

if TYPE_CHECKING:
    from oodatcaa.app.project import Project


Plain = Annotated[bool, typer.Option("--plain", help="lines instead of a live panel")]


def register(app: typer.Typer) -> None:
    app.command("agent")(agent)
    app.command("run")(run)
    app.command("demo")(demo)
    app.command("report")(report)


def agent(
    role: Annotated[Role, typer.Argument(help="whose work the agent does")],
    name: Annotated[str, typer.Option(help="the agent's name, for example builder-A")] = "",
    once: Annotated[bool, typer.Option("--once", help="one task, then end")] = False,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="end when nothing can be claimed")
    ] = False,
) -> None:
    """One agent's loop: claim, work under a heartbeat, submit, repeat."""
    from oodatcaa.app.agent import Mode, run_agent
    from oodatcaa.app.project import open_project

    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    mode = Mode.ONCE if once else Mode.UNTIL_IDLE if until_idle else Mode.UNTIL_DONE
    outcome = run_agent(
        open_project(),
        role,
        name or f"{role.value}-A",
        mode=mode,
        echo=say,
        should_stop=stop.is_set,
    )
    say(f"{outcome.tasks} tasks; {outcome.reason}")
    following("oodatcaa status")


def run(plain: Plain = False) -> None:
    """The whole crew, until the sprint is done or needs a person. Ctrl-C stops it cleanly."""
    from oodatcaa.app.project import open_project

    _run(open_project(), plain=plain, again="oodatcaa run")
    following("oodatcaa status")


def demo(
    into: Annotated[Path, typer.Option(help="a new folder for the demo's project")] = Path(
        "oodatcaa-demo"
    ),
    plain: Plain = False,
    kill: Annotated[
        bool, typer.Option("--kill/--no-kill", help="kill a builder in mid-training, on purpose")
    ] = True,
) -> None:
    """The whole crew fine-tunes a real model in a fresh project folder."""
    from oodatcaa.app.deliberate_kill import DeliberateKill
    from oodatcaa.app.demo import make_demo_project, unfinished_demo
    from oodatcaa.training.models import ModelStore

    ModelStore().fetch_demo(say)
    folder = into.resolve()
    project = unfinished_demo(folder)
    say(f"{'project' if project is None else 'going on with the project'}: {folder}")
    there = f"cd {shlex.quote(str(into))} && oodatcaa"
    project = project or make_demo_project(folder)
    also = DeliberateKill(project).tick if kill else _nothing
    _run(project, plain=plain, again=f"{there} run", also=also)
    following(f"{there} status")


def report() -> None:
    """Write SPRINT_REPORT.md: outcome, figures, evidence, and what to open first."""
    from oodatcaa.app.closing import write_sprint_report
    from oodatcaa.app.project import open_project

    say(f"wrote {write_sprint_report(open_project())}")
    following("oodatcaa status")


def _nothing(_state: str) -> None:
    return None


def _run(
    project: Project,
    *,
    plain: bool,
    again: str,
    also: Callable[[str], None] = _nothing,
) -> None:
    """Run the crew and tell how it ended; `again` is what goes on after a stop, `also` is called
    with every tick."""
    from oodatcaa.app.activity import forget
    from oodatcaa.app.closing import write_sprint_report
    from oodatcaa.app.crew import Crew, explain
    from oodatcaa.cli.ending import tell_ending
    from oodatcaa.cli.watch import watching
    from oodatcaa.views.units import duration

    with watching(project, plain=plain) as watch:
        outcome = Crew(project, on_tick=watch.tick, also=also).run()
        watch.tick("running")
    forget(project.work)
    write_sprint_report(project)
    for problem in outcome.problems:
        say(f"note: {problem}")
    error = explain(outcome, again)
    if error is None:
        say(f"the sprint is done in {duration(outcome.seconds)}")
    tell_ending(project, outcome.seconds, plain=plain)
    if error is not None:
        raise error
