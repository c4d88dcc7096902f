"""A few real steps of one size, measured: `python -m oodatcaa.training.hf.probe FOLDER`.

ProbeRequest -> ProbeResult. The steps go through `Run.fit`, the very code of a training run.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from oodatcaa.domain.base import Record
from oodatcaa.training.identity import installed_versions
from oodatcaa.training.protocol import PROBE_DIR, ProbePoint, ProbeRequest, ProbeResult
from oodatcaa.training.serving import read_request, serve


def probe(folder: Path, request: ProbeRequest) -> ProbeResult:
    """The peaks of loading, which may be above those of small steps, and of the steps."""
    import torch

    from oodatcaa.training.checkpoints import RunIdentity
    from oodatcaa.training.hf import setup
    from oodatcaa.training.hf.counters import COUNTERS, machine
    from oodatcaa.training.hf.trainer import LOSS_PATH, Run
    from oodatcaa.training.probing import enough_steps, probe_examples, probe_params
    from oodatcaa.training.wall import walled

    spec, size = request.spec, request.size
    params = probe_params(request)
    target = folder / PROBE_DIR
    target.mkdir(parents=True, exist_ok=True)
    with walled(folder, spec.memory_limit_bytes, COUNTERS) as guard:
        torch.manual_seed(spec.params.seed)
        network, _ = setup.load_base(spec.model, spec.params.quantize_bits)
        network = setup.attach_adapters(network, spec.params)
        loaded, loaded_process = guard.peaks()
        gc.collect()
        guard.reset()
        run = Run(target, spec.evolve(params=params, resume_from=None))
        run.enough = enough_steps(params)
        run.examples = probe_examples(size, request.vocab_size, packing=params.packing)
        run.fit(network, run.examples, RunIdentity(facts={}))
        inner, process = guard.peaks()
    seconds = run.monitor.seconds / run.monitor.iteration if run.monitor else 0.0
    return ProbeResult(
        point=ProbePoint(size=size, mlx_bytes=inner, process_bytes=process, step_seconds=seconds),
        loaded_mlx_bytes=loaded,
        loaded_process_bytes=loaded_process,
        loss=LOSS_PATH,
        versions=installed_versions(),
        machine=machine(),
    )


def _answer(folder: Path) -> Record:
    return probe(folder, read_request(folder, ProbeRequest))


if __name__ == "__main__":
    sys.exit(serve(_answer))
