"""How `run` and `demo` end: the figures, both answers side by side, and what to open first."""

from __future__ import annotations

import os
from pathlib import Path

from oodatcaa.app.closing import SPRINT_REPORT, summarise_sprint
from oodatcaa.app.project import Project
from oodatcaa.cli.show import say
from oodatcaa.cli.watch import is_terminal
from oodatcaa.views.ending import ending_figures
from oodatcaa.views.evaluation import Comparison
from oodatcaa.views.sprint_report import SprintSummary

WIDE_ENOUGH = 60
"""Narrower than this, two columns of code are worse to read than one after the other."""


def tell_ending(project: Project, seconds: float, *, plain: bool) -> None:
    """Print the summary of the sprint as it stands; `seconds` is what this crew took."""
    summary = summarise_sprint(project)
    say()
    figures = ending_figures(summary, seconds)
    if plain or not is_terminal():
        _stacked(figures, summary.comparisons)
    else:
        _pretty(figures, summary.comparisons)
    say()
    say("open first:")
    for label, path in _open_first(project, summary):
        say(f"  {_near(path)}  ({label})")


def _stacked(figures: tuple[tuple[str, str], ...], pairs: tuple[Comparison, ...]) -> None:
    width = max(len(label) for label, _ in figures)
    for label, text in figures:
        say(f"  {label.ljust(width)}  {text}")
    for pair in pairs:
        for head, text in _parts(pair):
            say()
            say(f"{head}:")
            for line in text.strip().splitlines() or ["(nothing)"]:
                say(f"    {line}".rstrip())


def _pretty(figures: tuple[tuple[str, str], ...], pairs: tuple[Comparison, ...]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, text in figures:
        grid.add_row(Text(label), Text(text))
    console.print(grid)
    for pair in pairs:
        prompt, *answers = [
            Panel(Text(text.strip() or "(nothing)"), title=head, title_align="left")
            for head, text in _parts(pair)
        ]
        console.print()
        console.print(prompt)
        if console.width < WIDE_ENOUGH:
            for answer in answers:
                console.print(answer)
            continue
        beside = Table.grid(expand=True)
        for _ in answers:
            beside.add_column(ratio=1)
        beside.add_row(*answers)
        console.print(beside)


def _parts(pair: Comparison) -> tuple[tuple[str, str], ...]:
    return (
        ("held-out prompt", pair.prompt),
        ("base model", pair.base),
        ("tuned model", pair.tuned),
    )


def _open_first(project: Project, summary: SprintSummary) -> list[tuple[str, Path]]:
    report = ("the sprint: result, evidence, lessons", project.work / SPRINT_REPORT)
    return [report, *((label, project.work / path) for label, path in summary.open_first)]


def _near(path: Path) -> str:
    """As short as the person's folder allows; never a climb out of it."""
    whole = Path(os.path.normpath(path))
    try:
        return str(whole.relative_to(Path.cwd()))
    except ValueError:
        return str(whole)
