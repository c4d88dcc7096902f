"""Progress as plain lines: what went wrong and what was decided stands in them too."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodatcaa.cli.watch import Lines
from oodatcaa.domain.evidence import Verdict
from real_project import build, make_project, plan


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
    assert not [line for line in told if "negotiator" in line or "claimed" in line], told
    project.store.close()
