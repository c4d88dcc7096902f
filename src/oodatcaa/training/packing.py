"""Short examples packed into rows of `max_seq_length` positions; nothing here knows a framework.

A row holds whole examples, one behind the other, each of which is to see itself alone: `owners`
says whose a position is, and a backend makes its attention mask of that. Rows are filled best-fit
decreasing (Johnson 1973) inside of pools, so that who shares a row with whom changes from epoch to
epoch. As without packing the order is a pure function of the seed: a resumed run goes on with the
very row it was killed before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.examples import (
    PAD_TO,
    POOL,
    POOLS,
    Arrays,
    Example,
    epoch_order,
    pad_targets,
    round_up,
    shares,
)

Row = list[Example]


class Packed(NamedTuple):
    """`arrays` as of unpacked batches. `owners` [rows, length] numbers the examples of a row from 0
    on; padding behind them is one more, so that every position has something to look at."""

    arrays: Arrays
    owners: np.ndarray[Any, np.dtype[np.int32]]

    @property
    def positions(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Counted anew in every example: [rows, length]."""
        length = self.owners.shape[1]
        places = np.arange(length, dtype=np.int32)
        begins = np.diff(self.owners, axis=1, prepend=-1) != 0
        first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
        found: np.ndarray[Any, np.dtype[np.int32]] = (places - first).astype(np.int32)
        return found


BLOCKS_PAY = 0.75
"""Of the scores of whole rows, the share in their examples' own from which on one large product is
as fast as many small ones, on a CPU."""


class Block(NamedTuple):
    """Positions `first` to `end` of a row, which see each other alone."""

    row: int
    first: int
    end: int

    @property
    def scores(self) -> int:
        """That attention computes for one head, those that it masks included."""
        return (self.end - self.first) ** 2


Blocks = tuple[Block, ...]


def blocks_in(owners: np.ndarray[Any, Any]) -> Blocks | None:
    """Those of `owners` [rows, length], row by row; None where whole rows are computed as fast."""
    found = []
    for row, line in enumerate(owners):
        edges = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist(), len(line)]
        found += [Block(row, *edge) for edge in pairwise(edges)]
    scores = sum(block.scores for block in found)
    return tuple(found) if scores < BLOCKS_PAY * owners.size * owners.shape[1] else None


def positions_of(example: Example) -> int:
    """How many a row needs for it: its last token is predicted, and predicts nothing."""
    return len(example.tokens) - 1


def fill(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `sizes` in rows of at most `capacity` together; one that is larger has a row of
    its own. Best-fit decreasing; equal sizes in the order they come in."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for one in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = bisect_left(room, (sizes[one], -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(one)
        insort(room, (left - sizes[one], row))
    return rows


def packed_order(
    sizes: Sequence[int], capacity: int, batch_size: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """The batches of one epoch: rows of example indices. `sizes` as of `positions_of`.

    Every example occurs exactly once. Batches have at most `batch_size` rows, and differ by at most
    one row from each other.
    """
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(sizes)).tolist()
    needed = sum(sizes)
    pool = min(POOL * batch_size * capacity, max(capacity, needed // POOLS))
    rows: list[list[int]] = []
    waiting: list[int] = []
    held = 0
    for place, one in enumerate(shuffled):
        waiting.append(one)
        held += sizes[one]
        last = place == len(shuffled) - 1
        if held < pool and not last:
            continue
        found = [[waiting[i] for i in row] for row in fill([sizes[i] for i in waiting], capacity)]
        # The row with most room is filled up from the next pool.
        open_row = [] if last else min(found, key=lambda row: sum(sizes[i] for i in row))
        rows += [row for row in found if row is not open_row]
        waiting, held = list(open_row), sum(sizes[i] for i in open_row)
    mixed = [rows[i] for i in random.permutation(len(rows)).tolist()]
    count = -(-len(mixed) // batch_size)
    return [[mixed[i] for i in part] for part in np.array_split(np.arange(len(mixed)), count)]


def packed_batches(
    dataset: Sequence[Example],
    capacity: int,
    batch_size: int,
    seed: int,
    start: int = 0,
    window: int = 1,
) -> Iterator[tuple[list[Row], float]]:
    """Endless, from batch `start` on: the rows of a batch, and its share (see `shares`)."""
    sizes = [positions_of(example) for example in dataset]
    order = _order(sizes, capacity, batch_size, seed, start)
    while True:
        chosen = [[[dataset[i] for i in row] for row in next(order)] for _ in range(window)]
        counts = [sum(e.targets for row in rows for e in row) for rows in chosen]
        yield from zip(chosen, shares(counts), strict=True)


def _order(
    sizes: Sequence[int], capacity: int, batch_size: int, seed: int, start: int
) -> Iterator[list[list[int]]]:
    epoch = 0
    while True:
        batches = packed_order(sizes, capacity, batch_size, seed, epoch)
        # How many batches an epoch has is only known once its rows are filled.
        yield from batches[start:]
        start, epoch = max(0, start - len(batches)), epoch + 1


def arrange_rows(rows: Sequence[Row], max_seq_length: int) -> Packed:
    """Pad and align as `arrange` does, several examples to a row."""
    longest = max(sum(map(positions_of, row)) for row in rows)
    length = max(longest, min(round_up(longest, PAD_TO), max_seq_length))
    inputs = np.zeros((len(rows), length), np.int32)
    owners = np.zeros((len(rows), length), np.int32)
    picked, targets = [], []
    for number, row in enumerate(rows):
        first = 0
        for owner, example in enumerate(row):
            tokens = np.asarray(example.tokens, np.int32)
            end = first + positions_of(example)
            inputs[number, first:end] = tokens[:-1]
            owners[number, first:end] = owner
            picked.append(np.arange(first + example.offset - 1, end) + number * length)
            targets.append(tokens[example.offset :])
            first = end
        owners[number, first:] = len(row)
    aligned = pad_targets(np.concatenate(picked), np.concatenate(targets))
    return Packed(Arrays(inputs, *aligned), owners)


def efficiency(sizes: Sequence[int], capacity: int) -> float:
    """The share of the rows' positions that hold a token, of the first epoch."""
    batches = packed_order(sizes, capacity, 1, 0, 0)
    return sum(sizes) / (capacity * len(batches)) if batches else 0.0


def padded_efficiency(sizes: Sequence[int], capacity: int, batch_size: int) -> float:
    """The same of batches as they are without packing: padded to the longest of each."""
    batches = epoch_order([size + 1 for size in sizes], batch_size, 0, 0) if sizes else []
    held = sum(sizes[i] for batch in batches for i in batch)
    width = [min(round_up(max(sizes[i] for i in b), PAD_TO), capacity) for b in batches]
    return held / (batch_size * sum(width)) if batches else 0.0


def fullest(dataset: Sequence[Example], params: QLoRA) -> list[Row]:
    """Rows to try a model with: those of the first epoch that hold most, of two examples at least;
    two where a batch has so many. Where none is shared, the halves of a row that could have been.
    """
    capacity, most = params.max_seq_length, min(2, params.batch_size)
    sizes = [positions_of(example) for example in dataset]
    rows = [row for batch in packed_order(sizes, capacity, 1, params.seed, 0) for row in batch]
    shared = sorted((r for r in rows if len(r) > 1), key=lambda r: -sum(sizes[i] for i in r))
    if shared:
        return [[dataset[i] for i in row] for row in shared[:most]]
    half = max(1, capacity // 2) + 1
    first, last = dataset[0], dataset[-1]
    return [[Example(e.tokens[:half], 1) for e in (first, last) if len(e.tokens) > 1]]


TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Of a position's output in a packed row, relative. Random models of nine architectures and up to
30 blocks differ by 2e-6 in float32 and by 0.03 in bfloat16; where another example is seen, by 0.4
and more."""


def too_far(distance: float, *, half: bool) -> bool:
    """Whether an example is not what it is alone; NaN is not."""
    return not distance <= (HALF_TOLERANCE if half else TOLERANCE)


def not_packable(why: str) -> OodatcaaError:
    return OodatcaaError(
        "train.bad_params",
        f"packing: in this model an example of a packed row is not what it is alone: {why}",
        hint="leave packing out for this model",
    )
