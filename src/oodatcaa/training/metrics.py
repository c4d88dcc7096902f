"""What a run measured, read back from the files it wrote while it ran."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.training import LossPoint, RunRecord
from oodatcaa.kit.memory import MemorySample, read_samples
from oodatcaa.training.protocol import MEMORY_FILE, METRICS_FILE, TrainMetric, ValidMetric


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl in its two kinds; `unreadable` counts lines cut off by a crash."""

    train: tuple[TrainMetric, ...] = ()
    valid: tuple[ValidMetric, ...] = ()
    unreadable: int = 0


def read_metrics(path: Path) -> Metrics:
    """The metrics of a run, also of one that is still running or was killed. No file: nothing."""
    train: list[TrainMetric] = []
    valid: list[ValidMetric] = []
    unreadable = 0
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            value = json.loads(line)
            if value.get("kind") == "valid":
                valid.append(ValidMetric.model_validate(value))
            else:
                train.append(TrainMetric.model_validate(value))
        except (ValueError, ValidationError, AttributeError):
            unreadable += 1
    return Metrics(tuple(train), tuple(valid), unreadable)


def read_memory(folder: Path) -> tuple[MemorySample, ...]:
    """The process tree's samples of a run."""
    return read_samples(folder / MEMORY_FILE)


def peak(*values: int | None) -> int | None:
    """The largest of those that were measured."""
    known = [value for value in values if value is not None]
    return max(known, default=None)


def finite(points: Iterable[LossPoint]) -> tuple[LossPoint, ...]:
    """Without NaN and infinity, which JSON can not hold; such a run has failed anyway."""
    return tuple(point for point in points if math.isfinite(point.loss))


def merge_measured(run: RunRecord, folder: Path) -> RunRecord:
    """The record with everything its files tell: for a run that could not report itself."""
    metrics = read_metrics(folder / METRICS_FILE)
    samples = read_memory(folder)
    process_peak = peak(run.process_peak_bytes, *(sample.tree_bytes for sample in samples))
    mlx_peak = peak(run.mlx_peak_bytes, *(metric.mlx_peak_bytes for metric in metrics.train))
    done = max((metric.iteration for metric in metrics.train), default=run.iterations_done)
    return run.evolve(
        iterations_done=done,
        optimizer_steps=run.params.steps_after(done),
        trained_tokens=sum(m.tokens for m in metrics.train) if metrics.train else None,
        train_losses=finite(LossPoint(iteration=m.iteration, loss=m.loss) for m in metrics.train),
        valid_losses=finite(LossPoint(iteration=m.iteration, loss=m.loss) for m in metrics.valid),
        process_peak_bytes=process_peak,
        mlx_peak_bytes=mlx_peak,
        peak_memory_bytes=peak(process_peak, mlx_peak),
    )
