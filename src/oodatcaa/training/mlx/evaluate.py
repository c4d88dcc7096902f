"""The fixed judge: base against adapter, example by example, on a split that was never trained on.

Child process: `python -m oodatcaa.training.mlx.evaluate FOLDER` (EvalRequest -> EvalResult). Its
own source is hashed into every result, so two results are comparable or visibly not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import EvalRequest, EvalResult
from oodatcaa.training import comparison
from oodatcaa.training.comparison import (
    compare,
    must_have_targets,
    requested_rows,
    sources_sha256,
    split_path,
)
from oodatcaa.training.formulas import EVALUATED
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.protocol import ADAPTER_FILE
from oodatcaa.training.serving import read_request, serve
from oodatcaa.training.wall import check_peak

if TYPE_CHECKING:
    from oodatcaa.training.examples import Example
    from oodatcaa.training.mlx.batches import Batch

HERE = Path(__file__).parent
JUDGE = tuple(
    HERE / name
    for name in ("evaluate.py", "batches.py", "loss.py", "head.py", "setup.py", "cpu.py")
    + (
        "adapted.py",
        "stored.py",
        "dense.py",
        "products.py",
        "vector.py",
        "blas.py",
        "team.py",
        "attention.py",
        "gelu.py",
        "norms.py",
        "rotary.py",
        "../examples.py",
        "../masks.py",
        "../comparison.py",
        "../formulas.py",
    )
)
"""The sources that decide the numbers."""


def evaluator_sha256() -> str:
    """sha256 over the sources of everything that decides a result."""
    return sources_sha256(JUDGE)


def example_losses(
    network: Any, examples: Sequence[Example], max_seq_length: int, limit: int
) -> list[float]:
    """Mean loss per example in nats per target token, in the examples' order.

    Raises OodatcaaError `memory_gate.during` as soon as MLX's peak is over `limit` bytes.
    """
    import mlx.core as mx

    from oodatcaa.training.mlx import vector
    from oodatcaa.training.mlx.batches import divide, make_batch
    from oodatcaa.training.mlx.loss import split_head, token_losses
    from oodatcaa.training.mlx.team import make_team

    network.eval()
    split = split_head(network)

    def losses(network: Any, batch: Batch) -> Any:
        with vector.at_once(traced=False):
            found = token_losses(split, network, batch.inputs, batch.rows, batch.targets)
            return np.array(found)[np.array(batch.weights) > 0]

    def batch_losses(chosen: Sequence[Example]) -> Any:
        batch = make_batch(chosen, max_seq_length)
        if team is None:
            return losses(network, batch)
        parts = divide(batch, team.size)
        return np.concatenate(team.each(losses, parts, network.trainable_parameters()))

    team = make_team(network, EVALUATED)
    try:
        return comparison.example_losses(
            examples, batch_losses, lambda: check_peak("MLX", mx.get_peak_memory(), limit)
        )
    finally:
        if team is not None:
            team.close()


def evaluate(request: EvalRequest) -> EvalResult:
    """Load the base once, measure it, put the adapter on, measure again.

    Without an adapter only the base is measured. Raises OodatcaaError with codes `model.*`,
    `data.*`, `adapter.unreadable`, `memory_gate.during`.
    """
    started = time.monotonic()
    import mlx.core as mx

    from oodatcaa.training.mlx import setup
    from oodatcaa.training.mlx.batches import tokenize

    network, tokenizer = setup.load_base(request.model, request.quantize_bits)
    check_peak("MLX", mx.get_peak_memory(), request.memory_limit_bytes)
    usable = tokenize(
        requested_rows(request),
        tokenizer,
        mask_prompt=request.mask_prompt,
        max_seq_length=request.max_seq_length,
    )
    path = split_path(request)
    must_have_targets(usable, path)
    limits = (request.max_seq_length, request.memory_limit_bytes)
    base = example_losses(network, usable.items, *limits)
    adapter: list[float] = []
    adapter_sha = None
    if request.adapter_dir is not None:
        setup.put_on_adapter(network, Path(request.adapter_dir))
        adapter_sha = file_sha256(Path(request.adapter_dir) / ADAPTER_FILE)
        adapter = example_losses(network, usable.items, *limits)
    return compare(request, usable, base, adapter, evaluator_sha256()).evolve(
        data_sha256=file_sha256(path),
        adapter_sha256=adapter_sha,
        peak_memory_bytes=mx.get_peak_memory() or None,
        seconds=time.monotonic() - started,
    )


def _answer(folder: Path) -> Record:
    request = read_request(folder, EvalRequest)
    # Before anything here imports mlx.
    preload()
    from oodatcaa.training.mlx.guard import walled

    with walled(folder, request.memory_limit_bytes):
        return evaluate(request)


if __name__ == "__main__":
    sys.exit(serve(_answer))
