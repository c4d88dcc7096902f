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

from oodatcaa.domain.memory import MemoryLayer
from oodatcaa.domain.training import GB, RunRecord

# Okabe & Ito (2008): told apart with every common colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
DARK_ORANGE = "#8A5F00"
OFF_SCALE = 12
"""A limit this many times above everything measured is named instead of drawn."""
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
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ModuleNotFoundError:  # an import hook that hides it
        return False


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
            clip_on=False,
        )
        for point, rise in [(valid[-1], 0), (valid[0], 11)][: len(valid)]:
            axes.annotate(
                f"{point.loss:.2f}",
                (point.iteration, point.loss),
                xytext=(9, rise),
                textcoords="offset points",
                va="center",
                fontsize=10,
                color=DARK_ORANGE,
                fontweight="bold",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )
    done = max((p.iteration for p in (*train, *valid)), default=1)
    axes.set_xlim(0, 1.07 * max(1, done))
    axes.locator_params(axis="x", integer=True)
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
    highest = _highest(record, samples)
    limit = record.memory_limit_bytes
    if limit <= OFF_SCALE * highest:
        _line(axes, limit, RED, "limit", "-")
        axes.set_ylim(0, 1.12 * max(highest, limit) / GB)
    else:
        axes.plot([], [], color=RED, linewidth=1.6, label=f"limit {limit / GB:.3g} GB, far above")
        axes.set_ylim(0, 1.25 * highest / GB)
    if record.estimated_peak_bytes:
        _line(axes, record.estimated_peak_bytes, GREY, "predicted peak", "--")
    if record.peak_memory_bytes:
        _line(axes, record.peak_memory_bytes, GREEN, "measured peak", ":")
    axes.set_ylabel("memory, GB", fontsize=9)
    layer = record.failure.layer if record.failure is not None else None
    stopped = f", gate: {layer.value}" if isinstance(layer, MemoryLayer) else ""
    axes.set_title(f"Memory{stopped}", loc="left", fontsize=11)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=3, frameon=False, fontsize=9,
        handlelength=1.6, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip


def _line(axes: Any, size: int, colour: str, name: str, style: str) -> None:
    label = f"{name} {size / GB:.3g} GB"
    axes.axhline(size / GB, color=colour, linewidth=1.6, linestyle=style, label=label)


def _highest(record: RunRecord, samples: Sequence[MemoryPoint]) -> int:
    known = (record.peak_memory_bytes, record.estimated_peak_bytes)
    return max([1, *(s.tree_bytes for s in samples), *(size for size in known if size)])


def _tidy(axes: Any) -> None:
    axes.grid(True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
