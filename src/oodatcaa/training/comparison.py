"""Base against adapter, from per-example losses: means, the paired bootstrap, the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oodatcaa.domain.training import EvalRequest, EvalResult
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.examples import Example, Examples, read_split
from oodatcaa.training.formulas import EVALUATED

Floats = np.ndarray[Any, np.dtype[Any]]


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


def sources_sha256(files: Sequence[Path]) -> str:
    """sha256 over the sources that decide a result: two results are comparable or visibly not."""
    total = hashlib.sha256()
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.name} {digest}\n".encode())
    return total.hexdigest()


def split_path(request: EvalRequest) -> Path:
    return Path(request.data_dir) / f"{request.split}.jsonl"


def requested_rows(request: EvalRequest) -> list[dict[str, object]]:
    """The rows that are to be compared on. Raises OodatcaaError `data.unreadable`."""
    return read_split(split_path(request))[: request.max_examples]


def must_have_targets(usable: Examples, path: Path) -> None:
    """Raises OodatcaaError `data.empty` when nothing of a split can be measured."""
    if usable.items:
        return
    raise OodatcaaError(
        "data.empty",
        f"{path} has no example with a target token",
        hint="raise max_seq_length or check the data folder",
        details=[f"{reason} ({count})" for reason, count in usable.dropped.items()],
    )


def example_losses(
    examples: Sequence[Example],
    batch_losses: Callable[[Sequence[Example]], Floats],
    check: Callable[[], None],
) -> list[float]:
    """Mean loss per example in nats per target token, in the examples' order.

    `batch_losses` gives those of a batch's targets one after the other; batches are made of
    examples of about one length. `check` is called after every batch and may raise.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    losses = [0.0] * len(examples)
    for first in range(0, len(order), EVALUATED):
        chosen = order[first : first + EVALUATED]
        found = batch_losses([examples[i] for i in chosen]).astype(np.float64)
        start = 0
        for i in chosen:
            count = examples[i].targets
            losses[i] = float(found[start : start + count].mean())
            start += count
        check()
    return losses


def compare(
    request: EvalRequest,
    usable: Examples,
    base: list[float],
    adapter: list[float],
    evaluator: str,
) -> EvalResult:
    """The result for mean losses per usable example; `evaluator` is the judge's own hash."""
    tokens = [example.targets for example in usable.items]
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
        dropped_examples=sum(usable.dropped.values()),
        lost_tokens=usable.lost_tokens,
        base_loss=base_loss,
        adapter_loss=adapter_loss,
        drop=drop,
        drop_low=low,
        drop_high=high,
        per_example_base=_finite(base),
        per_example_adapter=_finite(adapter),
        per_example_tokens=tuple(tokens),
        evaluator_sha256=evaluator,
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
