"""The picture of a run is written whole, from whatever a run left behind."""

from __future__ import annotations

import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from oodatcaa.domain.memory import MemoryLayer
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, FailureKind, RunFailure, RunRecord, RunStatus
from oodatcaa.kit.memory import MemorySample
from oodatcaa.training.metrics import Metrics
from oodatcaa.training.protocol import TrainMetric, ValidMetric
from oodatcaa.views.plots import can_plot, plot_run

START = datetime(2026, 1, 30, 12, tzinfo=UTC)
RUN = RunRecord(
    started_at=START, git_sha="", data_dir="d", model="/models/small", lora_rank=16,
    lora_alpha=32, iters=40, batch_size=4, learning_rate=3e-4, run_id="2026-01-30_12-00-00",
    backend="mlx", status=RunStatus.FINISHED, params=QLoRA(), memory_limit_bytes=16 * GB,
    estimated_peak_bytes=3 * GB, peak_memory_bytes=2 * GB,
)  # fmt: skip
TRAIN = tuple(
    TrainMetric(
        iteration=i, loss=2.0 - i / 40, learning_rate=3e-4, tokens=9, tokens_per_second=9.0,
        mlx_peak_bytes=1, mlx_active_bytes=1, at=START,
    )
    for i in range(1, 41)
)  # fmt: skip
VALID = tuple(ValidMetric(iteration=i, loss=1.5, at=START) for i in (0, 20, 40))
MEMORY = tuple(MemorySample(at=START + timedelta(seconds=i), tree_bytes=2 * GB) for i in range(400))
STOPPED = RunFailure(kind=FailureKind.MEMORY_GATE, layer=MemoryLayer.DURING, message="over")

needs_matplotlib = pytest.mark.skipif(not can_plot(), reason="matplotlib is not installed")


@needs_matplotlib
@pytest.mark.parametrize(
    ("run", "metrics", "memory"),
    [
        (RUN, Metrics(TRAIN, VALID), MEMORY),
        (RUN, Metrics(TRAIN[:1], VALID[:1]), MEMORY[:1]),
        (RUN.evolve(memory_limit_bytes=999 * GB), Metrics(TRAIN), ()),
        (RUN.evolve(status=RunStatus.FAILED, failure=STOPPED), Metrics(TRAIN[:3]), MEMORY[:5]),
        (RUN.evolve(peak_memory_bytes=None, estimated_peak_bytes=None), Metrics(), ()),
    ],
)
def test_any_run_becomes_one_png(
    tmp_path: Path, run: RunRecord, metrics: Metrics, memory: tuple[MemorySample, ...]
) -> None:
    path = tmp_path / "plots" / "run.png"
    assert plot_run(run, metrics, memory, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1248, 858)
    assert data.endswith(b"IEND\xaeB`\x82")
    assert [p.name for p in path.parent.iterdir()] == ["run.png"]


@needs_matplotlib
def test_the_same_run_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_run(RUN, Metrics(TRAIN, VALID), MEMORY, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plot_run(RUN, Metrics(TRAIN[:20], VALID), MEMORY, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


WITHOUT = """
import sys
from pathlib import Path
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib.util
from oodatcaa.domain.training import RunRecord
from oodatcaa.training.metrics import Metrics
import oodatcaa.views.plots as plots
print(plots.plot_run(RunRecord.model_validate_json(sys.argv[1]), Metrics(), (), Path(sys.argv[2])))
"""


def test_importing_the_module_loads_no_matplotlib() -> None:
    code = "import sys, oodatcaa.views.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_matplotlib_nothing_is_written_and_the_caller_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, RUN.model_dump_json(), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"
    assert not path.exists()
