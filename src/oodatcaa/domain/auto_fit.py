"""Which way of training the same thing is the fastest that fits. Pure: the numbers are arguments.

Candidates differ in how the effective batch is cut into micro-batches and in how many blocks are
computed again in the backward pass. Neither changes what is learned: the gradient of an optimizer
step is that of the same examples, and the number of optimizer steps stays. Where short examples
leave padding, packed rows are a candidate too: as many optimizer steps of about as many examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.checkpointing import fewest_recomputed
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.qlora import QLoRA

FEW = 3
"""Candidates that are measured: a probe costs the time of a few steps."""


SAME_EXAMPLES = 0.25
"""Packed rows are as good as a batch when they hold its number of examples but for this share."""
LEAST_GAIN = 1.1
"""Positions that packing saves for it to be measured."""


LEAST_EPOCHS = 2
"""Of a training that caches frozen blocks: its first epoch takes longer, for examples go through
them one by one. The demo's model makes good for that after 1.7 (`make bench-train`)."""


class Filling(Record):
    """How well a data set's examples fill rows. `padded` and `packed`: of the computed positions,
    the share that holds a token."""

    examples: int = Field(ge=1, description="of the training split")
    examples_per_row: float = Field(gt=0, description="of a packed row, on average")
    padded: float
    packed: float


def with_cache(params: QLoRA, examples: int, blocks: int) -> QLoRA:
    """`params` with `cache_frozen` where that saves time: when so many training examples come at
    least LEAST_EPOCHS times, and a model of so many blocks has frozen ones below the trained."""
    again = params.iters * params.batch_size >= LEAST_EPOCHS * examples
    frozen = params.trained_blocks(blocks) < blocks
    return params.evolve(cache_frozen=True) if again and frozen else params


DENSE_SHARE = 0.5
"""Of the memory limit, that a planned training with `dense_weights` is expected to take at most:
the rest is for others on the machine. `train --auto-fit` measures it up to the whole limit."""


def with_dense(
    params: QLoRA, estimate: Callable[[QLoRA], MemoryEstimate | None], limit: int
) -> QLoRA:
    """`params` with `dense_weights` where these are anything at all (elsewhere than on a CPU they
    need no more) and are expected to fit well: the same training in less time."""
    held = params.evolve(dense_weights=True)
    without, needed = estimate(params), estimate(held)
    if without is None or needed is None or needed == without:
        return params
    return held if needed.total_bytes <= DENSE_SHARE * limit else params


class Candidate(Record):
    """`seconds` is one measured optimizer step, of `examples` on average; None = not measured."""

    params: QLoRA
    backend: NonEmpty = "mlx"
    examples: float = 1.0
    need_bytes: int
    source: str
    seconds: float | None = None

    @property
    def name(self) -> str:
        p = self.params
        checkpointing = f", checkpointing {p.checkpointing}" if p.grad_checkpoint else ""
        packed = ", packed" if p.packing else ""
        dense = ", dense weights" if p.dense_weights else ""
        cut = f"{p.batch_size} x {p.grad_accumulation_steps} accumulated"
        cached = ", frozen blocks cached" if p.cache_frozen else ""
        return f"{cut}{packed}{dense}{cached}{checkpointing}"


class Choice(Record):
    """`lines` say why, for people; `best` is None when nothing fits."""

    best: Candidate | None
    lines: tuple[str, ...] = Field(description="one for each candidate, then the decision")


def variants(params: QLoRA) -> tuple[QLoRA, ...]:
    """Every micro-batch that divides the effective batch, without checkpointing and with all of
    it; the one that was asked for first, then larger micro-batches before smaller ones."""
    whole = params.effective_batch
    steps = params.optimizer_steps
    found = [params]
    for batch in (n for n in range(whole, 0, -1) if whole % n == 0):
        accumulate = whole // batch
        same = params.steps_after(params.iters) * params.grad_accumulation_steps == params.iters
        if not same and accumulate != params.grad_accumulation_steps:
            continue  # a last group that is not full would become another one
        for checkpoint in (False, True):
            found.append(
                params.evolve(
                    batch_size=batch,
                    grad_accumulation_steps=accumulate,
                    iters=steps * accumulate if same else params.iters,
                    grad_checkpoint=checkpoint,
                    grad_checkpoint_layers=None,
                    **_cadence(params, accumulate),
                )
            )
    return tuple(dict.fromkeys(found))


def _cadence(params: QLoRA, accumulate: int) -> dict[str, int]:
    """Reports, validations and checkpoints at the same optimizer steps as before."""
    was = params.grad_accumulation_steps
    return {
        name: max(1, round(getattr(params, name) * accumulate / was))
        for name in ("steps_per_report", "steps_per_eval", "save_every")
    }


def to_measure(
    params: QLoRA, estimate: Callable[[QLoRA], MemoryEstimate], limit: int, trained: int
) -> tuple[Candidate, ...]:
    """The few of `variants` that are worth measuring: those expected to fit, with the fewest of
    the `trained` blocks computed again that this takes, and without any before with some. None
    when nothing is expected to fit. What was asked for, or else the first of them that is expected
    to fit so, also with `dense_weights`: where these are anything at all, for elsewhere than on a
    CPU they need no more."""

    def fits(one: QLoRA) -> bool:
        return estimate(one).total_bytes <= limit

    unheld = params.evolve(dense_weights=False)
    found: list[QLoRA] = []
    for one in variants(unheld):
        if one == unheld or not one.grad_checkpoint:
            found += [one] if fits(one) else []
        elif fewest := fewest_recomputed(one, trained, fits):
            found.append(fewest)
    few = sorted(dict.fromkeys(found), key=lambda one: one.grad_checkpoint)[:FEW]
    held = [one.evolve(dense_weights=True) for one in few]
    more = [one for one in (params, *held) if one.dense_weights and fits(one)]
    few += [one for one in more if estimate(one) != estimate(one.evolve(dense_weights=False))][:1]
    return tuple(_candidate(one, estimate) for one in few)


def packed_rows(params: QLoRA, filling: Filling | None) -> int | None:
    """Rows of an optimizer step if `params` were packed; None where packing would not save much, or
    a step would have clearly other examples."""
    if filling is None or params.packing or filling.packed < LEAST_GAIN * filling.padded:
        return None
    rows = max(1, round(params.effective_batch / filling.examples_per_row))
    examples = rows * filling.examples_per_row
    same = abs(examples / params.effective_batch - 1) <= SAME_EXAMPLES
    return rows if same else None


def to_measure_packed(
    params: QLoRA,
    filling: Filling | None,
    estimate: Callable[[QLoRA], MemoryEstimate],
    limit: int,
    trained: int,
) -> Candidate | None:
    """The packed way of the same training that is expected to fit with the least recomputing; None
    where `packed_rows` says so, or nothing is expected to fit."""
    rows = packed_rows(params, filling)
    if rows is None or filling is None:
        return None
    whole = params.evolve(
        dense_weights=False,
        packing=True,
        batch_size=rows,
        grad_accumulation_steps=1,
        iters=params.optimizer_steps,
        grad_checkpoint=False,
        grad_checkpoint_layers=None,
        **_cadence(params, 1),
    )

    def fits(one: QLoRA) -> bool:
        return estimate(one).total_bytes <= limit

    ways = [one for one in variants(whole) if not one.grad_checkpoint]
    plain = next((one for one in ways if fits(one)), None)
    found = plain or fewest_recomputed(ways[-1], trained, fits)
    return (
        None
        if found is None
        else _candidate(found, estimate).evolve(examples=rows * filling.examples_per_row)
    )


def instead(
    tried: Candidate, estimate: Callable[[QLoRA], MemoryEstimate], limit: int, trained: int
) -> Candidate | None:
    """What to measure after a candidate that was estimated to fit, but did not: a few more blocks
    computed again, with the estimates raised by what that one needed. None = nothing is left, or
    it was one with `dense_weights`, which others are without."""
    if tried.params.dense_weights:
        return None
    raised = max(1.0, tried.need_bytes / max(1, estimate(tried.params).total_bytes))

    def fits(one: QLoRA) -> bool:
        return estimate(one).total_bytes * raised <= limit

    already = tried.params.recomputed(trained)
    found = fewest_recomputed(tried.params, trained, fits, more_than=already)
    return None if found is None else _candidate(found, estimate).evolve(examples=tried.examples)


def _candidate(params: QLoRA, estimate: Callable[[QLoRA], MemoryEstimate]) -> Candidate:
    found = estimate(params)
    return Candidate(
        params=params,
        examples=params.effective_batch,
        need_bytes=found.total_bytes,
        source=found.source,
    )


def choose(candidates: Sequence[Candidate], limit: int) -> Choice:
    """The least seconds an example among those that fit and were measured; the first that fits
    otherwise."""
    lines = []
    several = len({one.backend for one in candidates}) > 1

    def name(one: Candidate) -> str:
        return f"{one.backend}, {one.name}" if several else one.name

    for one in candidates:
        speed = "not measured" if one.seconds is None else f"{one.seconds:.2f} s a step"
        if one.params.packing and one.seconds is not None:
            speed += f" of about {one.examples:.1f} examples"
        fits = "fits" if one.need_bytes <= limit else "does not fit"
        lines.append(f"{name(one)}: {one.need_bytes / 1e9:.2f} GB ({one.source}), {speed}: {fits}")
    fitting = [one for one in candidates if one.need_bytes <= limit]
    if not fitting:
        return Choice(best=None, lines=(*lines, f"nothing fits {limit / 1e9:.2f} GB"))
    timed = [one for one in fitting if one.seconds is not None]
    best = min(timed, key=lambda one: (one.seconds or 0.0) / one.examples) if timed else fitting[0]
    why = "the fastest that fits" if timed else "the first that fits; no step was measured"
    return Choice(best=best, lines=(*lines, f"chosen: {name(best)}: {why}"))
