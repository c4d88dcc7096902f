"""The machine, the configuration, the objective, the model and the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from oodatcaa.app.doctor.finding import Fact, Finding, note
from oodatcaa.app.project import OBJECTIVE_PATH, Project
from oodatcaa.domain.board import Sprint
from oodatcaa.domain.objective import Objective
from oodatcaa.kit.config import CONFIG_PATH
from oodatcaa.training.identity import too_many_threads
from oodatcaa.training.mlx.blas import describe_cpu
from oodatcaa.training.models import ModelStore

GB = 10**9
LOW_DISK_BYTES = 5 * GB
Looked = tuple[tuple[Fact, ...], tuple[Finding, ...]]


def look_at_speed(_: Project) -> Looked:
    speed = describe_cpu()
    blas = f", {speed.blas.name} preloaded in workers" if speed.blas else ""
    facts = [Fact("training device", f"{speed.device}{blas}", speed.fast or None)]
    told = (*facts, *(Fact("training speed", line, None) for line in speed.advice))
    return told, judge_threads(os.environ)


def judge_threads(environment: Mapping[str, str]) -> tuple[Finding, ...]:
    meaning = too_many_threads(environment)
    repair = "nothing: unset it in your shell, or set it to the number of cores"
    return (note("machine.threads", "environment", meaning, repair),) if meaning else ()


def look_at_disk(project: Project) -> Looked:
    free = shutil.disk_usage(project.root).free
    return (Fact("disk", f"{free / GB:.1f} GB free"),), judge_disk(str(project.root), free)


def judge_disk(place: str, free: int) -> tuple[Finding, ...]:
    if free >= LOW_DISK_BYTES:
        return ()
    meaning = f"only {free / GB:.1f} GB are free; runs keep checkpoints and may fail"
    return (Finding("disk.low", place, meaning),)


def look_at_config(project: Project) -> Looked:
    gates = len(project.config.gates.quality)
    return (Fact("configuration", f"valid, quality gates: {gates}"),), ()


def look_at_objective(project: Project) -> Looked:
    objective = project.objective()
    facts = (Fact("objective", f"{objective.id}: {objective.title}"),)
    return facts, judge_objective(objective, project.board().sprint)


def judge_objective(objective: Objective, sprint: Sprint | None) -> tuple[Finding, ...]:
    if sprint is None or objective.sha256 == sprint.objective_sha256:
        return ()
    meaning = f"changed since sprint {sprint.number} began: its stories serve the older text"
    repair = "nothing: close the sprint and begin a new one, or put the old text back"
    return (note("objective.changed", OBJECTIVE_PATH, meaning, repair),)


def look_at_model(project: Project) -> Looked:
    found = ModelStore().resolve(project.objective().model, require_local=True)
    return (Fact("model", f"{found.title}: {found.path_or_hub}"),), ()


PLACES = {"config": str(CONFIG_PATH), "objective": OBJECTIVE_PATH, "model": OBJECTIVE_PATH}
"""Where an error of an area lies, for its finding."""
