"""Parameters that need less memory, rung by rung, until an estimate fits.

Pure: the memory estimate is an argument, and so is everything that was tried before. A change is
only proposed when its estimate fits; whether it really does is for the memory gate to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from oodatcaa.domain.adapted import Adaptation, Estimator, GiveUp
from oodatcaa.domain.checkpointing import fewest_recomputed
from oodatcaa.domain.plan import AdaptationNote
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB

MARGIN = 0.9
"""An estimate must stay below this share of the limit before it is worth a try. The estimate
leaves out the allocator's slack and whatever else the process tree holds, which was some percent
of the peak wherever both were measured; ten percent keep a run from dying at its last step."""

SEQUENCE_MULTIPLE = 32
"""mlx-lm pads batches to a multiple of this, so nothing is won between two multiples."""

QUANTISED_BITS: tuple[Literal[4, 3, 2], ...] = (4, 3, 2)
"""Heavier quantisation, step by step; 4 only for a model that comes with more."""


@dataclass
class _Ladder:
    """A walk down the rungs for one backend."""

    params: QLoRA
    backend: str
    estimate: Estimator
    correction: float
    ceiling: float
    lines: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def bytes_of(self, params: QLoRA) -> int:
        return round(self.estimate(params, self.backend).total_bytes * self.correction)


def adapt_memory(
    params: QLoRA,
    *,
    backend: str,
    backends: tuple[str, ...],
    limit_bytes: int,
    estimate: Estimator,
    data_longest: int | None,
    bits: int | None,
    tried: tuple[QLoRA, ...] = (),
    margin: float = MARGIN,
    total_layers: int | None = None,
    measured_bytes: int | None = None,
    round: int = 1,
    trigger: str = "the memory gate stopped it",
) -> Adaptation | GiveUp:
    """The first rung of the ladder whose estimate is at most `margin * limit_bytes`.

    Rungs, in this order and cumulative: no dense weights held, smaller batch with accumulation
    (same effective batch, same optimizer steps), gradient checkpointing, shorter sequences that
    truncate nothing, fewer layers, heavier quantisation, the next of `backends`. A rung that does
    not lower the estimate is left out. `bits` is the base model's own quantisation (None = none),
    `data_longest` the tokens of the longest example (None = unknown: sequences stay). `tried`
    params failed before although their estimate fitted, so what is proposed must be estimated below
    every one of them. `measured_bytes`, what a run with `params` really needed, corrects all
    estimates when it is the larger number. Name only `backends` that can train here: the next one
    is asked for its estimate, with the params as they were asked for. `round` and `trigger` go into
    the note.
    """
    first = _ladder(params, backend, estimate, margin * limit_bytes, measured_bytes)
    before = first.bytes_of(params)
    first.lines.append(f"as asked: {_describe(params)}: {_gb(before)} of {_gb(limit_bytes)}")
    lowest = min((first.bytes_of(item) for item in tried), default=None)
    rungs = _Rungs(data_longest, bits, total_layers)
    found = _walk(first, rungs, lowest if tried else None)
    ladders = [first]
    for name in _next_backends(backend, backends) if found is None else ():
        ladder = _ladder(params, name, estimate, margin * limit_bytes, None)
        ladder.taken.append(f"backend {backend} -> {name}")
        asked = ladder.bytes_of(params)
        ladder.lines.append(f"backend {name}: {_describe(params)}: {_gb(asked)}")
        ladders.append(ladder)
        found = params if asked <= ladder.ceiling else _walk(ladder, rungs, None)
        if found is not None:
            break
    lines = tuple(line for ladder in ladders for line in ladder.lines)
    last = ladders[-1]
    if found is None:
        return GiveUp(
            reason=f"no rung of the memory ladder fits {margin:.0%} of {_gb(limit_bytes)}; the "
            f"smallest estimate is {_gb(last.bytes_of(last.params))}",
            tried=lines,
            hint="choose a smaller model, raise memory_limit, or shorten the data",
        )
    note = AdaptationNote(
        round=round,
        trigger=trigger,
        rungs=tuple(last.taken),
        tried=lines,
        before_bytes=before,
        after_bytes=last.bytes_of(found),
        limit_bytes=limit_bytes,
    )
    return Adaptation(kind="memory", params=found, backend=last.backend, note=note)


def _ladder(
    params: QLoRA, backend: str, estimate: Estimator, ceiling: float, measured: int | None
) -> _Ladder:
    estimated = estimate(params, backend).total_bytes
    correction = max(1.0, measured / estimated) if measured and estimated > 0 else 1.0
    ladder = _Ladder(params, backend, estimate, correction, ceiling)
    if correction > 1.0:
        ladder.lines.append(
            f"a run needed {_gb(measured or 0)} where {_gb(estimated)} were estimated: "
            f"all estimates are multiplied by {correction:.2f}"
        )
    return ladder


def _next_backends(backend: str, backends: tuple[str, ...]) -> tuple[str, ...]:
    return backends[backends.index(backend) + 1 :] if backend in backends else backends


def _walk(ladder: _Ladder, rungs: _Rungs, below: int | None) -> QLoRA | None:
    """Go down rung by rung; the params of the first that fits, None at the bottom."""
    done: set[str] = set()
    while True:
        for name, changed in rungs.below(ladder.params):
            if name in done:
                continue
            now, then = ladder.bytes_of(ladder.params), ladder.bytes_of(changed)
            what = f"{name} {_change(name, ladder.params, changed)}"
            if then >= now:
                ladder.lines.append(f"{what}: {_gb(then)}, saves nothing, left out")
                done.add(name)
                continue
            fits = then <= ladder.ceiling and (below is None or then < below)
            note = "fits" if fits else f"more than {_gb(ladder.ceiling)}"
            if then <= ladder.ceiling and not fits:
                note = "no less than what failed before"
            ladder.lines.append(f"{what}: {_gb(then)}, {note}")
            _take(ladder, name, what)
            ladder.params = changed
            if fits:
                return _least_recomputed(ladder, rungs, below)
            break
        else:
            return None


CHECKPOINTING = "gradient checkpointing"
DENSE = "dense weights"


def _least_recomputed(ladder: _Ladder, rungs: _Rungs, below: int | None) -> QLoRA:
    """Where the ladder turned checkpointing on: of the fewest blocks that still fit."""
    params = ladder.params
    known = params.num_layers if params.num_layers > 0 else rungs.total_layers
    if known is None or not any(line.startswith(CHECKPOINTING) for line in ladder.taken):
        return params

    def fits(one: QLoRA) -> bool:
        need = ladder.bytes_of(one)
        return need <= ladder.ceiling and (below is None or need < below)

    found = fewest_recomputed(params, known, fits)
    if found is None or found == params:
        return params
    what = f"{CHECKPOINTING} of {found.grad_checkpoint_layers} of {known} blocks"
    ladder.lines.append(f"{what}: {_gb(ladder.bytes_of(found))}, fits and takes less time")
    ladder.taken = [
        f"{line.split(' -> ')[0]} -> of {found.grad_checkpoint_layers} of {known} blocks"
        if line.startswith(CHECKPOINTING)
        else line
        for line in ladder.taken
    ]
    ladder.params = found
    return found


def _take(ladder: _Ladder, name: str, what: str) -> None:
    """One line per kind of rung: halving the batch three times reads as one change."""
    if ladder.taken and ladder.taken[-1].startswith(name + " "):
        start = ladder.taken[-1].split(" -> ")[0]
        what = f"{start} -> {what.split(' -> ')[1]}"
        ladder.taken[-1] = what
    else:
        ladder.taken.append(what)


@dataclass(frozen=True)
class _Rungs:
    data_longest: int | None
    bits: int | None
    total_layers: int | None

    def below(self, params: QLoRA) -> Iterator[tuple[str, QLoRA]]:
        """The next step of every kind of rung, in the ladder's order."""
        if params.dense_weights:
            yield DENSE, params.evolve(dense_weights=False)
        factor = _smallest_factor(params.batch_size)
        if factor is not None:
            yield "batch", smaller_batch(params, factor)
        if not params.grad_checkpoint or params.grad_checkpoint_layers is not None:
            yield CHECKPOINTING, params.evolve(grad_checkpoint=True, grad_checkpoint_layers=None)
        shorter = self._sequence()
        if shorter is not None and shorter < params.max_seq_length:
            yield "sequence length", params.evolve(max_seq_length=shorter)
        layers = self._fewer_layers(params.num_layers)
        if layers is not None:
            yield "layers", params.evolve(num_layers=layers)
        own = params.quantize_bits or self.bits or 16
        lower = next((bits for bits in QUANTISED_BITS if bits < own), None)
        if lower is not None:
            yield "quantisation", params.evolve(quantize_bits=lower)

    def _sequence(self) -> int | None:
        if not self.data_longest:
            return None
        return -(-self.data_longest // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE

    def _fewer_layers(self, layers: int) -> int | None:
        known = layers if layers > 0 else (self.total_layers or 16)
        return known // 2 if known > 1 and layers != 0 else None


def _smallest_factor(batch: int) -> int | None:
    """The smallest divisor above 1, so that the batch shrinks as little as it can."""
    return next((factor for factor in range(2, batch + 1) if batch % factor == 0), None)


def smaller_batch(params: QLoRA, factor: int) -> QLoRA:
    """`factor` times as many micro-steps, each on a `factor`-th of the batch.

    Effective batch and optimizer steps stay. Validation and checkpoints come after as many
    examples as before (at the latest at the end); losses are still reported every
    `steps_per_report` micro-steps, so that a person sees no less. `factor` must divide the batch.
    """
    if params.batch_size % factor:
        raise ValueError(f"{factor} does not divide the batch of {params.batch_size}")
    iters = params.iters * factor
    return params.evolve(
        batch_size=params.batch_size // factor,
        grad_accumulation_steps=params.grad_accumulation_steps * factor,
        iters=iters,
        steps_per_eval=min(params.steps_per_eval * factor, iters),
        save_every=min(params.save_every * factor, iters),
    )


def _change(name: str, old: QLoRA, new: QLoRA) -> str:
    if name == "batch":
        return (
            f"{old.batch_size} x {old.grad_accumulation_steps} -> "
            f"{new.batch_size} x {new.grad_accumulation_steps} accumulated"
        )
    if name == DENSE:
        return "held -> not held"
    if name == CHECKPOINTING:
        return f"{old.checkpointing or 'off'} -> on"
    if name == "sequence length":
        return f"{old.max_seq_length} -> {new.max_seq_length}"
    if name == "layers":
        return f"{_layers(old)} -> {_layers(new)}"
    return f"{old.quantize_bits or 'as it comes'} -> {new.quantize_bits} bits"


def _layers(params: QLoRA) -> str:
    return "all" if params.num_layers < 0 else str(params.num_layers)


def _describe(params: QLoRA) -> str:
    return (
        f"batch {params.batch_size} x {params.grad_accumulation_steps}, "
        f"{params.max_seq_length} tokens, {_layers(params)} layers"
    )


def _gb(count: float) -> str:
    return f"{count / GB:.2f} GB"
