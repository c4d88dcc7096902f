"""The training backend by hand: estimate, train, resume, runs; under the same memory gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from oodatcaa.app.desk import DataShelf, ModelShelf, Workshop, data_folder
from oodatcaa.app.project import Project
from oodatcaa.domain.auto_fit import (
    Candidate,
    choose,
    instead,
    packed_rows,
    to_measure,
    to_measure_packed,
    with_cache,
)
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.objective import Objective
from oodatcaa.domain.ports import TrainingBackend
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import RunRecord, TrainProgress, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.machine import gate_limit
from oodatcaa.training.backend import ChildBackend
from oodatcaa.training.datasets import CARD_FILE, STDLIB, STDLIB_NAME, read_card

NO_DATA = "-"
"""Where a spec's data folder is not known: every row then counts as `max_seq_length`."""
Say = Callable[[str], None]


def objective_spec(project: Project, objective: Objective, shelf: ModelShelf) -> TrainSpec:
    """What the objective asks for, with its data where they are here already: enough for an
    estimate. Builds no data and reads no weights."""
    head = project.repo.head()
    path = shelf.resolve(objective.model)
    return TrainSpec(
        backend=objective.backends[0],
        model=str(path),
        model_name=objective.model,
        data_dir=str(_data_here(project, objective, path) or NO_DATA),
        params=objective.qlora,
        memory_limit_bytes=objective.memory_limit_bytes,
        git_sha=head.sha or "",
        git_dirty=bool(project.repo.dirty_paths()),
    )


def _data_here(project: Project, objective: Objective, model: Path) -> Path | None:
    """The objective's own folder; of the standard library's pairs a set in the store that was made
    with this seed and this model's tokenizer."""
    if objective.data not in STDLIB:
        folder = data_folder(project.root, objective.data)
        return folder if (folder / "train.jsonl").is_file() else None
    for card in sorted((project.models / "data").glob(f"*/{CARD_FILE}")):
        try:
            found = read_card(card.parent)
        except OodatcaaError:
            continue  # `doctor` and building them say so
        same = (found.seed, found.tokenizer) == (objective.qlora.seed, model.name)
        if found.name == STDLIB_NAME and same:
            return card.parent
    return None


def train_objective(
    project: Project,
    say: Say,
    on_progress: Callable[[TrainProgress], None],
    *,
    auto_fit: bool = False,
) -> RunRecord:
    """One run with the objective's parameters and data; a failed run is returned as such.

    With `auto_fit` the effective batch is cut into the micro-batches that measured as fastest among
    those that fit, with every listed backend that works here; raises OodatcaaError
    `train.nothing_fits`.
    """
    objective = project.objective()
    shelf = ModelShelf(say, project.root)
    spec = objective_spec(project, objective, shelf)
    data = DataShelf(project.models / "data", project.root).build(
        objective.data, model_path=spec.model, params=objective.qlora, say=say
    )
    ready = spec.evolve(data_dir=data.path, data_sha256=data.sha256)
    backends = Workshop(project).backends(shelf, objective)
    if auto_fit:
        listed = {name: backends[name] for name in objective.backends if name in backends}
        ready = _fitted(listed, ready, say)
    return backends[ready.backend].train(ready, on_progress=on_progress)


def _fitted(backends: Mapping[str, TrainingBackend], spec: TrainSpec, say: Say) -> TrainSpec:
    limit = gate_limit(spec.memory_limit_bytes)
    works = {
        name: backend
        for name, backend in backends.items()
        if isinstance(backend, ChildBackend) and backend.probe().usable
    }
    if not works:
        return spec  # the training itself says what is missing
    measured: list[Candidate] = []
    problems: list[OodatcaaError] = []
    for name, backend in works.items():
        try:
            _measure(backend, spec.evolve(backend=name), limit, say, measured)
        except OodatcaaError as error:
            problems.append(error)
            say(f"backend {name} is not measured any further: {error}")
    if problems and not measured:
        raise problems[0]
    choice = choose(measured, limit)
    for line in choice.lines:
        say(line)
    if choice.best is None:
        raise OodatcaaError(
            "train.nothing_fits",
            f"no way to cut {spec.params.effective_batch} rows fits {limit / 1e9:.2f} GB",
            hint="fewer num_layers, a shorter max_seq_length, or a higher memory_limit",
            details=choice.lines,
        )
    return spec.evolve(params=choice.best.params, backend=choice.best.backend)


def _measure(
    backend: ChildBackend, spec: TrainSpec, limit: int, say: Say, measured: list[Candidate]
) -> None:
    """Add what this backend's candidates need and take: also those before one that fails."""
    trained = backend.trained_blocks(spec)
    mine = len(measured)
    filling = backend.filling(spec)
    said = spec.params.model_fields_set  # what the objective decides is not chosen here
    if filling is not None and backend.caches_frozen and "cache_frozen" not in said:
        params = with_cache(spec.params, filling.examples, backend.blocks(spec))
        spec = spec.evolve(params=params)

    def estimate(params: QLoRA) -> MemoryEstimate:
        return backend.estimate(spec.evolve(params=params))

    packed = to_measure_packed(spec.params, filling, estimate, limit, trained)

    def measure(one: Candidate) -> Candidate:
        say(f"measuring {one.name} with backend {spec.backend}")
        found, seconds = backend.time_step(spec.evolve(params=one.params))
        fits = seconds is not None and found.total_bytes <= limit
        if fits and packed_rows(spec.params, filling) is not None:
            # Padded batches are mostly smaller than the worst one, packed ones hardly.
            _, seconds = backend.time_step(spec.evolve(params=one.params), typical=True)
        step = None if seconds is None else seconds * one.params.grad_accumulation_steps
        done = one.evolve(
            backend=spec.backend,
            need_bytes=found.total_bytes,
            source=found.source,
            seconds=step,
        )
        measured.append(done)
        return done

    for one in to_measure(spec.params, estimate, limit, trained):
        if one.params.dense_weights and not spec.params.dense_weights and "dense_weights" in said:
            continue
        less = one.params.evolve(dense_weights=False)
        if one.params.dense_weights and any(
            done.params == less and done.need_bytes > limit for done in measured[mine:]
        ):
            continue  # even without them it did not fit
        done = measure(one)
        if done.need_bytes > limit:
            more = instead(done, estimate, limit, trained)
            if more is not None and more.params not in [one.params for one in measured[mine:]]:
                measure(more)
    if packed is not None:
        _try_packed(packed, measure, say)


def _try_packed(one: Candidate, measure: Callable[[Candidate], Candidate], say: Say) -> None:
    try:
        measure(one)
    except OodatcaaError as error:
        if error.code != "train.bad_params":
            raise
        say(error.message)


def resume_run(
    project: Project, run_id: str, say: Say, on_progress: Callable[[TrainProgress], None]
) -> RunRecord:
    """A new run that goes on from the newest checkpoint of an interrupted one that is whole.

    A run that left none begins again. Raises OodatcaaError when the run finished or still runs.
    """
    workshop = Workshop(project)
    workshop.runs.recover()
    run = workshop.runs.find(run_id)
    if run.status.value in ("finished", "running"):
        raise OodatcaaError(
            "run.not_resumable",
            f"run {run_id} is {run.status.value}",
            hint="oodatcaa runs lists them",
        )
    folder = workshop.runs.folder(run)
    spec = TrainSpec.model_validate_json((folder / "spec.json").read_text(encoding="utf-8"))
    found = workshop.runs.last_checkpoint(run)
    if found is None:
        say(f"run {run_id} left no checkpoint that is whole: it begins again")
        spec = spec.evolve(resume_from=None, start_iteration=0)
    else:
        for word in found.skipped:
            say(word)
        say(f"run {run_id} goes on after iteration {found.iteration}")
        spec = found.apply(spec)
    backend = workshop.training(ModelShelf(say, project.root), spec.backend)
    return backend.train(spec, on_progress=on_progress)


def list_runs(project: Project) -> tuple[tuple[RunRecord, ...], tuple[str, ...]]:
    """(runs, problems): every run oldest first, and every folder that can not be read."""
    listing = Workshop(project).runs.list()
    return listing.runs, listing.problems
