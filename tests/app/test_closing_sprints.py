"""Sprints end in one commit and a tag, whatever a person has in the folder; nothing is lost when
the closing is killed, and what is unfinished goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oodatcaa.app import claims
from oodatcaa.app.archiving import end_sprint, half_closed
from oodatcaa.app.doctor import diagnose, mend
from oodatcaa.app.history import entries, sprint_metrics
from oodatcaa.app.project import Project, open_project
from oodatcaa.app.sprints import new_sprint
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.lifecycle import invariants
from oodatcaa.domain.submission import submit_build
from oodatcaa.domain.task import Role
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.faults import VARIABLE
from real_project import (
    build,
    cancel_story,
    git,
    integrate,
    make_project,
    plan,
    take,
    type_command,
    verify,
)

HISTORY = ".oodatcaa/history/sprint-1"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = make_project(tmp_path / "project")
    plan(made, "T001")
    build(made, "T001-B01")
    return made


def commits(project: Project) -> list[str]:
    return git(project.root, "log", "--format=%s", "main").splitlines()


def at_head(project: Project) -> set[str]:
    return set(git(project.root, "ls-tree", "-r", "--name-only", "main", HISTORY).splitlines())


def test_a_sprint_becomes_one_commit_and_a_tag(project: Project) -> None:
    verify(project, "T001-T01")
    integrate(project, "T001")
    report = project.work / "reports" / "T001" / "R-T001.md"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("# What came of it\n", encoding="utf-8")
    before = commits(project)
    type_command(project.root, "negotiate")
    assert (project.work / "SPRINT_PLAN.md").exists()
    said = type_command(project.root, "sprint", "close")
    assert "tag sprint-1" in said
    assert not (project.work / "SPRINT_PLAN.md").exists()
    assert "T003 moves on: Train with QLoRA" in said
    assert commits(project)[1:] == before
    assert commits(project)[0].startswith("[archive] Sprint 1:")
    tagged, head = git(project.root, "rev-parse", "sprint-1^{commit}", "main").split()
    assert tagged == head
    assert git(project.root, "cat-file", "-t", "sprint-1") == "tag"
    kept = {path.removeprefix(f"{HISTORY}/") for path in at_head(project)}
    assert kept >= {
        "SPRINT_QUEUE.json",
        "AGENT_LOG.md",
        "SPRINT_REPORT.md",
        "RETROSPECTIVE.md",
        "metrics.json",
        "T001/plans/plan-v1.json",
        "T001/plans/AGENT_PLAN.md",
        "T001/evidence.json",
        "T001/reports/R-T001.md",
    }
    assert git(project.root, "status", "--porcelain") == ""
    page = (project.root / HISTORY / "RETROSPECTIVE.md").read_text(encoding="utf-8")
    assert "1 of 5 stories integrated into `main`" in page
    assert "- T002 Build and validate the data: needs plan" in page
    assert "- Integrated without any adaptation: T001." in page
    assert "### Estimate against actual" in page
    assert "| T001-B01 |" in page
    assert sprint_metrics(open_project(project.root), 1).stories_done == 1
    assert "sprint 1 is open" in type_command(project.root, "log", "--all")
    assert "next: oodatcaa sprint new" in type_command(project.root, "log")
    assert '"sprint": 1' in type_command(project.root, "log", "--sprint", "1", "--json")
    shown = type_command(project.root, "show", "T001-T01")
    assert "of sprint 1, which is closed" in shown
    assert "done" in shown
    assert "next: oodatcaa log --sprint 1 --task T001-T01" in shown
    assert json.loads(type_command(project.root, "show", "T001", "--json"))["status"] == "done"
    assert "[task.unknown]" in type_command(project.root, "show", "T099", expect=4)
    assert "[sprint.none]" in type_command(project.root, "sprint", "close", expect=4)


def test_what_is_unfinished_goes_on_with_its_history(project: Project) -> None:
    with pytest.raises(RefusedError) as caught:
        new_sprint(project)
    assert caught.value.code == "sprint.open"
    verify(project, "T001-T01")
    integrate(project, "T001")
    plan(project, "T002", builds=2)
    build(project, "T002-B01", Verdict.FAILED)
    old = project.board().subtask_by_id["T002-B01"]
    evidence = project.evidence.of_story("T002")
    end_sprint(project, "Kim")
    board = new_sprint(project)
    assert board.sprint is not None
    assert board.sprint.number == 2
    assert {story.id: story.status.value for story in board.stories} == {
        "T001": "done",
        "T002": "needs_plan",
        "T003": "blocked",
        "T004": "blocked",
        "T005": "blocked",
    }
    assert invariants(board, project.policy) == ()
    assert project.plans.load("T001", 1).version == 1  # T003 builds on it: it stays at hand
    assert project.plans.load("T002", 1).version == 1
    assert project.evidence.of_story("T002") == evidence
    plan(project, "T002")
    now = project.board()
    assert now.story_by_id["T002"].plan_version == 2
    assert [i.id for i in now.subtasks_of("T002") if i.status.value == "ready"] == ["T002-B03"]
    with pytest.raises(OodatcaaError):  # a late result of the closed sprint
        project.store.transact(
            lambda b, at: submit_build(
                b,
                at,
                subtask=old.id,
                owner="builder-A",
                attempt=old.attempt,
                commit="c",
                artefacts=(),
                evidence=(),
                gates=(),
                failure=None,
            )
        )
    build(project, "T002-B03")
    told = list(entries(project, everything=True, task="T002"))
    assert {one.sprint for one in told} == {1, 2}
    assert {one.logged.event.subject for one in told} >= {"T002", "T002-B01", "T002-B03"}
    places = [one.logged.seq for one in told]
    assert places == sorted(places), "one history, in its order"
    assert sprint_metrics(project).stories_total == 4
    end_sprint(project, "Kim")
    assert "T002 moves" not in type_command(project.root, "sprint", "new")


def test_finished_stories_are_put_away_and_ids_are_never_used_again(project: Project) -> None:
    for story in ("T005", "T004", "T003", "T002", "T001"):
        cancel_story(project, story)
    closed = end_sprint(project, "Kim")
    assert closed.carried.unfinished == ()
    assert not (project.work / "plans" / "T001").exists()
    assert (closed.folder / "plans" / "T001" / "plan-v1.json").exists()
    assert list((closed.folder / "evidence" / "T001").glob("E-*.json"))
    assert [s.id for s in new_sprint(project).stories] == ["T006", "T007", "T008", "T009", "T010"]


def test_a_persons_work_in_the_checkout_is_left_as_it_is(project: Project) -> None:
    (project.root / "README.md").write_text("half an idea\n", encoding="utf-8")
    (project.root / "staged.txt").write_text("staged\n", encoding="utf-8")
    git(project.root, "add", "staged.txt")
    (project.root / "loose.txt").write_text("loose\n", encoding="utf-8")
    before = git(project.root, "status", "--porcelain")
    end_sprint(project, "Kim")
    assert git(project.root, "status", "--porcelain") == before
    assert (project.root / "README.md").read_text(encoding="utf-8") == "half an idea\n"
    assert (project.root / HISTORY / "RETROSPECTIVE.md").exists()
    assert not {"staged.txt", "README.md", "loose.txt"} & set(
        git(project.root, "show", "--format=", "--name-only", "sprint-1").splitlines()
    )


@pytest.mark.parametrize("where", ["other", "--detach"])
def test_the_main_checkout_may_be_somewhere_else(project: Project, where: str) -> None:
    git(project.root, *(["switch", "-qc", where] if where == "other" else ["switch", "-q", where]))
    head = git(project.root, "rev-parse", "HEAD")
    end_sprint(project, "Kim")
    assert git(project.root, "rev-parse", "HEAD") == head
    assert f"{HISTORY}/RETROSPECTIVE.md" in at_head(project)
    assert git(project.root, "status", "--porcelain") == ""


def test_hooks_and_signing_of_the_user_do_not_run(project: Project) -> None:
    hook = project.root / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    git(project.root, "config", "commit.gpgSign", "true")
    git(project.root, "config", "gpg.program", "/bin/false")
    end_sprint(project, "Kim")
    assert git(project.root, "log", "-1", "--format=%s", "sprint-1").startswith("[archive]")


def refused(project: Project) -> str:
    revision = project.board().revision
    with pytest.raises(OodatcaaError) as caught:
        end_sprint(project, "Kim")
    assert caught.value.hint
    assert project.board().revision == revision  # nothing was changed
    assert project.board().sprint is not None
    return caught.value.code


def test_what_can_not_be_closed_is_refused_before_anything_is_touched(project: Project) -> None:
    take(project, Role.TESTER, "T001-T01")
    assert refused(project) == "sprint.busy"
    claims.let_go(project.store, task="T001-T01", owner="tester-A", attempt=1, why="x")
    git(project.root, "tag", "sprint-1", "HEAD")
    assert refused(project) == "git.tag_exists"
    git(project.root, "tag", "-d", "sprint-1")
    (project.root / HISTORY).mkdir(parents=True)
    (project.root / HISTORY / "RETROSPECTIVE.md").write_text("mine\n", encoding="utf-8")
    assert refused(project) == "git.target_dirty"
    (project.root / HISTORY / "RETROSPECTIVE.md").unlink()
    git(project.root, "switch", "-qc", "side")
    (project.root / "README.md").write_text("side\n", encoding="utf-8")
    git(project.root, "commit", "-qam", "side")
    git(project.root, "switch", "-q", "main")
    (project.root / "README.md").write_text("main\n", encoding="utf-8")
    git(project.root, "commit", "-qam", "main")
    git(project.root, "merge", "side", check=False)
    assert refused(project) == "git.target_dirty"
    git(project.root, "merge", "--abort")
    git(project.root, "switch", "-q", "side")
    git(project.root, "branch", "-m", "main", "trunk")
    assert refused(project) == "git.no_branch"


POINTS = (
    "archive.sealed",
    "archive.restarted_log",
    "closing.archived",
    "closing.pages",
    "closing.committed",
    "closing.advanced",
    "closing.published",
    "closing.closed",
)


@pytest.mark.parametrize("point", POINTS)
def test_a_closing_that_is_killed_is_completed_by_the_next(project: Project, point: str) -> None:
    project.store.close()
    before = commits(project)
    died = subprocess.run(
        [sys.executable, "-m", "oodatcaa", "sprint", "close"],
        cwd=project.root,
        env={**os.environ, VARIABLE: point},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL
    again = open_project(project.root)
    if half_closed(again):
        with pytest.raises(RefusedError) as caught:
            new_sprint(again)
        assert caught.value.code == "sprint.half_closed"
    if point != "closing.closed":
        end_sprint(again, "Kim")
    assert commits(again)[1:] == before
    assert half_closed(again) == ()
    assert git(again.root, "rev-parse", "sprint-1^{commit}") == git(again.root, "rev-parse", "main")
    carried = json.loads((again.work / "carried.json").read_text(encoding="utf-8"))
    assert [s["id"] for s in carried["stories"]] == ["T001", "T002", "T003", "T004", "T005"]
    assert new_sprint(again).stories[0].plan_version == 1
    assert git(again.root, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    "names", [("SPRINT_QUEUE.json",), ("SPRINT_QUEUE.json", "queue.journal"), ()]
)
def test_an_old_commits_queue_does_not_open_a_closed_sprint(
    project: Project, names: tuple[str, ...]
) -> None:
    """Somebody keeps the live files in git and restores some of them, or all."""
    root, work = project.root, ".oodatcaa/work"
    cancel_story(project, "T001")
    project.store.close()
    git(root, "checkout", "-q", "-b", "backup")
    git(root, "add", "-f", work)
    git(root, "commit", "-qm", "the live files")
    git(root, "rm", "-rq", "--cached", work)
    git(root, "checkout", "-q", "main")
    closed = end_sprint(project, "someone")
    project.store.close()

    git(root, "checkout", "backup", "--", *([f"{work}/{name}" for name in names] or [work]))
    git(root, "reset", "-q")
    restored = [path.read_bytes() for path in project.work.iterdir() if path.is_file()]
    if len(names) == 1:
        assert "no sprint" in type_command(root, "status")
        kept = list(project.work.glob("SPRINT_QUEUE.rejected-*.json"))
    else:
        with pytest.raises(OodatcaaError, match="archive/sprint-1 knows"):
            new_sprint(open_project(root))
        found = diagnose(open_project(root)).findings
        assert "queue.journal_older" in [one.code for one in found]
        assert "queue.journal_older" in [one.code for one in mend(open_project(root)) if one.ok]
        kept = [
            *project.work.glob("SPRINT_QUEUE*.damaged-*"),
            *project.work.glob("queue.journal.*"),
        ]
    assert {path.read_bytes() for path in kept} <= set(restored)
    assert kept
    again = open_project(root)
    assert again.board().sprint is None
    assert git(root, "rev-parse", "sprint-1^{commit}") == closed.commit
    assert new_sprint(again).sprint.number == 2  # type: ignore[union-attr]
