"""Tracking: a run is written to folders; a tracker that fails is named and ends nothing."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
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
AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = RunStore(tmp_path / "runs")
    run = store.create(TrainSpec(model="m", data_dir="d", params=QLoRA(iters=2)))
    place = store.folder(run)
    now = AT
    lines = [
        TrainMetric(
            iteration=i, loss=3.0 - i, learning_rate=0.1, tokens=5, tokens_per_second=9.0,
            mlx_peak_bytes=1, mlx_active_bytes=1, at=now,
        ).model_dump_json()
        for i in (1, 2)
    ]  # fmt: skip
    lines.append(ValidMetric(iteration=2, loss=1.5, at=now).model_dump_json())
    (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    done = {"iterations_done": 2, "finished_at": now, "peak_memory_bytes": 7}
    store.finish(run.evolve(status=RunStatus.FINISHED, **done))
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


@pytest.fixture
def written(folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The folder that a tracker wrote the run into; skips where it is not installed."""

    def write(name: str) -> Path:
        pytest.importorskip(MODULES[name])
        said: list[str] = []
        track(folder, tmp_path / name, (name,), child_environment(ChildSettings()), said.append)
        assert said == []
        return tmp_path / name / name

    return write


LOSSES = {"train/loss": [(1, 2.0), (2, 1.0)], "valid/loss": [(2, 1.5)]}
OTHERS = {
    "train/learning_rate": [(1, 0.1), (2, 0.1)],
    "train/tokens_per_second": [(1, 9.0), (2, 9.0)],
    "peak_memory_bytes": [(2, 7.0)],
}
EVERYTHING = LOSSES | OTHERS


def test_mlflow_reads_back_what_was_written(
    written: Callable[[str], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = written("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=place.as_uri())
    experiment = client.get_experiment_by_name("oodatcaa")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"mlx {folder.name}")
    assert (run.data.params["model"], run.data.params["params.iters"]) == ("m", "2")
    for name, values in EVERYTHING.items():
        found = client.get_metric_history(run.info.run_id, name)
        assert sorted((one.step, one.value) for one in found) == values, name
        assert {one.timestamp for one in found} == {int(AT.timestamp() * 1000)}


def test_tensorboard_reads_back_what_was_written(
    written: Callable[[str], Path], folder: Path
) -> None:
    place = written("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "mlx" / folder.name)).Reload()
    assert set(events.Tags()["scalars"]) == set(EVERYTHING)
    for name, values in EVERYTHING.items():
        found = events.Scalars(name)
        assert {one.step: one.value for one in found} == pytest.approx(dict(values)), name
        assert {one.wall_time for one in found} == {AT.timestamp()}


def test_wandb_reads_back_what_was_written(written: Callable[[str], Path], folder: Path) -> None:
    place = written("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    (log,) = place.rglob("run-*.wandb")
    records = [Record.FromString(data) for data in leveldb_log(log.read_bytes())]
    (run,) = [one.run for one in records if one.HasField("run")][:1]
    assert (run.project, run.display_name) == ("oodatcaa", f"mlx {folder.name}")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["model"], config["params.iters"]) == ("m", "2")
    found: dict[str, list[tuple[int, float]]] = {}
    for history in (one.history for one in records if one.HasField("history")):
        values = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in history.item
        }
        assert values["_timestamp"] == AT.timestamp()
        for name in values.keys() & EVERYTHING.keys():
            found.setdefault(name, []).append((values["_step"], values[name]))
    assert found == EVERYTHING
    assert [one.exit.exit_code for one in records if one.HasField("exit")] == [0]


def leveldb_log(data: bytes) -> list[bytes]:
    """The records of W&B's file: seven bytes of its own, then LevelDB's log format."""
    assert data.startswith(b":W&B")
    found, whole, at = [], b"", 7
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = data[at + 7 : at + 7 + size]
        whole = part if kind in (1, 2) else whole + part  # full, first, middle, last
        if kind in (1, 4):
            found.append(whole)
        at += 7 + size
    return found


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
