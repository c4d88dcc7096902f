"""Has the machine slept? Linux and macOS stop one clock in sleep and let another one run."""

from __future__ import annotations

import time

LONG = 5.0
"""Seconds that the clocks must drift apart: NTP never steps that far in one training step."""


def asleep_seconds() -> float:
    """How long the machine has slept, from an arbitrary beginning.

    CLOCK_BOOTTIME counts sleep and CLOCK_MONOTONIC does not (clock_gettime(2)); on macOS
    CLOCK_MONOTONIC counts it and CLOCK_UPTIME_RAW does not. 0 where neither pair exists.
    """
    for running, stopping in (
        ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"),
        ("CLOCK_MONOTONIC", "CLOCK_UPTIME_RAW"),
    ):
        counts, pauses = getattr(time, running, None), getattr(time, stopping, None)
        if counts is not None and pauses is not None:
            return time.clock_gettime(counts) - time.clock_gettime(pauses)
    return 0.0


class SleepWatch:
    """Asked between two steps; `now` is `asleep_seconds()` unless a test says otherwise."""

    def __init__(self, now: float | None = None) -> None:
        self._known = asleep_seconds() if now is None else now

    def slept(self, now: float | None = None) -> bool:
        """Whether the machine slept since the last question."""
        found = asleep_seconds() if now is None else now
        before, self._known = self._known, found
        return found - before > LONG
