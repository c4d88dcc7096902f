"""What bad input gets: one clear error with a hint, the documented exit code, and no loss."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from oodatcaa.errors import EXIT_FAILURE, EXIT_REFUSED, EXIT_STATE
from typing_in import (
    SCRIPT,
    complaint,
    environment,
    git,
    new_project,
    type_in,
    write_objective,
)


def no_sprint_was_opened(root: Path) -> bool:
    return "no sprint" in type_in(root, "status").out


def test_outside_a_repository(tmp_path: Path) -> None:
    for words in (("status",), ("init",), ("sprint", "new"), ("run",)):
        text = complaint(type_in(tmp_path, *words), "git.not_a_repository", EXIT_FAILURE)
        assert "hint: git init" in text
    assert list(tmp_path.iterdir()) == []


def test_no_sprint_yet(project: Path) -> None:
    for words in (("negotiate",), ("status",)):
        answer = type_in(project, *words)
        assert (answer.code, answer.out.strip()) == (0, "no sprint; next: oodatcaa sprint new")
    complaint(type_in(project, "run"), "sprint.none", EXIT_REFUSED)


def test_objectives_that_are_missing_or_malformed(project: Path) -> None:
    path = project / "OBJECTIVE.md"
    path.unlink()
    assert "hint: oodatcaa init" in complaint(
        type_in(project, "sprint", "new"), "objective.missing", EXIT_FAILURE
    )
    for content, code in (
        (b"# only prose\n", "objective.no_front_matter"),
        (b"---\nid: [x\n---\n", "objective.bad_yaml"),
        (b"\xff\xfe\x00", "objective.unreadable"),
    ):
        path.write_bytes(content)
        complaint(type_in(project, "sprint", "new"), code, EXIT_FAILURE)
        assert path.read_bytes() == content
    write_objective(project, limit="16 potatoes", iters="many")
    text = complaint(type_in(project, "sprint", "new"), "objective.invalid", EXIT_FAILURE)
    for problem in ("memory_limit:", "acceptance: line 2", "qlora.iters"):
        assert problem in text, text
    assert no_sprint_was_opened(project)


def test_a_malformed_configuration(project: Path) -> None:
    path = project / ".oodatcaa" / "config.toml"
    path.write_text("x = = 1\n", encoding="utf-8")
    complaint(type_in(project, "sprint", "new"), "config.invalid", EXIT_FAILURE)
    path.write_text('[wip]\nplanner = -1\nfoo = 2\n\n[lease_minutes]\nbuilder = "x"\n', "utf-8")
    text = complaint(type_in(project, "sprint", "new"), "config.invalid", EXIT_FAILURE)
    for problem in ("wip.planner", "wip.foo: unknown key", "lease_minutes.builder"):
        assert problem in text
    assert no_sprint_was_opened(project)


@pytest.mark.parametrize("name", [".oodatcaa/config.toml", "agents/extra.md", "OBJECTIVE.md"])
def test_a_fifo_in_place_of_a_page_is_told_and_waited_for_by_nobody(
    project: Path, name: str
) -> None:
    path = project / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    answer = type_in(project, "sprint", "new")
    assert answer.code != 0, answer.text
    assert "no regular file" in answer.text
    assert "[internal" not in answer.text


def test_every_bad_line_of_the_data_before_the_night_is_spent(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny[1], data)
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1], lines[4] = "{broken", '{"messages": []}'
    (data / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (data / "valid.jsonl").write_text("[]\n", encoding="utf-8")
    (data / "test.jsonl").unlink()
    project = new_project(tmp_path / "project", model=tiny[0], data=data)
    text = complaint(type_in(project, "sprint", "new"), "data.invalid", EXIT_FAILURE)
    for place in ("train.jsonl:2: not JSON", "train.jsonl:5: messages", "valid.jsonl:1: a JSON"):
        assert place in text, text
    assert "test.jsonl: missing" in text
    assert no_sprint_was_opened(project)
    shutil.copytree(tiny[1], data, dirs_exist_ok=True)
    assert type_in(project, "sprint", "new").code == 0


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("/nowhere/model", "model.unknown"),
        ("{data}", "model.broken"),
        ("some-org/some-model", "model.unavailable"),
    ],
)
def test_models_that_can_not_be_had(
    tmp_path: Path, tiny: tuple[Path, Path], model: str, code: str
) -> None:
    name = model.format(data=tiny[1])
    project = new_project(tmp_path / "project", model=name, data=tiny[1])
    assert name in complaint(type_in(project, "sprint", "new"), code, EXIT_FAILURE)
    assert no_sprint_was_opened(project)


def test_model_and_data_are_complained_about_together(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project", model="nothing", data="nowhere")
    text = complaint(type_in(project, "sprint", "new"), "objective.unusable", EXIT_FAILURE)
    assert "[model.unknown]" in text
    assert "nowhere: no such folder" in text


def test_folders_are_meant_from_the_project_wherever_one_types(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    root = tmp_path / "project"
    for name, source in zip(("model", "data"), tiny, strict=True):
        shutil.copytree(source, root / "own" / name)
    project = new_project(root, model="own/model", data="own/data")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "data")
    (project / "sub").mkdir()
    assert type_in(project / "sub", "sprint", "new").code == 0
    assert type_in(project / "sub", "estimate").code == 0


def test_a_limit_below_what_loading_needs(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data=tiny[1], limit="1MB")
    text = complaint(type_in(project, "sprint", "new"), "memory.below_loading", EXIT_REFUSED)
    assert "1MB" in text
    assert "runtime: 0." in text
    assert no_sprint_was_opened(project)


def test_a_limit_that_the_machine_does_not_have_is_said(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data=tiny[1], limit="999TB")
    answer = type_in(project, "sprint", "new")
    assert answer.code == 0
    assert "note: memory_limit 999TB is more than this machine's" in answer.out


def test_dirty_detached_and_unborn_targets(project: Path, tmp_path: Path) -> None:
    (project / "notes.txt").write_text("x", encoding="utf-8")
    text = complaint(type_in(project, "sprint", "new"), "git.target_dirty", EXIT_REFUSED)
    assert "notes.txt" in text
    (project / "notes.txt").unlink()
    git(project, "checkout", "-q", "--detach")
    complaint(type_in(project, "sprint", "new"), "git.detached", EXIT_REFUSED)
    unborn = tmp_path / "unborn"
    unborn.mkdir()
    git(unborn, "init", "-q")
    assert "next: oodatcaa init --commit" in type_in(unborn, "init").out
    complaint(type_in(unborn, "sprint", "new"), "git.unborn", EXIT_REFUSED)


def test_a_damaged_journal_and_a_wrong_edit_lose_nothing(project: Path) -> None:
    assert type_in(project, "sprint", "new").code == 0
    work = project / ".oodatcaa" / "work"
    snapshot, journal = work / "SPRINT_QUEUE.json", work / "queue.journal"
    snapshot.write_text('{"broken', encoding="utf-8")
    assert type_in(project, "cancel", "T005", "--why", "not now").code == 0
    (kept,) = work.glob("SPRINT_QUEUE.rejected-*.json")
    assert kept.read_text(encoding="utf-8") == '{"broken'
    sound = journal.read_bytes()
    damaged = sound[:200] + b"XXXX" + sound[204:]
    journal.write_bytes(damaged)
    for words in (("status",), ("run",), ("negotiate",)):
        text = complaint(type_in(project, *words), "queue.journal_unreadable", EXIT_STATE)
        assert "queue.journal:" in text
        assert "oodatcaa doctor --repair" in text
    assert journal.read_bytes() == damaged
    journal.write_bytes(sound)
    assert "T005      cancelled" in type_in(project, "status").out


def test_a_second_crew_is_refused(project: Path) -> None:
    assert type_in(project, "sprint", "new").code == 0
    first = subprocess.Popen(
        [str(SCRIPT), "run"], cwd=project, env=environment(project), stdout=subprocess.DEVNULL
    )
    try:
        lock = project / ".oodatcaa" / "work" / "crew.lock.holder"
        deadline = time.monotonic() + 60
        while not lock.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        text = complaint(type_in(project, "run"), "crew.active", EXIT_REFUSED)
        assert f"process {first.pid}" in text
        assert first.poll() is None
    finally:
        first.terminate()
        assert first.wait(120) == 130


def test_a_full_disk_at_a_checkpoint(project: Path) -> None:
    """A file size limit takes the same way through the kernel as a full disk."""
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 24; exec {SCRIPT} train"],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == EXIT_FAILURE, done.stderr
    assert "[run.disk_full]" in done.stderr
    assert "hint: " in done.stderr
    listed = type_in(project, "runs").out
    assert "failed" in listed
