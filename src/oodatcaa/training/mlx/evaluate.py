"""The fixed judge: base against adapter, example by example, on a split that was never trained on.

Child process: `python -m oodatcaa.training.mlx.evaluate FOLDER` (EvalRequest -> EvalResult). Its
own source is hashed into every result, so two results are comparable or visibly not.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import EvalRequest, EvalResult
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.mlx.child import read_request, serve
from oodatcaa.training.protocol import ADAPTER_FILE

if TYPE_CHECKING:
    from oodatcaa.training.mlx.batches import Example

BATCH_SIZE = 4
JUDGE = ("evaluate.py", "batches.py", "loss.py", "head.py", "setup.py", "cpu.py", "vector.py")
"""The sources that decide the numbers."""


def evaluator_sha256() -> str:
    """sha256 over the sources of everything that decides a result."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for name in JUDGE:
        total.update(f"{name} {hashlib.sha256((here / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def paired_bootstrap(
    base: Sequence[float],
    adapter: Sequence[float],
    tokens: Sequence[int],
    *,
    samples: int,
    seed: int,
) -> tuple[float, float]:
    """95 % interval of the drop in mean token loss, by resampling whole examples with their pairs.

    `base` and `adapter` are mean losses per example. Percentile method, Efron & Tibshirani 1993,
    chapter 13. Examples are the unit: tokens of one example are far from independent.
    """
    weight = np.asarray(tokens, np.float64)
    saved = (np.asarray(base, np.float64) - np.asarray(adapter, np.float64)) * weight
    random = np.random.default_rng(seed)
    drops = np.empty(samples)
    for i in range(samples):
        chosen = random.integers(0, len(weight), len(weight))
        drops[i] = saved[chosen].sum() / weight[chosen].sum()
    low, high = np.percentile(drops, [2.5, 97.5])
    return float(low), float(high)


def example_losses(
    network: Any, examples: Sequence[Example], max_seq_length: int, limit: int
) -> list[float]:
    """Mean loss per example in nats per target token, in the examples' order.

    Raises OodatcaaError `memory_gate.during` as soon as MLX's peak is over `limit` bytes.
    """
    import mlx.core as mx

    from oodatcaa.training.mlx import vector
    from oodatcaa.training.mlx.batches import make_batch
    from oodatcaa.training.mlx.loss import split_head, token_losses

    network.eval()
    split = split_head(network)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    losses = [0.0] * len(examples)
    for first in range(0, len(order), BATCH_SIZE):
        chosen = order[first : first + BATCH_SIZE]
        batch = make_batch([examples[i] for i in chosen], max_seq_length)
        with vector.at_once():
            found = np.array(token_losses(split, network, batch.inputs, batch.rows, batch.targets))
        start = 0
        for i in chosen:
            count = examples[i].targets
            losses[i] = float(found[start : start + count].astype(np.float64).mean())
            start += count
        check_memory(mx.get_peak_memory(), limit)
    return losses


def check_memory(peak: int, limit: int) -> None:
    """Raises OodatcaaError `memory_gate.during` when MLX's peak is over the limit."""
    if peak > limit:
        raise OodatcaaError(
            "memory_gate.during",
            f"MLX's peak memory is {peak / 1e9:.2f} GB, the limit is {limit / 1e9:.2f} GB",
            hint="raise memory_limit in OBJECTIVE.md, or choose a smaller model",
        )


def evaluate(request: EvalRequest) -> EvalResult:
    """Load the base once, measure it, put the adapter on, measure again.

    Without an adapter only the base is measured. Raises OodatcaaError with codes `model.*`,
    `data.*`, `adapter.unreadable`, `memory_gate.during`.
    """
    started = time.monotonic()
    import mlx.core as mx

    from oodatcaa.training.mlx import setup
    from oodatcaa.training.mlx.batches import read_split, tokenize

    network, tokenizer = setup.load_base(request.model, request.quantize_bits)
    check_memory(mx.get_peak_memory(), request.memory_limit_bytes)
    path = Path(request.data_dir) / f"{request.split}.jsonl"
    rows = read_split(path)[: request.max_examples]
    usable = tokenize(
        rows,
        tokenizer,
        mask_prompt=request.mask_prompt,
        max_seq_length=request.max_seq_length,
    )
    if not usable.items:
        raise OodatcaaError(
            "data.empty",
            f"{path} has no example with a target token",
            hint="raise max_seq_length or check the data folder",
            details=[f"{reason} ({count})" for reason, count in usable.dropped.items()],
        )
    limits = (request.max_seq_length, request.memory_limit_bytes)
    base = example_losses(network, usable.items, *limits)
    adapter: list[float] = []
    adapter_sha = None
    if request.adapter_dir is not None:
        setup.put_on_adapter(network, Path(request.adapter_dir))
        adapter_sha = _sha256(Path(request.adapter_dir) / ADAPTER_FILE)
        adapter = example_losses(network, usable.items, *limits)
    tokens = [example.targets for example in usable.items]
    return _result(request, base, adapter, tokens).evolve(
        data_sha256=_sha256(path),
        adapter_sha256=adapter_sha,
        peak_memory_bytes=mx.get_peak_memory() or None,
        seconds=time.monotonic() - started,
    )


def _result(
    request: EvalRequest, base: list[float], adapter: list[float], tokens: list[int]
) -> EvalResult:
    base_loss, adapter_loss = _mean(base, tokens), _mean(adapter, tokens)
    drop = low = high = None
    if base_loss is not None and adapter_loss is not None:
        drop = base_loss - adapter_loss
        low, high = paired_bootstrap(
            base, adapter, tokens, samples=request.bootstrap_samples, seed=request.seed
        )
    return EvalResult(
        split=request.split,
        examples=len(tokens),
        target_tokens=sum(tokens),
        base_loss=base_loss,
        adapter_loss=adapter_loss,
        drop=drop,
        drop_low=low,
        drop_high=high,
        per_example_base=_finite(base),
        per_example_adapter=_finite(adapter),
        per_example_tokens=tuple(tokens),
        evaluator_sha256=evaluator_sha256(),
        seconds=0.0,
    )


def _mean(losses: list[float], tokens: list[int]) -> float | None:
    """Mean over all target tokens; None when there is nothing or it is not a finite number."""
    if not losses or not np.isfinite(losses).all():
        return None
    return float(np.average(losses, weights=tokens))


def _finite(losses: list[float]) -> tuple[float, ...]:
    """Per-example losses, or none of them when one is not a number (JSON has no NaN)."""
    return tuple(losses) if np.isfinite(losses).all() else ()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _answer(folder: Path) -> Record:
    request = read_request(folder, EvalRequest)
    # Before anything here imports mlx.
    preload()
    from oodatcaa.training.mlx.guard import walled

    with walled(folder, request.memory_limit_bytes):
        return evaluate(request)


if __name__ == "__main__":
    sys.exit(serve(_answer))
