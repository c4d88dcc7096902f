"""Several ready stories, one target: batches, bisection, conflicts, and a target that is in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from crew_boards import GATE, plan_for
from oodatcaa.app.people import approve_story, waive_gate
from oodatcaa.app.project import Project
from oodatcaa.app.starting import tidy_worktree
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.goals import ArtifactCheck, Goals, Truth
from oodatcaa.domain.lifecycle import initial_story
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Role, StoryKind, Subtask
from oodatcaa.errors import StateError
from oodatcaa.kit.locks import FileLock
from real_project import (
    build,
    cancel_story,
    gated,
    git,
    make_project,
    plan,
    take,
    type_command,
    verify,
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A sprint of four stories that do not depend on each other."""
    project = make_project(tmp_path / "project")

    def more(board: Board, now: datetime) -> Decision[None]:
        for number in range(6, 10):
            story = initial_story(
                now, id=f"T{number:03d}", slug=f"s{number}", kind=StoryKind.CUSTOM,
                title=f"story {number}", estimate_minutes=5,
            )  # fmt: skip
            board = board.with_task(story)
        return Decision(board, None)

    project.store.transact(more)
    for number in range(1, 6):
        cancel_story(project, f"T{number:03d}")
    return project


def ready(project: Project, story: str, gate: str = "", goals: Goals | None = None) -> None:
    """Planned, built and tested; `gate` is a quality gate of its own."""

    def change(made: Plan) -> Plan:
        made = gated(made)
        if gate:
            own = GATE.evolve(id="G2", command=gate)
            gates = (*made.test_plan.quality_gates, own)
            made = made.evolve(test_plan=made.test_plan.evolve(quality_gates=gates))
        return made.evolve(goals=goals) if goals else made

    plan(project, story, change=change)
    build(project, f"{story}-B01")
    verify(project, f"{story}-T01")


def integrator(project: Project) -> str:
    return type_command(project.root, "agent", "integrator", "--once")


def statuses(project: Project) -> dict[str, str]:
    return {s.id: s.status.value for s in project.board().stories if s.id > "T005"}


def test_a_branch_that_changes_the_rules_waits_for_a_person(project: Project) -> None:
    (project.root / "tests").mkdir()
    (project.root / "tests/test_old.py").write_text("def test_old():\n    assert 1\n")
    git(project.root, "add", "tests")
    git(project.root, "commit", "-qm", "a test")
    story = project.board().story_by_id["T006"]
    plan(project, "T006", change=gated)
    tree = project.repo.story_worktree("T006", story.branch, "main")
    (tree / "tests/test_old.py").unlink()
    config = tree / ".oodatcaa/config.toml"
    config.write_text(config.read_text() + "\n[agents]\nretries = 0\n")
    build(project, "T006-B01")  # commits all of it
    verify(project, "T006-T01")
    integrator(project)
    held = project.board().story_by_id["T006"]
    assert held.status.value == "needs_human"
    assert "it may change .oodatcaa/config.toml" in held.reason
    gate = f"RULES-{project.repo.resolve(story.branch)[:12]}"
    waive_gate(project, "T006", gate, "Kim", "I read it", 1)
    approve_story(project, "T006", "Kim", "go on")
    integrator(project)
    assert statuses(project)["T006"] == "done"
    kept = [
        path.read_text()
        for path in (project.root / ".oodatcaa/history").glob("*/T006/reports/*.md")
    ]
    (text,) = [text for text in kept if "what judges later stories" in text]
    assert ".oodatcaa/config.toml" in text
    assert "(deleted)" in text


def test_ready_stories_land_together_and_a_bad_one_is_found(project: Project) -> None:
    for story in ("T006", "T007", "T009"):
        ready(project, story)
    ready(project, "T008", "test ! -f notes/T008.md")  # fails wherever T008 is merged
    before = project.repo.resolve("main")
    output = integrator(project)
    assert "the gates fail on T006, T007, T008, T009 together; trying 2 of them" in output
    assert statuses(project) == {
        "T006": "done", "T007": "done", "T008": "ready_for_integrator",
        "T009": "ready_for_integrator",
    }  # fmt: skip
    integrator(project)
    assert statuses(project)["T008"] == "needs_adapt"
    integrator(project)
    assert statuses(project)["T009"] == "done"
    board = project.board()
    main = project.repo.resolve("main")
    assert project.repo.is_ancestor(before, main)
    for name in ("T006", "T007", "T009"):
        proof = board.story_by_id[name].integration
        assert proof is not None
        assert git(project.root, "rev-parse", f"{proof.merge_commit}^2")  # a merge of its own
        assert project.repo.is_ancestor(project.repo.resolve(proof.tag), main)
        assert all(project.evidence.load(item).acceptable for item in proof.evidence)
        assert (project.root / f"notes/{name}.md").exists()
    assert not (project.root / "notes/T008.md").exists()
    first, second = (board.story_by_id[name].integration for name in ("T006", "T007"))
    assert first is not None
    assert second is not None
    assert set(first.evidence) & set(second.evidence)  # the same gate ran once for both
    assert git(project.root, "status", "--porcelain") == ""


def sneak_in(project: Project, story: str) -> tuple[str, str]:
    """Somebody commits to the story's branch; its head before and after."""
    branch = project.board().story_by_id[story].branch
    tree = project.repo.story_worktree(story, branch, "main")
    (tree / "sneaked.txt").write_text("nobody tested this\n")
    before = project.repo.resolve(branch)
    project.repo.commit_files(tree, None, "[impl] quickly")
    return before, project.repo.resolve(branch)


def test_only_the_tested_commit_is_merged(project: Project) -> None:
    ready(project, "T006")
    ready(project, "T007")
    tested, head = sneak_in(project, "T006")
    output = integrator(project)
    story = project.board().story_by_id["T006"]
    assert story.status.value == "needs_human"
    assert f"stands at {head[:12]}, but {tested[:12]} was tested" in story.reason
    assert not (project.root / "sneaked.txt").exists()
    ready(project, "T008")
    sneak_in(project, "T008")
    output = integrator(project)  # holds T007
    assert "T008 is left out of this batch" in output
    assert statuses(project)["T007"] == "done"
    assert not (project.root / "sneaked.txt").exists()
    tree = project.repo.story_worktree("T006", story.branch, "main")
    git(tree, "reset", "-q", "--hard", tested)
    type_command(project.root, "approve", "T006", "--why", "set back")
    output = integrator(project)
    assert statuses(project)["T006"] == "done", output


def test_only_what_a_build_handed_in_is_tested(project: Project) -> None:
    plan(project, "T006", change=gated)
    build(project, "T006-B01")
    built, head = sneak_in(project, "T006")
    output = type_command(project.root, "agent", "tester", "--once", expect=0)
    item = project.board().subtask_by_id["T006-T01"]
    assert item.status.value == "needs_adapt", output
    assert f"stands at {head[:12]}, but its builds handed in {built[:12]}" in item.reason


def test_a_broken_story_does_not_send_another_one_to_a_person(project: Project) -> None:
    ready(project, "T006")
    ready(project, "T007")
    (project.plans.folder("T007") / "plan-v1.json").write_text("{")
    output = integrator(project)
    assert "T007 is left out of this batch" in output
    assert statuses(project)["T006"] == "done"


def test_an_integrator_that_died_before_it_said_done_is_found_out(project: Project) -> None:
    ready(project, "T006")
    branch = project.board().story_by_id["T006"].branch
    tip = project.repo.resolve(branch)
    with project.repo.merge_into("main", branch, "Merge T006", "T006") as candidate:
        assert candidate.merge is not None
        merge = candidate.merge
        project.repo.advance("main", candidate.sha, candidate.base)
    project.repo.tag("T006-complete", merge, "T006")
    (project.root / "later.txt").write_text("a person went on\n")
    git(project.root, "add", ".")
    git(project.root, "commit", "-qm", "by hand")
    integrator(project)
    story = project.board().story_by_id["T006"]
    assert story.integration is not None, story.reason
    assert (story.integration.merge_commit, story.integration.tag) == (merge, "T006-complete")
    assert git(project.root, "rev-parse", f"{merge}^2") == tip
    assert git(project.root, "tag", "--list", "*T006*") == "T006-complete"


def test_the_history_holds_the_integrators_own_report(project: Project) -> None:
    ready(project, "T006")
    integrator(project)
    folder = project.root / ".oodatcaa/history/sprint-1/T006/reports"
    kept = json.loads((folder / "integrator.json").read_text())
    proof = project.board().story_by_id["T006"].integration
    assert proof is not None
    assert proof.merge_commit[:12] in kept["summary"][0]
    assert [item["id"] for item in kept["evidence"]] == list(proof.evidence)
    assert "T006-complete" in (folder / "integrator.md").read_text()
    assert git(project.root, "status", "--porcelain") == ""


def test_a_conflict_goes_to_the_refiner_with_its_paths(project: Project) -> None:
    ready(project, "T006")
    (project.root / "notes").mkdir()
    (project.root / "notes/T006.md").write_text("a person was faster\n")
    git(project.root, "add", ".")
    git(project.root, "commit", "-qm", "by hand")
    before = project.repo.resolve("main")
    integrator(project)
    story = project.board().story_by_id["T006"]
    assert story.status.value == "needs_adapt"
    assert story.failure is not None
    assert (story.failure.kind, story.failure.gates) == ("conflict", ("notes/T006.md",))
    assert project.repo.resolve("main") == before
    old = project.repo.resolve(story.branch)
    type_command(project.root, "agent", "refiner", "--once")
    board = project.board()
    assert board.story_by_id["T006"].plan_version == 2
    (again,) = [item for item in board.subtasks_of("T006") if item.status.value == "ready"]
    held = take(project, Role.BUILDER, again.id)
    assert isinstance(held, Subtask)
    project.repo.story_worktree("T006", story.branch, "main")
    tidy_worktree(project, held, "builder-A", project.plans.load("T006", 2))
    assert project.repo.resolve(story.branch) == before  # it begins again at the target
    refs = git(project.root, "for-each-ref", "--format=%(objectname)", "refs/oodatcaa/parked")
    assert old in refs.splitlines()
    assert "begins again at main" in type_command(project.root, "log", "--task", again.id)


def test_a_dirty_target_is_left_alone_and_a_person_is_asked(project: Project) -> None:
    ready(project, "T006")
    (project.root / "README.md").write_text("unfinished\n")
    integrator(project)
    story = project.board().story_by_id["T006"]
    assert story.status.value == "needs_human"
    assert "uncommitted work" in story.reason
    assert (project.root / "README.md").read_text() == "unfinished\n"
    git(project.root, "checkout", "-q", "README.md")
    type_command(project.root, "approve", "T006", "--why", "put away")
    integrator(project)
    assert statuses(project)["T006"] == "done"


@pytest.mark.slow
def test_goals_are_checked_on_the_merge_and_people_are_asked(project: Project) -> None:
    goals = Goals(
        truths=(
            Truth(statement="it reads well"),
            Truth(statement="there", command="test -d notes"),
        ),
        artifacts=(ArtifactCheck(path="notes/T006.md", contains=("attempt",)),),
    )
    ready(project, "T006", goals=goals)
    ready(project, "T007")
    integrator(project)
    story = project.board().story_by_id["T006"]
    assert story.status.value == "needs_human"
    assert "a person decides whether this is true: it reads well" in story.reason
    type_command(project.root, "waive", "T006", "GT1", "--why", "I read it", "--hours", "1")
    type_command(project.root, "approve", "T006", "--why", "it does")
    integrator(project)
    assert statuses(project)["T006"] == "done"
    proof = project.board().story_by_id["T006"].integration
    assert proof is not None
    found = {project.evidence.load(item).gate.id: item for item in proof.evidence}
    assert {"GT1", "GT2", "GA1"} <= found.keys()
    assert project.evidence.load(found["GT1"]).detail.startswith("waived by")
    history = project.root / ".oodatcaa/history/sprint-1/T006/evidence.json"
    kept = {item["gate"]: item for item in json.loads(history.read_text())}
    assert kept["GA1"]["verdict"] == "passed"
    assert "output_tail" not in kept["GT2"]


def test_one_integrator_at_a_time(project: Project) -> None:
    ready(project, "T006")
    folder = project.work / "locks"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "integrate-main.lock")
    assert lock.try_acquire()
    waiting = subprocess.Popen(
        [sys.executable, "-m", "oodatcaa", "agent", "integrator", "--once"],
        cwd=project.root, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert waiting.stdout is not None
    lines = []
    for line in waiting.stdout:
        lines.append(line)
        if "waits: another integrator is at main" in line:
            assert statuses(project)["T006"] == "integrating"
            lock.release()
    assert waiting.wait(60) == 0
    lock.close()
    assert any("waits" in line for line in lines), lines
    assert statuses(project)["T006"] == "done"


def test_a_reader_that_was_faster_does_not_break_the_acceptance_of_a_plan(project: Project) -> None:
    made = plan_for(project.board().story_by_id["T006"])
    project.plans.propose(made, 1)
    assert project.plans.load("T006", 1) == made  # finishes the acceptance
    project.plans.accept(made, 1)
    with pytest.raises(StateError):
        project.plans.accept(made.evolve(goal="another"), 1)


def test_no_gate_is_waived_before_there_is_a_plan(project: Project) -> None:
    words = ("waive", "T006", "AC1", "--why", "x", "--hours", "1")
    assert "has no plan yet" in type_command(project.root, *words, expect=4)


def test_an_agent_of_the_crew_can_not_approve_or_cancel(project: Project) -> None:
    before = project.board()
    for words in (("approve", "T006"), ("cancel", "T006")):
        shown = type_command(project.root, *words, "--why", "x", "--as", "builder-A", expect=4)
        assert "person.needed" in shown
    assert project.board() == before
