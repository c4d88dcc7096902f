"""How long the commands that people type all day take, from the shell, at 1,000 tasks."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sides import story, subtask

from oodatcaa.domain.board import Board, Decision, Sprint
from oodatcaa.domain.task import ManualLease, Role, SubtaskStatus
from oodatcaa.state.store import QueueStore

TASKS = 1000
LIMIT_MS = 250
LEASE_LOST = "`oodatcaa negotiate` with a lease to recover"
_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost")


@dataclass(frozen=True)
class Timed:
    name: str
    seconds: list[float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.seconds) * 1e3

    @property
    def longest_ms(self) -> float:
        return max(self.seconds) * 1e3


def time_commands(runs: int, place: Path | None) -> list[Timed]:
    """The median and the longest of `runs` starts each, after one that is not counted."""
    with tempfile.TemporaryDirectory(dir=place) as made:
        root = Path(made)
        _project(root)

        def expire() -> None:
            _expire_one(root)

        return [
            _timed(root, runs, ["negotiate"], "`oodatcaa negotiate`"),
            _timed(
                root, runs, ["negotiate"], "`oodatcaa negotiate` with a lease to recover", expire
            ),
            _timed(root, runs, ["status"], "`oodatcaa status`"),
            _timed(root, runs, ["--help"], "`oodatcaa --help`"),
        ]


def _timed(
    root: Path, runs: int, words: list[str], name: str, before: Callable[[], None] = lambda: None
) -> Timed:
    seconds = []
    # As installed: with compiled modules, which the start that is not counted writes.
    env = {key: v for key, v in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [str(Path(sys.executable).with_name("oodatcaa")), *words]
    for _ in range(runs + 1):
        before()
        begun = time.perf_counter()
        subprocess.run(command, cwd=root, stdout=subprocess.DEVNULL, check=True, env=env)
        seconds.append(time.perf_counter() - begun)
    return Timed(name, seconds[1:])


def _project(root: Path) -> None:
    """A repository with an open sprint of 12 stories and 1,000 subtasks."""
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "begin"]):
        subprocess.run([*_GIT, *words], cwd=root, check=True)

    def begin(old: Board, now: datetime) -> Decision[None]:
        made = Board(
            revision=old.revision,
            sprint=Sprint(
                number=1,
                objective_id="bench",
                objective_sha256="0" * 64,
                title="Bench",
                target_branch="main",
                memory_limit_bytes=16_000_000_000,
                created_at=now,
            ),
            stories=tuple(story(number) for number in range(1 + (TASKS - 1) // 90)),
            subtasks=tuple(subtask(number) for number in range(TASKS)),
        )
        return Decision(made, None)

    with QueueStore(root / ".oodatcaa" / "work") as store:
        store.transact(begin)


def _expire_one(root: Path) -> None:
    """Leave a claim whose time is over: the next round has something to decide and to write."""

    def claim(old: Board, now: datetime) -> Decision[None]:
        task = old.subtasks[0]
        long_ago = now - timedelta(hours=1)
        lease = ManualLease(
            kind="manual",
            owner="bench",
            role=Role.BUILDER,
            host="bench",
            attempt=task.attempt + 1,
            ttl_seconds=1,
            claimed_at=long_ago,
            heartbeat_at=long_ago,
        )
        held = task.evolve(
            status=SubtaskStatus.IN_PROGRESS, lease=lease, attempt=task.attempt + 1, expiries=0
        )
        return Decision(old.with_task(held), None)

    with QueueStore(root / ".oodatcaa" / "work") as store:
        store.transact(claim)
