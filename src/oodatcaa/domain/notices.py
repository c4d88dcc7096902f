"""What a person wants to be woken for, made from the history's events."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.board import Event


class NoticeKind(StrEnum):
    NEEDS_HUMAN = "needs_human"
    SPRINT_DONE = "sprint_done"
    MEMORY_GATE = "memory_gate"


class Notice(Record):
    kind: NoticeKind
    title: NonEmpty
    text: NonEmpty


def notices(events: Iterable[Event]) -> tuple[Notice, ...]:
    """A story that needs a person, and every stop by the memory gate. Subtasks are told through
    their stories."""
    found = []
    for event in events:
        if "-" in event.subject or event.before == event.after:
            continue
        if event.after == "needs_human":
            found.append(
                Notice(
                    kind=NoticeKind.NEEDS_HUMAN,
                    title=f"{event.subject} needs a person",
                    text=f"{event.text}\n\nNext: oodatcaa show {event.subject}",
                )
            )
        elif event.after == "needs_adapt" and "(memory_gate)" in event.text:
            found.append(
                Notice(
                    kind=NoticeKind.MEMORY_GATE,
                    title=f"{event.subject}: stopped by the memory gate",
                    text="\n".join((event.text, *event.details[:5])),
                )
            )
    return tuple(found)


def sprint_done(number: int, title: str, seconds: float) -> Notice:
    return Notice(
        kind=NoticeKind.SPRINT_DONE,
        title=f"Sprint {number} is done",
        text=f"{title}: every story is integrated or cancelled, in {seconds / 60:.0f} min.\n\n"
        "Next: oodatcaa report",
    )
