"""The console script: commands are thin, and import what they need when they run."""

from __future__ import annotations

import sys

import typer

from oodatcaa.cli import (
    crew,
    data,
    evidence,
    history,
    importing,
    mcp,
    models,
    project,
    queue,
    training,
)
from oodatcaa.cli.show import guarded

app = typer.Typer(
    help="A crew of agents that fine-tunes language models inside a hard memory budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
project.register(app)
queue.register(app)
history.register(app)
crew.register(app)
models.register(app)
training.register(app)
data.register(app)
evidence.register(app)
mcp.register(app)
importing.register(app)


def main() -> None:
    """Entry point. `--debug` anywhere shows tracebacks."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    guarded(lambda: app(arguments, prog_name="oodatcaa", standalone_mode=True), debug=debug)
