"""The refiner's decisions: what the next plan version changes after a failure.

Pure, like the memory ladder that it asks first when memory was what failed.
"""

from __future__ import annotations

import re

from oodatcaa.domain.adapted import Adaptation, Estimator, GiveUp
from oodatcaa.domain.memory_ladder import MARGIN, adapt_memory
from oodatcaa.domain.objective import METRICS
from oodatcaa.domain.plan import AdaptationNote
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Failure

START_OVER = "start over with the same plan"
OVERFIT = 0.01
"""A validation loss this share above its best has turned: more of the same makes it worse."""
MAX_LEARNING_RATE = 1e-3
"""Above this, low-rank adapters of small models diverged in every run that was tried."""


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
