"""`oodatcaa estimate`: what a spec will need, and the largest batches that fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oodatcaa.app.by_hand import objective_spec
from oodatcaa.app.desk import ModelShelf, Workshop
from oodatcaa.app.project import open_project
from oodatcaa.domain.base import Record
from oodatcaa.domain.evidence import parse_bytes
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.backend import PROBE_TOKENS
from oodatcaa.training.children import DEFAULTS, ChildSettings
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.question import Question

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)


class Fit(Record):
    """The largest batch of rows this long that stays under the limit; 0 = not even one."""

    length: int
    batch: int


class EstimateReport(Record):
    """Everything `oodatcaa estimate` prints."""

    model: str
    params: QLoRA
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
    probe: bool = False,
    changes: dict[str, Any],
) -> EstimateReport:
    """The objective's spec with `changes`; without a project a model has to be named.

    `probe` measures in a child process; otherwise an earlier probe of the same family is used
    where there is one, else config.json and tensor headers alone. Raises OodatcaaError.
    """
    spec, settings = _spec(say, model, data, limit, changes)
    path = ModelShelf(say, Path.cwd()).resolve(spec.model).resolve()
    asked = Question(spec, path, ProbeCache(), settings)
    found = asked.measure(PROBE_TOKENS) if probe and not asked.known else asked.answer()
    lengths = sorted({asked.size.length, *LENGTHS})
    return EstimateReport(
        model=spec.model_name or spec.model,
        params=spec.params,
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


def _spec(
    say: Callable[[str], None],
    model: str | None,
    data: Path | None,
    limit: str | None,
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
        spec = TrainSpec(model=model, data_dir="-", params=QLoRA(), memory_limit_bytes=16 * GB)
    try:
        params = QLoRA.model_validate({**spec.params.model_dump(), **changes})
        held = spec.memory_limit_bytes if limit is None else parse_bytes(limit)
        ready = spec.evolve(
            params=params, data_dir=str(data or spec.data_dir), memory_limit_bytes=held
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
