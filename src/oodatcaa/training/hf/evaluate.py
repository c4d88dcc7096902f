"""Base against adapter on PyTorch: `python -m oodatcaa.training.hf.evaluate FOLDER`.

EvalRequest -> EvalResult, with the comparison that every backend shares.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.protocol import PEFT_ADAPTER_FILE
from oodatcaa.training.serving import read_request, serve
from oodatcaa.training.wall import check_peak

if TYPE_CHECKING:
    from oodatcaa.training.examples import Example

HERE = Path(__file__).parent
JUDGE = tuple(
    HERE / name
    for name in ("evaluate.py", "loss.py", "setup.py", "dequantize.py", "rows.py")
    + ("../examples.py", "../masks.py", "../comparison.py")
)


def example_losses(
    network: Any, examples: Sequence[Example], max_seq_length: int, limit: int
) -> list[float]:
    """Mean loss per example in nats per target token, in the examples' order.

    Raises OodatcaaError `memory_gate.during` as soon as the peak is over `limit` bytes.
    """
    import torch

    from oodatcaa.training.hf.counters import COUNTERS
    from oodatcaa.training.hf.loss import make_batch, token_losses

    network.eval()

    def batch_losses(chosen: Sequence[Example]) -> Any:
        with torch.inference_mode():
            return token_losses(network, make_batch(chosen, max_seq_length)).cpu().numpy()

    return comparison.example_losses(
        examples, batch_losses, lambda: check_peak(COUNTERS.title, COUNTERS.peak(), limit)
    )


def evaluate(request: EvalRequest) -> EvalResult:
    """Load the base once, measure it, put the adapter on, measure again.

    Without an adapter only the base is measured. Raises OodatcaaError with codes `model.*`,
    `data.*`, `adapter.unreadable`, `memory_gate.during`.
    """
    started = time.monotonic()
    from oodatcaa.training.examples import tokenize_rows
    from oodatcaa.training.hf import setup
    from oodatcaa.training.hf.counters import COUNTERS
    from oodatcaa.training.hf.rows import row_tokens

    network, tokenizer = setup.load_base(request.model, request.quantize_bits)
    process = row_tokens(tokenizer, mask_prompt=request.mask_prompt)
    usable = tokenize_rows(requested_rows(request), process, request.max_seq_length)
    path = split_path(request)
    must_have_targets(usable, path)
    limits = (request.max_seq_length, request.memory_limit_bytes)
    base = example_losses(network, usable.items, *limits)
    adapter: list[float] = []
    adapter_sha = None
    if request.adapter_dir is not None:
        folder = Path(request.adapter_dir)
        network = setup.put_on_adapter(network, folder)
        adapter_sha = file_sha256(folder / PEFT_ADAPTER_FILE)
        adapter = example_losses(network, usable.items, *limits)
    return compare(request, usable, base, adapter, sources_sha256(JUDGE)).evolve(
        data_sha256=file_sha256(path),
        adapter_sha256=adapter_sha,
        peak_memory_bytes=COUNTERS.peak() or None,
        seconds=time.monotonic() - started,
    )


def _answer(folder: Path) -> Record:
    request = read_request(folder, EvalRequest)
    from oodatcaa.training.hf.counters import COUNTERS
    from oodatcaa.training.wall import walled

    with walled(folder, request.memory_limit_bytes, COUNTERS):
        return evaluate(request)


if __name__ == "__main__":
    sys.exit(serve(_answer))
