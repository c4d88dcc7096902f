"""`oodatcaa estimate`: what a spec will need, and the largest batches that fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oodatcaa.app.by_hand import NO_DATA, objective_spec
from oodatcaa.app.desk import ModelShelf, Workshop
from oodatcaa.app.project import open_project
from oodatcaa.domain.base import Record
from oodatcaa.domain.evidence import parse_bytes
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.axolotl.backend import AxolotlBackend
from oodatcaa.training.backend import ChildBackend
from oodatcaa.training.backends import make_backend
from oodatcaa.training.children import DEFAULTS, ChildSettings
from oodatcaa.training.forecast import Probed
from oodatcaa.training.models import ModelStore
from oodatcaa.training.question import Question
from oodatcaa.training.reservation import Reservation
from oodatcaa.training.runs import RunStore

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)


class Fit(Record):
    """The largest batch of rows this long that stays under the limit; 0 = not even one."""

    length: int
    batch: int


class EstimateReport(Record):
    """Everything `oodatcaa estimate` prints."""

    model: str
    backend: str
    params: QLoRA
    data: str | None
    """The folder whose examples bound lengths and targets; None = every row counts as
    `max_seq_length`."""
    batch: int
    length: int
    targets: int
    limit_bytes: int
    fits: bool
    estimate: MemoryEstimate
    largest: tuple[Fit, ...]


def estimate_spec(
    say: Callable[[str], None],
    *,
    model: str | None = None,
    data: Path | None = None,
    limit: str | None = None,
    backend: str | None = None,
    probe: bool = False,
    changes: dict[str, Any],
) -> EstimateReport:
    """The objective's spec with `changes`; without a project a model has to be named.

    For `backend`, else the objective's first one, else mlx. `probe` measures in a child process,
    once the memory for it is free beside other training on this machine; otherwise an earlier
    probe of the same family is used where this folder was ever hashed, else config.json and tensor
    headers alone: no tensor is read. Raises OodatcaaError.
    """
    given, settings = _spec(say, model, data, limit, backend, changes)
    shelf = ModelShelf(say, Path.cwd())
    trainer = _trainer(say, given.backend, shelf, settings)  # before a model is fetched for nothing
    path = shelf.resolve(given.model).resolve()
    spec = given.evolve(model=str(path), model_name=given.model_name or given.model)
    if probe and isinstance(trainer, AxolotlBackend):
        raise OodatcaaError(
            "estimate.no_probe",
            "no step of axolotl can be measured beforehand",
            hint="leave --probe out for the analytic figures, or measure with --backend hf",
        )
    measured = trainer.forecast(spec) if probe else None
    asked = _ask(spec, path, trainer, hashing=probe)
    found = measured or (asked.answer() if asked.known else trainer.estimate(spec))
    lengths = sorted({asked.size.length, *LENGTHS})
    return EstimateReport(
        model=spec.model_name,
        backend=trainer.name,
        params=spec.params,
        data=spec.data_dir if asked.lengths.longest is not None else None,
        batch=asked.size.batch,
        length=asked.size.length,
        targets=asked.size.targets,
        limit_bytes=asked.limit,
        fits=found.total_bytes <= asked.limit,
        estimate=found,
        largest=tuple(
            Fit(length=length, batch=asked.largest_batch(length))
            for length in lengths
            if length <= 4 * asked.size.length
        ),
    )


def _trainer(
    say: Callable[[str], None], name: str, shelf: ModelShelf, settings: ChildSettings
) -> ChildBackend:
    def waiting(holders: tuple[Reservation, ...]) -> None:
        say("waiting for memory: " + "; ".join(item.describe() for item in holders))

    # Nothing is trained, so nothing is ever kept there.
    runs = RunStore(Path.cwd() / "models" / "runs")
    made = make_backend(name, runs, shelf, on_wait=waiting, settings=settings, say=say)
    assert isinstance(made, ChildBackend)
    return made


def _ask(spec: TrainSpec, path: Path, trainer: ChildBackend, *, hashing: bool) -> Question:
    asked = Question(spec, path, trainer.probes, trainer.settings, trainer.framework)
    if not hashing and ModelStore().known_sha256(path) is None:
        # Probes are filed under the hash of the weights. Whoever measured this folder made it, and
        # it is remembered; making it here would read gigabytes to find nothing.
        asked.probed = Probed(family={})
    return asked


def _spec(
    say: Callable[[str], None],
    model: str | None,
    data: Path | None,
    limit: str | None,
    backend: str | None,
    changes: dict[str, Any],
) -> tuple[TrainSpec, ChildSettings]:
    settings = DEFAULTS
    if data is not None and not (data / "train.jsonl").is_file():
        raise OodatcaaError(
            "data.missing",
            f"{data} has no train.jsonl",
            hint="--data is a folder with train.jsonl and valid.jsonl",
        )
    if model is None:
        project = open_project()
        spec = objective_spec(project, project.objective(), ModelShelf(say, project.root))
        settings = Workshop(project).children
    else:
        spec = TrainSpec(model=model, data_dir=NO_DATA, params=QLoRA(), memory_limit_bytes=16 * GB)
    try:
        params = QLoRA.model_validate({**spec.params.model_dump(), **changes})
        held = spec.memory_limit_bytes if limit is None else parse_bytes(limit)
        ready = spec.evolve(
            backend=backend or spec.backend,
            params=params,
            data_dir=str(data or spec.data_dir),
            memory_limit_bytes=held,
        )
        return ready, settings
    except ValidationError as error:
        details = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise OodatcaaError(
            "estimate.bad_options",
            f"the options do not make a spec: {details[0]}",
            hint="oodatcaa estimate --help",
            details=details,
        ) from error
    except ValueError as error:
        raise OodatcaaError(
            "estimate.bad_options", f"--limit: {error}", hint="for example: --limit 16GB"
        ) from error
