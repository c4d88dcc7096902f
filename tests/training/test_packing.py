"""Which examples share a row: every one once, none split, and the same again after a resume."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.examples import Example, arrange, training_batches
from oodatcaa.training.packing import (
    arrange_rows,
    efficiency,
    fill,
    fullest,
    packed_batches,
    packed_order,
    padded_efficiency,
    positions_of,
    too_far,
)

CAPACITY = 96
sizes_of = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=80)


@given(sizes_of, st.integers(1, 5), st.integers(0, 2**32), st.integers(0, 4))
def test_an_epoch_holds_every_example_once_in_rows_that_are_not_too_long(
    sizes: list[int], batch: int, seed: int, epoch: int
) -> None:
    order = packed_order(sizes, CAPACITY, batch, seed, epoch)

    rows = [row for chosen in order for row in chosen]
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(sizes)))
    assert all(0 < sum(sizes[i] for i in row) <= CAPACITY for row in rows)
    counts = {len(chosen) for chosen in order}
    assert max(counts) <= batch
    assert max(counts) - min(counts) <= 1
    assert order == packed_order(sizes, CAPACITY, batch, seed, epoch)


@given(sizes_of)
def test_two_rows_never_fit_into_one(sizes: list[int]) -> None:
    rows = fill(sizes, CAPACITY)
    totals = sorted(sum(sizes[i] for i in row) for row in rows)
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(sizes)))
    if len(totals) > 1:
        assert totals[0] + totals[1] > CAPACITY


def test_who_shares_a_row_changes_from_epoch_to_epoch_and_with_the_seed() -> None:
    sizes = np.random.default_rng(0).integers(5, 60, 200).tolist()

    def rows(seed: int, epoch: int) -> set[frozenset[int]]:
        order = packed_order(sizes, CAPACITY, 2, seed, epoch)
        return {frozenset(row) for chosen in order for row in chosen}

    for other in (rows(0, 1), rows(1, 0)):
        assert len(rows(0, 0) & other) < len(other) / 4


@pytest.mark.parametrize("count", [40, 400, 4000])
def test_rows_of_log_normal_lengths_are_nearly_full(count: int) -> None:
    drawn = np.random.default_rng(1).lognormal(4.4, 0.7, count)
    sizes = np.clip(drawn, 8, 500).astype(int).tolist()
    assert efficiency(sizes, 512) > 0.95 * sum(sizes) / (512 * -(-sum(sizes) // 512))


def test_how_full_batches_are_without_packing_is_counted_as_they_are_made() -> None:
    sizes = np.random.default_rng(2).integers(3, 90, 50).tolist()
    data = made(sizes)
    batches = training_batches(data, 4, 0)
    held = computed = 0
    for examples, _ in itertools.islice(batches, -(-len(sizes) // 4)):
        held += sum(map(positions_of, examples))
        computed += arrange(examples, CAPACITY).inputs.size
    assert padded_efficiency(sizes, CAPACITY, 4) == held / computed
    assert efficiency(sizes, CAPACITY) > padded_efficiency(sizes, CAPACITY, 4)


def made(sizes: list[int]) -> list[Example]:
    """Tokens tell whose they are: example n has n * 1000 and on."""
    return [
        Example(tuple(range(1000 * n, 1000 * n + size + 1)), 1 + size // 3)
        for n, size in enumerate(sizes)
    ]


@given(
    st.lists(st.integers(1, CAPACITY - 1), min_size=1, max_size=25),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_from_any_batch_on_the_rest_is_the_same(
    sizes: list[int], batch: int, window: int, start: int
) -> None:
    start -= start % window  # a run resumes between two updates
    data = made(sizes)
    whole = packed_batches(data, CAPACITY, batch, 7, 0, window)
    rest = packed_batches(data, CAPACITY, batch, 7, start, window)
    assert list(itertools.islice(whole, start, start + 8)) == list(itertools.islice(rest, 8))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=25), st.integers(1, 3), st.integers(1, 4))
@settings(deadline=None)
def test_every_target_of_an_update_weighs_the_same(
    sizes: list[int], batch: int, window: int
) -> None:
    chosen = list(itertools.islice(packed_batches(made(sizes), 64, batch, 0, 0, window), window))
    counts = [sum(e.targets for row in rows for e in row) for rows, _ in chosen]
    for count, (_, share) in zip(counts, chosen, strict=True):
        # Mean over the batch, times its share, over the window: one by the targets of all.
        assert share / (window * count) == pytest.approx(1 / sum(counts))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 3))
def test_a_packed_batch_asks_for_exactly_the_targets_and_tells_whose_positions_are(
    sizes: list[int], batch: int
) -> None:
    rows = next(packed_batches(made(sizes), 64, batch, 0))[0]
    (inputs, places, targets, weights), owners = arrange_rows(rows, 64)

    kept = weights > 0
    expected = [t for row in rows for e in row for t in e.tokens[e.offset :]]
    assert targets[kept].tolist() == expected
    assert (inputs.reshape(-1)[places[kept]] + 1).tolist() == expected
    for number, row in enumerate(rows):
        for owner, example in enumerate(row):
            found = inputs[number][owners[number] == owner]
            assert found.tolist() == list(example.tokens[:-1])
        assert set(owners[number].tolist()) <= set(range(len(row) + 1))
    packed = arrange_rows(rows, 64)
    for number, row in enumerate(rows):
        counted = [p for e in row for p in range(positions_of(e))]
        own = owners[number] < len(row)
        assert packed.positions[number][own].tolist() == counted


def test_rows_of_one_example_are_an_unpacked_batch() -> None:
    data = made([30, 17])
    ours: Any = arrange_rows([[one] for one in data], 64)
    for mine, theirs in zip(ours.arrays, arrange(data, 64), strict=True):
        assert np.array_equal(mine, theirs)


def test_a_model_is_tried_with_rows_that_examples_share() -> None:
    params = QLoRA(max_seq_length=64, batch_size=4)
    rows = fullest(made([30, 20, 10, 60, 12, 13]), params)
    assert len(rows) == 2
    assert all(len(row) > 1 for row in rows)
    assert len(fullest(made([30, 20, 10, 60, 12, 13]), params.evolve(batch_size=1))) == 1
    for lonely in ([63], [40, 50, 60]):
        (row,) = fullest(made(lonely), params)
        assert len(row) == 2
        assert sum(map(positions_of, row)) <= 64


def test_what_is_not_a_number_is_too_far() -> None:
    assert too_far(float("nan"), half=True)
    assert too_far(0.01, half=False)
    assert not too_far(0.01, half=True)
