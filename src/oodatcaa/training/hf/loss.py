"""Token losses where they count: the output layer is computed for columns that carry a target."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from oodatcaa.training.examples import Arrays, Example, arrange
from oodatcaa.training.hf.counters import device
from oodatcaa.training.packing import Row, arrange_rows, not_packable, too_far


class Batch(NamedTuple):
    """`rows` index the flattened [batch * length] axis; padding rows are left out. `positions` are
    counted anew in every example of a packed row: transformers makes its mask of them."""

    inputs: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor | None = None


def make_batch(examples: Sequence[Example], max_seq_length: int) -> Batch:
    return _on_device(arrange(examples, max_seq_length))


def make_packed(rows: Sequence[Row], max_seq_length: int) -> Batch:
    """The same for rows of several examples."""
    packed = arrange_rows(rows, max_seq_length)
    positions = torch.from_numpy(packed.positions).long().to(device())
    return _on_device(packed.arrays)._replace(positions=positions)


def _on_device(arrays: Arrays) -> Batch:
    real = int(arrays.weights.sum())
    return Batch(
        torch.from_numpy(arrays.inputs).long().to(device()),
        torch.from_numpy(arrays.rows[:real]).long().to(device()),
        torch.from_numpy(arrays.targets[:real]).long().to(device()),
    )


def token_losses(network: Any, batch: Batch) -> torch.Tensor:
    """One float32 loss per target, in the batch's order. Padding stands on the right, where a
    causal model never looks back from."""
    length = batch.inputs.shape[1]
    row, column = batch.rows // length, batch.rows % length
    options: dict[str, Any] = {"input_ids": batch.inputs, "use_cache": False}
    if batch.positions is not None:
        options["position_ids"] = batch.positions
    if _keeps(network):
        columns, place = torch.unique(column, return_inverse=True)
        logits = network(**options, logits_to_keep=columns).logits[row, place]
    else:
        logits = network(**options).logits[row, column]
    return functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def _keeps(network: Any) -> bool:
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def must_pack(network: Any, rows: Sequence[Row], max_seq_length: int) -> None:
    """Raises OodatcaaError `train.bad_params` when an example of packed `rows` is not, to the
    network, what it is alone. Leaves it in eval mode."""
    network.eval()
    _, owners = arrange_rows(rows, max_seq_length)
    batch = make_packed(rows, max_seq_length)
    worst = 0.0
    with torch.inference_mode():
        together = _hidden(network, batch.inputs, batch.positions)
        for number, row in enumerate(rows):
            for owner in range(len(row)):
                where = torch.from_numpy(owners[number] == owner).to(device())
                own = _hidden(network, batch.inputs[number : number + 1, where], None)[0]
                far = (own - together[number, where]).norm(dim=-1) / own.norm(dim=-1).clamp(1e-20)
                worst = float(np.maximum(worst, float(far.max())))  # a NaN stays one
    if too_far(worst, half=together.dtype != torch.float32):
        raise not_packable(f"an example's output differs by {worst:.1%} from what it is alone")


def _hidden(network: Any, inputs: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """What the output layer is given, where it can be had: it is smaller than the logits."""
    body = network.get_decoder() if hasattr(network, "get_decoder") else network
    options = {} if positions is None else {"position_ids": positions}
    found: torch.Tensor = body(input_ids=inputs, use_cache=False, **options)[0]
    return found
