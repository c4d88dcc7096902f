"""The fastest way to train the same thing that fits: what is tried, and what is taken."""

from __future__ import annotations

import pytest

from oodatcaa.domain.auto_fit import (
    Candidate,
    Filling,
    choose,
    instead,
    to_measure,
    to_measure_packed,
    variants,
    with_cache,
    with_dense,
)
from oodatcaa.domain.checkpointing import with_recomputed
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.qlora import QLoRA

GB = 10**9
ASKED = QLoRA(batch_size=4, grad_accumulation_steps=2, iters=20, save_every=4)


TRAINED = 8
HELD = 3 * GB


def estimate(params: QLoRA) -> MemoryEstimate:
    """A checkpointed block keeps an eighth."""
    kept = TRAINED - 7 * params.recomputed(TRAINED) / 8
    size = round(params.batch_size * GB * kept / TRAINED)
    size += HELD if params.dense_weights else 0
    return MemoryEstimate(total_bytes=size, parts=(), device="cpu", method="made up")


def test_every_variant_takes_the_same_optimizer_steps_over_the_same_rows() -> None:
    found = variants(ASKED)
    assert found[0] == ASKED
    assert len(found) == 8  # 8, 4, 2 and 1 rows, each with and without checkpointing
    for one in found:
        assert one.effective_batch == 8
        assert one.optimizer_steps == 10
        assert one.save_every == 2 * one.grad_accumulation_steps
    odd = variants(ASKED.evolve(iters=21))
    assert {one.grad_accumulation_steps for one in odd} == {2}


def tried(limit: int) -> list[str]:
    found = to_measure(ASKED, estimate, limit, TRAINED)
    return [one.name for one in found if not one.params.dense_weights]


def test_what_can_not_fit_is_not_measured_and_recomputing_comes_last() -> None:
    assert tried(4 * GB) == ["4 x 2 accumulated", "2 x 4 accumulated", "1 x 8 accumulated"]
    assert tried(1) == []


def test_a_plan_holds_dense_weights_where_they_leave_half_of_the_limit_to_others() -> None:
    need = estimate(ASKED.evolve(dense_weights=True)).total_bytes
    held = with_dense(ASKED, estimate, 2 * need)
    assert held == ASKED.evolve(dense_weights=True)
    assert with_dense(ASKED, estimate, 2 * need - 1) == ASKED
    nothing_to_hold = with_dense(ASKED, lambda p: estimate(p.evolve(dense_weights=False)), 9 * need)
    assert nothing_to_hold == ASKED
    assert with_dense(ASKED, lambda _: None, 9 * need) == ASKED, "no estimate, no promise"


def test_the_first_way_is_measured_with_dense_weights_too_where_they_fit_and_are_anything() -> None:
    for asked in (ASKED, ASKED.evolve(dense_weights=True)):
        found = to_measure(asked, estimate, 7 * GB, TRAINED)
        assert [one.name for one in found] == [
            "4 x 2 accumulated",
            "2 x 4 accumulated",
            "1 x 8 accumulated",
            "4 x 2 accumulated, dense weights",
        ]
        assert found[3].need_bytes == found[0].need_bytes + HELD
        assert instead(found[3], estimate, 5 * GB, TRAINED) is None
    # 4.5 GB: of 4, 2 or 1 rows a step only the single one leaves the room.
    *_, last = to_measure(ASKED, estimate, 4 * GB + GB // 2, TRAINED)
    assert last.name == "1 x 8 accumulated, dense weights"
    asked = ASKED.evolve(batch_size=1, grad_accumulation_steps=8, iters=80, grad_checkpoint=True)
    asked = asked.evolve(dense_weights=True)
    assert asked in [one.params for one in to_measure(asked, estimate, 7 * GB // 2, TRAINED)]
    elsewhere = to_measure(
        ASKED, lambda p: estimate(p.evolve(dense_weights=False)), 7 * GB, TRAINED
    )
    assert not any(one.params.dense_weights for one in elsewhere)


def test_no_more_blocks_are_computed_again_than_fitting_takes() -> None:
    assert tried(GB) == [
        "1 x 8 accumulated",
        "8 x 1 accumulated, checkpointing on",
        "4 x 2 accumulated, checkpointing of 7 blocks",
    ]
    assert tried(GB // 2) == [
        "4 x 2 accumulated, checkpointing on",
        "2 x 4 accumulated, checkpointing of 7 blocks",
        "1 x 8 accumulated, checkpointing of 5 blocks",
    ]
    for limit in range(GB // 8, 2 * GB, GB // 7):
        for one in to_measure(ASKED, estimate, limit, TRAINED):
            count = one.params.recomputed(TRAINED)
            assert one.need_bytes <= limit
            if count:
                fewer = with_recomputed(one.params, count - 1, TRAINED)
                assert estimate(fewer).total_bytes > limit


def test_what_measured_too_large_is_tried_again_with_more_blocks() -> None:
    first = to_measure(ASKED, estimate, GB // 2, TRAINED)[2]
    assert first.params.recomputed(TRAINED) == 5
    measured = first.evolve(need_bytes=round(1.2 * first.need_bytes))
    more = instead(measured, estimate, GB // 2, TRAINED)
    assert more is not None
    assert more.params.recomputed(TRAINED) == 6
    assert 1.2 * more.need_bytes <= GB // 2
    hopeless = first.evolve(need_bytes=9 * first.need_bytes)
    assert instead(hopeless, estimate, GB // 2, TRAINED) is None


def test_the_fastest_that_fits_is_taken_and_said() -> None:
    def made(batch: int, need: int, seconds: float | None) -> Candidate:
        params = ASKED.evolve(batch_size=batch)
        return Candidate(params=params, need_bytes=need, source="probe", seconds=seconds)

    made_up = (made(8, 9 * GB, 1.0), made(4, 3 * GB, 2.5), made(2, 2 * GB, 2.0))
    choice = choose(made_up, 4 * GB)
    assert choice.best == made_up[2]
    assert "does not fit" in choice.lines[0]
    assert choice.lines[-1].endswith("the fastest that fits")
    assert choose(made_up, GB).best is None
    other = made_up[2].evolve(backend="hf", seconds=1.5)
    both = choose((*made_up, other), 4 * GB)
    assert both.best == other
    assert both.lines[0].startswith("mlx, 8 x ")
    assert both.lines[-1].startswith("chosen: hf, 2 x ")
    assert choose((made(4, GB, None),), GB).lines[-1].endswith("no step was measured")


def packed(per_row: float, limit: int, padded: float = 0.6) -> Candidate | None:
    filling = Filling(examples=100, examples_per_row=per_row, padded=padded, packed=0.95)
    return to_measure_packed(ASKED, filling, estimate, limit, TRAINED)


def test_packed_rows_hold_about_the_examples_of_a_batch() -> None:
    found = packed(4.2, 4 * GB)
    assert found is not None
    assert found.params.packing
    assert (found.params.batch_size, found.params.grad_accumulation_steps) == (2, 1)
    assert found.examples == 8.4
    assert found.params.optimizer_steps == ASKED.optimizer_steps
    assert found.name == "2 x 1 accumulated, packed"
    smaller = packed(4.2, GB)
    assert smaller is not None
    assert (smaller.params.batch_size, smaller.params.optimizer_steps) == (1, 10)
    least = packed(4.2, GB // 2)
    assert least is not None
    assert least.params.grad_checkpoint
    assert least.need_bytes <= GB // 2
    assert packed(4.2, 1) is None


def test_packing_is_not_measured_where_it_saves_nothing_or_changes_the_examples_of_a_step() -> None:
    assert packed(4.2, 4 * GB, padded=0.9) is None
    assert packed(20.0, 4 * GB) is None
    assert to_measure_packed(ASKED, None, estimate, 4 * GB, TRAINED) is None
    already = ASKED.evolve(packing=True)
    filling = Filling(examples=100, examples_per_row=4.0, padded=0.5, packed=0.95)
    assert to_measure_packed(already, filling, estimate, 4 * GB, TRAINED) is None


def test_packed_and_padded_are_compared_by_the_example() -> None:
    one = packed(4.0, 4 * GB)
    assert one is not None
    padded = Candidate(params=ASKED, examples=8, need_bytes=GB, source="probe", seconds=2.0)
    for seconds in (1.9, 2.1):
        timed = one.evolve(seconds=seconds)
        assert choose((padded, timed), 4 * GB).best == (timed if seconds < 2.0 else padded)
    fewer = one.evolve(seconds=1.9, examples=7.0)
    assert choose((padded, fewer), 4 * GB).best == padded


@pytest.mark.parametrize(
    ("examples", "layers", "cached"),
    [(10, 2, True), (11, 2, False), (10, 4, False), (10, -1, False)],
)
def test_frozen_blocks_are_cached_where_examples_come_again(
    examples: int, layers: int, cached: bool
) -> None:
    asked = QLoRA(batch_size=2, iters=10, num_layers=layers)
    assert with_cache(asked, examples, blocks=4) == asked.evolve(cache_frozen=cached)
