"""Token losses where they count: the output layer is computed for columns that carry a target."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from oodatcaa.training.examples import Example, arrange
from oodatcaa.training.hf.counters import device


class Batch(NamedTuple):
    """`rows` index the flattened [batch * length] axis; padding rows are left out."""

    inputs: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor


def make_batch(examples: Sequence[Example], max_seq_length: int) -> Batch:
    arrays = arrange(examples, max_seq_length)
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
    if _keeps(network):
        columns, place = torch.unique(column, return_inverse=True)
        logits = network(**options, logits_to_keep=columns).logits[row, place]
    else:
        logits = network(**options).logits[row, column]
    return functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def _keeps(network: Any) -> bool:
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    return "logits_to_keep" in inspect.signature(base.forward).parameters
