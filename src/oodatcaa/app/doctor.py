"""`oodatcaa doctor`: look at machine, project and state; repair only what is safe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from oodatcaa.app.claims import liveness
from oodatcaa.app.project import Project
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.states import tasks_of
from oodatcaa.errors import OodatcaaError
from oodatcaa.state.repair import examine, repair
from oodatcaa.training.mlx.blas import describe_cpu
from oodatcaa.training.models import ModelStore
from oodatcaa.training.runs import RunStore

GB = 10**9
LOW_DISK_BYTES = 5 * GB


@dataclass(frozen=True)
class Check:
    """One line of the examination. `ok` None = worth knowing, neither good nor bad."""

    name: str
    ok: bool | None
    text: str
    hint: str = ""


def diagnose(project: Project) -> tuple[Check, ...]:
    """Every check, also after one that fails. Changes nothing."""
    found: list[Check] = []
    for check in (_speed, _disk, _model, _files, _git, _queue, _leases, _runs):
        found += _safely(check, project)
    return tuple(found)


def mend(project: Project) -> tuple[str, ...]:
    """Repair what is safe, keeping originals; what was done, one line each."""
    done: list[str] = []
    repaired = repair(project.work)
    if repaired is not None:
        done.append(f"the queue was rebuilt up to transaction {repaired.seq}")
    runs = RunStore(project.models / "runs").recover()
    done += [f"run {run.run_id} of a dead process is recorded as failed" for run in runs]
    pruned = project.repo.prune_checks(
        on_parked=lambda path, ref: done.append(f"work left in {path.name} is kept as {ref}")
    )
    done += [f"removed the left-over check worktree {path.name}" for path in pruned]
    return tuple(done)


def _safely(check: Callable[[Project], list[Check]], project: Project) -> list[Check]:
    try:
        return check(project)
    except OodatcaaError as error:
        name = check.__name__.strip("_")
        return [
            Check(name, False, error.message, error.hint),
            *(Check(name, False, line) for line in error.details),
        ]


def _speed(_: Project) -> list[Check]:
    speed = describe_cpu()
    blas = f", {speed.blas.name} preloaded in workers" if speed.blas else ""
    checks = [Check("training device", speed.fast, f"{speed.device}{blas}")]
    return checks + [Check("training speed", None, line) for line in speed.advice]


def _disk(project: Project) -> list[Check]:
    free = shutil.disk_usage(project.root).free
    text = f"{free / GB:.1f} GB free"
    return [Check("disk", free >= LOW_DISK_BYTES, text, "runs keep checkpoints; free some space")]


def _model(project: Project) -> list[Check]:
    name = project.objective().model
    found = ModelStore().resolve(name, require_local=True)
    return [Check("model", True, f"{found.title}: {found.path_or_hub}")]


def _files(project: Project) -> list[Check]:
    objective = project.objective()
    gates = len(project.config.gates.quality)
    return [
        Check("objective", True, f"{objective.id}: {objective.title}"),
        Check("configuration", True, f"valid, quality gates: {gates}"),
    ]


def _git(project: Project) -> list[Check]:
    repo = project.repo
    head = repo.head()
    dirty = repo.dirty_paths()
    state = f"{head.branch or 'detached'} at {(head.sha or 'no commit')[:12]}"
    if dirty:
        hint = "the Integrator does not touch a dirty target: commit or stash"
        return [Check("git", None, f"{state}, {len(dirty)} uncommitted paths", hint)]
    return [Check("git", head.sha is not None, f"{state}, clean", "oodatcaa init --commit")]


def _queue(project: Project) -> list[Check]:
    from oodatcaa.domain.lifecycle import invariants

    findings = examine(project.work)
    checks = [
        Check("queue", False, f"{one.code} in {one.place}: {one.meaning}", one.repair)
        for one in findings
    ]
    broken = () if findings else invariants(project.board(), project.policy or Policy())
    checks += [Check("queue", False, line, "oodatcaa log") for line in broken]
    return checks or [Check("queue", True, "journal, snapshot, log and rules agree")]


def _leases(project: Project) -> list[Check]:
    board = project.board()
    dead, _ = liveness(board)
    held = [task for task in tasks_of(board) if task.lease is not None]
    if dead:
        return [
            Check("leases", None, f"owner gone: {', '.join(sorted(dead))}", "oodatcaa negotiate")
        ]
    return [Check("leases", True, f"{len(held)} held, no dead owner")]


def _runs(project: Project) -> list[Check]:
    listing = RunStore(project.models / "runs").list()
    checks = [Check("runs", False, line, "look at the folder") for line in listing.problems]
    return checks or [Check("runs", True, f"{len(listing.runs)} runs, all readable")]
