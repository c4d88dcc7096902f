"""Whether this process was started by an agent: a mark in its environment, and its ancestors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from oodatcaa.kit.alive import is_alive

MARK = "OODATCAA_AGENT_CALL"
"""Set for an agent and all that it starts: the folder of its call."""


def marked_call(root: Path) -> str:
    """The call of an agent of the project at `root` that this process belongs to; empty for none.

    Agents of another project do not count: their tests may use projects of their own.
    """
    mark = os.environ.get(MARK, "")
    return Path(mark).name if mark and root in Path(mark).parents else ""


def descends_from(processes: Iterable[tuple[int, float]]) -> int | None:
    """The pid of the first of these (pid, start) that is an ancestor of this process.

    What left its tree on purpose, as a daemon does, has no such ancestor any more.
    """
    import psutil

    above = {process.pid for process in psutil.Process().parents()}
    return next((pid for pid, start in processes if pid in above and is_alive(pid, start)), None)
