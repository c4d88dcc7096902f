"""The refiner's decisions: what the next plan version changes after a failure.

Pure: the memory estimate is an argument, and so is everything that was tried before. A change is
only proposed when its estimate fits; whether it really does is for the memory gate to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.checkpointing import fewest_recomputed
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.objective import METRICS
from oodatcaa.domain.plan import AdaptationNote
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Failure
from oodatcaa.domain.training import GB

Estimator = Callable[[QLoRA, str], MemoryEstimate]
"""(params, backend) -> what a training step of that backend would need at its peak."""

MARGIN = 0.9
"""An estimate must stay below this share of the limit before it is worth a try. The estimate
leaves out the allocator's slack and whatever else the process tree holds, which was some percent
of the peak wherever both were measured; ten percent keep a run from dying at its last step."""

SEQUENCE_MULTIPLE = 32
"""mlx-lm pads batches to a multiple of this, so nothing is won between two multiples."""

QUANTISED_BITS: tuple[Literal[4, 3, 2], ...] = (4, 3, 2)
"""Heavier quantisation, step by step; 4 only for a model that comes with more."""

START_OVER = "start over with the same plan"
OVERFIT = 0.01
"""A validation loss this share above its best has turned: more of the same makes it worse."""
MAX_LEARNING_RATE = 1e-3
"""Above this, low-rank adapters of small models diverged in every run that was tried."""


class Adaptation(Record):
    """What the next plan version changes. `params` and `backend` are complete, not a difference;
    `note` says what was changed and why, for the plan."""

    kind: Literal["memory", "start_over", "metric"]
    params: QLoRA
    backend: NonEmpty
    note: AdaptationNote

    @property
    def start_over(self) -> bool:
        """Nothing changed: every build is to be done again."""
        return self.kind == "start_over"


class GiveUp(Record):
    """Nothing more can be adapted; `reason` is what the person reads."""

    reason: NonEmpty
    tried: tuple[NonEmpty, ...] = ()
    hint: str = ""


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

    Rungs, in this order and cumulative: smaller batch with accumulation (same effective batch,
    same optimizer steps), gradient checkpointing, shorter sequences that truncate nothing, fewer
    layers, heavier quantisation, the next of `backends`. A rung that does not lower the estimate
    is left out. `bits` is the base model's own quantisation (None = none), `data_longest` the
    tokens of the longest example (None = unknown: sequences stay). `tried` params failed before
    although their estimate fitted, so what is proposed must be estimated below every one of them.
    `measured_bytes`, what a run with `params` really needed, corrects all estimates when it is
    the larger number. Name only `backends` that can train here: the next one is asked for its
    estimate, with the params as they were asked for. `round` and `trigger` go into the note.
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


def adapt_failure(
    failure: Failure,
    *,
    round: int,
    max_rounds: int,
    params: QLoRA,
    backend: str,
    backends: tuple[str, ...],
    limit_bytes: int,
    estimate: Estimator,
    data_longest: int | None = None,
    bits: int | None = None,
    tried: tuple[QLoRA, ...] = (),
    notes: tuple[AdaptationNote, ...] = (),
    seconds_per_iteration: float | None = None,
    budget_seconds: float | None = None,
    margin: float = MARGIN,
    total_layers: int | None = None,
    valid_losses: tuple[float, ...] = (),
) -> Adaptation | GiveUp:
    """What to change after `failure`. `round` is the number of this adaptation, 1 for the first;
    `notes` are those of the story's earlier plans, `tried` their params.

    memory_gate (or a failed bound on peak_memory): the memory ladder. not_finite: a quarter of
    the learning rate. A test loss that does not fall enough: what `valid_losses` (of the run's
    looks at the valid split, oldest first) advise, so that the test split selects nothing.
    disk_full and bad_input: a person. Everything else (a crash, a conflict, a failed command): the
    same plan once more, then a person.
    """
    if round > max_rounds:
        return GiveUp(
            reason=f"{round - 1} of {max_rounds} adaptation rounds are used up; the last failure: "
            f"{failure.summary}",
            hint=f"oodatcaa approve {failure.task.split('-')[0]} allows one more round",
        )
    metrics = failed_metrics(failure)
    if failure.kind == "memory_gate" or "peak_memory" in metrics:
        return adapt_memory(
            params,
            backend=backend,
            backends=backends,
            limit_bytes=limit_bytes,
            estimate=estimate,
            data_longest=data_longest,
            bits=bits,
            tried=tried,
            margin=margin,
            total_layers=total_layers,
            measured_bytes=failure.needed_bytes if failure.layer in ("during", "after") else None,
            round=round,
            trigger=_trigger(failure),
        )
    if failure.kind in ("disk_full", "bad_input"):
        return GiveUp(
            reason=f"{failure.kind}: {failure.summary}; another run would fail the same way",
            hint="mend it, then: oodatcaa approve " + failure.task.split("-")[0],
        )
    if failure.kind == "not_finite" or "not_finite" in " ".join(failure.gates):
        return _changed(failure, round, backend, *_scaled_rate(params, 0.25))
    if metrics & {"test_loss_drop", "test_loss"}:
        return _learn_more(
            failure, round, params, backend, seconds_per_iteration, budget_seconds, valid_losses
        )
    if metrics & {"tokens_per_second", "train_minutes"}:
        return GiveUp(
            reason=f"too slow: {failure.summary}; speed is not bought with a worse adapter",
            hint="choose smaller parameters or another bound in OBJECTIVE.md",
        )
    return _start_over(failure, round, params, backend, notes)


def failed_metrics(failure: Failure) -> frozenset[str]:
    """The objective's metrics that the failure's gate lines name."""
    words = set(re.findall(r"[a-z][a-z_]+", " ".join((failure.summary, *failure.gates))))
    return frozenset(words & METRICS.keys())


def _trigger(failure: Failure) -> str:
    layer = f" ({failure.layer})" if failure.layer else ""
    kind = f"{failure.kind}{layer}".replace("_", " ")
    return failure.summary if failure.summary.startswith(kind) else f"{kind}: {failure.summary}"


def _scaled_rate(params: QLoRA, factor: float) -> tuple[QLoRA, str]:
    rate = params.learning_rate * factor
    changed = params.evolve(learning_rate=rate)
    return changed, f"learning rate {params.learning_rate:g} -> {rate:g}"


def _changed(failure: Failure, round: int, backend: str, params: QLoRA, rung: str) -> Adaptation:
    note = AdaptationNote(round=round, trigger=_trigger(failure), rungs=(rung,))
    return Adaptation(kind="metric", params=params, backend=backend, note=note)


def _learn_more(
    failure: Failure,
    round: int,
    params: QLoRA,
    backend: str,
    seconds_per_iteration: float | None,
    budget_seconds: float | None,
    valid_losses: tuple[float, ...],
) -> Adaptation | GiveUp:
    """What the validation losses advise; the test loss said no, and by how much is not asked.

    A validation loss that rose again by OVERFIT: the best weights at half the learning rate. Else
    twice the iterations when they fit the budget (unknown costs count as fitting), else twice the
    learning rate up to MAX_LEARNING_RATE.
    """
    best = min(valid_losses, default=None)
    if best is not None and valid_losses[-1] > best * (1 + OVERFIT):
        slower, rung = _scaled_rate(params.evolve(select_best=True), 0.5)
        seen = f"validation loss rose from {best:.3f} to {valid_losses[-1]:.3f}"
        return _changed(failure, round, backend, slower, f"{rung}, best weights kept ({seen})")
    seconds = None if seconds_per_iteration is None else 2 * params.iters * seconds_per_iteration
    if seconds is None or budget_seconds is None or seconds <= budget_seconds:
        changed = params.evolve(iters=2 * params.iters)
        rung = f"iterations {params.iters} -> {changed.iters}"
        if len(valid_losses) > 1:
            rung += f" (validation loss {valid_losses[0]:.3f} -> {valid_losses[-1]:.3f})"
        return _changed(failure, round, backend, changed, rung)
    if params.learning_rate < MAX_LEARNING_RATE:
        factor = min(2.0, MAX_LEARNING_RATE / params.learning_rate)
        return _changed(failure, round, backend, *_scaled_rate(params, factor))
    return GiveUp(
        reason=f"{failure.summary}; twice the iterations would take {seconds / 60:.0f} min, more "
        f"than the budget of {budget_seconds / 60:.0f} min, and the learning rate is at its top",
        hint="raise budget.minutes in OBJECTIVE.md, or choose more data or a larger rank",
    )


def _start_over(
    failure: Failure, round: int, params: QLoRA, backend: str, notes: tuple[AdaptationNote, ...]
) -> Adaptation | GiveUp:
    if any(START_OVER in note.rungs for note in notes):
        return GiveUp(
            reason=f"{failure.kind}: {failure.summary}; it failed again after a start-over",
            hint=f"oodatcaa show {failure.task}",
        )
    note = AdaptationNote(round=round, trigger=_trigger(failure), rungs=(START_OVER,))
    return Adaptation(kind="start_over", params=params, backend=backend, note=note)
