"""A few real steps at small sizes, measured: `python -m oodatcaa.training.hf.probe FOLDER`.

ProbeRequest -> ProbeResult. Each size goes through `Run.fit`, the very code of a training run.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

from oodatcaa.domain.base import Record
from oodatcaa.training.identity import installed_versions
from oodatcaa.training.protocol import PROBE_DIR, ProbePoint, ProbeRequest, ProbeResult, ProbeSize
from oodatcaa.training.serving import read_request, serve


def probe(folder: Path, request: ProbeRequest) -> ProbeResult:
    """The peaks of every size, smallest first: freed memory stays with the process for a while."""
    import torch

    from oodatcaa.training.hf import setup
    from oodatcaa.training.hf.counters import COUNTERS, machine
    from oodatcaa.training.hf.trainer import LOSS_PATH
    from oodatcaa.training.probing import tokens_of
    from oodatcaa.training.wall import walled

    spec = request.spec
    with walled(folder, spec.memory_limit_bytes, COUNTERS) as guard:
        torch.manual_seed(spec.params.seed)
        network, _ = setup.load_base(spec.model, spec.params.quantize_bits)
        network = setup.attach_adapters(network, spec.params)
        loaded, loaded_process = guard.peaks()
        points = [
            _measure(folder, request, size, network, guard)
            for size in sorted(request.sizes, key=tokens_of)
        ]
    return ProbeResult(
        points=tuple(points),
        loaded_mlx_bytes=loaded,
        loaded_process_bytes=loaded_process,
        loss=LOSS_PATH,
        versions=installed_versions(),
        machine=machine(),
    )


def _measure(
    folder: Path, request: ProbeRequest, size: ProbeSize, network: Any, guard: Any
) -> ProbePoint:
    from oodatcaa.training.checkpoints import RunIdentity
    from oodatcaa.training.hf.trainer import Run
    from oodatcaa.training.probing import enough_steps, probe_examples, probe_params

    gc.collect()
    guard.reset()
    params = probe_params(request, size)
    target = folder / PROBE_DIR / f"{size.batch}x{size.length}"
    target.mkdir(parents=True, exist_ok=True)
    run = Run(target, request.spec.evolve(params=params, resume_from=None))
    run.enough = enough_steps(params)
    run.examples = probe_examples(size, request.vocab_size, packing=params.packing)
    run.fit(network, run.examples, RunIdentity(facts={}))
    seconds = run.monitor.seconds / run.monitor.iteration if run.monitor else 0.0
    inner, process = guard.peaks()
    return ProbePoint(size=size, mlx_bytes=inner, process_bytes=process, step_seconds=seconds)


def _answer(folder: Path) -> Record:
    return probe(folder, read_request(folder, ProbeRequest))


if __name__ == "__main__":
    sys.exit(serve(_answer))
