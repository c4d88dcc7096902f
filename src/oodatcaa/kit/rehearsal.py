"""The live queue is for the crew alone: what a check runs sees a copy of it.

A project's own tests may type `oodatcaa` in a worktree of the repository; through git's common
folder that would find, and change, the queue that the crew works on right now.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT, COPY = "OODATCAA_REHEARSAL_OF", "OODATCAA_REHEARSAL"
_STATE = (
    "SPRINT_QUEUE.json",
    "queue.journal",
    "events.jsonl",
    "AGENT_LOG.md",
    "SPRINT_PLAN.md",
    "plans",
)


def work_dir(root: Path, live: Path) -> Path:
    """`live`, or its copy when this process belongs to a check of the project at `root`."""
    copy = os.environ.get(COPY)
    return Path(copy) if copy and os.environ.get(ROOT) == str(root) else live


def is_copy(root: Path) -> bool:
    """Whether this process sees a copy of the queue of the project at `root`."""
    return bool(os.environ.get(COPY)) and os.environ.get(ROOT) == str(root)


def rehearse(root: Path, live: Path, copy: Path) -> dict[str, str]:
    """Copy the state of a sprint; the variables under which it stands for the live one."""
    copy.mkdir(parents=True, exist_ok=True)
    for name in _STATE:
        source = live / name
        if source.is_dir():
            shutil.copytree(source, copy / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, copy / name)
    return {ROOT: str(root), COPY: str(copy)}
