"""agent and run."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from oodatcaa.cli.show import following, say
from oodatcaa.domain.task import Role

if TYPE_CHECKING:
    from oodatcaa.app.project import Project


def register(app: typer.Typer) -> None:
    app.command("agent")(agent)
    app.command("run")(run)
    app.command("demo")(demo)
    app.command("report")(report)


def agent(
    role: Role,
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


def run() -> None:
    """The whole crew, until the sprint is done or needs a person. Ctrl-C stops it cleanly."""
    from oodatcaa.app.project import open_project

    _run(open_project())
    following("oodatcaa status")


def demo(
    into: Annotated[Path, typer.Option(help="a new folder for the demo's project")] = Path(
        "oodatcaa-demo"
    ),
) -> None:
    """The whole crew fine-tunes a real model in a fresh project folder."""
    from oodatcaa.app.demo import demo_summary, make_demo_project
    from oodatcaa.training.models import ModelStore

    ModelStore().fetch_demo(say)
    project = make_demo_project(into.resolve())
    say(f"project: {project.root}")
    _run(project)
    for line in demo_summary(project):
        say(line)
    following(f"cd {project.root} && oodatcaa status")


def report() -> None:
    """Write SPRINT_REPORT.md: outcome, figures, evidence, and what to open first."""
    from oodatcaa.app.closing import write_sprint_report
    from oodatcaa.app.project import open_project

    say(f"wrote {write_sprint_report(open_project())}")
    following("oodatcaa status")


def _run(project: Project) -> None:
    from oodatcaa.app.closing import write_sprint_report
    from oodatcaa.app.crew import Crew, explain
    from oodatcaa.cli.watch import Watch

    watch = Watch(project)
    outcome = Crew(project, on_tick=watch.tick).run()
    watch.tick()
    say(f"report: {write_sprint_report(project)}")
    for problem in outcome.problems:
        say(f"note: {problem}")
    error = explain(outcome)
    if error is not None:
        raise error
    say(f"the sprint is done in {outcome.seconds:.0f} s")
