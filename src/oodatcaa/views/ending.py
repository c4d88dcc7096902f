"""What a crew says when it ends: the figures of the sprint, one line each."""

from __future__ import annotations

from oodatcaa.domain.training import EvalResult, RunRecord
from oodatcaa.views.cards import wall_seconds
from oodatcaa.views.sprint_report import SprintSummary, StoryAdaptation
from oodatcaa.views.units import count, duration, interval, loss, memory, number, rate, words


def ending_figures(summary: SprintSummary, seconds: float) -> tuple[tuple[str, str], ...]:
    """(label, text) in the order to show; what was not measured is left out.

    `seconds` is how long the crew that ends now has worked.
    """
    found: list[tuple[str, str]] = []
    if summary.evaluation is not None:
        found.append(("test loss", _test_loss(summary.evaluation)))
    if summary.run is not None:
        found += _run(summary.run)
    found.append(("wall time", _wall(summary, seconds)))
    found += [("memory gate", _adapted(item)) for item in summary.adaptations]
    waiting = [
        (story.id, f"{words(story.status.value)}: {story.reason or _failure(story.failure)}")
        for story in summary.board.stories
        if story.status.value in ("needs_human", "needs_adapt")
    ]
    return (*found, *waiting)


def _test_loss(found: EvalResult) -> str:
    text = f"{loss(found.base_loss)} -> {loss(found.adapter_loss)}"
    if found.drop is not None:
        text += f", drop {loss(found.drop)}"
    if found.drop_low is not None:
        text += f", 95 % interval {interval(found.drop_low, found.drop_high)}"
    text += f", on {count(found.examples, 'held-out example')}"
    return f"{text}; not in it: {found.unseen}" if found.unseen else text


def _run(run: RunRecord) -> list[tuple[str, str]]:
    peak = (
        f"{memory(run.estimated_peak_bytes)} predicted, {memory(run.peak_memory_bytes)} measured, "
        f"limit {memory(run.memory_limit_bytes)}"
    )
    took = duration(wall_seconds(run))
    if run.resumed_from is not None:
        took = f"{took} after it went on from iteration {number(run.start_iteration)}"
    speed = (
        f"{rate(run.tokens_per_second)}, {number(run.iterations_done)} iterations "
        f"({count(run.optimizer_steps, 'optimizer step')}) in {took}"
    )
    return [("peak memory", peak), ("training", speed)]


def _wall(summary: SprintSummary, seconds: float) -> str:
    sprint = summary.board.sprint
    text = duration(seconds)
    if sprint is None:
        return text
    whole = (summary.finished_at - sprint.created_at).total_seconds()
    # A sprint that was stopped and went on has more behind it than this crew.
    return text if whole < seconds + 60 else f"{text}; {duration(whole)} since `sprint new`"


def _adapted(item: StoryAdaptation) -> str:
    note = item.note
    if note.before_bytes is None or note.limit_bytes is None:
        return f"{item.story} adapted, round {note.round}: {'; '.join(note.rungs)}"
    return (
        f"refused {memory(note.before_bytes)} against {memory(note.limit_bytes)} ({item.story}); "
        f"adapted: {'; '.join(note.rungs)}, now {memory(note.after_bytes)}"
    )


def _failure(failure: object) -> str:
    return str(getattr(failure, "summary", "")) or "no reason was recorded"
