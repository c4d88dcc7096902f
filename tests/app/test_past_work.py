"""`oodatcaa show` for work that only an imported old queue knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oodatcaa.app.importing import import_plans
from oodatcaa.app.init import init_project
from oodatcaa.app.past_work import past_work
from oodatcaa.app.project import Project, open_project
from oodatcaa.errors import EXIT_REFUSED
from oodatcaa.importers import ImportKind
from real_project import git, type_command

FIXTURES = Path(__file__).parents[1] / "importers" / "fixtures"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    init_project(root, commit=False)
    return open_project(root)


def test_a_story_that_was_finished_there_is_shown(project: Project) -> None:
    import_plans(project, [FIXTURES / "flat.json"], kind=ImportKind.OODATCAA)
    text = type_command(project.root, "show", "T002")
    assert "T002 is not on the board" in text
    assert "not proven here" in text
    for known in ("flat.json", "called there   P002", "Shorter logs", "done", "Cut by size"):
        assert known in text
    assert "T002-B01  test_result: 9/9 pass" in text
    assert "cancelled; 60 minutes estimated; waits for T002-B01; already tested" in text
    assert type_command(project.root, "show", "P002") == text
    told = json.loads(type_command(project.root, "show", "P002-B01", "--json"))
    assert [(one["id"], one["subtasks"][0]["title"]) for one in told] == [
        ("T002-B01", "Cut by size")
    ]


def test_open_work_names_the_story_that_was_made_of_it(project: Project) -> None:
    import_plans(project, [FIXTURES / "flat.json"], kind=ImportKind.OODATCAA)
    import_plans(project, [FIXTURES / "nested.json"], kind=ImportKind.OODATCAA)
    made = {one.file: one.here for one in past_work(project, "T001")}
    assert made["flat.json"] == "T001"
    text = type_command(project.root, "show", "P003")
    assert "made of it     T003" in text
    assert text.endswith("next: oodatcaa sprint new\n")


def test_every_task_of_every_old_queue_is_shown(project: Project) -> None:
    for path in sorted(FIXTURES.glob("*.json")):
        report = import_plans(project, [path], kind=ImportKind.OODATCAA)
        (imported,) = report.files
        for old, new in imported.renamed.items():
            named = [one for one in past_work(project, old) if one.file == imported.source]
            assert [one.id for one in named] == [new]
            assert named[0].story or named[0].subtasks


def test_of_one_file_the_newest_version_is_shown(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    for title in ("first words", "second words"):
        tasks = [{"id": "T001", "title": title, "type": "Story", "status": "done"}]
        path.write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
        import_plans(project, [path], kind=ImportKind.OODATCAA)
    (found,) = past_work(project, "T001")
    assert found.story is not None
    assert found.story.title == "second words"


def test_finished_work_of_another_tool_is_told_in_its_line(project: Project) -> None:
    report = import_plans(project, [FIXTURES / "plans" / "issues.beads.jsonl"])
    (imported,) = report.files
    assert imported.done
    for key, line in zip(imported.done, imported.told, strict=True):
        (found,) = past_work(project, key)
        assert found.told == line


def test_what_nobody_knows_is_still_refused(project: Project) -> None:
    import_plans(project, [FIXTURES / "flat.json"], kind=ImportKind.OODATCAA)
    assert past_work(project, "T999") == ()
    assert "[task.unknown]" in type_command(project.root, "show", "T999", expect=EXIT_REFUSED)
