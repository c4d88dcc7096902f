"""A few real steps of one size, measured: `python -m oodatcaa.training.mlx.probe FOLDER`.

ProbeRequest -> ProbeResult. The steps go through `Run.fit`, the very code of a training run:
validation, steps, optimizer, a checkpoint, the final adapter. Only the examples are made up.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from oodatcaa.domain.base import Record
from oodatcaa.training.identity import installed_versions
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.protocol import PROBE_DIR, ProbePoint, ProbeRequest, ProbeResult
from oodatcaa.training.serving import read_request, serve


def probe(folder: Path, request: ProbeRequest) -> ProbeResult:
    """The peaks of loading, which may be above those of small steps, and of the steps."""
    blas = preload()
    # mlx must not be imported before the BLAS is in place.
    import mlx.core as mx
    import numpy as np

    from oodatcaa.training.checkpoints import RunIdentity
    from oodatcaa.training.mlx import setup
    from oodatcaa.training.mlx.blas import describe_machine
    from oodatcaa.training.mlx.guard import walled
    from oodatcaa.training.mlx.trainer import Run
    from oodatcaa.training.probing import enough_steps, probe_examples, probe_params

    spec, size = request.spec, request.size
    params = probe_params(request)
    target = folder / PROBE_DIR
    target.mkdir(parents=True, exist_ok=True)
    with walled(folder, spec.memory_limit_bytes) as guard:
        mx.random.seed(spec.params.seed)
        np.random.seed(spec.params.seed)
        network, _ = setup.load_base(spec.model, spec.params.quantize_bits)
        setup.attach_adapters(network, spec.params)
        loaded = [guard.peaks()]
        gc.collect()
        mx.clear_cache()
        guard.reset()
        run = Run(target, spec.evolve(params=params, resume_from=None), blas)
        run.enough = enough_steps(params)
        # The same few examples every step: kept, only the first would cost what a first epoch does.
        run.cache_bytes = 0
        # What comes before the first validation may take more than a small step does.
        run.ready = lambda: loaded.append(guard.peaks())
        run.examples = probe_examples(size, request.vocab_size, packing=params.packing)
        run.fit(network, run.examples, RunIdentity(facts={}))
        mlx, process = guard.peaks()
    monitor = run.monitor
    seconds = monitor.seconds / monitor.iteration if monitor else 0.0
    return ProbeResult(
        point=ProbePoint(size=size, mlx_bytes=mlx, process_bytes=process, step_seconds=seconds),
        loaded_mlx_bytes=max(mlx for mlx, _ in loaded),
        loaded_process_bytes=max(process for _, process in loaded),
        loss=run.loss_path,
        versions=installed_versions(),
        machine=describe_machine(blas),
    )


def _answer(folder: Path) -> Record:
    return probe(folder, read_request(folder, ProbeRequest))


if __name__ == "__main__":
    sys.exit(serve(_answer))
