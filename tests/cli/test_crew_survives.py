"""A crew that is stopped and a builder that is killed: the work goes on from the checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from typing_in import SCRIPT, environment, git, new_project, type_in

PATIENCE = 900.0
LEARNING = "T003-B01"


def start(project: Path) -> subprocess.Popen[bytes]:
    with (project.parent / "crew.txt").open("ab") as log:
        return subprocess.Popen(
            [str(SCRIPT), "run"], cwd=project, env=environment(project), stdout=log, stderr=log
        )


def until(ready: Callable[[], bool], crew: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert crew.poll() is None, "the crew ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained(project: Path, than: int) -> bool:
    """Whether some builder's training of the story is past this iteration."""
    for path in (project / ".oodatcaa" / "work" / "activity").glob("builder-*.json"):
        try:
            seen = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        if seen["task"] == LEARNING and seen["progress"]:
            return bool(seen["progress"]["iteration"] > than)
    return False


def holder(project: Path) -> tuple[str, int]:
    """(owner, pid) of the lease on the training task."""
    queue = json.loads((project / ".oodatcaa/work/SPRINT_QUEUE.json").read_text(encoding="utf-8"))
    (task,) = [item for item in queue["subtasks"] if item["id"] == LEARNING]
    return task["lease"]["owner"], task["lease"]["pid"]


def runs(project: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(type_in(project, "runs", "--json").out)["runs"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stop_and_a_kill_in_mid_training_lose_nothing(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data=tiny[1], iters=100)
    assert type_in(project, "sprint", "new").code == 0
    for story in ("T005", "T004"):
        assert type_in(project, "cancel", story, "--why", "not needed here").code == 0

    crew = start(project)
    try:
        until(lambda: trained(project, 8), crew)
        crew.send_signal(signal.SIGINT)
        assert crew.wait(PATIENCE) == 130
    finally:
        crew.kill()
    assert LEARNING in type_in(project, "negotiate").out
    (first,) = runs(project)
    assert first["status"] == "stopped"

    crew = start(project)
    try:
        reached = int(str(first["iterations_done"]))
        until(lambda: trained(project, reached + 8), crew)
        owner, pid = holder(project)
        os.kill(pid, signal.SIGKILL)
        assert crew.wait(PATIENCE) == 0, (project.parent / "crew.txt").read_text("utf-8")[-3000:]
    finally:
        crew.kill()

    found = runs(project)
    assert [run["status"] for run in found] == ["stopped", "failed", "finished"]
    assert [run["resumed_from"] for run in found] == [None, found[0]["run_id"], found[1]["run_id"]]
    assert found[2]["iterations_done"] == 100
    peaks = [int(str(run["peak_memory_bytes"])) for run in found]
    assert peaks[2] == max(peaks), "the peak of a training is that of all its runs"
    assert git(project, "tag").split() == ["T001-complete", "T002-complete", "T003-complete"]
    log = type_in(project, "log", "--task", LEARNING).out
    lost = [line for line in log.splitlines() if owner in line and "in_progress -> ready" in line]
    assert lost, log
    work = project / ".oodatcaa" / "work"
    assert not list((work / "activity").glob("*.json"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_gate_refuses_before_and_the_refiner_adapts(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data=tiny[1], limit="1GB")
    path = project / "OBJECTIVE.md"
    text = path.read_text(encoding="utf-8").replace("batch_size: 2", "batch_size: 64")
    path.write_text(text.replace("max_seq_length: 128", "max_seq_length: 1024"), encoding="utf-8")
    git(project, "commit", "-qam", "more than fits")
    assert type_in(project, "sprint", "new").code == 0
    for role in ("planner", "builder", "builder"):
        answer = type_in(project, "agent", role, "--once")
    assert "over the limit of 1.00 GB" in answer.out
    assert runs(project) == []
    tasks = {
        row["id"]: row for row in json.loads(type_in(project, "status", "--json").out)["tasks"]
    }
    assert tasks["T001"]["status"] == "needs adapt"
    assert [tasks[f"T00{n}"]["status"] for n in (3, 4, 5)] == ["blocked"] * 3
    round_ = type_in(project, "negotiate").out
    for said in ("refiner", "memory gate (before)", "over the limit of 1.00 GB", "waits: T003"):
        assert said in round_, round_
    refined = type_in(project, "agent", "refiner", "--once")
    assert "T001 plan v2 accepted" in refined.out
    page = (project / ".oodatcaa/work/plans/T001/AGENT_PLAN.md").read_text(encoding="utf-8")
    assert "accumulated" in page
    assert "memory_gate (before): memory gate" not in page
