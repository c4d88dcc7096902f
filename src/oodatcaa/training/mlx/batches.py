"""The shared batches as mlx arrays, behind mlx-lm's `iterate_batches` seam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.datasets import create_dataset

from oodatcaa.errors import OodatcaaError
from oodatcaa.training.examples import (
    Example,
    Examples,
    arrange,
    pad_targets,
    right_mask,
    tokenize_rows,
    training_batches,
    validation_batches,
)
from oodatcaa.training.packing import Row, arrange_rows, packed_batches


class Batch(NamedTuple):
    """What the loss receives after the model. `rows` index the flattened [batch * length] axis;
    `hidden` is the input of the first trained block, where the frozen ones ran already; `share`
    is what the batch weighs among those that are accumulated with it, 1 on average; `owners` says
    whose the positions of packed rows are."""

    inputs: mx.array
    rows: mx.array
    targets: mx.array
    weights: mx.array
    hidden: mx.array | None = None
    share: mx.array | None = None
    owners: mx.array | None = None


def tokenize(
    rows: list[dict[str, Any]], tokenizer: Any, *, mask_prompt: bool, max_seq_length: int
) -> Examples:
    """Tokenise with mlx-lm's own dataset classes (chat, prompt-completion or text).

    Raises OodatcaaError `data.format` naming every line that they can not read.
    """
    if not rows:
        return Examples((), {}, {})
    try:
        dataset = create_dataset(rows, tokenizer, SimpleNamespace(mask_prompt=mask_prompt))
    except ValueError as error:
        raise OodatcaaError(
            "data.format", str(error).splitlines()[0], hint="see docs/how-to for the data formats"
        ) from error
    process = dataset.process
    if mask_prompt:
        dataset.mask_prompt = False  # its mask is as long as the prompt, whatever that ends with
        process = right_mask(process, tokenizer)
    return tokenize_rows(rows, process, max_seq_length)


def make_batch(examples: Sequence[Example], max_seq_length: int) -> Batch:
    """Pad and align: input position t predicts token t + 1; padding carries no weight."""
    return Batch(*(mx.array(part) for part in arrange(examples, max_seq_length)))


def divide(batch: Batch, parts: int) -> list[Batch]:
    """The batch's rows in at most `parts` evaluated batches of one length, none of them empty.

    Every target goes with its row. `share` is that of the whole and must be None.
    """
    count, length = batch.inputs.shape
    rows, weights = np.array(batch.rows), np.array(batch.weights)
    targets, real = np.array(batch.targets), weights > 0
    found = []
    for chosen in np.array_split(np.arange(count), min(parts, count)):
        first, last = int(chosen[0]), int(chosen[-1]) + 1
        mine = real & (rows >= first * length) & (rows < last * length)
        aligned = pad_targets(rows[mine] - first * length, targets[mine])
        hidden = None if batch.hidden is None else batch.hidden[first:last]
        kept, aims, counted = map(mx.array, aligned)
        owners = None if batch.owners is None else batch.owners[first:last]
        found.append(Batch(batch.inputs[first:last], kept, aims, counted, hidden, owners=owners))
        mx.eval([array for array in found[-1] if array is not None])
    return found


def make_packed(rows: Sequence[Row], max_seq_length: int) -> Batch:
    """The same for rows of several examples."""
    arrays, owners = arrange_rows(rows, max_seq_length)
    return Batch(*(mx.array(part) for part in arrays))._replace(owners=mx.array(owners))


Prepare = Callable[[Batch, Sequence[Row]], Batch]
"""What happens to a batch before its step; the rows are its examples."""


class BatchIterator:
    """mlx-lm's `iterate_batches` seam. `loop=True` (training) never ends and skips `start`;
    `window` batches are accumulated into one update. `packing` fills rows with several examples;
    not those of a validation. Each batch passes through `prepare`, with the examples of its rows.

    Without `loop` (validation) every example comes once, in the same random order every time.
    """

    def __init__(
        self,
        seed: int,
        start: int = 0,
        prepare: Prepare | None = None,
        window: int = 1,
        *,
        packing: bool = False,
    ) -> None:
        self.seed = seed
        self.window = window
        self.packing = packing
        self.start = start
        self.prepare = prepare or (lambda batch, _: batch)

    def __call__(
        self,
        dataset: Sequence[Example],
        batch_size: int,
        max_seq_length: int,
        loop: bool = False,
        comm_group: Any = None,  # noqa: ARG002 - part of mlx-lm's signature
    ) -> Iterator[Batch]:
        if not loop:
            for examples in validation_batches(dataset, batch_size, self.seed):
                batch = make_batch(examples, max_seq_length)
                yield self.prepare(batch, [[one] for one in examples])
            return
        for batch, rows, share in self._training(dataset, batch_size, max_seq_length):
            if self.window > 1:
                batch = batch._replace(share=mx.array(share, mx.float32))
            yield self.prepare(batch, rows)

    def _training(
        self, dataset: Sequence[Example], batch_size: int, longest: int
    ) -> Iterator[tuple[Batch, Sequence[Row], float]]:
        where = (batch_size, self.seed, self.start, self.window)
        if self.packing:
            for rows, share in packed_batches(dataset, longest, *where):
                yield make_packed(rows, longest), rows, share
        else:
            for examples, share in training_batches(dataset, *where):
                yield make_batch(examples, longest), [[one] for one in examples], share
