"""What a sprint teaches: challenges and lessons, derived from its events and numbers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board, Event, EventKind
from oodatcaa.domain.metrics import SprintMetrics, waiting_of
from oodatcaa.domain.sprinting import Carried
from oodatcaa.domain.task import story_of
from oodatcaa.domain.timeline import FINISHED_WORDS

TROUBLE_STATES = frozenset({"needs_adapt", "needs_human"})
FAR_OFF = 1.5
"""An estimate that is wrong by this factor, either way, is worth a lesson."""
MUCH_WAITING = 0.3
"""Share of the stories' time that one kind of waiting must take to be worth a lesson."""


class Setback(Record):
    """Something that did not go as planned, and what became of it."""

    at: Utc
    subject: NonEmpty
    what: NonEmpty
    then: NonEmpty
    minutes: float | None = None
    """Until the task moved on; None when it never did in this sprint."""


class Retrospective(Record):
    """Everything that the page shows, each line with its reason in the history."""

    went_well: tuple[str, ...]
    setbacks: tuple[Setback, ...]
    lessons: tuple[str, ...]
    moves_on: tuple[str, ...]


def look_back(
    board: Board, events: Iterable[Event], found: SprintMetrics, carried: Carried
) -> Retrospective:
    history = tuple(events)
    setbacks = _setbacks(history)
    return Retrospective(
        went_well=_went_well(history, found),
        setbacks=setbacks,
        lessons=_lessons(board, history, found),
        moves_on=tuple(
            f"{story.id} {story.title}: {_standing(board, story.id)}"
            for story in carried.unfinished
        ),
    )


def _setbacks(history: Sequence[Event]) -> tuple[Setback, ...]:
    rows: list[Setback] = []
    for place, event in enumerate(history):
        failed = event.after in TROUBLE_STATES and event.before not in (*TROUBLE_STATES, "adapting")
        if not (failed or event.kind in (EventKind.EXPIRE, EventKind.REFUSED)):
            continue
        if any((row.at, story_of(row.subject)) == (event.at, event.subject) for row in rows):
            continue  # the story only follows its subtask
        after = next(
            (
                later
                for later in history[place + 1 :]
                if later.subject == event.subject and later.after not in (None, later.before)
            ),
            None,
        )
        rows.append(
            Setback(
                at=event.at,
                subject=event.subject,
                what=event.text,
                then=f"{after.after}: {after.text}" if after else "still so when the sprint closed",
                minutes=(after.at - event.at).total_seconds() / 60 if after else None,
            )
        )
    return tuple(rows)


def _went_well(history: Sequence[Event], found: SprintMetrics) -> tuple[str, ...]:
    lines = []
    smooth = [s.story for s in found.stories if s.done and s.adapt_rounds == 0]
    if smooth:
        lines.append(f"Integrated without any adaptation: {', '.join(smooth)}.")
    if found.leases.claims and not found.leases.expired:
        lines.append(f"None of {found.leases.claims} claims was lost.")
    ratio = found.estimate_ratio
    if ratio is not None and 1 / FAR_OFF < ratio < FAR_OFF:
        lines.append(
            f"Estimates held: in the median a subtask took {ratio:.2f} times its estimate "
            f"({len(found.estimates)} measured)."
        )
    asked = [e for e in history if e.after == "needs_human"]
    if found.stories_done and not asked:
        lines.append("No story needed a person.")
    return tuple(lines)


def _lessons(board: Board, history: Sequence[Event], found: SprintMetrics) -> tuple[str, ...]:
    lines = [*_about_estimates(found), *_about_waiting(found)]
    if found.leases.stale_rate:
        lines.append(
            f"{found.leases.expired} of {found.leases.claims} claims were lost "
            f"({found.leases.stale_rate:.0%}): look at the agents that died, or give their role a "
            "longer lease."
        )
    kinds = Counter(
        event.text.split(":")[0]
        for event in history
        if event.after == "needs_adapt" and event.before
    )
    for what, times in kinds.most_common(3):
        if times > 1:
            lines.append(f"The same setback came {times} times: {what}.")
    most = max(found.stories, key=lambda s: s.adapt_rounds, default=None)
    if most is not None and most.adapt_rounds > 1:
        lines.append(
            f"{most.story} took {most.adapt_rounds} rounds of adaptation: its plan began too far "
            "from what fits."
        )
    human = [s.id for s in board.stories if s.status.value == "needs_human"]
    if human:
        lines.append(f"{', '.join(human)} waited for a person when the sprint closed.")
    return tuple(lines)


def _about_estimates(found: SprintMetrics) -> list[str]:
    ratio = found.estimate_ratio
    if ratio is None or len(found.estimates) < 2 or 1 / FAR_OFF < ratio < FAR_OFF:
        return []
    worst = max(found.estimates, key=lambda item: max(item.ratio, 1 / max(item.ratio, 1e-9)))
    way = "too low" if ratio > 1 else "too high"
    return [
        f"Estimates were {way}: in the median a subtask took {ratio:.2f} times its estimate; "
        f"furthest off was {worst.task} with {worst.actual_minutes:.1f} of "
        f"{worst.estimate_minutes} min."
    ]


def _about_waiting(found: SprintMetrics) -> list[str]:
    total = sum(story.lead_seconds for story in found.stories)
    lines = []
    for row in waiting_of(found):
        if row.scope == "story" and row.status != "blocked" and total:
            share = row.total_seconds / total
            if share >= MUCH_WAITING:
                lines.append(f"{share:.0%} of the stories' time one of them {row.meaning}.")
    return lines


def _standing(board: Board, story_id: str) -> str:
    story = board.story_by_id[story_id]
    parts = board.subtasks_of(story_id)
    done = sum(item.status.value == "done" for item in parts)
    open_ones = sum(item.status.value not in FINISHED_WORDS for item in parts)
    words = story.status.value.replace("_", " ")
    if parts:
        words += f", {done} of {done + open_ones} subtasks done"
    why = story.failure.summary if story.failure else story.reason
    return f"{words}; {why}" if why else words
