"""A few real steps at small sizes, measured: `python -m oodatcaa.training.mlx.probe FOLDER`.

ProbeRequest -> ProbeResult. Each size goes through `Run.fit`, the very code of a training run:
validation, steps, optimizer, a checkpoint, the final adapter. Only the examples are made up, and
the model is loaded once for all sizes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oodatcaa.domain.base import Record
from oodatcaa.training.identity import installed_versions
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.protocol import PROBE_DIR, ProbePoint, ProbeRequest, ProbeResult, ProbeSize
from oodatcaa.training.serving import read_request, serve


def probe(folder: Path, request: ProbeRequest) -> ProbeResult:
    """The peaks of every size, smallest first: freed memory stays with the process for a while."""
    blas = preload()
    # mlx must not be imported before the BLAS is in place.
    import mlx.core as mx
    import numpy as np

    from oodatcaa.training.mlx import setup
    from oodatcaa.training.mlx.blas import describe_machine
    from oodatcaa.training.mlx.guard import walled
    from oodatcaa.training.probing import tokens_of

    spec = request.spec
    with walled(folder, spec.memory_limit_bytes) as guard:
        mx.random.seed(spec.params.seed)
        np.random.seed(spec.params.seed)
        network, _ = setup.load_base(spec.model, spec.params.quantize_bits)
        setup.attach_adapters(network, spec.params)
        made = [guard.peaks()]
        points = [
            _measure(folder, request, size, network, guard, blas, made)
            for size in sorted(request.sizes, key=tokens_of)
        ]
    return ProbeResult(
        points=tuple(points),
        loaded_mlx_bytes=max(mlx for mlx, _ in made),
        loaded_process_bytes=max(process for _, process in made),
        loss=_loss_path(network),
        versions=installed_versions(),
        machine=describe_machine(blas),
    )


def _measure(
    folder: Path,
    request: ProbeRequest,
    size: ProbeSize,
    network: Any,
    guard: Any,
    blas: Any,
    made: list[tuple[int, int]],
) -> ProbePoint:
    """`made` gets the peaks of what comes before the first validation, which may take more than a
    small step does."""
    import mlx.core as mx

    from oodatcaa.training.checkpoints import RunIdentity
    from oodatcaa.training.mlx.trainer import Run
    from oodatcaa.training.probing import enough_steps, probe_examples, probe_params

    gc.collect()
    mx.clear_cache()
    guard.reset()
    params = probe_params(request, size)
    target = folder / PROBE_DIR / f"{size.batch}x{size.length}"
    target.mkdir(parents=True, exist_ok=True)
    run = Run(target, request.spec.evolve(params=params, resume_from=None), blas)
    run.enough = enough_steps(params)
    # The same few examples every step: kept, only the first would cost what a first epoch does.
    run.cache_bytes = 0
    if len(made) == 1:  # a later size finds what earlier ones left in the heap
        run.ready = lambda: made.append(guard.peaks())
    run.examples = probe_examples(size, request.vocab_size, packing=params.packing)
    with _unpatched(network):
        run.fit(network, run.examples, RunIdentity(facts={}))
    monitor = run.monitor
    seconds = monitor.seconds / monitor.iteration if monitor else 0.0
    mlx, process = guard.peaks()
    return ProbePoint(size=size, mlx_bytes=mlx, process_bytes=process, step_seconds=seconds)


@contextmanager
def _unpatched(network: Any) -> Iterator[None]:
    """mlx-lm checkpoints by patching the blocks' class: twice would nest."""
    kinds = {type(block): type(block).__call__ for block in network.layers}
    try:
        yield
    finally:
        for kind, call in kinds.items():
            kind.__call__ = call


def _loss_path(network: Any) -> str:
    from oodatcaa.training.mlx.loss import split_head

    return "targets only" if split_head(network).sparse else "every position"


def _answer(folder: Path) -> Record:
    return probe(folder, read_request(folder, ProbeRequest))


if __name__ == "__main__":
    sys.exit(serve(_answer))
