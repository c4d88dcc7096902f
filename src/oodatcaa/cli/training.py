"""estimate, train, resume, runs: the backend by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from oodatcaa.cli.show import as_json, following, say

if TYPE_CHECKING:
    from oodatcaa.domain.training import RunRecord, TrainProgress

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    app.command("estimate")(estimate)
    app.command("train")(train)
    app.command("resume")(resume)
    app.command("runs")(runs)


def estimate(json: AsJson = False) -> None:
    """What the objective's parameters are expected to need, part by part; loads nothing."""
    from oodatcaa.app.by_hand import estimate_objective
    from oodatcaa.app.project import open_project
    from oodatcaa.domain.training import GB
    from oodatcaa.kit.machine import total_memory

    project = open_project()
    found = estimate_objective(project, say)
    if json:
        as_json(found)
        return
    for part in found.parts:
        say(f"{part.bytes / GB:9.2f} GB  {part.name}: {part.formula}")
    limit = min(project.objective().memory_limit_bytes, total_memory())
    verdict = "fits" if found.total_bytes <= limit else "does NOT fit"
    say(f"{found.total_bytes / GB:9.2f} GB  estimated in all; {verdict} {limit / GB:.2f} GB")
    following("oodatcaa sprint new")


def train() -> None:
    """One run with the objective's parameters and data, under the memory gate."""
    from oodatcaa.app.by_hand import train_objective
    from oodatcaa.app.project import open_project

    _told(train_objective(open_project(), say, _progress))


def resume(run: Annotated[str, typer.Argument(help="a run id, see `oodatcaa runs`")]) -> None:
    """Go on from the newest checkpoint of an interrupted run, in a new run."""
    from oodatcaa.app.by_hand import resume_run
    from oodatcaa.app.project import open_project

    _told(resume_run(open_project(), run, say, _progress))


def runs(json: AsJson = False) -> None:
    """Every run, oldest first."""
    from oodatcaa.app.by_hand import list_runs
    from oodatcaa.app.project import open_project

    found, problems = list_runs(open_project())
    if json:
        as_json({"runs": found, "problems": problems})
        return
    for run in found:
        say(_line(run))
    for problem in problems:
        say(f"unreadable: {problem}")
    if not found and not problems:
        say("no runs yet")
    following("oodatcaa train, or oodatcaa run")


def _line(run: RunRecord) -> str:
    loss = f"  loss {run.train_losses[-1].loss:.3f}" if run.train_losses else ""
    peak = f"  peak {run.peak_memory_bytes / 1e9:.2f} GB" if run.peak_memory_bytes else ""
    why = f"  {run.failure.message}" if run.failure else ""
    return f"{run.run_id}  {run.status.value:<9}{loss}{peak}{why}"


def _progress(progress: TrainProgress) -> None:
    from oodatcaa.cli.watch import bar

    say(bar(progress))


def _told(run: RunRecord) -> None:
    from oodatcaa.errors import OodatcaaError

    say(_line(run))
    if run.failure is not None:
        raise OodatcaaError(
            f"run.{run.failure.kind.value}", run.failure.message, hint=run.failure.hint
        )
    following("oodatcaa runs")
