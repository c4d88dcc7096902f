"""One picture of a run: what it learned, and what it cost in memory against the limit.

matplotlib is optional (extra `demo`): without it nothing is drawn, and the caller is told.
"""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from oodatcaa.domain.training import GB, MemoryLayer, RunRecord

# Okabe & Ito (2008): told apart with every common colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
SIZE = (9.6, 6.6)
DPI = 130


class TrainPoint(Protocol):
    """A line of metrics.jsonl, as far as it is drawn."""

    @property
    def iteration(self) -> int: ...
    @property
    def loss(self) -> float: ...


class MemoryPoint(Protocol):
    @property
    def at(self) -> datetime: ...
    @property
    def tree_bytes(self) -> int: ...


class RunMetrics(Protocol):
    @property
    def train(self) -> Sequence[TrainPoint]: ...
    @property
    def valid(self) -> Sequence[TrainPoint]: ...


def can_plot() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_run(
    record: RunRecord, metrics: RunMetrics, memory_samples: Sequence[MemoryPoint], path: Path
) -> bool:
    """Write one PNG with loss over iterations and memory over time, in decimal GB.

    False, and nothing written, when matplotlib is not installed. The file is whole or not there;
    OSError when it can not be written.
    """
    if not can_plot():
        return False
    # Its font cache would otherwise be written into a home folder that may not be writable.
    os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "oodatcaa-matplotlib"))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: its figures are global and not safe in threads.
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, memory_axes = figure.subplots(2, 1, height_ratios=(3, 2))
    figure.suptitle(_title(record), fontsize=12, x=0.02, ha="left", fontweight="bold")
    _draw_loss(loss_axes, record, metrics)
    _draw_memory(memory_axes, record, memory_samples)
    for axes in (loss_axes, memory_axes):
        _tidy(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temp.write_bytes(buffer.getvalue())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    return True


def _title(record: RunRecord) -> str:
    params = record.params
    model = Path(record.model).name
    status = record.status.value
    if record.failure is not None:
        status += f": {record.failure.kind.value}"
    return (
        f"{record.run_id}  ·  {model}  ·  {status}\n"
        f"rank {params.rank}, alpha {params.alpha:g}, "
        f"batch {params.batch_size} × {params.grad_accumulation_steps}, "
        f"≤ {params.max_seq_length} tokens, lr {params.learning_rate:g}"
    )


def _draw_loss(axes: Any, record: RunRecord, metrics: RunMetrics) -> None:
    train, valid = metrics.train, metrics.valid
    if train:
        x, y = [p.iteration for p in train], [p.loss for p in train]
        few = len(x) <= 60
        axes.plot(
            x, y, color=BLUE, linewidth=1.0, alpha=0.45, marker="o" if few else "", markersize=3
        )
        axes.plot(x, _smooth(y), color=BLUE, linewidth=2.2, label="training")
    if valid:
        axes.plot(
            [p.iteration for p in valid],
            [p.loss for p in valid],
            color=ORANGE,
            linewidth=2.2,
            marker="s",
            markersize=6,
            label="validation",
            zorder=3,
        )
        for point, side in ((valid[0], "left"), (valid[-1], "right")):
            axes.annotate(
                f"{point.loss:.2f}",
                (point.iteration, point.loss),
                xytext=(6 if side == "left" else -6, 9),
                textcoords="offset points",
                ha=side,
                fontsize=9,
                color="#8A5F00",
                fontweight="bold",
            )
    axes.set_xlabel(f"iteration (of {record.params.iters})", fontsize=9)
    axes.set_ylabel("loss, nats per token", fontsize=9)
    axes.set_title("Loss", loc="left", fontsize=11)
    if train or valid:
        axes.legend(loc="upper right", frameon=False, fontsize=9)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a tenth of the run, centred; the raw line stays visible behind it."""
    reach = max(1, len(values) // 20)
    result = []
    for i in range(len(values)):
        window = values[max(0, i - reach) : i + reach + 1]
        result.append(sum(window) / len(window))
    return result


def _draw_memory(axes: Any, record: RunRecord, samples: Sequence[MemoryPoint]) -> None:
    if samples:
        begin = samples[0].at
        x = [(s.at - begin).total_seconds() for s in samples]
        y = [s.tree_bytes / GB for s in samples]
        scale, unit = (60.0, "minutes") if x[-1] > 300 else (1.0, "seconds")
        x = [seconds / scale for seconds in x]
        axes.plot(x, y, color=GREEN, linewidth=1.8)
        axes.fill_between(x, y, color=GREEN, alpha=0.15, linewidth=0)
        axes.set_xlabel(f"{unit} since the start", fontsize=9)
        axes.set_xlim(0, max(x[-1], 1e-3))
    limit = record.memory_limit_bytes / GB
    axes.set_ylim(0, _top(record, samples))
    _line(axes, limit, RED, f"limit {limit:.3g} GB", "-")
    if record.estimated_peak_bytes:
        value = record.estimated_peak_bytes / GB
        _line(axes, value, GREY, f"predicted peak {value:.2f} GB", "--")
    if record.peak_memory_bytes:
        value = record.peak_memory_bytes / GB
        _line(axes, value, GREEN, f"measured peak {value:.2f} GB", ":")
    axes.set_ylabel("memory, GB", fontsize=9)
    layer = record.failure.layer if record.failure is not None else None
    stopped = f" (stopped by the gate: {layer.value})" if isinstance(layer, MemoryLayer) else ""
    axes.set_title(f"Memory of the process tree{stopped}", loc="left", fontsize=11)
    axes.legend(loc="center right", frameon=True, framealpha=0.85, fontsize=9)


def _line(axes: Any, value: float, colour: str, label: str, style: str) -> None:
    axes.axhline(value, color=colour, linewidth=1.6, linestyle=style, label=label)


def _top(record: RunRecord, samples: Sequence[MemoryPoint]) -> float:
    """The limit belongs into the picture, unless it dwarfs everything else."""
    highest = max(
        [s.tree_bytes for s in samples]
        + [record.memory_limit_bytes, record.peak_memory_bytes or 0]
        + [record.estimated_peak_bytes or 0]
    )
    return 1.12 * highest / GB


def _tidy(axes: Any) -> None:
    axes.grid(True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
