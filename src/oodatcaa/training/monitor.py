"""What happens after every micro-step: checks, metrics, checkpoints, validation, a clean stop.

A backend's loop calls `step_done` (mlx-lm's trainer through its `training_callback` seam). Raising
`Stop` is the one way to end a loop early, so every reason to stop is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from oodatcaa.domain.training import FailureKind, LossPoint, RunFailure, TrainSpec
from oodatcaa.training.checkpoints import (
    CheckpointNote,
    RunIdentity,
    Selection,
    checkpoint_name,
    prune,
)
from oodatcaa.training.metrics import read_metrics
from oodatcaa.training.progress import (
    DiskFullError,
    Enough,
    ProgressWriter,
    Stop,
    disk_full,
    not_finite,
)
from oodatcaa.training.protocol import CHECKPOINTS_DIR, METRICS_FILE, TrainMetric, ValidMetric
from oodatcaa.training.waking import SleepWatch
from oodatcaa.training.wall import Counters, over_limit


class Boundary(Protocol):
    """Weights and optimizer state as they were after one optimizer step."""

    @property
    def iteration(self) -> int: ...

    def not_finite(self) -> tuple[str, ...]:
        """Names of adapter tensors with a value that is not a finite number."""
        ...

    def save(self, parent: Path, metrics: Path, config: dict[str, Any]) -> Path:
        """The checkpoint's folder. DiskFullError leaves earlier ones alone."""
        ...


class State(Protocol):
    """What a backend trains: asked for its boundary between two steps."""

    @property
    def optimizer_step(self) -> int: ...

    def snapshot(self, note: CheckpointNote, metrics_bytes: int) -> Boundary:
        """`metrics_bytes` is how much of metrics.jsonl was written by then."""
        ...


class Monitor:
    """One training run's observer. `iteration` counts from the very first start of the run.

    `enough` may say after a step (iterations and seconds so far) why it was the last one.
    """

    def __init__(
        self,
        folder: Path,
        spec: TrainSpec,
        state: State,
        counters: Counters,
        identity: RunIdentity,
        validate: Callable[[], float | None],
        progress: ProgressWriter,
        adapter_config: dict[str, Any],
        resumed: CheckpointNote | None = None,
    ) -> None:
        self.folder, self.spec, self.params = folder, spec, spec.params
        self.state, self.counters, self.identity = state, counters, identity
        self.run_validation, self.progress = validate, progress
        self.adapter_config = adapter_config
        self.checkpoints = folder / CHECKPOINTS_DIR
        self.offset = self.iteration = resumed.iteration if resumed else 0
        self.interrupted = self.woken = False
        self.enough: Callable[[int, float], str] | None = None
        self.asleep = SleepWatch()
        self.tokens, self.seconds = (resumed.tokens, resumed.seconds) if resumed else (0, 0.0)
        self.selection = resumed.selection if resumed else Selection()
        self.segment(self.offset)
        past = read_metrics(folder / METRICS_FILE)
        self.train_losses = [LossPoint(iteration=m.iteration, loss=m.loss) for m in past.train]
        self.valid_losses = [LossPoint(iteration=m.iteration, loss=m.loss) for m in past.valid]
        self._pending = list(resumed.pending) if resumed else []
        # Without accumulation every iteration is a boundary: holding the last one would keep the
        # optimizer from updating its state in place, a copy of weights and moments.
        self.accumulates = self.params.grad_accumulation_steps > 1
        self.boundary = self._snapshot() if self.accumulates else None
        self.saved = self.iteration

    def segment(self, first: int) -> None:
        """The backend's loop begins (again); `first` iterations were done before.

        Steps are timed here: from the end of the one before, what makes a batch included.
        """
        self.offset = first
        self._mark = time.perf_counter()

    def step_done(self, done: int, loss: float, tokens: int, learning_rate: float) -> None:
        """`done` micro-steps of this segment are over; the last had `tokens` targets. Raises Stop
        and Enough."""
        self._step_done(self.offset + done, loss, tokens, learning_rate)
        self._mark = time.perf_counter()

    def _step_done(self, iteration: int, loss: float, tokens: int, learning_rate: float) -> None:
        self.iteration = iteration
        seconds = time.perf_counter() - self._mark
        self.tokens += tokens
        self.seconds += seconds
        if not math.isfinite(loss):
            raise Stop(not_finite(f"the loss of iteration {self.iteration}"))
        self._report(loss, tokens, seconds, learning_rate)
        if failure := over_limit(self.counters, self.spec.memory_limit_bytes):
            raise Stop(failure)
        last = self.iteration == self.params.iters
        # Before a checkpoint: a resumed run then has this validation, too.
        validated = self.iteration % self.params.steps_per_eval == 0 or last
        if validated:
            self.validate()
        better = validated and self.params.selects and self._select()
        if self._updated == self.iteration:
            self.boundary = self._snapshot() if self.accumulates else None
        if better and self.params.select_best:
            self.save()
        self._save_when_due(last=last)
        self._stop_early()
        if self.interrupted and not last:
            self.save()
            raise Stop(
                RunFailure(
                    kind=FailureKind.INTERRUPTED,
                    message=f"stopped after iteration {self.iteration} of {self.params.iters}",
                    hint="go on with `oodatcaa resume`",
                )
            )

    @property
    def _updated(self) -> int:
        """The last iteration with an optimizer step: its weights are those of now."""
        if self.iteration == self.params.iters:
            return self.iteration
        return self.iteration - self.iteration % self.params.grad_accumulation_steps

    def _save_when_due(self, *, last: bool) -> None:
        slept = self.asleep.slept() or self.woken
        if self._updated != self.iteration and not slept:
            return
        if slept or last or self.iteration - self.saved >= self.params.save_every:
            self.woken = False
            self.save()

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

    def _select(self) -> bool:
        """Whether the validation that has just been is the best one; not before any update."""
        weights = self._updated
        if not self.valid_losses or weights == 0:
            return False
        loss, delta = self.valid_losses[-1].loss, self.params.early_stopping_min_delta
        self.selection = self.selection.after(self.iteration, weights, loss, delta)
        return self.selection.iteration == self.iteration

    def _stop_early(self) -> None:
        if self.enough is not None and (why := self.enough(self.iteration, self.seconds)):
            raise Enough(why)
        patience, best = self.params.early_stopping_patience, self.selection
        if patience is not None and best.not_better >= patience:
            raise Enough(
                f"after iteration {self.iteration} of {self.params.iters}: {patience} validations "
                f"were not better than that of iteration {best.iteration} ({best.loss:.4f})"
            )

    def save(self) -> None:
        """A checkpoint of the last optimizer step, which is the last moment to resume exactly from.

        In the middle of an accumulation the iterations since then are done again on a resume.
        """
        boundary = self.boundary or self._snapshot()
        if boundary.iteration == self.saved:
            return
        self.progress.say("saving", iteration=self.iteration)
        if bad := boundary.not_finite():
            # The loss tells only one iteration later; a run must never resume from such weights.
            raise Stop(not_finite(f"{bad[0]} ({len(bad)} adapter tensors) of {boundary.iteration}"))
        try:
            boundary.save(self.checkpoints, self.folder / METRICS_FILE, self.adapter_config)
        except DiskFullError as error:
            raise Stop(disk_full(error, self.saved)) from error
        self.saved = boundary.iteration
        best = self.selection.checkpoint if self.params.select_best else None
        prune(self.checkpoints, self.params.keep_checkpoints, best)
        self.progress.say("training")

    @property
    def best_checkpoint(self) -> Path | None:
        """Where the weights of the best validation are, if they were to be selected."""
        if not self.params.select_best or self.selection.checkpoint is None:
            return None
        return self.checkpoints / checkpoint_name(self.selection.checkpoint)

    def _snapshot(self) -> Boundary:
        metrics = self.folder / METRICS_FILE
        note = CheckpointNote(
            iteration=self.iteration,
            optimizer_step=self.state.optimizer_step,
            random_key=0,
            identity=self.identity,
            tokens=self.tokens,
            seconds=self.seconds,
            pending=tuple(self._pending),
            selection=self.selection,
            at=datetime.now(UTC),
        )
        size = metrics.stat().st_size if metrics.exists() else 0
        return self.state.snapshot(note, size)

    def _report(self, loss: float, tokens: int, seconds: float, learning_rate: float) -> None:
        """A metrics line every `steps_per_report` iterations: means over them, and at the end."""
        self._pending.append((loss, tokens, seconds))
        due = self.iteration % self.params.steps_per_report == 0
        self.progress.say(
            "training",
            iteration=self.iteration,
            loss=loss,
            tokens_per_second=tokens / seconds if seconds else None,
            memory_bytes=self.counters.peak(),
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
                mlx_peak_bytes=self.counters.peak(),
                mlx_active_bytes=self.counters.active(),
                at=datetime.now(UTC),
            )
        )

    def _append(self, metric: TrainMetric | ValidMetric) -> None:
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(metric.model_dump_json() + "\n")
