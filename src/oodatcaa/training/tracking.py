"""A finished run for MLflow, TensorBoard or Weights & Biases: in folders here, no server asked.

`python -m oodatcaa.training.tracking RUN_FOLDER DESTINATION NAME…` writes the run that RUN_FOLDER
holds and prints its problems as JSON. The libraries are other people's and start threads, processes
and clean-ups of their own: in a child with a time limit, nothing they do can end or hold up a run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from oodatcaa.domain.training import RunRecord, RunStatus
from oodatcaa.kit.process import run_command
from oodatcaa.training.metrics import read_metrics
from oodatcaa.training.protocol import METRICS_FILE

SECONDS = 120.0
PROJECT = "oodatcaa"
FOLDER = "tracking"


class Point(NamedTuple):
    """`seconds` since 1970."""

    name: str
    value: float
    step: int
    seconds: float


def track(
    folder: Path,
    destination: Path,
    names: Sequence[str],
    environment: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Write the run to every tracker named. Never raises: what went wrong is said, once each."""
    if not names:
        return
    argv = [sys.executable, "-P", "-m", "oodatcaa.training.tracking"]
    try:
        destination.mkdir(parents=True, exist_ok=True)
        done = run_command(
            [*argv, str(folder), str(destination), *names], timeout=SECONDS, env=environment
        )
    except OSError as error:
        say(f"run {folder.name} was not tracked: {error}")
        return
    lines = [line for line in done.tail.splitlines() if line.strip()]
    try:
        problems = json.loads(lines[-1]) if done.ok and lines else None
    except ValueError:
        problems = None
    if not isinstance(problems, list):
        late = f"no answer within {SECONDS:.0f} s"
        why = late if done.timed_out else (lines or ["no answer"])[-1]
        problems = [f"{', '.join(names)}: {why}"]
    for problem in problems:
        say(f"run {folder.name} was not tracked by {problem}")


def points(folder: Path, run: RunRecord) -> list[Point]:
    """Every number of the run's metrics, and its peak at the end."""
    metrics = read_metrics(folder / METRICS_FILE)
    found = []
    for line in metrics.train:
        at = line.at.timestamp()
        for name, value in (
            ("train/loss", line.loss),
            ("train/learning_rate", line.learning_rate),
            ("train/tokens_per_second", line.tokens_per_second),
        ):
            found.append(Point(name, value, line.iteration, at))
    for check in metrics.valid:
        found.append(Point("valid/loss", check.loss, check.iteration, check.at.timestamp()))
    if run.peak_memory_bytes is not None and run.finished_at is not None:
        at = run.finished_at.timestamp()
        found.append(Point("peak_memory_bytes", run.peak_memory_bytes, run.iterations_done, at))
    return sorted(found, key=lambda point: (point.step, point.seconds))


def facts(run: RunRecord) -> dict[str, str]:
    """What the run was given, as text."""
    kept = ("model", "data_sha256", "git_sha", "backend", "story", "memory_limit_bytes")
    record = run.model_dump(mode="json")
    params = record["params"]
    return {
        **{name: str(record[name]) for name in kept},
        **{f"params.{name}": str(value) for name, value in params.items()},
    }


def to_mlflow(run: RunRecord, found: Sequence[Point], folder: Path) -> None:
    # MLflow wants a database by now; a folder needs neither a server nor a migration.
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=folder.as_uri())
    known = client.get_experiment_by_name(PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(PROJECT)
    started = int(run.started_at.timestamp() * 1000)
    made = client.create_run(experiment, start_time=started, run_name=f"{run.backend} {run.run_id}")
    number = made.info.run_id
    metrics = [
        Metric(point.name, point.value, int(point.seconds * 1000), point.step) for point in found
    ]
    for first in range(0, len(metrics), 1000):
        client.log_batch(number, metrics=metrics[first : first + 1000])
    client.log_batch(number, params=[Param(name, text[:500]) for name, text in facts(run).items()])
    status = "FINISHED" if run.status is RunStatus.FINISHED else "FAILED"
    ended = int(run.finished_at.timestamp() * 1000) if run.finished_at else None
    client.set_terminated(number, status, end_time=ended)


def to_tensorboard(run: RunRecord, found: Sequence[Point], folder: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / run.backend / run.run_id))
    for point in found:
        value = Summary.Value(tag=point.name, simple_value=point.value)
        summary = Summary(value=[value])
        writer.add_event(Event(wall_time=point.seconds, step=point.step, summary=summary))
    writer.close()


def to_wandb(run: RunRecord, found: Sequence[Point], folder: Path) -> None:
    import wandb

    made = wandb.init(
        mode="offline",
        dir=str(folder),
        project=PROJECT,
        name=f"{run.backend} {run.run_id}",
        config=facts(run),
        settings=wandb.Settings(console="off", silent=True),
    )
    steps: dict[int, dict[str, float]] = {}
    for point in found:
        # W&B's own name of a row's time, which would else be that of writing it here.
        values = steps.setdefault(point.step, {})
        values |= {point.name: point.value, "_timestamp": point.seconds}
    for step, values in sorted(steps.items()):
        made.log(values, step=step)
    made.finish(exit_code=0 if run.status is RunStatus.FINISHED else 1)


WRITERS = {"mlflow": to_mlflow, "tensorboard": to_tensorboard, "wandb": to_wandb}


def main(folder: Path, destination: Path, names: Sequence[str]) -> list[str]:
    """The problems, one line for each tracker that failed."""
    run = RunRecord.model_validate_json((folder / "run.json").read_bytes())
    found = points(folder, run)
    problems = []
    for name in names:
        target = (destination / name).resolve()
        target.mkdir(parents=True, exist_ok=True)
        try:
            WRITERS[name](run, found, target)
        except ModuleNotFoundError as error:
            missing = f"{error.name} is not installed: pip install 'oodatcaa[tracking]'"
            problems.append(f"{name}: {missing}")
        except Exception as error:  # noqa: BLE001 - a tracker may raise what it likes
            first = (str(error).splitlines() or [""])[0]
            problems.append(f"{name}: {type(error).__name__}: {first}")
    return problems


if __name__ == "__main__":
    print("\n" + json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
