"""Tracking: a run is written to folders; a tracker that fails is named and ends nothing."""

from __future__ import annotations

import importlib.util
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import RunStatus, TrainSpec
from oodatcaa.training.children import ChildSettings, child_environment
from oodatcaa.training.protocol import TrainMetric, ValidMetric
from oodatcaa.training.runs import RunStore
from oodatcaa.training.tracking import WRITERS, track

NAMES = tuple(WRITERS)
MODULES = {"mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = RunStore(tmp_path / "runs")
    run = store.create(TrainSpec(model="m", data_dir="d", params=QLoRA(iters=2)))
    place = store.folder(run)
    now = datetime.now(UTC)
    lines = [
        TrainMetric(
            iteration=i, loss=3.0 - i, learning_rate=0.1, tokens=5, tokens_per_second=9.0,
            mlx_peak_bytes=1, mlx_active_bytes=1, at=now,
        ).model_dump_json()
        for i in (1, 2)
    ]  # fmt: skip
    lines.append(ValidMetric(iteration=2, loss=1.5, at=now).model_dump_json())
    (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    store.finish(run.evolve(status=RunStatus.FINISHED, finished_at=now, peak_memory_bytes=7))
    return place


def test_each_writes_its_folder_or_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    target = tmp_path / "tracking"
    track(folder, target, NAMES, child_environment(ChildSettings()), said.append)
    for name in NAMES:
        files = [path for path in (target / name).rglob("*") if path.is_file()]
        if importlib.util.find_spec(MODULES[name]) is None:
            assert any(f"{name}: " in line and "oodatcaa[tracking]" in line for line in said)
            assert files == []
        else:
            assert files
            assert not any(f"by {name}:" in line for line in said)


def test_a_tracker_that_breaks_or_dies_is_said_and_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "mlflow.py").write_text("raise RuntimeError('no such luck')\n")
    (broken / "wandb.py").write_text("import os\nos._exit(7)\n")
    environment = child_environment(ChildSettings())
    environment["PYTHONPATH"] += f"{os.pathsep}{broken}"
    said: list[str] = []
    track(folder, tmp_path / "t", ("mlflow",), environment, said.append)
    assert "mlflow: RuntimeError: no such luck" in said[0]
    track(folder, tmp_path / "t", ("wandb",), environment, said.append)
    assert len(said) == 2
    assert "was not tracked by wandb" in said[1]
    (tmp_path / "file").write_text("")
    track(folder, tmp_path / "file", ("wandb",), environment, said.append)
    assert "was not tracked" in said[2]


def test_nothing_named_starts_nothing(folder: Path, tmp_path: Path) -> None:
    track(folder, tmp_path / "t", (), {}, pytest.fail)
    assert not (tmp_path / "t").exists()
