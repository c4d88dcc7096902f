"""The journal's times: they never run backwards, whatever the machine's clock does."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.board import Event, EventKind


def clamp(moment: datetime, last: datetime | None) -> datetime:
    """`moment`, but not before the `last` one."""
    return moment if last is None or moment >= last else last


def clock_note(now: datetime, behind: float) -> Event:
    """What the history says when the clock was behind by so many seconds."""
    return Event(
        kind=EventKind.NOTE,
        at=now,
        actor="clock",
        subject="sprint",
        text=f"the machine's clock went back by {behind:.0f} s; times stand still until it is past",
    )
