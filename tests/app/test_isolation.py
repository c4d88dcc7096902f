"""What happens outside of an agent's worktree is seen, and what dead attempts left is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import crew_projects
from oodatcaa.app.desk import StoryWorkspace
from oodatcaa.app.isolation import (
    keep_look,
    kept_look,
    look,
    note,
    refuse_trespass,
    trespasses,
)
from oodatcaa.app.people import refuse_strayed
from oodatcaa.app.project import Project
from oodatcaa.app.starting import reclaim, tidy_worktree
from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec
from oodatcaa.domain.task import Role, Subtask
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates import GateRequest, GateRunner
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
    return make_project(tmp_path / "project")


def worktree(project: Project) -> Path:
    story = project.board().story_by_id["T001"]
    return project.repo.story_worktree("T001", story.branch, "main")


def test_its_own_worktree_and_the_frameworks_work_are_fine(project: Project) -> None:
    plan(project, "T001", change=gated)
    before = look(project, "T001-B01", 1)
    build(project, "T001-B01")  # commits on the story's branch, stores evidence
    tree = worktree(project)
    (tree / "scratch.txt").write_text("anything")
    git(tree, "commit", "-q", "--allow-empty", "-m", "more")
    verify(project, "T001-T01")
    type_command(project.root, "agent", "integrator", "--once")
    assert project.board().story_by_id["T001"].status.value == "done"
    assert trespasses(project, before) == ()


def test_every_trespass_is_named_and_refused(project: Project) -> None:
    plan(project, "T001")
    build(project, "T001-B01")
    root = project.root
    before = look(project, "T001-T01", 1)
    keep_look(project, before, "tester-A")
    assert kept_look(project, "T001-T01", 1) == before
    assert kept_look(project, "T001-T01", 2) is None

    (root / "README.md").write_text("agents were here\n")
    (root / "left.txt").write_text("x")
    git(root, "update-index", "--skip-worktree", ".gitignore")
    (root / ".gitignore").write_text("hidden from git status\n")
    git(root, "branch", "sneaky")
    git(root, "tag", "T002-complete", "feat/T001-" + project.board().story_by_id["T001"].slug)
    git(root, "config", "alias.st", "!evil")
    hook = root / ".git/hooks/post-commit"
    hook.write_text("#!/bin/sh\n")
    evidence = next((project.work / "evidence/T001").glob("*.json"))
    text = evidence.read_text().replace('"passed"', '"failed"')
    os.utime(evidence, (1, 1))
    evidence.write_text(text)
    record = next((project.work / "plans/T001").glob("plan-v1.json"))
    record.unlink()
    queue = project.work / "SPRINT_QUEUE.json"
    queue.write_text(queue.read_text().replace('"estimate_minutes": ', '"estimate_minutes": 1'))
    git(root, "commit", "-q", "--allow-empty", "-m", "straight onto main")

    found = "\n".join(trespasses(project, before))
    for words in (
        "main checkout: README.md was changed",
        "main checkout: left.txt was changed",
        "main checkout: .gitignore was changed",
        "refs/heads/sneaky was made",
        "refs/tags/T002-complete was made",
        "refs/heads/main was moved",
        ".git/config was changed",
        ".git/hooks/post-commit was made",
        f"evidence/T001/{evidence.name} was changed",
        "plans/T001/plan-v1.json was deleted",
        "SPRINT_QUEUE.json was",
    ):
        assert words in found, found
    with pytest.raises(OodatcaaError) as refused:
        refuse_trespass(project, before, "tester-A")
    assert refused.value.code == "isolation"
    assert "outside of its worktree" in refused.value.message
    assert "left.txt" in type_command(root, "log", "--task", "T001-T01", "--json")
    assert (root / "left.txt").exists()  # nothing is put back: it may be a person's work


def test_a_move_of_the_target_is_not_proven_by_a_file(project: Project) -> None:
    before = look(project, "T001-B01", 1)
    old = project.repo.resolve("main")
    git(project.root, "commit", "-q", "--allow-empty", "-m", "nobody tested this")
    new = project.repo.resolve("main")
    forged = project.work / "integrations" / f"{new}.txt"
    forged.parent.mkdir(exist_ok=True)
    forged.write_text(f"main {old} {new} T001\n")
    # nor by words that an agent can bring into the history
    note(project, "T001-B01", "agent", "moves", (f"main {old} {new}",))
    assert trespasses(project, before) == ("refs/heads/main was moved",)


@pytest.mark.parametrize("forge", [Path.unlink, lambda path: path.write_text("{}")])
def test_a_look_that_was_tampered_with_is_no_look(
    project: Project, forge: Callable[[Path], object]
) -> None:
    plan(project, "T001")
    build(project, "T001-B01")
    held = take(project, Role.TESTER, "T001-T01")
    keep_look(project, look(project, held.id, held.attempt), "tester-A")
    forge(project.work / "guards" / f"{held.id}-a{held.attempt}.json")
    with pytest.raises(OodatcaaError) as refused:
        refuse_strayed(project, held, "tester-A")
    assert refused.value.code == "isolation.unreadable"
    after = project.board().find(held.id)
    assert after is not None
    assert after.status.value == "needs_adapt"


@pytest.mark.parametrize("flag", ["", "--skip-worktree", "--assume-unchanged"])
def test_what_a_dead_attempt_left_is_parked_and_named(project: Project, flag: str) -> None:
    """Also when git was told to overlook it."""
    plan(project, "T001")
    build(project, "T001-B01")
    tree = worktree(project)
    if flag:
        git(tree, "update-index", flag, "notes/T001.md")
    else:
        (tree / "half.md").write_text("half a thought\n")
    (tree / "notes/T001.md").write_text("changed\n")
    task = project.board().find("T001-B01")
    assert isinstance(task, Subtask)
    tidy_worktree(project, task, "builder-A", project.plans.load("T001", 1))
    assert git(tree, "status", "--porcelain") == ""
    (ref,) = git(project.root, "for-each-ref", "--format=%(refname)", "refs/oodatcaa").splitlines()
    assert flag or git(project.root, "show", f"{ref}:half.md") == "half a thought"
    assert git(project.root, "show", f"{ref}:notes/T001.md") == "changed"
    assert (tree / "notes/T001.md").read_text() != "changed\n"
    assert ref in type_command(project.root, "log", "--task", "T001-B01")


def test_reclaiming_keeps_unmerged_commits_and_uncommitted_work(project: Project) -> None:
    plan(project, "T001")
    build(project, "T001-B01")
    tree = worktree(project)
    (tree / "half.md").write_text("half\n")
    branch = project.board().story_by_id["T001"].branch
    head = project.repo.resolve(branch)
    assert reclaim(project, "crew") == ()  # somebody may still work on it
    assert tree.exists()
    cancel_story(project, "T001")
    (line,) = reclaim(project, "crew")
    assert not tree.exists()
    ref = line.split()[-1]
    assert git(project.root, "show", f"{ref}:half.md") == "half"
    assert project.repo.resolve(branch) == head
    assert ref in type_command(project.root, "log")


def test_a_merge_that_a_killed_integrator_made_is_parked(project: Project) -> None:
    chain = project.repo.merge_chain("main", "T001")
    tree = chain.__enter__().worktree
    git(tree, "commit", "-q", "--allow-empty", "-m", "only here")
    sha = git(tree, "rev-parse", "HEAD")
    seen: list[str] = []
    gone = project.repo.prune_checks(lambda _: False, lambda _path, ref: seen.append(ref))
    assert gone == (tree,)
    assert not tree.exists()
    assert project.repo.resolve(seen[0]) == sha


def test_a_check_that_uses_the_queue_gets_a_copy(project: Project) -> None:
    line = f"{sys.executable} -m oodatcaa cancel T001 --why rehearsal"
    evidence = run_gate(project, line)
    assert evidence.verdict.value == "passed", evidence.output_tail
    assert "T001 is cancelled" in evidence.output_tail
    assert project.board().story_by_id["T001"].status.value == "needs_plan"
    assert trespasses(project, look(project, "T001-B01", 1)) == ()


def run_gate(project: Project, line: str) -> Evidence:
    spec = GateSpec(id="G1", name="g", kind=GateKind.COMMAND, command=line)
    request = GateRequest(story="T001", task="T001", attempt=1, commit="main", gates=(spec,))
    (found,) = GateRunner(project.repo, project.evidence).run(request)
    return found


def test_an_agent_that_writes_elsewhere_is_refused_then_does_it_well(tmp_path: Path) -> None:
    work_of = [
        {"write": "greeter.py", "text": crew_projects.GOOD},
        {"write": "tests/test_greeter.py", "text": crew_projects.TEST},
    ]
    stray = str(tmp_path / "project/stray.txt")
    naughty = [*work_of, {"write": stray, "text": "x"}, {"done": "all tests pass"}]
    root = crew_projects.crew(tmp_path, naughty, [*work_of, {"done": "all tests pass"}])
    assert crew_projects.work(root) == "done"
    first = crew_projects.task(root, "T001-B01")
    assert first.failure is not None
    assert first.failure.kind == "isolation"
    assert "stray.txt was changed" in crew_projects.log(root)
    assert (tmp_path / "project/stray.txt").exists()


def test_an_agent_that_redirects_its_worktree_commits_nowhere(tmp_path: Path) -> None:
    files = [
        {"write": "greeter.py", "text": crew_projects.GOOD},
        {"write": "tests/test_greeter.py", "text": crew_projects.TEST},
    ]
    link = {"write": ".git", "text": f"gitdir: {tmp_path / 'project/.git'}\n"}
    root = crew_projects.crew(tmp_path, [*files, link, {"done": "x"}], [*files, {"done": "x"}])
    before = crew_projects.git(root, "rev-parse", "main")
    assert crew_projects.work(root) == "done"
    failed = crew_projects.task(root, "T001-B01").failure
    assert failed is not None
    assert "leads to" in failed.summary or "does not lead" in failed.summary
    first = crew_projects.git(root, "rev-list", "--first-parent", f"{before.strip()}..main")
    assert len(first.split()) == 2, "the merge and its records, nothing else"


def test_a_worktree_on_a_branch_of_somebody_else_is_refused(project: Project) -> None:
    story = project.board().story_by_id["T001"]
    workspace = StoryWorkspace(project, "T001", story.branch, "main")
    git(workspace.path, "symbolic-ref", "HEAD", "refs/heads/main")
    head = project.repo.resolve("main")
    (workspace.path / "evil.txt").write_text("x")
    with pytest.raises(OodatcaaError, match="is on main"):
        workspace.commit(["."], "on main")
    with pytest.raises(OodatcaaError, match="is on main"):
        workspace.head()
    assert project.repo.resolve("main") == head


def test_one_that_writes_elsewhere_again_is_a_persons_business(tmp_path: Path) -> None:
    bad = [{"write": "greeter.py", "text": crew_projects.BAD}, {"done": "all tests pass"}]
    stray = str(tmp_path / "project/stray.txt")
    naughty = [{"append": stray, "text": "x"}, *bad]
    root = crew_projects.crew(tmp_path, naughty, bad, naughty)
    assert crew_projects.work(root) == "needs_human"
    story = crew_projects.task(root, "T001")
    assert story.reason.startswith("trespass: "), story.reason
    assert crew_projects.task(root, "T001-B03").failure is not None
