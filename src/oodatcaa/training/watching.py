"""What a parent shows of a run: its progress while it works, its plot when it is over."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.training import RunRecord, TrainProgress
from oodatcaa.training.metrics import read_memory, read_metrics
from oodatcaa.training.protocol import METRICS_FILE, PROGRESS_FILE, TRAIN_LOG
from oodatcaa.views.plots import plot_run

PLOT_FILE = "loss_and_memory.png"


def draw(run: RunRecord, folder: Path) -> None:
    """The plot, if there is something to draw. A run never fails for its picture."""
    metrics = read_metrics(folder / METRICS_FILE)
    samples = read_memory(folder)
    # Also a run that was stopped before its first step has its memory to show.
    if not metrics.train and not samples:
        return
    try:
        if plot_run(run, metrics, samples, folder / PLOT_FILE):
            return
        note = "no plot: matplotlib is not installed (pip install 'oodatcaa[demo]')"
    except Exception as error:  # noqa: BLE001 - whatever it was: a run without a picture is over too
        note = f"no plot: {error!r}"
    with contextlib.suppress(OSError), (folder / TRAIN_LOG).open("a", encoding="utf-8") as log:
        log.write(f"{note}\n")


class ProgressTeller:
    """Passes progress.json on whenever it changed, with the memory of the whole tree."""

    def __init__(self, folder: Path, tell: Callable[[TrainProgress], None]) -> None:
        self._path = folder / PROGRESS_FILE
        self._tell = tell
        self._last: tuple[str, int] | None = None

    def __call__(self, memory: int) -> None:
        try:
            text = self._path.read_text(encoding="utf-8")
            progress = TrainProgress.model_validate(json.loads(text))
        except (FileNotFoundError, ValidationError, ValueError):
            return  # not written yet
        seen = (text, memory // 50_000_000)
        if seen != self._last:
            self._last = seen
            self._tell(progress.evolve(memory_bytes=memory))
