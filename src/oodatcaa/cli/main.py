"""The console script: commands are thin, and import what they need when they run."""

from __future__ import annotations

import gc
import sys

import typer

from oodatcaa.cli import (
    NORMAL_COLLECTIONS,
    crew,
    data,
    evaluation,
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

PROGRAM = "oodatcaa"


def _typer(help: str | None = None) -> typer.Typer:
    return typer.Typer(
        help=help,
        no_args_is_help=help is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = _typer("A crew of agents that fine-tunes language models inside a hard memory budget.")
project.register(app)
queue.register(app)
history.register(app)
crew.register(app)
models.register(app)
training.register(app)
data.register(app)
evaluation.register(app)
evidence.register(app)
mcp.register(app)
importing.register(app)


def main() -> None:
    """Entry point. `--debug` anywhere shows tracebacks."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        guarded(lambda: _run(arguments), debug=debug)
    finally:
        gc.freeze()  # or the interpreter's last collection looks at every class again


QUICK = frozenset(
    ("negotiate", "status", "show", "claim", "heartbeat", "release", "approve", "reject")
    + ("cancel", "waive", "log", "metrics", "schema", "--help")
)
"""What is over in a moment keeps the rare collections of `cli/__init__.py`; others may hold
gigabytes for hours."""


def _run(words: list[str]) -> None:
    """A plain command runs alone: to read the signatures of all others takes noticeable time."""
    if not words or words[0] not in QUICK:
        gc.set_threshold(*NORMAL_COLLECTIONS)
    named = [item for item in app.registered_commands if words and item.name == words[0]]
    if not named:
        app(words, prog_name=PROGRAM)
        return
    alone = _typer()
    alone.registered_commands = named
    alone(words[1:], prog_name=f"{PROGRAM} {words[0]}")
