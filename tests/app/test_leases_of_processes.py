"""Leases at the command line: real agents that are killed, stopped and woken, and people's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from agent_making import script
from crew_projects import command, make_project, plan_answer
from oodatcaa.app.project import Project
from oodatcaa.domain.board import EventKind
from oodatcaa.domain.ports import Logged
from oodatcaa.domain.task import ManualLease, ProcessLease, Task

TTL_SECONDS = 3
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose planner thinks for a long time before it answers well."""
    thinking = script(tmp_path / "planner.json", [{"silent": 60}, {"done": plan_answer()}])
    config: dict[str, Any] = {
        "wip": {"planner": 1},
        "lease_minutes": {"planner": TTL_SECONDS / 60},
    }
    agents = {"thinker": {"role": "planner", "script": thinking}}
    return make_project(tmp_path, agents, config=config)


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Start `oodatcaa agent planner`; every agent is ended with its whole session."""
    running = []

    def begin(name: str, *more: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "oodatcaa", "agent", "planner", "--name", name, *more]
        log = (root.parent / f"{name}.out").open("wb")
        with log:
            one = subprocess.Popen(argv, cwd=root, stdout=log, stderr=log, start_new_session=True)
        running.append(one)
        return one

    yield begin
    for one in running:
        if one.poll() is None:
            one.send_signal(signal.SIGCONT)
            one.kill()
        one.wait()


def story(root: Path) -> Task:
    found = Project(root).store.read().find("T001")
    assert found is not None
    return found


def until(found: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def let_live(root: Path, seconds: int) -> None:
    """The time to live of later planner leases."""
    path = root / ".oodatcaa" / "config.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    values["lease_minutes"]["planner"] = seconds / 60
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


def events(root: Path, kind: EventKind) -> list[Logged]:
    return [one for one in Project(root).store.history() if one.event.kind is kind]


def held_by(root: Path, name: str) -> Callable[[], bool]:
    def look() -> bool:
        lease = story(root).lease
        return lease is not None and lease.owner == name

    return look


def test_a_killed_agents_task_is_taken_over_by_one_that_waits(root: Path, start: Start) -> None:
    first = start("thinker-A")
    until(held_by(root, "thinker-A"), "it never claimed")
    lease = story(root).lease
    assert isinstance(lease, ProcessLease)
    assert (lease.pid, lease.attempt, lease.ttl_seconds) == (first.pid, 1, TTL_SECONDS)
    start("thinker-B")
    until(lambda: b"thinker-B is" in (root.parent / "thinker-B.out").read_bytes(), "no second one")
    killed = datetime.now(UTC)
    first.kill()
    first.wait()
    until(held_by(root, "thinker-B"), "nobody took over")
    (expired,) = events(root, EventKind.EXPIRE)
    assert "its process on" in expired.event.text
    assert "is gone" in expired.event.text
    assert expired.event.at >= killed
    assert story(root).attempt == 2


def test_a_stopped_agent_loses_its_task_and_its_late_result_is_refused(
    root: Path, start: Start, tmp_path: Path
) -> None:
    script(tmp_path / "planner.json", [{"silent": 8}, {"done": plan_answer()}])
    first = start("thinker-A", "--once")
    said = root.parent / "thinker-A.out"
    until(lambda: b"T001 claimed" in said.read_bytes(), "it never claimed")
    os.killpg(first.pid, signal.SIGSTOP)
    time.sleep(TTL_SECONDS + 1.2)

    def expires() -> bool:
        command(root, "negotiate")  # on a busy machine the first may still grant a courtesy
        return bool(events(root, EventKind.EXPIRE))

    until(expires, "the lease outlived its heartbeat")
    (expired,) = events(root, EventKind.EXPIRE)
    assert "no heartbeat since" in expired.event.text
    taken = command(root, "claim", "T001", "--as", "ada")
    assert "attempt 2" in taken
    os.killpg(first.pid, signal.SIGCONT)
    first.wait(60)
    lease = story(root).lease
    assert lease is not None
    assert (lease.owner, lease.attempt) == ("ada", 2)
    told = said.read_text(encoding="utf-8")
    assert "the lease was lost" in told or "no longer holds" in told
    assert events(root, EventKind.PLAN) == []


def test_a_living_agent_renews_its_lease_beyond_its_time_to_live(root: Path, start: Start) -> None:
    start("thinker-A")
    until(held_by(root, "thinker-A"), "it never claimed")
    time.sleep(TTL_SECONDS + 1.5)
    command(root, "negotiate")
    lease = story(root).lease
    assert lease is not None
    assert (lease.owner, lease.attempt, lease.courtesy) == ("thinker-A", 1, False)
    assert lease.heartbeat_at > lease.claimed_at
    assert "held by thinker-A" in command(root, "claim", "T001", "--as", "ada", expect=None)


def test_a_claim_by_hand_outlives_its_command_and_ends_by_its_time_to_live(root: Path) -> None:
    let_live(root, 3600)
    command(root, "claim", "T001", "--as", "ada")
    first = story(root).lease
    assert isinstance(first, ManualLease)
    command(root, "negotiate")
    assert story(root).lease == first, "its shell command is gone, its lease is not"
    command(root, "claim", "T001", "--as", "ada")
    again = story(root).lease
    assert again is not None
    assert (again.attempt, len(events(root, EventKind.CLAIM))) == (1, 1), "no new claim"
    assert again.heartbeat_at > first.heartbeat_at
    command(root, "heartbeat", "T001", "--as", "ada")
    command(root, "release", "T001", "--as", "ada")
    let_live(root, 1)
    command(root, "claim", "T001", "--as", "ada")
    time.sleep(1.1)
    command(root, "negotiate")
    assert story(root).lease is None
    (expired,) = events(root, EventKind.EXPIRE)
    assert "ada lost its lease: no heartbeat since" in expired.event.text
    assert "lease" in command(root, "heartbeat", "T001", "--as", "ada", expect=None)
