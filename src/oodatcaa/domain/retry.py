"""When a failed call of an agent is worth another try, and after which pause."""

from __future__ import annotations

from oodatcaa.domain.agents import Ending, Turn

RETRIED = frozenset({Ending.ERROR})
"""Errors of the agent or its service pass by; a time-out or a budget would be reached again."""


def pause_before_retry(
    ending: Ending, tries: int, *, retries: int, base: float, ceiling: float
) -> float | None:
    """Seconds to wait before try number `tries` + 1, doubled each time; None = no more tries."""
    if ending not in RETRIED or tries > retries:
        return None
    return float(min(ceiling, base * 2 ** min(tries - 1, 40)))


def session_for_retry(turn: Turn, given: str) -> str:
    """The session in which the next try goes on. One that was given and in which nothing was used
    is not trusted again: most likely the agent does not know it any more."""
    if given and turn.session == given and not turn.usage.tokens:
        return ""
    return turn.session
