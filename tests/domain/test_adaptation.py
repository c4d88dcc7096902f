"""The refiner's ladder and its other decisions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crew_boards import failure
from oodatcaa.domain.adaptation import MAX_LEARNING_RATE, START_OVER, adapt_failure
from oodatcaa.domain.adapted import Adaptation, GiveUp
from oodatcaa.domain.checkpointing import with_recomputed
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.memory_ladder import MARGIN, adapt_memory, smaller_batch
from oodatcaa.domain.plan import AdaptationNote
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB

ASKED = QLoRA(batch_size=32, max_seq_length=2048, iters=5, steps_per_eval=5, save_every=1)


def estimate(params: QLoRA, backend: str = "mlx") -> MemoryEstimate:
    """Shaped like the real one: logits, activations of the trained layers, weights."""
    layers = params.num_layers if params.num_layers > 0 else 30
    tokens = params.batch_size * params.max_seq_length
    again = params.recomputed(layers)
    kept = 2 * again + 20 * max(1, layers - again) if again else 20 * layers
    total = tokens * 49152 * 12 + tokens * 576 * 4 * kept
    total += 135_000_000 * (params.quantize_bits or 4) // 8
    total += 4 * 135_000_000 if params.dense_weights else 0
    if backend == "hf":
        total //= 20
    return MemoryEstimate(total_bytes=total, parts=(), device="cpu", method="a test")


def ladder(params: QLoRA = ASKED, limit: float = 16 * GB, **more: Any) -> Adaptation | GiveUp:
    values: dict[str, Any] = {
        "backend": "mlx",
        "backends": ("mlx",),
        "estimate": estimate,
        "data_longest": None,
        "bits": 4,
        **more,
    }
    return adapt_memory(params, limit_bytes=int(limit), **values)


def adapted(*args: Any, **more: Any) -> Adaptation:
    found = ladder(*args, **more)
    assert isinstance(found, Adaptation), found
    return found


def test_the_demo_ends_at_four_times_eight() -> None:
    found = adapted()
    params = found.params
    assert (params.batch_size, params.grad_accumulation_steps, params.iters) == (4, 8, 40)
    assert (params.effective_batch, params.optimizer_steps) == (32, 5)
    assert (params.save_every, params.steps_per_eval, params.steps_per_report) == (8, 40, 1)
    assert found.note.rungs == ("batch 32 x 1 -> 4 x 8 accumulated",)
    assert found.note.before_bytes == estimate(ASKED).total_bytes
    assert found.note.after_bytes == estimate(params).total_bytes
    assert len(found.note.tried) == 4
    assert "fits" in found.note.tried[-1]


def test_without_the_margin_eight_times_four_would_be_tried() -> None:
    eight = smaller_batch(ASKED, 4)
    assert MARGIN * 16 * GB < estimate(eight).total_bytes < 16 * GB
    assert adapted(margin=1.0).params.batch_size == 8


def test_the_rungs_come_in_order() -> None:
    found = ladder(limit=10**7, data_longest=384, backends=("mlx", "hf"))
    assert isinstance(found, GiveUp)
    kinds = [line.split(" ")[0] for line in found.tried]
    order = ["as", *["batch"] * 5, "gradient", "sequence", *["layers"] * 3, *["quantisation"] * 2]
    assert kinds[: len(order)] == order
    assert kinds[len(order)] == "backend"
    assert "the smallest estimate is" in found.reason


def test_sequences_are_only_shortened_when_nothing_is_truncated() -> None:
    one = QLoRA(batch_size=1, grad_checkpoint=True, max_seq_length=2048, num_layers=1)
    known = adapted(one, limit=0.5 * GB, data_longest=390)
    assert known.params.max_seq_length == 416
    for longest in (None, 2048, 4000):
        found = ladder(one, limit=0.5 * GB, data_longest=longest)
        assert isinstance(found, GiveUp)
        assert not any(line.startswith("sequence") for line in found.tried)


def test_the_next_backend_is_asked_with_the_params_as_they_were() -> None:
    found = adapted(limit=0.09 * GB, backends=("mlx", "axolotl", "hf"))
    assert found.backend == "hf"
    assert found.note.rungs[0] == "backend mlx -> hf"
    found = adapted(limit=20 * GB, backend="hf", backends=("mlx", "hf"))
    assert found.backend == "hf"


def test_only_as_many_blocks_are_computed_again_as_it_takes() -> None:
    one = QLoRA(batch_size=1, max_seq_length=2048, num_layers=8)
    limit = 1.95 * GB
    found = adapted(one, limit=limit, total_layers=30)
    count = found.params.grad_checkpoint_layers
    assert count is not None
    assert 1 < count < 8
    assert found.note.rungs == (f"gradient checkpointing off -> of {count} of 8 blocks",)
    assert found.note.after_bytes == estimate(found.params).total_bytes <= MARGIN * limit
    assert estimate(with_recomputed(one, count - 1, 8)).total_bytes > MARGIN * limit
    assert estimate(one).total_bytes > MARGIN * limit
    # Who chose a number gets the rest as the next rung.
    more = adapted(found.params, limit=1.68 * GB, total_layers=30)
    assert more.note.rungs[0].startswith(f"gradient checkpointing of {count} blocks")


def test_a_measured_peak_corrects_the_estimates() -> None:
    four = adapted().params
    found = adapted(four, measured_bytes=2 * estimate(four).total_bytes)
    assert found.params.batch_size == 2
    assert "multiplied by 2.00" in found.note.tried[0]


def test_weights_that_are_held_for_speed_are_the_first_to_go() -> None:
    one = QLoRA(batch_size=1, max_seq_length=512, num_layers=8, dense_weights=True)
    found = adapted(one, limit=1.1 * GB)
    assert found.note.rungs == ("dense weights held -> not held",)
    assert found.params == one.evolve(dense_weights=False)
    assert adapted(one, limit=0.7 * GB).note.rungs[0] == "dense weights held -> not held"


def test_what_failed_before_is_not_proposed_again() -> None:
    four = adapted().params
    assert adapted(ASKED, tried=(ASKED, four)).params.batch_size == 2


PARAMS = st.builds(
    lambda batch, acc, steps, layers, checkpoint, length: QLoRA(
        batch_size=batch,
        grad_accumulation_steps=acc,
        iters=acc * steps,
        num_layers=layers,
        grad_checkpoint=checkpoint,
        max_seq_length=length,
    ),
    st.integers(1, 96),
    st.integers(1, 5),
    st.integers(1, 50),
    st.sampled_from([-1, 1, 2, 7, 8, 30]),
    st.booleans(),
    st.integers(32, 4096),
)


@given(
    params=PARAMS,
    limit=st.integers(10**6, 10**11),
    longest=st.one_of(st.none(), st.integers(1, 5000)),
    bits=st.sampled_from([None, 4, 8]),
)
@settings(max_examples=200, deadline=None)
def test_the_ladder_ends_and_never_asks_for_more(
    params: QLoRA, limit: int, longest: int | None, bits: int | None
) -> None:
    found = ladder(params, limit=limit, data_longest=longest, bits=bits, total_layers=30)
    if isinstance(found, GiveUp):
        assert found.tried
        return
    new = found.params
    assert estimate(new).total_bytes <= min(MARGIN * limit, estimate(params).total_bytes)
    assert (new.effective_batch, new.optimizer_steps) == (
        params.effective_batch,
        params.optimizer_steps,
    )
    if new.max_seq_length != params.max_seq_length:
        assert longest is not None
        assert longest <= new.max_seq_length < params.max_seq_length
    assert max(new.save_every, new.steps_per_eval) <= max(
        new.iters, params.save_every, params.steps_per_eval
    )
    assert (new.rank, new.alpha, new.learning_rate) == (
        params.rank,
        params.alpha,
        params.learning_rate,
    )


# -- other failures --------------------------------------------------------------------------------


def decide(kind: str, **more: Any) -> Adaptation | GiveUp:
    facts = {name: more.pop(name) for name in ("gates", "layer", "needed_bytes") if name in more}
    values: dict[str, Any] = {
        "round": 1,
        "max_rounds": 3,
        "params": QLoRA(),
        "backend": "mlx",
        "backends": ("mlx",),
        "limit_bytes": 16 * GB,
        "estimate": estimate,
        **more,
    }
    return adapt_failure(failure("T003-B01", kind, **facts), **values)


def test_a_memory_failure_goes_down_the_ladder() -> None:
    for found in (
        decide("memory_gate", params=ASKED),
        decide("gate", params=ASKED, gates=("AC2 peak_memory <= 16GB: failed",)),
    ):
        assert isinstance(found, Adaptation)
        assert (found.kind, found.params.batch_size, found.note.round) == ("memory", 4, 1)
    during = decide("memory_gate", layer="during", needed_bytes=10**13)
    assert isinstance(during, GiveUp)


def test_a_crash_is_started_over_once() -> None:
    first = decide("crash")
    assert isinstance(first, Adaptation)
    assert first.start_over
    assert first.params == QLoRA()
    assert first.note.rungs == (START_OVER,)
    second = decide("crash", round=2, notes=(first.note,))
    assert isinstance(second, GiveUp)
    other = AdaptationNote(round=1, trigger="memory", rungs=("batch",))
    assert isinstance(decide("crash", round=2, notes=(other,)), Adaptation)


def test_a_loss_that_does_not_fall_enough_trains_longer_or_faster() -> None:
    gates = ("AC1 test_loss_drop >= 0.1: failed (0.04)",)
    longer = decide("gate", gates=gates)
    assert isinstance(longer, Adaptation)
    assert longer.params.iters == 80
    cost = {"seconds_per_iteration": 10.0, "budget_seconds": 500.0}
    faster = decide("gate", gates=gates, **cost)
    assert isinstance(faster, Adaptation)
    assert (faster.params.iters, faster.params.learning_rate) == (40, 6e-4)
    top = QLoRA(learning_rate=MAX_LEARNING_RATE)
    assert isinstance(decide("gate", gates=gates, params=top, **cost), GiveUp)


def test_the_validation_losses_decide_what_a_failed_test_loss_changes() -> None:
    gates = ("AC1 test_loss_drop >= 0.1: failed (0.04)",)
    falling = decide("gate", gates=gates, valid_losses=(1.8, 1.7, 1.6))
    assert isinstance(falling, Adaptation)
    assert falling.note.rungs == ("iterations 40 -> 80 (validation loss 1.800 -> 1.600)",)
    turned = decide("gate", gates=gates, valid_losses=(1.8, 1.5, 1.7))
    assert isinstance(turned, Adaptation)
    assert (turned.params.iters, turned.params.learning_rate) == (40, 1.5e-4)
    assert turned.params.select_best
    assert "rose from 1.500 to 1.700" in turned.note.rungs[0]
    worse = ("AC1 test_loss_drop >= 0.1: failed (-0.9)",)
    again = decide("gate", gates=worse, valid_losses=(1.8, 1.7, 1.6))
    assert isinstance(again, Adaptation)
    assert again.params == falling.params, "how far the test loss was off selects nothing"


def test_values_that_are_not_finite_get_a_quarter_of_the_learning_rate() -> None:
    found = decide("not_finite")
    assert isinstance(found, Adaptation)
    assert found.params.learning_rate == pytest.approx(7.5e-5)


@pytest.mark.parametrize("kind", ["disk_full", "bad_input"])
def test_what_another_run_can_not_mend_is_given_to_a_person(kind: str) -> None:
    assert isinstance(decide(kind), GiveUp)


def test_rounds_end() -> None:
    assert isinstance(decide("memory_gate", params=ASKED, round=3), Adaptation)
    found = decide("memory_gate", params=ASKED, round=4)
    assert isinstance(found, GiveUp)
    assert "3 of 3 adaptation rounds" in found.reason
