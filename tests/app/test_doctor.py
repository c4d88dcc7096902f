"""Each thing that can be damaged in a real project is damaged here, found, and mended or not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from doctor_projects import (
    codes,
    copied,
    everything,
    found_and_left,
    found_and_mended,
    fresh,
    make_template,
)
from oodatcaa.app import claims
from oodatcaa.app.doctor import Severity, diagnose, mend
from oodatcaa.app.preflight import preflight
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Decision
from oodatcaa.domain.submission import submit_build
from oodatcaa.domain.task import Artefact, ArtefactKind, Role
from oodatcaa.kit.faults import VARIABLE
from oodatcaa.training.identity import usable_cores
from real_project import build, git, take, type_command
from tiny_model import make_tiny_data


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from make_template(tmp_path_factory.mktemp("doctor"))


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return copied(template, tmp_path, monkeypatch)


def test_a_healthy_project_has_no_finding_and_is_left_alone(project: Project) -> None:
    before = everything(project.root)
    found = diagnose(project)
    assert found.findings == ()
    assert len(found.facts) >= 15
    assert mend(project) == ()
    assert everything(project.root) == before
    said = type_command(project.root, "doctor")
    assert "no finding: everything agrees" in said
    data = json.loads(type_command(project.root, "doctor", "--repair", "--json"))
    assert (data["sound"], data["findings"], data["repaired"]) == (True, [], [])


# -- queue, log, leases, sprints


def test_a_damaged_journal(project: Project) -> None:
    journal = project.work / "queue.journal"
    data = journal.read_bytes()
    journal.write_bytes(data.replace(b'"seq":3,', b'"seq":#,', 1))
    assert codes(diagnose(fresh(project))) == ["queue.journal_unreadable"]
    assert "BAD  queue.journal_unreadable" in type_command(project.root, "doctor", expect=3)
    said = type_command(project.root, "doctor", "--repair")
    assert "queue.journal.damaged-" in said
    assert diagnose(fresh(project)).findings == ()
    assert next(project.work.glob("queue.journal.damaged-*")).read_bytes() != data


def lost_entry(text: str) -> str:
    start = text.index("\n## ", text.index("## ") + 3) + 1
    return text[:start] + text[text.index("\n## ", start) + 1 :]


def doubled_entry(text: str) -> str:
    start = text.index("\n## ", text.index("## ") + 3) + 1
    end = text.index("\n## ", start) + 1
    return text[:end] + text[start:end] + text[end:]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lost_entry, "log.missing_entries"),
        (lambda text: text.replace("planner-A claimed T002", "nobody claimed T002"),
         "log.changed_entries"),
    ],
)  # fmt: skip
def test_a_log_that_does_not_say_what_happened(
    project: Project, change: Callable[[str], str], code: str
) -> None:
    path = project.work / "AGENT_LOG.md"
    damaged = change(path.read_text(encoding="utf-8"))
    path.write_text(damaged, encoding="utf-8")
    found_and_mended(project, code)
    kept = next((project.work / "archive").glob("damaged-*/AGENT_LOG.md"))
    assert kept.read_text(encoding="utf-8") == damaged


def test_a_doubled_entry(project: Project) -> None:
    path = project.work / "AGENT_LOG.md"
    path.write_text(doubled_entry(path.read_text(encoding="utf-8")), encoding="utf-8")
    found = found_codes_then_mend(project)
    assert found == ["log.doubled_entries"]


def found_codes_then_mend(project: Project) -> list[str]:
    project = fresh(project)
    found = codes(diagnose(project))
    assert mend(project)
    assert diagnose(project).findings == ()
    assert mend(project) == ()
    return found


def test_the_lease_of_a_dead_process(project: Project) -> None:
    child = (
        "import sys; from pathlib import Path; from oodatcaa.app.project import open_project\n"
        "from oodatcaa.app.claims import claim; from oodatcaa.domain.task import Role\n"
        "p = open_project(Path.cwd())\n"
        "claim(p.store, p.policy, role=Role.BUILDER, owner='builder-A', task='T002-B01')\n"
        "p.store.close()\n"
    )
    subprocess.run([sys.executable, "-c", child], cwd=project.root, check=True, timeout=60)
    assert "T002-B01" in found_and_mended(project, "lease.dead_owner")


def test_a_lease_that_ran_out(project: Project) -> None:
    take(project, Role.BUILDER, "T002-B01")

    def long_ago(board: object, now: datetime) -> Decision[None]:
        task = board.subtask_by_id["T002-B01"]  # type: ignore[attr-defined]
        old = now - timedelta(hours=9)
        lease = task.lease.evolve(claimed_at=old, heartbeat_at=old)
        return Decision(board.with_task(task.evolve(lease=lease)), None)  # type: ignore[attr-defined]

    project.store.transact(long_ago)
    found_and_mended(project, "lease.overdue")


def test_a_lease_on_another_machine_and_one_on_a_finished_task(project: Project) -> None:
    claims.claim(
        project.store, project.policy, role=Role.BUILDER, owner="builder-A", task="T002-B01"
    )

    def elsewhere(board: object, _: datetime) -> Decision[None]:
        task = board.subtask_by_id["T002-B01"]  # type: ignore[attr-defined]
        lease = task.lease.evolve(host="another-machine")
        done = board.subtask_by_id["T001-B01"]  # type: ignore[attr-defined]
        held = done.evolve(lease=lease.evolve(owner="ghost", attempt=1))
        moved = board.with_task(task.evolve(lease=lease)).with_task(held)  # type: ignore[attr-defined]
        return Decision(moved, None)

    project.store.transact(elsewhere)
    found_and_left(project, "lease.finished_task", "lease.other_host", "queue.broken_rule")


def test_the_note_of_a_killed_crew(project: Project) -> None:
    code = (
        "import os, signal; from pathlib import Path; from oodatcaa.kit.locks import FileLock\n"
        "lock = FileLock(Path('.oodatcaa/work/crew.lock')); lock.try_acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project.root, check=False, timeout=60)
    found_and_mended(project, "crew.lock_stale")


def test_more_threads_than_cores_are_a_note(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = usable_cores()
    monkeypatch.setenv("MKL_NUM_THREADS", str(there))
    assert diagnose(project).findings == ()
    monkeypatch.setenv("MKL_NUM_THREADS", str(there + 30))
    (found,) = diagnose(project).findings
    assert (found.code, found.severity) == ("machine.threads", Severity.NOTE)
    assert f"MKL_NUM_THREADS={there + 30}" in found.meaning
    assert f"set it to {there}" in found.meaning
    assert found.meaning in preflight(project, project.objective())


def test_an_objective_that_changed(project: Project) -> None:
    path = project.root / "OBJECTIVE.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nAnd one more thing.\n", encoding="utf-8")
    assert diagnose(fresh(project)).sound
    found_and_left(project, "objective.changed")
    path.write_text("no front matter", encoding="utf-8")
    assert "objective.no_front_matter" in codes(diagnose(fresh(project)))


def test_a_closing_that_was_killed(project: Project) -> None:
    project.store.close()
    subprocess.run(
        [sys.executable, "-m", "oodatcaa", "sprint", "close"],
        cwd=project.root,
        env={**os.environ, VARIABLE: "closing.pages"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    project = fresh(project)
    assert codes(diagnose(project)) == ["crew.lock_stale", "sprint.half_closed"]
    assert "tag sprint-1" in " ".join(one.text for one in mend(project))
    assert diagnose(project).findings == ()
    assert mend(project) == ()
    assert git(project.root, "rev-parse", "sprint-1^{commit}") == git(
        project.root, "rev-parse", "main"
    )


# -- plans and evidence


def test_plans_that_are_gone_invalid_or_another(project: Project) -> None:
    path = project.plans.folder("T002") / "plan-v1.json"
    whole = path.read_text(encoding="utf-8")
    path.unlink()
    found_and_left(project, "plan.missing")
    path.write_text(whole[:200], encoding="utf-8")
    found_and_left(project, "plan.invalid")
    path.write_text(whole.replace("build T002-B01", "build something else"), encoding="utf-8")
    found_and_left(project, "plan.differs")
    path.write_text(whole, encoding="utf-8")
    path.rename(path.with_name("plan-v1.attempt-1.json"))
    found_and_mended(project, "plan.not_promoted")
    (path.parent / "TEST_PLAN.md").unlink()
    found_and_mended(project, "plan.page_missing")
    assert (path.parent / "TEST_PLAN.md").exists()


def test_evidence_that_is_gone_changed_or_of_nobody(project: Project) -> None:
    record = next((project.work / "evidence" / "T001").glob("E-T001-T01-*.json"))
    output = record.with_suffix(".txt")
    said = output.read_bytes()
    output.write_text("all tests pass, believe me\n", encoding="utf-8")
    found_and_left(project, "evidence.output_changed")
    output.unlink()
    found_and_left(project, "evidence.output_changed")
    output.write_bytes(said)
    whole = record.read_text(encoding="utf-8")
    record.write_text("{", encoding="utf-8")
    found_and_left(project, "evidence.missing", "evidence.unreadable")
    record.unlink()
    found = found_and_left(project, "evidence.missing")
    assert "T001-T01 stands on" in found.findings[0].meaning
    record.write_text(whole, encoding="utf-8")
    stranger = project.work / "evidence" / "T777" / "E-T777-B01-a1-001-X1.json"
    stranger.parent.mkdir()
    text = whole.replace(record.stem, stranger.stem).replace('"T001"', '"T777"')
    stranger.write_text(text.replace("evidence/T001/", "evidence/T777/"), encoding="utf-8")
    shutil.copy(output, stranger.with_suffix(".txt"))
    found_and_left(project, "evidence.unknown_story")


# -- git


def test_a_tag_that_is_gone_or_elsewhere(project: Project) -> None:
    git(project.root, "tag", "-d", "T001-complete")
    found_and_left(project, "story.tag_missing")
    git(project.root, "tag", "-f", "T001-complete", "main~1")
    root = git(project.root, "rev-list", "--max-parents=0", "main")
    git(project.root, "tag", "-f", "T001-complete", root)
    found_and_left(project, "story.artefact_missing", "story.tag_moved")


def test_a_merge_that_left_the_target(project: Project) -> None:
    root = git(project.root, "rev-list", "--max-parents=0", "main")
    git(project.root, "checkout", "-q", "--detach")
    git(project.root, "branch", "-f", "main", root)
    assert "story.not_merged" in codes(diagnose(fresh(project)))


def test_the_branch_of_an_unfinished_story(project: Project) -> None:
    build(project, "T002-B01")
    branch = project.board().story_by_id["T002"].branch
    project.repo.remove_story_worktree("T002")
    head = git(project.root, "rev-parse", branch)
    git(project.root, "branch", "-f", branch, "main")
    found_and_left(project, "branch.commit_lost")
    git(project.root, "branch", "-D", branch)
    found = found_and_left(project, "branch.gone")
    assert head[:12] in found.findings[0].repair


def test_worktrees_that_are_left(project: Project) -> None:
    story = project.board().story_by_id["T001"]
    path = project.repo.story_worktree("T001", story.branch, "main")
    (path / "draft.txt").write_text("not yet committed\n", encoding="utf-8")
    found_and_left(project, "worktree.left_with_work")
    assert (path / "draft.txt").exists()
    (path / "draft.txt").unlink()
    found_and_mended(project, "worktree.left")
    assert not path.exists()
    shutil.rmtree(project.repo.story_worktree("T001", story.branch, "main"))
    found_and_mended(project, "worktree.prunable")
    assert git(project.root, "rev-parse", "--verify", story.branch)


def test_uncommitted_work_of_nobody_and_a_folder_of_nobody(project: Project) -> None:
    story = project.board().story_by_id["T002"]
    path = project.repo.story_worktree("T002", story.branch, "main")
    (path / "README.md").write_text("half\n", encoding="utf-8")
    (project.repo.worktrees_dir / "lost-T002-1").mkdir()
    git(project.root, "update-ref", "refs/oodatcaa/parked/T002", "main")
    found_and_left(project, "git.parked", "worktree.uncommitted", "worktree.unknown")
    assert (path / "README.md").read_text(encoding="utf-8") == "half\n"


def test_a_check_worktree_of_a_killed_process(project: Project) -> None:
    code = (
        "import os, signal; from pathlib import Path\n"
        "from oodatcaa.app.project import open_project\n"
        "with open_project(Path.cwd()).repo.check_worktree('main', 'x'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project.root, check=False, timeout=60)
    found_and_mended(project, "worktree.check_left")


def test_live_files_in_git(project: Project) -> None:
    git(project.root, "add", "-f", ".oodatcaa/work/AGENT_LOG.md", "models/runs")
    found = found_and_left(project, "git.live_tracked")
    assert {one.place for one in found.findings} == {".oodatcaa/work", "models"}
    git(project.root, "rm", "-rq", "--cached", ".oodatcaa/work", "models")
    (project.root / ".gitignore").write_text("models/\n", encoding="utf-8")
    found_and_left(project, "git.live_not_ignored")


# -- runs and data


def test_a_run_whose_process_died(project: Project) -> None:
    code = (
        "from pathlib import Path; from oodatcaa.training.runs import RunStore\n"
        "from oodatcaa.domain.training import QLoRA, TrainSpec\n"
        "spec = TrainSpec(backend='mlx', model='m', data_dir='d', params=QLoRA(),\n"
        "                 memory_limit_bytes=10**9)\n"
        "RunStore(Path('models/runs')).create(spec)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project.root, check=True, timeout=60)
    found_and_mended(project, "run.dead_owner")


def test_latest_that_names_the_wrong_run(project: Project) -> None:
    link = project.models / "runs" / "mlx" / "latest"
    right = link.readlink()
    link.unlink()
    link.symlink_to("2020-01-01_00-00-00")
    found_and_mended(project, "run.latest_wrong")
    assert link.readlink() == right
    link.unlink()
    found_and_mended(project, "run.latest_wrong")


def test_an_adapter_that_is_another_or_gone(project: Project) -> None:
    path = project.models / "runs" / "mlx" / "latest" / "adapters" / "adapters.safetensors"
    path.chmod(0o644)
    path.write_text("another", encoding="utf-8")
    found_and_left(project, "run.adapter_changed")
    path.unlink()
    found_and_left(project, "run.adapter_missing")
    (path.parents[1] / "run.json").chmod(0o644)
    (path.parents[1] / "run.json").write_text("{", encoding="utf-8")
    assert "run.unreadable" in codes(diagnose(fresh(project)))


def test_a_run_that_a_subtask_made_is_gone(project: Project) -> None:
    held = take(project, Role.BUILDER, "T002-B01")
    from crew_boards import GATE
    from real_project import store_evidence

    seen = store_evidence(project, held, GATE, "c1")
    project.store.transact(
        lambda board, now: submit_build(
            board,
            now,
            subtask=held.id,
            owner="builder-A",
            attempt=held.attempt,
            commit=git(project.root, "rev-parse", "main"),
            artefacts=(Artefact(kind=ArtefactKind.RUN, ref="2020-01-01_00-00-00"),),
            evidence=(seen.evolve(commit=git(project.root, "rev-parse", "main")),),
            gates=(GATE,),
            failure=None,
        )
    )
    assert "run.missing" in codes(diagnose(fresh(project)))


def test_data_that_changed(project: Project, tmp_path: Path) -> None:
    from oodatcaa.training.datasets import DataStore

    make_tiny_data(tmp_path / "source")
    record = DataStore(project.models / "data").build(str(tmp_path / "source"), model_path="")
    assert diagnose(fresh(project)).findings == ()
    path = Path(record.path) / "test.jsonl"
    path.chmod(0o644)
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    found = found_and_left(project, "data.changed")
    assert "test.jsonl" in found.findings[0].meaning


# -- leftovers


def test_leftovers_are_kept_in_the_attic(project: Project) -> None:
    old = time.time() - 7200
    scratch = project.work / "scratch" / "builder-A"
    scratch.mkdir(parents=True)
    (scratch / "probe.txt").write_text("x", encoding="utf-8")
    temp = project.work / ".SPRINT_PLAN.md.abc.tmp"
    temp.write_text("half", encoding="utf-8")
    os.utime(temp, (old, old))
    project = fresh(project)
    assert codes(diagnose(project)) == ["scratch.left", "temp.left"]
    assert len(mend(project)) == 2
    assert diagnose(project).findings == ()
    assert mend(project) == ()
    kept = {path.name for path in (project.work / "attic").rglob("*")}
    assert {"builder-A", "probe.txt", ".SPRINT_PLAN.md.abc.tmp"} <= kept
