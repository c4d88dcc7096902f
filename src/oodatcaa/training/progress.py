"""What a training child tells while it works, and the ways in which its work can end."""

from __future__ import annotations

import errno
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from oodatcaa.domain.training import FailureKind, RunFailure, TrainProgress
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.protocol import PROGRESS_FILE

PROGRESS_SECONDS = 0.25
Phase = Literal["loading", "training", "validating", "saving", "finished", "failed"]


class Stop(Exception):
    """Ends the training loop; `failure` says why."""

    def __init__(self, failure: RunFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Enough(Exception):
    """Ends the training loop early, and well: nothing more is to be gained."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def not_finite(what: str) -> RunFailure:
    return RunFailure(
        kind=FailureKind.NOT_FINITE,
        message=f"{what} is not a finite number",
        hint="use a lower learning rate; the last checkpoint is still good",
    )


class ProgressWriter:
    """progress.json, atomic, at most four times a second except where the phase changes."""

    def __init__(self, folder: Path, iters: int, limit: int) -> None:
        self.path = folder / PROGRESS_FILE
        self.now = TrainProgress(
            run_id=folder.name,
            phase="loading",
            iters=iters,
            memory_limit_bytes=limit,
            updated_at=datetime.now(UTC),
        )
        self.written = 0.0

    def say(self, phase: Phase, **values: Any) -> None:
        changed = phase != self.now.phase
        self.now = self.now.evolve(phase=phase, updated_at=datetime.now(UTC), **values)
        clock = time.monotonic()
        if changed or self.written == 0.0 or clock - self.written >= PROGRESS_SECONDS:
            write_atomic(self.path, self.now.model_dump_json() + "\n")
            self.written = clock


DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskFullError(Exception):
    """A checkpoint could not be written; the ones before it are untouched."""


def disk_full(error: DiskFullError, last_good: int | None) -> RunFailure:
    kept = f"; the checkpoint of iteration {last_good} is still good" if last_good else ""
    return RunFailure(
        kind=FailureKind.DISK_FULL,
        message=f"no space left for {error}{kept}",
        hint="free some space, then go on with `oodatcaa resume`",
    )
