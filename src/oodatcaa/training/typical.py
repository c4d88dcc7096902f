"""What an average batch of a data set is, packed and padded: the one to time a step with."""

from __future__ import annotations

from collections.abc import Sequence

from oodatcaa.domain.auto_fit import Filling
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.examples import PAD_TO, epoch_order, round_up
from oodatcaa.training.formulas import Size
from oodatcaa.training.packing import efficiency, packed_order, padded_efficiency
from oodatcaa.training.tokens import Lengths


def filling(params: QLoRA, lengths: Sequence[Lengths]) -> Filling | None:
    """How well rows are filled by examples of these lengths; None where there are none."""
    if not lengths:
        return None
    sizes, capacity = _sizes(params, lengths), params.max_seq_length
    return Filling(
        examples=len(sizes),
        examples_per_row=len(sizes) * efficiency(sizes, capacity) * capacity / sum(sizes),
        padded=padded_efficiency(sizes, capacity, params.batch_size),
        packed=efficiency(sizes, capacity),
    )


def typical_size(params: QLoRA, lengths: Sequence[Lengths]) -> Size:
    """The mean batch of the first epoch: rows, positions and targets. Needs one example."""
    sizes, capacity = _sizes(params, lengths), params.max_seq_length
    if params.packing:
        packed = packed_order(sizes, capacity, params.batch_size, params.seed, 0)
        batches = [[[sizes[i] for i in row] for row in batch] for batch in packed]
    else:
        totals = [size + 1 for size in sizes]
        order = epoch_order(totals, params.batch_size, params.seed, 0)
        batches = [[[sizes[i]] for i in batch] for batch in order]
    widths = [min(round_up(max(map(sum, batch)), PAD_TO), capacity) for batch in batches]
    rows = max(1, round(sum(map(len, batches)) / len(batches)))
    length = max(PAD_TO, min(round_up(round(sum(widths) / len(widths)), PAD_TO), capacity))
    examples = sum(len(row) for batch in batches for row in batch) / len(batches)
    each = sum(_targets(params, one) for one in lengths) / len(lengths)
    return Size(rows, length, max(1, min(rows * length, round(each * examples))))


def _sizes(params: QLoRA, lengths: Sequence[Lengths]) -> list[int]:
    return [max(1, min(one.total, params.max_seq_length) - 1) for one in lengths]


def _targets(params: QLoRA, one: Lengths) -> int:
    room = min(one.total, params.max_seq_length) - 1
    return min(one.target, room) if params.mask_prompt else room
