"""The findings of doctor that take a stranger kind of damage: mended or left, never lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from doctor_projects import (
    codes,
    copied,
    found_and_left,
    found_and_mended,
    fresh,
    make_template,
    training_run,
)
from oodatcaa.app.archiving import end_sprint
from oodatcaa.app.doctor import diagnose, mend
from oodatcaa.app.doctor.machine import judge_disk
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.task import Artefact, ArtefactKind, Subtask
from oodatcaa.training.datasets import DataStore
from real_project import cancel_story
from tiny_model import make_tiny_data


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from make_template(tmp_path_factory.mktemp("findings"))


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return copied(template, tmp_path, monkeypatch)


def entries(text: str) -> list[str]:
    """The log's head, then its entries."""
    head, *rest = text.split("\n## ")
    return [head, *(f"\n## {entry}" for entry in rest)]


def swapped(text: str) -> str:
    head, first, second, *rest = entries(text)
    return "".join([head, second, first, *rest])


def foreign(text: str) -> str:
    """An entry whose place in the journal never was."""
    head, first, *rest = entries(text)
    return "".join([head, first, first.replace("1.0", "1.7"), *rest])


def cut(text: str) -> str:
    return "".join(entries(text)[:-1]) + "\n"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (swapped, {"log.out_of_order"}),
        (foreign, {"log.unknown_entries"}),
        (cut, {"log.missing_entries", "log.incomplete"}),
    ],
)
def test_a_log_that_was_cut_mixed_or_continued_by_hand(
    project: Project, change: Callable[[str], str], expected: set[str]
) -> None:
    path = project.work / "AGENT_LOG.md"
    whole = path.read_text(encoding="utf-8")
    damaged = change(whole)
    assert damaged != whole
    path.write_text(damaged, encoding="utf-8")
    assert set(codes(diagnose(fresh(project)))) >= expected
    assert mend(fresh(project))
    assert diagnose(fresh(project)).findings == ()
    kept = next((project.work / "archive").glob("damaged-*/AGENT_LOG.md"))
    assert kept.read_text(encoding="utf-8") == damaged


def test_a_refused_change_from_outside_is_told_and_kept(project: Project) -> None:
    project.store.close()
    path = project.work / "SPRINT_QUEUE.json"
    path.write_text("<<<<<<< HEAD\n", encoding="utf-8")
    assert fresh(project).board().sprint is not None
    found = found_and_left(project, "queue.rejected_change")
    assert Path(found.findings[0].place).read_text(encoding="utf-8") == "<<<<<<< HEAD\n"


def test_damaged_older_events_are_put_aside(project: Project) -> None:
    project.store.close()
    path = project.work / "events.jsonl"
    path.write_text('{"seq": 1, "events": "none"}\n', encoding="utf-8")
    found = diagnose(fresh(project))
    assert "queue.events_unreadable" in codes(found)
    assert not found.sound


def test_a_merge_that_git_does_not_know(project: Project) -> None:
    def another(board: Board, _: datetime) -> Decision[None]:
        story = board.story_by_id["T001"]
        assert story.integration is not None
        proof = story.integration.evolve(merge_commit="f" * 40)
        return Decision(board.with_task(story.evolve(integration=proof)), None)

    project.store.transact(another)
    found_and_left(project, "story.merge_unknown")


def test_evidence_under_another_name(project: Project) -> None:
    record = next((project.work / "evidence" / "T001").glob("E-T001-T01-*.json"))
    text = record.read_text(encoding="utf-8")
    other = record.with_name(record.name.replace("-a1-", "-a7-"))
    other.write_text(text, encoding="utf-8")
    found_and_left(project, "evidence.renamed")
    assert other.read_text(encoding="utf-8") == text


def test_a_run_whose_record_names_another_adapter(project: Project) -> None:
    run = training_run(project, "the adapter")
    made = Artefact(kind=ArtefactKind.RUN, ref=run, sha256="0" * 64)

    def handed_in(board: Board, _: datetime) -> Decision[None]:
        task = board.subtask_by_id["T001-B01"]
        assert isinstance(task, Subtask)
        return Decision(board.with_task(task.evolve(artefacts=(made,))), None)

    project.store.transact(handed_in)
    assert "run.record_changed" in codes(diagnose(fresh(project)))
    assert "run.record_changed" not in [one.code for one in mend(fresh(project))]


def test_data_under_another_name(project: Project, tmp_path: Path) -> None:
    make_tiny_data(tmp_path / "source")
    made = DataStore(project.models / "data").build(str(tmp_path / "source"), model_path="")
    path = Path(made.path)
    path.rename(path.with_name("0123456789abcdef"))
    found_and_left(project, "data.renamed")


def test_folders_that_a_closing_left_behind(project: Project) -> None:
    for story in ("T002", "T003", "T004", "T005"):
        cancel_story(project, story)
    folder = end_sprint(project, "someone").folder
    project.store.close()
    away, live = folder / "evidence" / "T001", project.work / "evidence" / "T001"
    assert away.is_dir()
    live.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(away, live)
    assert "T001" in found_and_mended(project, "sprint.left_behind")
    assert list(away.glob("E-*.json"))
    assert json.loads((folder / "SPRINT_QUEUE.json").read_text(encoding="utf-8"))["stories"]


def test_the_traceback_of_a_crashed_agent_is_told_and_kept(project: Project) -> None:
    path = project.work / "scratch" / "crash-builder-A.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("Traceback …", encoding="utf-8")
    found_and_left(project, "scratch.crash")


def test_little_room_on_the_disk() -> None:
    (found,) = judge_disk("/here", 4_900_000_000)
    assert (found.code, found.place) == ("disk.low", "/here")
    assert judge_disk("/here", 5_100_000_000) == ()
