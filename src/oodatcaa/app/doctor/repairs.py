"""The repairs that are safe: each keeps what it replaces, and done twice it changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from oodatcaa.app.archiving import complete, put_away
from oodatcaa.app.claims import run_negotiation
from oodatcaa.app.doctor.finding import Finding
from oodatcaa.app.people import me
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Decision
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock
from oodatcaa.state.log import ARCHIVE, INDEX_FILE, LOG_FILE, rotations
from oodatcaa.state.repair import repair
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.training.runs import RunStore
from oodatcaa.views.agent_plan import agent_plan
from oodatcaa.views.test_plan import test_plan


def mend_queue(project: Project, _: Finding) -> str:
    done = repair(project.work)
    if done is None:
        return ""
    project.store.transact(lambda board, _: Decision(board, None))  # completes the log
    kept = ", ".join(str(path) for path in done.kept)
    return f"the queue goes on from the {done.source} at transaction {done.seq}; kept: {kept}"


def mend_log(project: Project, _: Finding) -> str:
    """Written again from the journal; the files as they were stay in archive/damaged-<time>."""
    archive = project.work / ARCHIVE
    aside = archive / f"damaged-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S-%fZ}"
    project.store.close()
    lock = FileLock(project.work / f"{QUEUE_FILE}.lock", code="queue.locked")
    with lock.held(60):
        aside.mkdir(parents=True)
        for path in (*rotations(archive), archive / INDEX_FILE, project.work / LOG_FILE):
            if path.exists():
                path.rename(aside / path.name)
    lock.close()
    project.store.transact(lambda board, _: Decision(board, None))
    return f"the log was written again from the journal; the damaged files are in {aside}"


def mend_leases(project: Project, _: Finding) -> str:
    found = run_negotiation(project.store, project.policy)
    return f"given back: {', '.join(found.recovered)}" if found.recovered else ""


def mend_crew(project: Project, _: Finding) -> str:
    lock = FileLock(project.work / "crew.lock")
    if not lock.try_acquire():
        return ""
    lock.release()
    lock.close()
    return "the note of the killed crew was cleared"


def mend_closing(project: Project, finding: Finding) -> str:
    closed = complete(project, int(finding.subject), me())
    return f"sprint {closed.number} was closed: {closed.commit[:12]}, tag {closed.tag}"


def mend_left_behind(project: Project, finding: Finding) -> str:
    moved = put_away(project, int(finding.subject))
    return f"moved to the archive: {', '.join(str(path) for path in moved)}" if moved else ""


def mend_plan(project: Project, finding: Finding) -> str:
    story, version = finding.subject.split()
    project.plans.load(story, int(version))
    return f"plan v{version} of {story} has its name"


def mend_pages(project: Project, finding: Finding) -> str:
    story, version = finding.subject.split()
    plan = project.plans.load(story, int(version))
    folder = project.plans.folder(story)
    for name, text in (("AGENT_PLAN.md", agent_plan(plan)), ("TEST_PLAN.md", test_plan(plan))):
        if not (folder / name).exists():
            write_atomic(folder / name, text)
    return f"the pages of plan v{version} of {story} were written again"


def mend_worktree(project: Project, finding: Finding) -> str:
    removed = project.repo.remove_story_worktree(finding.subject)
    return f"the worktree {finding.subject} was removed; its branch is kept" if removed else ""


def mend_checks(project: Project, _: Finding) -> str:
    """What only such a worktree holds is parked below refs/oodatcaa/parked/ first."""
    parked: list[str] = []
    removed = project.repo.prune_checks(
        on_parked=lambda path, ref: parked.append(f"work left in {path.name} is kept as {ref}")
    )
    if not removed:
        return ""
    return "; ".join([f"removed {len(removed)} left-over check worktrees", *parked])


def mend_runs(project: Project, _: Finding) -> str:
    runs = RunStore(project.models / "runs").recover()
    return f"recorded as failed: {', '.join(run.run_id for run in runs)}" if runs else ""


def mend_latest(project: Project, finding: Finding) -> str:
    named = RunStore(project.models / "runs").relink(finding.subject)
    return f"latest of {finding.subject} names {named or 'nothing: no run finished'}"


def mend_attic(project: Project, finding: Finding) -> str:
    source = Path(finding.subject)
    if not source.exists():
        return ""
    attic = project.work / "attic" / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S-%fZ}"
    attic.mkdir(parents=True)
    shutil.move(source, attic / source.name)
    return f"{source} is in {attic}"


ACTIONS: dict[str, Callable[[Project, Finding], str]] = {
    "queue": mend_queue,
    "log": mend_log,
    "negotiate": mend_leases,
    "crew": mend_crew,
    "close": mend_closing,
    "put_away": mend_left_behind,
    "plan": mend_plan,
    "pages": mend_pages,
    "worktree": mend_worktree,
    "checks": mend_checks,
    "runs": mend_runs,
    "latest": mend_latest,
    "attic": mend_attic,
}
ONCE = frozenset({"queue", "log", "negotiate", "crew", "checks", "runs"})
"""Repairs that mend every finding of their kind at once."""
