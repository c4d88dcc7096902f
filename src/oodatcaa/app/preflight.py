"""What `sprint new` can know without work: a night must not end at its first hour.

Reads the data, the model's config and headers, and asks the hub whether it has a model; loads
nothing and downloads nothing.
"""

from __future__ import annotations

import os

from oodatcaa.app.desk import DataShelf, ModelShelf, data_folder
from oodatcaa.app.project import Project
from oodatcaa.domain.objective import Objective
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.machine import guess_accelerator, total_memory
from oodatcaa.training.datasets import STDLIB
from oodatcaa.training.estimate import estimate_loading, gb
from oodatcaa.training.identity import too_many_threads
from oodatcaa.training.models import ModelStore
from oodatcaa.training.shapes import read_shape


def preflight(project: Project, objective: Objective) -> tuple[str, ...]:
    """Notes for the person. Raises OodatcaaError when the sprint can not succeed.

    With one reason it is that reason's own error; with several, `objective.unusable` lists all.
    """
    errors: list[OodatcaaError] = []
    notes: list[str] = []
    for check in (_model, _data):
        try:
            notes += check(project, objective)
        except OodatcaaError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise OodatcaaError(
            "objective.unusable",
            f"OBJECTIVE.md names {len(errors)} things that can not be used",
            hint="; ".join(error.hint for error in errors),
            details=[line for error in errors for line in (str(error), *error.details)],
        )
    return (*notes, *_notes(objective))


def _model(project: Project, objective: Objective) -> tuple[str, ...]:
    shelf = ModelShelf(lambda _: None, project.root)
    folder = shelf.local(objective.model)
    if folder is None:
        ModelStore().must_exist(objective.model)
        return ()
    bits = objective.qlora.quantize_bits
    least = estimate_loading(
        read_shape(folder),
        quantize_bits=bits,
        device=guess_accelerator(),
        fast_cpu=project.config.training.fast_cpu,
    )
    limit = objective.memory_limit_bytes
    if least.total_bytes > limit:
        raise RefusedError(
            "memory.below_loading",
            f"memory_limit {objective.memory_limit_text} is less than the estimated "
            f"{gb(least.total_bytes)} that loading {objective.model} alone needs",
            hint="raise memory_limit, or name a smaller model in OBJECTIVE.md",
            details=[f"{part.name}: {gb(part.bytes)}" for part in least.parts],
        )
    return ()


def _data(project: Project, objective: Objective) -> tuple[str, ...]:
    if objective.data in STDLIB:
        return ()  # made when it is needed, and examined then
    shelf = DataShelf(project.models / "data", project.root)
    folder = str(data_folder(project.root, objective.data))
    found = shelf.examine(
        folder,
        model_path=_model_here(project, objective),
        params=objective.qlora,
    )
    problems = found.problems
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise OodatcaaError(
            "data.invalid",
            f"the data folder {folder} has {count}",
            hint="correct every line that is named, then type the same command again",
            details=problems,
        )
    return found.to_look_at()


def _model_here(project: Project, objective: Objective) -> str:
    """Its folder; "" where it has to be fetched first, or `_model` says what is wrong with it."""
    try:
        folder = ModelShelf(lambda _: None, project.root).local(objective.model)
    except OodatcaaError:
        return ""
    return str(folder) if folder else ""


def _notes(objective: Objective) -> tuple[str, ...]:
    there, threads = total_memory(), too_many_threads(os.environ)
    notes = [threads] if threads else []
    if objective.memory_limit_bytes > there:
        notes.append(
            f"memory_limit {objective.memory_limit_text} is more than this machine's {gb(there)}: "
            f"the gate holds runs to {gb(there)}"
        )
    return tuple(notes)
