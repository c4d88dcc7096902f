"""The fastest way to train the same thing that fits: what is tried, and what is taken."""

from __future__ import annotations

from oodatcaa.domain.auto_fit import Candidate, choose, to_measure, variants
from oodatcaa.domain.training import MemoryEstimate, QLoRA

GB = 10**9
ASKED = QLoRA(batch_size=4, grad_accumulation_steps=2, iters=20, save_every=4)


def estimate(params: QLoRA) -> MemoryEstimate:
    size = params.batch_size * GB // (2 if params.grad_checkpoint else 1)
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


def test_what_can_not_fit_is_not_measured_and_recomputing_comes_last() -> None:
    names = [one.name for one in to_measure(ASKED, estimate, 4 * GB)]
    assert names == ["4 x 2 accumulated", "2 x 4 accumulated", "1 x 8 accumulated"]
    names = [one.name for one in to_measure(ASKED, estimate, GB // 2)]
    assert names == ["1 x 8 accumulated, checkpointed"]
    assert to_measure(ASKED, estimate, 1) == ()


def test_the_fastest_that_fits_is_taken_and_said() -> None:
    def made(batch: int, need: int, seconds: float | None) -> Candidate:
        params = ASKED.evolve(batch_size=batch)
        return Candidate(params=params, need_bytes=need, source="probe", seconds=seconds)

    tried = (made(8, 9 * GB, 1.0), made(4, 3 * GB, 2.5), made(2, 2 * GB, 2.0))
    choice = choose(tried, 4 * GB)
    assert choice.params == tried[2].params
    assert "does not fit" in choice.lines[0]
    assert choice.lines[-1].endswith("the fastest that fits")
    assert choose(tried, GB).params is None
    assert choose((made(4, GB, None),), GB).lines[-1].endswith("no step was measured")
