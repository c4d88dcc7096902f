"""What happens after every micro-step: checks, metrics, checkpoints, validation, a clean stop.

mlx-lm's trainer calls this through its `training_callback` seam. Raising `Stop` is the one way to
end its loop early, so every reason to stop is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from oodatcaa.domain.training import (
    FailureKind,
    LossPoint,
    MemoryLayer,
    MemoryStop,
    RunFailure,
    TrainProgress,
    TrainSpec,
)
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.mlx.checkpoints import DiskFullError, RunIdentity, Snapshot
from oodatcaa.training.mlx.setup import adapter_tensors
from oodatcaa.training.protocol import (
    CHECKPOINTS_DIR,
    METRICS_FILE,
    PROGRESS_FILE,
    TrainMetric,
    ValidMetric,
)

PROGRESS_SECONDS = 0.25
Phase = Literal["loading", "training", "validating", "saving", "finished", "failed"]


class Stop(Exception):
    """Ends the training loop; `failure` says why."""

    def __init__(self, failure: RunFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def memory_failure(limit: int) -> RunFailure | None:
    """The check after a step, from MLX's own peak and its allocator's cache; None while it fits."""
    peak = max(mx.get_peak_memory(), mx.get_active_memory() + mx.get_cache_memory())
    if peak <= limit:
        return None
    return RunFailure(
        kind=FailureKind.MEMORY_GATE,
        layer=MemoryLayer.DURING,
        stop=MemoryStop.STEP,
        message=f"MLX's peak memory is {peak / 1e9:.2f} GB, the limit is {limit / 1e9:.2f} GB",
        needed_bytes=peak,
        limit_bytes=limit,
        hint="use a smaller batch with accumulation, or gradient checkpointing",
    )


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


class Monitor:
    """One training run's observer. `iteration` counts from the very first start of the run."""

    def __init__(
        self,
        folder: Path,
        spec: TrainSpec,
        network: Any,
        optimizer: Any,
        identity: RunIdentity,
        validate: Callable[[], float | None],
        progress: ProgressWriter,
        start: int,
    ) -> None:
        self.folder, self.spec, self.params = folder, spec, spec.params
        self.network, self.optimizer, self.identity = network, optimizer, identity
        self.run_validation, self.progress = validate, progress
        self.start = self.iteration = start
        self.interrupted = False
        self.tokens, self.seconds = 0, 0.0
        self.begin()
        self.train_losses: list[LossPoint] = []
        self.valid_losses: list[LossPoint] = []
        self._pending: list[tuple[float, int, float]] = []
        # Without accumulation every iteration is a boundary: holding the last one would keep the
        # optimizer from updating its state in place, a copy of weights and moments.
        self.accumulates = self.params.grad_accumulation_steps > 1
        self.boundary = self._snapshot() if self.accumulates else None
        self.saved = start

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        """Never called: validation is ours, so that its cadence survives a resume."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """One micro-step is done (mlx-lm is told to report every single one)."""
        self._step_done(train_info)
        self.begin()

    def begin(self) -> None:
        """A micro-step begins now. mlx-lm's own clock leaves out what makes its batch."""
        self._mark = time.perf_counter()

    def _step_done(self, train_info: dict[str, Any]) -> None:
        self.iteration = self.start + int(train_info["iteration"])
        loss = float(train_info["train_loss"])
        total = int(train_info["trained_tokens"])
        tokens, self.tokens = total - self.tokens, total
        seconds = time.perf_counter() - self._mark
        self.seconds += seconds
        if not math.isfinite(loss):
            raise Stop(not_finite(f"the loss of iteration {self.iteration}"))
        self._report(loss, tokens, seconds, float(train_info["learning_rate"]))
        if failure := memory_failure(self.spec.memory_limit_bytes):
            raise Stop(failure)
        last = self.iteration == self.params.iters
        if self.iteration % self.params.grad_accumulation_steps == 0:
            self.boundary = self._snapshot() if self.accumulates else None
            if self.iteration - self.saved >= self.params.save_every or last:
                self.save()
        if self.iteration % self.params.steps_per_eval == 0 or last:
            self.validate()
        if self.interrupted and not last:
            self.save()
            raise Stop(
                RunFailure(
                    kind=FailureKind.INTERRUPTED,
                    message=f"stopped after iteration {self.iteration} of {self.params.iters}",
                    hint="go on with `oodatcaa resume`",
                )
            )

    def validate(self) -> None:
        """A pass over the valid split (if there is one), between two micro-steps."""
        self.progress.say("validating", iteration=self.iteration)
        loss = self.run_validation()
        if loss is None:
            return
        if not math.isfinite(loss):
            raise Stop(not_finite(f"the validation loss after iteration {self.iteration}"))
        self.valid_losses.append(LossPoint(iteration=self.iteration, loss=loss))
        self._append(ValidMetric(iteration=self.iteration, loss=loss, at=datetime.now(UTC)))
        self.progress.say("training", valid_loss=loss)

    def save(self) -> None:
        """A checkpoint of the last optimizer step, which is the last moment to resume exactly from.

        In the middle of an accumulation the iterations since then are done again on a resume.
        """
        boundary = self.boundary or self._snapshot()
        if boundary.iteration == self.saved:
            return
        self.progress.say("saving", iteration=self.iteration)
        try:
            boundary.save(self.folder / CHECKPOINTS_DIR, self.identity)
        except DiskFullError as error:
            raise Stop(disk_full(error, self.saved)) from error
        self.saved = boundary.iteration
        self.progress.say("training")

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.iteration, adapter_tensors(self.network), self.optimizer)

    def _report(self, loss: float, tokens: int, seconds: float, learning_rate: float) -> None:
        """A metrics line every `steps_per_report` iterations: means over them, and at the end."""
        self._pending.append((loss, tokens, seconds))
        due = self.iteration % self.params.steps_per_report == 0
        self.progress.say(
            "training",
            iteration=self.iteration,
            loss=loss,
            tokens_per_second=tokens / seconds if seconds else None,
            memory_bytes=mx.get_peak_memory(),
        )
        if not due and self.iteration != self.params.iters:
            return
        losses, counts, times = zip(*self._pending, strict=True)
        self._pending.clear()
        mean = sum(losses) / len(losses)
        self.train_losses.append(LossPoint(iteration=self.iteration, loss=mean))
        self._append(
            TrainMetric(
                iteration=self.iteration,
                loss=mean,
                learning_rate=learning_rate,
                tokens=sum(counts),
                tokens_per_second=sum(counts) / sum(times) if sum(times) else 0.0,
                mlx_peak_bytes=mx.get_peak_memory(),
                mlx_active_bytes=mx.get_active_memory(),
                at=datetime.now(UTC),
            )
        )

    def _append(self, metric: TrainMetric | ValidMetric) -> None:
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(metric.model_dump_json() + "\n")


def disk_full(error: DiskFullError, last_good: int | None) -> RunFailure:
    kept = f"; the checkpoint of iteration {last_good} is still good" if last_good else ""
    return RunFailure(
        kind=FailureKind.DISK_FULL,
        message=f"no space left for {error}{kept}",
        hint="free some space, then go on with `oodatcaa resume`",
    )
