"""Attention of packed rows in blocks: what the mask gives, and nothing of a neighbour."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from oodatcaa.training.examples import Example
from oodatcaa.training.mlx import block_attention, vector
from oodatcaa.training.mlx.attention import additive, attention
from oodatcaa.training.mlx.batches import make_packed
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.loss import split_head
from oodatcaa.training.mlx.packed import packed, route
from oodatcaa.training.packing import arrange_rows, blocks_in, packed_order, positions_of
from oodatcaa.training.probing import probe_examples
from oodatcaa.training.protocol import ProbeSize
from packed_models import LONGEST, SHAPES, VOCABULARY, drawn, network_of

WIDTH = 8
ROWS = ([7, 1, 12, 4, 8], [16, 16])
"""Lengths of the examples in each row of 32."""


def owners_of(rows: tuple[list[int], ...]) -> mx.array:
    lines = [np.repeat(np.arange(len(row)), row) for row in rows]
    return mx.array(np.stack(lines).astype(np.int32))


def mask_of(owners: mx.array, window: int | None) -> mx.array:
    places = mx.arange(owners.shape[1])
    far = places[:, None] - places[None]
    seen = (far >= 0) & (far < (window or owners.shape[1]))
    mask = additive(
        seen & (owners[:, None, :, None] == owners[:, None, None, :]), *[owners.shape[1]] * 2
    )
    assert mask is not None
    return mask


Found = tuple[mx.array, ...]


def both(heads: int, groups: int, window: int | None) -> tuple[Found, Found]:
    """Output and gradients of queries, keys and values: masked, in blocks."""
    owners = owners_of(ROWS)
    blocks = blocks_in(np.array(owners))
    assert blocks is not None
    mask = mask_of(owners, window)
    rows, length = owners.shape
    random = [mx.random.key(seed) for seed in range(4)]
    counts = (heads, groups, groups, heads)
    q, k, v, weight = (
        mx.random.normal((rows, count, length, WIDTH), key=key)
        for count, key in zip(counts, random, strict=True)
    )

    def found(attention: Any, how: Any) -> Found:
        def loss(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
            out = attention(q, k, v, 0.3, how)
            return (out * weight).sum(), out

        (_, out), gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
        mx.eval(out, gradients)
        return (out, *gradients)

    with block_attention.known_masks():
        block_attention.stands_for(mask, blocks, window)
        meaning = block_attention.meaning_of(mask)
        return found(attention, mask), found(block_attention.attention, meaning)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (6, 2)])
def test_output_and_gradients_are_those_under_the_mask(
    heads: int, groups: int, window: int | None
) -> None:
    for masked, blocks in zip(*both(heads, groups, window), strict=True):
        assert mx.allclose(masked, blocks, rtol=1e-5, atol=1e-5)


def test_the_same_bits_every_time() -> None:
    first, second = both(4, 2, None)[1], both(4, 2, None)[1]
    assert all(mx.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(not on_cpu(), reason="of the CPU's layers")
@pytest.mark.parametrize("shape", ["llama", "llama half sliding", "gemma3"])
def test_nothing_of_a_neighbour_is_computed(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a mask a neighbour weighs 0, and 0 times NaN is NaN."""
    monkeypatch.setattr(vector, "FEW", 0)
    network = network_of(*SHAPES[shape], trained=0)
    split = split_head(network)
    route(network)
    unused = 1  # `drawn` takes others
    table = network.model.embed_tokens
    table.weight = mx.where(mx.arange(VOCABULARY)[:, None] == unused, mx.nan, table.weight)
    first, last = drawn([40, 30])
    rows = [[first, Example((unused,) * 21, 1), last]]
    batch = make_packed(rows, LONGEST)
    with vector.at_once(), packed(batch.owners):
        hidden = split.body(network, batch.inputs)
    finite = np.isfinite(np.array(hidden)).all(axis=-1)[0]
    assert np.array_equal(finite, np.array(batch.owners)[0] != 1)


def test_a_mask_is_known_as_it_is_and_as_long_as_it_is_used() -> None:
    owners = owners_of(ROWS)
    blocks = blocks_in(np.array(owners))
    assert blocks is not None
    mask = mask_of(owners, None)
    with block_attention.known_masks():
        block_attention.stands_for(mask, blocks, None)
        assert block_attention.meaning_of(mask) is not None
        assert block_attention.meaning_of(mask + 0) is None
        with block_attention.known_masks():
            assert block_attention.meaning_of(mask) is None
        assert block_attention.meaning_of(mask) is not None
    assert block_attention.meaning_of(mask) is None


def test_rows_that_are_mostly_one_example_keep_their_mask() -> None:
    assert blocks_in(np.array(owners_of(([30, 2], [31, 1])))) is None
    assert blocks_in(np.array(owners_of(([16, 16], [31, 1])))) is not None


@pytest.mark.parametrize(("batch", "length", "targets"), [(1, 64, 40), (3, 96, 288), (2, 128, 2)])
def test_a_probe_packs_rows_that_keep_most(batch: int, length: int, targets: int) -> None:
    """Full rows of two examples, with the scores of one: no others of that length keep more."""
    found = probe_examples(ProbeSize(batch=batch, length=length, targets=targets), 50, packing=True)
    sizes = [positions_of(example) for example in found.items]
    (order,) = packed_order(sizes, length, batch, 0, 0)
    rows = [[found.items[i] for i in row] for row in order]
    assert [sum(map(positions_of, row)) for row in rows] == [length] * batch
    assert {len(row) for row in rows} == {2}
    assert blocks_in(arrange_rows(rows, length).owners) is None
    assert abs(sum(example.targets for example in found.items) - targets) <= batch
