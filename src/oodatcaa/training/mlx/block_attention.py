"""Attention of packed rows, an example at a time, where MLX's CPU layers evaluate as they go.

Under a mask the scores between examples are computed like all others, only to become 0: they grow
with the square of the row. Here they are not computed; what is left grows with the square of each
example. mlx-lm's models know nothing of that: they get a mask as always and hand it on, and
`meaning_of` tells which blocks that very mask stands for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx

from oodatcaa.training.mlx import products, vector
from oodatcaa.training.mlx.attention import additive, attention_vjp, grouped_scores
from oodatcaa.training.packing import Block, Blocks

Arrays = tuple[mx.array, ...]


class Meaning(NamedTuple):
    """The blocks that a mask stands for, and what is added to the scores of the largest one; of a
    smaller one to its first rows and columns."""

    blocks: Blocks
    added: mx.array


Masks = list[tuple[mx.array, Meaning]]


class _Known(threading.local):
    """Of this thread: parts of a batch run side by side (parallel.py)."""

    def __init__(self) -> None:
        self.masks: Masks = []


_known = _Known()


@contextmanager
def known_masks(masks: Masks | None = None) -> Iterator[None]:
    """Inside, this thread knows `masks`, to which those made inside are added (None: these alone);
    what it knew before is back at the end."""
    before, _known.masks = _known.masks, [] if masks is None else masks
    try:
        yield
    finally:
        _known.masks = before


def stands_for(mask: mx.array, blocks: Blocks, window: int | None) -> None:
    """`mask` says no more than: backwards inside of `blocks`, at most `window` positions far."""
    longest = max(block.end - block.first for block in blocks)
    places = mx.arange(longest)
    seen = places[:, None] >= places[None]
    if window is not None:
        seen = seen & (places[:, None] < places[None] + window)
    added = additive(seen, longest, longest)
    assert added is not None
    mx.eval(added)
    _known.masks.append((mask, Meaning(blocks, added)))


def meaning_of(mask: Any) -> Meaning | None:
    """None for a mask that was not made in this thread, or that a model has changed."""
    return next((meaning for made, meaning in _known.masks if made is mask), None)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, meaning: Meaning
) -> mx.array:
    """As `attention.attention` with the mask that `meaning` is of; shapes as there, with T = S."""
    blocks, added = meaning.blocks, vector.view(meaning.added)

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> Arrays:
        q, k, v = vector.cut_all((q, k, v))
        found, outs = [], []
        for block in blocks:
            own_q, own_k, own_v = _cut(block, q, k, v)
            scores = grouped_scores(own_q, own_k, scale)
            size = block.end - block.first
            found.append(vector.softmax_of(scores, added[:size, :size]))
            out = products.stacked(found[-1], own_v)
            outs.append(out.reshape(1, q.shape[1], -1, v.shape[3]))
        out = _together(blocks, outs)
        mx.eval(out, found)
        return out, *found

    @attend.vjp
    def attend_vjp(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        found = []
        for block, p in zip(blocks, outputs[1:], strict=True):
            out, d_out = _cut(block, outputs[0], cotangents[0])
            found.append(attention_vjp(_cut(block, *primals), scale, out, p, d_out))
        return tuple(_together(blocks, list(parts)) for parts in zip(*found, strict=True))

    found: Any = attend(queries, keys, values)
    result: mx.array = found[0]
    return result


def _cut(block: Block, *arrays: mx.array) -> Arrays:
    return tuple(a[block.row : block.row + 1, :, block.first : block.end] for a in arrays)


def _together(blocks: Blocks, parts: list[mx.array]) -> mx.array:
    """The rows that `parts` are the blocks of."""
    rows: list[list[mx.array]] = []
    for block, part in zip(blocks, parts, strict=True):
        if block.first == 0:
            rows.append([])
        rows[-1].append(part)
    whole: mx.array = mx.concatenate([mx.concatenate(row, axis=2) for row in rows], axis=0)
    return whole
