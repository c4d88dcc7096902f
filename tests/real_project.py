"""A real project in a temporary folder, and stories that live their whole life in it: real
repository, worktrees, plans, evidence and merges; only the training is left out."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from crew_boards import AC, GATE, plan_for
from oodatcaa.app import claims
from oodatcaa.app.init import init_project
from oodatcaa.app.project import Project, open_project
from oodatcaa.app.sprints import new_sprint
from oodatcaa.app.templates import objective_text
from oodatcaa.domain import submission
from oodatcaa.domain.evidence import Evidence, GateSpec, Verdict
from oodatcaa.domain.people import cancel
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.planning import submit_plan
from oodatcaa.domain.task import Integration, Role, Task, story_of

FILE = "notes/{story}.md"


def git(folder: Path, *words: str, check: bool = True) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def type_command(folder: Path, *words: str, expect: int = 0) -> str:
    """Type `oodatcaa …` in `folder` as a person would; stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "oodatcaa", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def make_project(root: Path, model: str = "demo") -> Project:
    """A repository with one commit, initialised, with an open sprint of five stories."""
    root.mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "Ada")
    git(root, "config", "user.email", "ada@example.org")
    (root / "README.md").write_text("# A project\n", encoding="utf-8")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    init_project(root, commit=True, objective=objective_text(model=model))
    project = open_project(root)
    new_sprint(project)
    return project


def take(project: Project, role: Role, task: str) -> Task:
    return claims.claim(
        project.store, project.policy, role=role, owner=f"{role.value}-A", task=task, manual=True
    )


def gated(made: Plan) -> Plan:
    """The plan with a quality gate that passes, so that it can really be integrated."""
    gate = GATE.evolve(id="G1", command="test -f README.md")
    return made.evolve(test_plan=made.test_plan.evolve(quality_gates=(gate,)))


def plan(
    project: Project,
    story: str,
    *,
    builds: int = 1,
    change: Callable[[Plan], Plan] = lambda made: made,
) -> None:
    held = take(project, Role.PLANNER, story)
    known = project.board().story_by_id[story]
    used = [item.id for item in project.board().subtasks_of(story)]
    first = 1 + max((int(item[-2:]) for item in used), default=0)
    made = change(plan_for(known, builds=builds, first=first).evolve(created_at=datetime.now(UTC)))
    project.plans.propose(made, held.attempt)
    project.store.transact(
        lambda board, now: submit_plan(
            board, now, story=story, owner="planner-A", attempt=held.attempt, plan=made
        )
    )
    project.plans.accept(made, held.attempt)


def store_evidence(
    project: Project, task: Task, gate: GateSpec, commit: str, verdict: Verdict = Verdict.PASSED
) -> Evidence:
    story = story_of(task.id)
    name = project.evidence.reserve(story, task.id, task.attempt, gate.id)
    path = project.evidence.output_file(name)
    path.write_text(f"{gate.name}: {verdict.value}\n", encoding="utf-8")
    found = Evidence(
        id=name,
        gate=gate,
        verdict=verdict,
        story=story,
        task=task.id,
        attempt=task.attempt,
        commit=commit,
        detail=verdict.value,
        command=gate.command,
        exit_code=0 if verdict is Verdict.PASSED else 1,
        output_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        output_path=project.evidence.relative(path),
        host="here",
        started_at=datetime.now(UTC),
        duration_seconds=0.5,
    )
    project.evidence.save(found)
    return found


def build(project: Project, subtask: str, verdict: Verdict = Verdict.PASSED) -> str:
    story = project.board().story_by_id[story_of(subtask)]
    held = take(project, Role.BUILDER, subtask)
    tree = project.repo.story_worktree(story.id, story.branch, "main")
    path = tree / FILE.format(story=story.id)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{subtask} attempt {held.attempt}\n", encoding="utf-8")
    commit = project.repo.commit_files(tree, None, f"[impl] {subtask}") or ""
    seen = store_evidence(project, held, GATE, commit, verdict)
    project.store.transact(
        lambda board, now: submission.submit_build(
            board,
            now,
            subtask=subtask,
            owner="builder-A",
            attempt=held.attempt,
            commit=commit,
            artefacts=(),
            evidence=(seen,),
            gates=(GATE,),
            failure=None,
        )
    )
    claims.run_negotiation(project.store, project.policy)
    return commit


def verify(project: Project, subtask: str) -> None:
    story = project.board().story_by_id[story_of(subtask)]
    held = take(project, Role.TESTER, subtask)
    commit = project.repo.resolve(story.branch)
    seen = store_evidence(project, held, AC, commit)
    project.store.transact(
        lambda board, now: submission.submit_test(
            board,
            now,
            subtask=subtask,
            owner="tester-A",
            attempt=held.attempt,
            commit=commit,
            evidence=(seen,),
            gates=(AC,),
        )
    )


def integrate(project: Project, story_id: str) -> None:
    story = project.board().story_by_id[story_id]
    held = take(project, Role.INTEGRATOR, story_id)
    with project.repo.merge_into("main", story.branch, f"Merge {story_id}", story_id) as candidate:
        assert candidate.merge is not None
        seen = store_evidence(project, held, GATE, candidate.sha)
        done = project.repo.advance("main", candidate.sha, candidate.base)
    tag = f"{story_id}-complete"
    project.repo.tag(tag, done.sha, story.title)
    proof = Integration(
        target="main",
        merge_commit=candidate.merge,
        tag=tag,
        evidence=(seen.id,),
        artefacts=(FILE.format(story=story_id),),
        at=datetime.now(UTC),
    )
    project.store.transact(
        lambda board, now: submission.submit_integration(
            board,
            now,
            story=story_id,
            owner="integrator-A",
            attempt=held.attempt,
            integration=proof,
            commit=seen.commit,
            evidence=(seen,),
            gates=(GATE,),
        )
    )
    project.repo.remove_story_worktree(story_id)
    claims.run_negotiation(project.store, project.policy)


def finish(project: Project, story: str) -> None:
    """The whole life of a story whose dependencies are done."""
    plan(project, story)
    build(project, f"{story}-B01")
    verify(project, f"{story}-T01")
    integrate(project, story)


def cancel_story(project: Project, story: str) -> None:
    project.store.transact(lambda board, now: cancel(board, now, task=story, by="Kim", why="no"))
