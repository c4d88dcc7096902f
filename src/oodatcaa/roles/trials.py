"""Which backend trains faster on this machine: a few real steps with each that could be taken."""

from __future__ import annotations

from collections.abc import Sequence

from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import BackendProbe, BackendTrial, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.desk import Desk

ROWS, LENGTH = 4, 128
"""Of a trial's batches at most: a few steps of a large model on a CPU take minutes as it is."""


def trial_params(params: QLoRA) -> QLoRA:
    """The asked adapters and optimizer on batches that are small enough to try."""
    return params.evolve(
        batch_size=min(ROWS, params.batch_size),
        max_seq_length=min(LENGTH, params.max_seq_length),
        grad_accumulation_steps=1,
    )


def try_backends(
    desk: Desk, model_path: str | None, params: QLoRA, probes: Sequence[BackendProbe]
) -> tuple[BackendTrial, ...]:
    """One trial of each listed backend that works here; () when there is nothing to choose.

    A backend that fails its trial is told with the reason, never left out.
    """
    works = {probe.name for probe in probes if probe.usable}
    listed = [name for name in desk.objective.backends if name in works and name in desk.backends]
    if model_path is None or len(listed) < 2:
        return ()
    return tuple(_try(desk, name, model_path, params) for name in listed)


def _try(desk: Desk, name: str, model_path: str, params: QLoRA) -> BackendTrial:
    small = trial_params(params)
    desk.say(f"trying {small.batch_size} x {small.max_seq_length} tokens with backend {name}")
    spec = TrainSpec(
        backend=name,
        model=model_path,
        data_dir="-",
        params=small,
        memory_limit_bytes=desk.objective.memory_limit_bytes,
    )
    backend, needed = desk.backends[name], None
    trial = BackendTrial(name=name, batch=small.batch_size, length=small.max_seq_length)
    try:
        needed = backend.estimate(spec.evolve(params=params))
        found, seconds = backend.time_step(spec, should_stop=desk.should_stop)
    except OodatcaaError as error:
        if desk.should_stop():
            raise
        return trial.evolve(needed=needed, problem=str(error))
    if not seconds:
        return trial.evolve(needed=needed, problem=_too_large(found))
    rate = small.batch_size * small.max_seq_length / seconds
    return trial.evolve(needed=needed, tokens_per_second=rate)


def _too_large(found: MemoryEstimate) -> str:
    return f"the trial itself met the memory limit ({found.method})"
