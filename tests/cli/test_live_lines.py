"""Progress as plain lines: what went wrong and what was decided stands in them too."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from oodatcaa.app.activity import Broadcast, forget, read_activities
from oodatcaa.cli.watch import Lines
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.task import Role
from queue_making import START
from real_project import build, make_project, plan, type_command


def test_a_failed_subtask_is_told_once_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = make_project(tmp_path / "project")
    plan(project, "T002")
    lines = Lines(project)
    lines.tick("running")
    assert "plan v1 of T002" not in capsys.readouterr().out, "that was before it looked"
    build(project, "T002-B01", Verdict.FAILED)
    lines.tick("running")
    lines.tick("running")
    told = capsys.readouterr().out.splitlines()
    failed = [line for line in told if "T002-B01 failed" in line]
    assert len(failed) == 1, told
    assert "builder-A" in failed[0]
    assert not [line for line in told if "offered" in line or "claimed" in line], told
    project.store.close()


def test_lines_said_between_two_looks_are_all_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = make_project(tmp_path / "project")
    lines = Lines(project)
    for life in ("first", "second"):  # the same agent, started anew after it died
        broadcast = Broadcast(project.work, "builder-A", Role.BUILDER, lambda _: None)
        broadcast.on("T003-B01")
        for number in range(3):
            broadcast.say(f"T003-B01 {life} {number}")
        lines.tick("running")
    lines.tick("running")
    told = [line.split("T003-B01 ")[1] for line in capsys.readouterr().out.splitlines()]
    assert told == [f"{life} {number}" for life in ("first", "second") for number in range(3)]
    project.store.close()


def test_what_was_said_before_is_not_news_and_last_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = make_project(tmp_path / "project")
    broadcast = Broadcast(project.work, "builder-A", Role.BUILDER, lambda _: None)
    broadcast.on("T003-B01")
    broadcast.say("T003-B01 before")
    lines = Lines(project)
    broadcast.say("T003-B01 0")
    lines.tick("running")
    for number in range(1, 61):
        broadcast.say(f"T003-B01 {number}")
    broadcast.close()
    lines.tick("running")
    first, *told = capsys.readouterr().out.splitlines()
    assert first.endswith("T003-B01 0")
    assert "… 20 lines left out" in told[0]
    assert told[1].endswith("T003-B01 21")
    assert told[-1].endswith("T003-B01 60")
    assert not [line for line in told if "before" in line]
    forget(project.work)
    assert read_activities(project.work) == ()
    project.store.close()


def test_a_lost_lease_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = make_project(tmp_path / "project")
    plan(project, "T002")
    type_command(project.root, "claim", "T002-B01", "--as", "Kim")
    lines = Lines(project)

    def age(board: Board, _: datetime) -> Decision[None]:
        held = board.subtask_by_id["T002-B01"]
        assert held.lease is not None
        old = held.lease.evolve(heartbeat_at=START, claimed_at=START)
        return Decision(board.with_task(held.evolve(lease=old)), None)

    project.store.transact(age)
    type_command(project.root, "negotiate")
    lines.tick("running")
    assert "Kim lost its lease" in capsys.readouterr().out
    project.store.close()
