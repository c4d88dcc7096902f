"""`oodatcaa log` and `oodatcaa metrics`, typed in a real project."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from oodatcaa.app import claims
from oodatcaa.app.history import entries
from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.task import Role
from oodatcaa.state.log import rotations
from oodatcaa.state.store import QueueStore
from real_project import build, finish, make_project, plan, take, type_command


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        made = make_project(folder / "project")
        finish(made, "T001")
        plan(made, "T002")
        build(made, "T002-B01", Verdict.FAILED)
        made.store.close()
        yield made


def logged(project: Project, *words: str) -> list[dict[str, object]]:
    found = json.loads(type_command(project.root, "log", "--json", *words))
    assert isinstance(found, list)
    return found


def subjects(found: list[dict[str, object]]) -> set[str]:
    return {str(one["event"]["subject"]) for one in found}  # type: ignore[index]


def test_the_log_of_a_sprint(project: Project) -> None:
    every = logged(project)
    assert subjects(every) >= {"sprint", "T001", "T001-B01", "T001-T01", "T002", "T002-B01"}
    assert {one["sprint"] for one in every} == {1}
    assert subjects(logged(project, "--task", "T001")) == {"T001", "T001-B01", "T001-T01"}
    assert subjects(logged(project, "--task", "T001-B01")) == {"T001-B01"}
    assert subjects(logged(project, "--agent", "tester-A")) <= {"T001-T01", "T001"}
    assert logged(project, "--since", "2h") == every
    assert logged(project, "--since", "2200-01-01T00:00:00+01:00") == []
    text = type_command(project.root, "log", "--task", "T002")
    assert "builder-A T002-B01 in_progress -> needs_adapt" in text
    assert "[time.unreadable]" in type_command(project.root, "log", "--since", "soon", expect=2)
    assert "[sprint.unknown]" in type_command(project.root, "log", "--sprint", "9", expect=4)


def test_the_numbers_of_a_sprint(project: Project) -> None:
    found = json.loads(type_command(project.root, "metrics", "--json"))
    assert (found["stories_done"], found["stories_total"]) == (1, 5)
    assert [row["task"] for row in found["estimates"]] == ["T001-B01", "T001-T01"]
    assert found["leases"] == {"claims": 6, "expired": 0, "released": 0, "refused": 0}
    assert found["forecast"]["p50_minutes"] is None
    assert found["stale_rate"] == 0
    assert found["stories_per_hour"] > 0
    assert found["subtasks_per_hour"] == pytest.approx(2 * found["stories_per_hour"])
    text = type_command(project.root, "metrics")
    assert "too few measurements: 2 finished subtasks, 5 are needed" in text
    assert "stale leases  0 of 6 claims (0 %)" in text
    page = type_command(project.root, "metrics", "--markdown")
    assert page.startswith("# Sprint 1 in numbers")
    assert "| T001-B01 |" in page


def test_the_log_reads_across_rotations(project: Project) -> None:
    project.store.close()
    small = QueueStore(project.work, log_bytes=2000)
    again = Project(project.root)
    again.__dict__["store"] = small
    for _ in range(3):
        take(again, Role.REFINER, "T002")
        claims.let_go(
            small,
            task="T002",
            owner="refiner-A",
            attempt=again.board().story_by_id["T002"].attempt,
            why="try",
        )
    small.close()
    assert len(rotations(project.work / "archive")) >= 2
    every = logged(project)
    places = [(one["seq"], one["index"]) for one in every]
    assert places == sorted(set(places))
    assert len(every) == len(list(entries(project)))
    assert subjects(every[:1]) == {"sprint"}
    late = every[-3]["event"]["at"]  # type: ignore[index]
    expected = {
        ("--task", "T001-B01"): [o for o in every if o["event"]["subject"] == "T001-B01"],  # type: ignore[index]
        ("--agent", "builder-A"): [o for o in every if o["event"]["actor"] == "builder-A"],  # type: ignore[index]
        ("--since", str(late)): [o for o in every if o["event"]["at"] >= late],  # type: ignore[index]
    }
    for words, found in expected.items():
        assert found
        assert logged(project, *words) == found
