"""evidence: what the framework saw, and whether it sees it again."""

from __future__ import annotations

from typing import Annotated

import typer

from oodatcaa.cli.show import as_json, following, say


def register(app: typer.Typer) -> None:
    app.command("evidence")(evidence)


def evidence(
    task: Annotated[str, typer.Argument(help="T001, T001-B01, or one piece: E-T001-…")],
    only_list: Annotated[
        bool, typer.Option("--list", help="only show what is stored, run nothing")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="every attempt, not only the newest of each gate")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Run a task's gates again at their commits: does what the framework saw reproduce?"""
    from oodatcaa.app.evidence import stored
    from oodatcaa.app.project import open_project

    project = open_project()
    found = stored(project, task, every=every)
    if not found:
        say(f"no gate of {task} ran yet")
        following(f"oodatcaa show {task}")
        return
    if not only_list:
        _again(task, json, found)
        return
    if json:
        as_json(found)
        return
    for item in found:
        mark = "" if project.evidence.is_intact(item) else "  OUTPUT WAS CHANGED SINCE"
        say(f"{item.id}  {item.verdict.value:<8} {item.commit[:12]}  {item.gate.name}{mark}")
        say(f"    {item.detail}")
        if item.gate.kind.value == "command":
            say(f"    {item.command}  ({item.duration_seconds:.1f} s on {item.host})")
        if item.code_path:
            say(f"    code from {item.code_path}; {_tools(item.tools)}")
    following(f"oodatcaa evidence {task}")


def _again(task: str, json: bool, found: object) -> None:
    from oodatcaa.app.evidence import run_again
    from oodatcaa.app.project import open_project
    from oodatcaa.errors import OodatcaaError

    assert isinstance(found, tuple)
    results = []
    for item in run_again(open_project(), found, (lambda _: None) if json else say):
        results.append(item)
        if not json:
            word = "reproduces" if item.reproduces else "DIFFERS" if item.again else "not run"
            notes = f" ({'; '.join(item.notes)})" if item.notes else ""
            say(f"{item.evidence}  {item.before.value}: {word}{notes}")
    if json:
        as_json(results)
    different = [item for item in results if item.again is not None and not item.reproduces]
    if different:
        raise OodatcaaError(
            "evidence.differs",
            f"{len(different)} of {len(results)} gates of {task} do not reproduce",
            hint="compare .oodatcaa/work/reruns/evidence with .oodatcaa/work/evidence",
        )
    if not json:
        following(f"oodatcaa show {task}")


def _tools(tools: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tools.items()) or "tools unknown"
