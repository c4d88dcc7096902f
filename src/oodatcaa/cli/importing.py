"""import and export: plans of other tools in, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oodatcaa.cli.show import as_json, following, say
from oodatcaa.domain.formats import ExportKind, ImportKind


def register(app: typer.Typer) -> None:
    app.command("import")(import_)
    app.command("export")(export)


def import_(
    files: Annotated[list[Path], typer.Argument(help="plans, task lists or queues")],
    kind: Annotated[
        ImportKind | None, typer.Option("--from", help="the format; found by itself when not given")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show it, write nothing")] = False,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OLD=NEW", help="rewrite a path of another machine"),
    ] = None,
    assume_done: Annotated[
        list[str] | None,
        typer.Option("--assume-done", metavar="ID", help="needed work that is done elsewhere"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Turn plans of other tools into stories. Nothing in them is run."""
    from oodatcaa.kit.plan_files import plan_file, read_text

    for path in files:
        read_text(plan_file(path))  # before anything is loaded that takes its time
    from oodatcaa.app.importing import import_plans, parse_maps
    from oodatcaa.app.project import open_project
    from oodatcaa.views.imported import report_lines

    report = import_plans(
        open_project(),
        files,
        kind=kind,
        maps=parse_maps(maps or ()),
        assume_done=assume_done or (),
        dry_run=dry_run,
    )
    if json:
        as_json(report)
        return
    for line in report_lines(report):
        say(line)
    following(report.next_command)


def export(
    to: Annotated[ExportKind, typer.Option("--to", help="the format to write")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a file; standard output when not given")
    ] = None,
) -> None:
    """Write the sprint's stories in the form of another tool."""
    from oodatcaa.app.plan_export import export_stories
    from oodatcaa.app.project import open_project

    text = export_stories(open_project(), to)
    if output is None:
        say(text.rstrip("\n"))
        return
    from oodatcaa.kit.files import write_atomic

    write_atomic(output, text)
    say(f"wrote {output}")
    following(f"oodatcaa import --dry-run {output}")
