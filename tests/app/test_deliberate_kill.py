"""The demo's own crash: once, at a builder that trains, and never at anything else."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oodatcaa.app.activity import Broadcast
from oodatcaa.app.deliberate_kill import ACTOR, DeliberateKill
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.task import ProcessLease, Role, StoryKind, SubtaskStatus
from oodatcaa.domain.training import TrainProgress
from oodatcaa.kit.process import process_identity
from queue_making import START, sprint, story, subtask

TASK = "T001-B01"


@pytest.fixture
def builder() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.wait()


def project_of(folder: Path, kind: StoryKind, pid: int) -> Project:
    lease = ProcessLease(
        kind="process", owner="builder-A", role=Role.BUILDER, host=socket.gethostname(), attempt=1,
        ttl_seconds=60, claimed_at=START, heartbeat_at=START, pid=pid,
        process_started_at=process_identity(pid)[1],
    )  # fmt: skip
    made = Board(
        sprint=sprint(),
        stories=(story().evolve(kind=kind),),
        subtasks=(subtask(status=SubtaskStatus.IN_PROGRESS).evolve(lease=lease, attempt=1),),
    )
    project = Project(folder)
    project.store.transact(lambda old, _: Decision(made.evolve(revision=old.revision), None))
    return project


def shown(project: Project, iteration: int, phase: str = "training") -> None:
    told = Broadcast(project.work, "builder-A", Role.BUILDER, lambda _: None)
    told.on(TASK)
    told.progress(
        TrainProgress.model_validate(
            {
                "run_id": "r",
                "phase": phase,
                "iteration": iteration,
                "iters": 40,
                "memory_limit_bytes": 1,
                "updated_at": datetime.now(UTC),
            }
        )
    )


def notes(project: Project) -> list[str]:
    return [item.event.text for item in project.store.history() if item.event.actor == ACTOR]


def test_it_strikes_once_in_mid_training(tmp_path: Path, builder: subprocess.Popen[bytes]) -> None:
    project = project_of(tmp_path, StoryKind.TRAIN, builder.pid)
    kill = DeliberateKill(project)
    for iteration, phase in ((10, "training"), (30, "validating")):
        shown(project, iteration, phase)
        kill.tick("running")
        assert builder.poll() is None
    shown(project, 24)
    kill.tick("stopping")
    assert builder.poll() is None, "a crew that stops is left alone"
    kill.tick("running")
    assert builder.wait(10) == -9
    (note,) = notes(project)
    assert "on purpose, in iteration 24 of 40" in note
    DeliberateKill(project).tick("running")
    assert notes(project) == [note], "a second crew of the same demo is not struck again"
    project.store.close()


def test_the_short_run_of_the_memory_profile_is_left_alone(
    tmp_path: Path, builder: subprocess.Popen[bytes]
) -> None:
    project = project_of(tmp_path, StoryKind.FRAMEWORK, builder.pid)
    shown(project, 39)
    DeliberateKill(project).tick("running")
    assert builder.poll() is None
    assert notes(project) == []
    project.store.close()
