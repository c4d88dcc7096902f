"""What an agent that asks for permission may do: a pure decision over paths and commands."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LOOKING = frozenset({"read", "search", "think", "fetch", "switch_mode"})
CHANGING = frozenset({"edit", "delete", "move"})
JOINTS = (";", "&", "|", "`", "$(", ">", "<", "\n")
"""A command with one of these does more than its first word says."""


@dataclass(frozen=True)
class Answer:
    allowed: bool
    why: str


def inside(path: str, roots: Iterable[str], cwd: str) -> bool:
    """Whether `path` (relative ones from `cwd`) really lies below one of `roots`; links count as
    what they point to."""
    place = Path(os.path.realpath(Path(cwd) / path))
    return any(
        place == Path(os.path.realpath(root)) or Path(os.path.realpath(root)) in place.parents
        for root in roots
    )


def answer(
    kind: str,
    paths: Iterable[str],
    command: str,
    *,
    cwd: str,
    allowed_paths: Iterable[str],
    allowed_commands: Iterable[str],
) -> Answer:
    """Reading below `allowed_paths` is allowed, and so is changing files there; a command that as a
    whole matches one of `allowed_commands`. Whatever is not understood is refused.

    The agent chooses `kind`, so it widens nothing: a call with a command in it is judged by that
    command, and one with paths by every one of them.
    """
    roots = tuple(allowed_paths)
    named = tuple(paths)
    outside = [path for path in named if not inside(path, roots, cwd)]
    if outside:
        return Answer(False, f"{outside[0]} lies outside the story's worktree")
    if command:
        return _command(command, tuple(allowed_commands))
    if kind in LOOKING:
        return Answer(True, f"{kind} changes nothing")
    if kind in CHANGING:
        if not named:
            return Answer(False, f"{kind} without a path")
        return Answer(True, f"{kind} inside the story's worktree")
    return Answer(False, f"{kind or 'something'} is not known to be harmless")


def _command(command: str, patterns: tuple[str, ...]) -> Answer:
    text = command.strip()
    if any(joint in text for joint in JOINTS):
        return Answer(False, f"a compound command is not allowed: {text[:200]}")
    for pattern in patterns:
        if fnmatch.fnmatchcase(text, pattern):
            return Answer(True, f"the command matches {pattern!r}")
    return Answer(False, f"no allowed command matches: {text[:200]}")
