"""Chat JSONL becomes batches that carry only what the loss needs.

Three things differ from mlx-lm's `iterate_batches`, on purpose: examples whose prompt fills the
whole sequence are dropped and counted (one such batch would divide by zero and turn every adapter
tensor into NaN), batches really are made of examples of similar length, and the order is a pure
function of the seed, so a resumed run continues with the very batch it was killed before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.datasets import create_dataset

from oodatcaa.errors import OodatcaaError

PAD_TO = 32
"""Sequence lengths are rounded up to this: fewer shapes to compile for."""
TARGETS_TO = 64
"""Target counts are rounded up to this, for the same reason."""
POOL = 64
"""Batches that are sorted by length together; the rest of the order stays random. With log-normal
lengths 0.90 of the computed positions hold a token, 0.50 without sorting, 0.94 with all sorted."""
POOLS = 4
"""An epoch has at least so many pools, so that who is in a batch with whom changes."""

NO_TARGET = "the prompt fills the whole sequence: no target token left"
TRUNCATED = "longer than max_seq_length: truncated"


class Batch(NamedTuple):
    """What the loss receives after the model. `rows` index the flattened [batch * length] axis;
    `hidden` is the input of the first trained block, where the frozen ones ran already; `share`
    is what the batch weighs among those that are accumulated with it, 1 on average."""

    inputs: mx.array
    rows: mx.array
    targets: mx.array
    weights: mx.array
    hidden: mx.array | None = None
    share: mx.array | None = None


@dataclass(frozen=True)
class Example:
    """Tokens, already truncated, and the position of the first one that carries loss (>= 1)."""

    tokens: tuple[int, ...]
    offset: int

    @property
    def targets(self) -> int:
        return len(self.tokens) - self.offset


@dataclass(frozen=True)
class Examples:
    """One split, tokenised. `dropped` and `notes` count what could not be used as it was."""

    items: tuple[Example, ...]
    dropped: dict[str, int]
    notes: dict[str, int]


def read_split(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file. Raises OodatcaaError `data.unreadable` with every bad line."""
    rows, bad = [], []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OodatcaaError(
            "data.unreadable",
            f"{path} can not be read: {error}",
            hint="a data folder holds train.jsonl, valid.jsonl and test.jsonl",
        ) from error
    # JSON strings may hold U+2028 and its like, at which splitlines() would cut.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            bad.append(f"{path.name}:{number}: not JSON: {error}")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(f"{path.name}:{number}: not a JSON object")
    if bad:
        raise OodatcaaError("data.unreadable", f"{path} has {len(bad)} bad lines", details=bad)
    return rows


def tokenize(
    rows: list[dict[str, Any]], tokenizer: Any, *, mask_prompt: bool, max_seq_length: int
) -> Examples:
    """Tokenise with mlx-lm's own dataset classes (chat, prompt-completion or text).

    Raises OodatcaaError `data.format` naming every line that they can not read.
    """
    if not rows:
        return Examples((), {}, {})
    items: list[Example] = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    bad = []
    try:
        dataset = create_dataset(rows, tokenizer, SimpleNamespace(mask_prompt=mask_prompt))
    except ValueError as error:
        raise OodatcaaError(
            "data.format", str(error).splitlines()[0], hint="see docs/how-to for the data formats"
        ) from error
    for number, row in enumerate(rows, start=1):
        try:
            tokens, offset = dataset.process(row)
        except Exception as error:  # noqa: BLE001 - templates raise whatever they like; all are shown
            bad.append(f"example {number}: {type(error).__name__}: {error}")
            continue
        if len(tokens) > max_seq_length:
            notes[TRUNCATED] += 1
        # Position 0 has nothing before it to be predicted from.
        example = Example(tuple(tokens[:max_seq_length]), max(offset, 1))
        if example.targets < 1:
            dropped[NO_TARGET] += 1
        else:
            items.append(example)
    if bad:
        raise OodatcaaError("data.format", f"{len(bad)} examples can not be tokenised", details=bad)
    return Examples(tuple(items), dict(dropped), dict(notes))


def make_batch(examples: Sequence[Example], max_seq_length: int) -> Batch:
    """Pad and align: input position t predicts token t + 1; padding carries no weight."""
    longest = max(len(e.tokens) for e in examples) - 1
    length = min(_round_up(longest, PAD_TO), max_seq_length)
    inputs = np.zeros((len(examples), length), np.int32)
    rows, targets = [], []
    for i, example in enumerate(examples):
        tokens = np.asarray(example.tokens, np.int32)
        inputs[i, : len(tokens) - 1] = tokens[:-1]
        rows.append(i * length + np.arange(example.offset - 1, len(tokens) - 1))
        targets.append(tokens[example.offset :])
    count = sum(len(t) for t in targets)
    spare = _round_up(count, TARGETS_TO) - count
    return Batch(
        mx.array(inputs),
        mx.array(np.pad(np.concatenate(rows), (0, spare)).astype(np.int32)),
        mx.array(np.pad(np.concatenate(targets), (0, spare))),
        mx.array(np.pad(np.ones(count, np.float32), (0, spare))),
    )


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch as example indices: shuffled, similar lengths together.

    Every example occurs exactly once, except that a last batch which is not full is filled from
    the epoch's start (one shape less to compile for).
    """
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(lengths)).tolist()
    if spare := -len(shuffled) % batch_size:
        shuffled += [shuffled[i % len(lengths)] for i in range(spare)]
    size = batch_size * max(1, min(POOL, len(shuffled) // (POOLS * batch_size)))
    batches = []
    for start in range(0, len(shuffled), size):
        pool = sorted(shuffled[start : start + size], key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in random.permutation(len(batches)).tolist()]


class BatchIterator:
    """mlx-lm's `iterate_batches` seam. `loop=True` (training) never ends and skips `start`, and
    passes each batch through `prepare`.

    `window` batches are accumulated into one update. mlx-lm gives each of them the same weight,
    which is not what one large batch would do when they have different numbers of target tokens:
    their `share` puts that right.

    Without `loop` (validation) every example comes once, in the same random order every time.
    """

    def __init__(
        self,
        seed: int,
        start: int = 0,
        prepare: Callable[[Batch], Batch] | None = None,
        window: int = 1,
    ) -> None:
        self.seed = seed
        self.window = window
        self.start = start
        self.prepare = prepare or (lambda batch: batch)

    def __call__(
        self,
        dataset: Sequence[Example],
        batch_size: int,
        max_seq_length: int,
        loop: bool = False,
        comm_group: Any = None,  # noqa: ARG002 - part of mlx-lm's signature
    ) -> Iterator[Batch]:
        if not loop:
            ordered = sorted(dataset, key=lambda e: len(e.tokens))
            firsts = np.arange(0, len(ordered), batch_size)
            # Shuffled: a validation of a few batches must not be one of the shortest examples.
            for first in np.random.default_rng(self.seed).permutation(firsts):
                yield make_batch(ordered[first : first + batch_size], max_seq_length)
            return
        order = self._order([len(e.tokens) for e in dataset], batch_size)
        while True:
            chosen = [[dataset[i] for i in next(order)] for _ in range(self.window)]
            counts = [sum(e.targets for e in examples) for examples in chosen]
            for examples, count in zip(chosen, counts, strict=True):
                batch = make_batch(examples, max_seq_length)
                if self.window > 1:
                    share = self.window * count / sum(counts)
                    batch = batch._replace(share=mx.array(share, mx.float32))
                yield self.prepare(batch)

    def _order(self, lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
        epoch, skip = divmod(self.start, -(-len(lengths) // batch_size))
        while True:
            yield from epoch_order(lengths, batch_size, self.seed, epoch)[skip:]
            epoch, skip = epoch + 1, 0


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
