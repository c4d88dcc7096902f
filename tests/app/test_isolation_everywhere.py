"""Every place that an agent, or the code that it wrote, could write to unseen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crew_projects
from agent_making import script
from oodatcaa.app.isolation import look, trespasses
from oodatcaa.app.ledger import Ledger
from oodatcaa.app.project import Project
from oodatcaa.domain.agents import Call, Ending, Usage
from oodatcaa.domain.task import Role, Story
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.files import write_atomic
from real_project import build, git, make_project, plan, type_command


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def a_call(project: Project, name: str, ending: Ending | None) -> Path:
    ledger = Ledger(project.work, 1)
    story = name.split("-")[0]
    call = Call(
        id=name,
        agent="a",
        definition="a",
        runner="a",
        role=Role.BUILDER,
        story=story,
        task=f"{story}-B01",
        attempt=1,
        started_at=utc_now(),
        ending=ending,
    )
    ledger.put(call)
    return ledger.place(name) / "call.json"


def test_records_that_the_framework_relies_on_are_watched(project: Project) -> None:
    root, work = project.root, project.work
    project.facts.put("T002", "inference", Usage())
    baseline = work / "baselines/abc.json"
    write_atomic(baseline, '{"findings": 1}')
    ended = a_call(project, "T001-B01-a1-1-x", Ending.FINISHED)
    git(root, "update-ref", "refs/oodatcaa/parked/work/1", "HEAD")
    before = look(project, "T001-B01", 2)

    project.facts.put("T001", "inference", Usage())  # this process did it: fine
    a_call(project, "T001-B01-a2-1-x", None)
    git(root, "update-ref", "refs/oodatcaa/parked/work/2", "HEAD")
    assert trespasses(project, before) == ()

    project.facts.path("T002", "inference").write_text("{}")
    project.facts.path("T001", "inference").write_text("{ }")
    baseline.write_text('{"findings": 99}')
    ended.write_text("{}")
    git(root, "update-ref", "-d", "refs/oodatcaa/parked/work/1")
    (root / ".git/hooks/deep").mkdir()
    (root / ".git/hooks/deep/hook").write_text("x")
    assert set(trespasses(project, before)) == {
        "facts/T001/inference.json was made",
        "facts/T002/inference.json was changed",
        "baselines/abc.json was changed",
        "agents/sprint-001/T001-B01-a1-1-x/call.json was changed",
        "refs/oodatcaa/parked/work/1 was deleted",
        ".git/hooks/deep was made",
        ".git/hooks/deep/hook was made",
    }


def a_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero has no end
    except PermissionError:
        pytest.skip("only root makes devices")


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


HOOK = ".git/hooks/post-merge"


@pytest.mark.parametrize(
    ("place", "make"),
    [(HOOK, a_fifo), (HOOK, a_device), (HOOK, a_huge_file), ("README.md", a_fifo)],
)
def test_a_look_reads_nothing_that_has_no_end(
    project: Project, place: str, make: Callable[[Path], None]
) -> None:
    before = look(project, "T001-B01", 1)
    make(project.root / place)
    assert any(place in line for line in trespasses(project, before))
    assert look(project, "T001-B01", 1) != before


def stray(tmp_path: Path) -> dict[str, Any]:
    return {"append": str(tmp_path / "project/stray.txt"), "text": "x"}


GOOD: list[dict[str, Any]] = [{"write": "greeter.py", "text": crew_projects.GOOD}, {"done": "x"}]


def test_an_external_tester_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    answer = {"done": '{"checks": [], "veto": []}'}
    review = script(tmp_path / "tester.json", [stray(tmp_path), answer], [answer])
    root = crew_projects.crew(
        tmp_path, GOOD, agents={"tester-s": {"role": "tester", "script": review}}
    )
    assert crew_projects.work(root) == "done"
    failure = crew_projects.task(root, "T001-T01").failure
    assert failure is not None
    assert failure.kind == "isolation"


def test_a_planner_that_fails_after_it_wrote_elsewhere_is_named(tmp_path: Path) -> None:
    naughty = [[stray(tmp_path), {"error": "no idea"}]]
    root = crew_projects.crew(tmp_path, GOOD, planner=naughty, config={"agents": {"retries": 0}})
    assert crew_projects.work(root) == "needs_human"
    assert "stray.txt was changed" in crew_projects.task(root, "T001").reason


def test_code_under_test_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    place = str(tmp_path / "project/stray.txt")
    code = f"open({place!r}, 'a').write('x')\n{crew_projects.GOOD}"
    root = crew_projects.crew(
        tmp_path, [{"write": "greeter.py", "text": code}, {"done": "all tests pass"}], GOOD
    )
    assert crew_projects.work(root) == "done"
    failure = crew_projects.task(root, "T001-B01").failure
    assert failure is not None
    assert failure.kind == "isolation"
    assert "stray.txt" not in crew_projects.git(root, "ls-files")


def test_a_claim_by_command_is_held_to_its_worktree(project: Project) -> None:
    plan(project, "T001", builds=2)
    build(project, "T001-B01")
    type_command(project.root, "claim", "T001-B02", "--as", "hermes")
    (project.root / "README.md").write_text("elsewhere\n")
    said = type_command(project.root, "submit", "T001-B02", "--as", "hermes", expect=1)
    assert "README.md was changed" in said
    task = project.board().find("T001-B02")
    assert task is not None
    assert task.status.value == "needs_adapt"


def test_an_agent_decides_nothing_for_a_person(tmp_path: Path) -> None:
    """Neither under a made-up name, nor without the marks in its environment."""
    said = tmp_path / "said"
    type_it = f"{sys.executable} -m oodatcaa"
    bare = "env -u OODATCAA_AGENT_CALL -u OODATCAA_REHEARSAL -u OODATCAA_REHEARSAL_OF"
    waive = f"waive T001 X1 --as ada --why it --hours 9 >> {said} 2>&1"
    cancel = f"cancel T001 --as ada --why it >> {said} 2>&1"
    lines = [f"{type_it} {waive}", f"{type_it} {cancel}", f"{bare} {type_it} {waive}"]
    lines.append(f"{bare} {type_it} {cancel}")
    root = crew_projects.crew(tmp_path, [*({"run": line} for line in lines), *GOOD])
    assert crew_projects.work(root) == "done"
    text = said.read_text()
    assert text.count("only a person can waive") == 2, text
    assert text.count("only a person can cancel") == 2, text
    assert "the agent's call T001-B01-a1-1-builder-s" in text
    assert "builder-s-A, which works on T001-B01" in text
    story = crew_projects.task(root, "T001")
    assert isinstance(story, Story)
    assert story.waivers == ()


def test_an_agent_sees_a_copy_of_the_queue(tmp_path: Path) -> None:
    line = f"{sys.executable} -m oodatcaa claim T001 --role planner --as hermes; true"
    note = f"{sys.executable} -m oodatcaa release T001-B01 --as builder-s-A"
    root = crew_projects.crew(tmp_path, [{"run": line}, {"run": note}, *GOOD])
    assert crew_projects.work(root) == "done"
    assert crew_projects.task(root, "T001-B01").attempt == 1


@pytest.mark.parametrize(("setting", "outcome"), [("stop", "needs_human"), ("warn", "done")])
def test_an_agent_that_says_no_usage_escapes_no_budget(
    tmp_path: Path, setting: str, outcome: str
) -> None:
    budgets = {"story": {"tokens": 100_000}, "unknown_usage": setting}
    root = crew_projects.crew(tmp_path, GOOD, config={"budgets": budgets})
    assert crew_projects.work(root) == outcome
    assert "the call did not say its tokens" in crew_projects.log(root)
    assert "tokens unknown" in crew_projects.log(root)
