"""A seam for tests: die or fail at a named point of an I/O sequence.

`OODATCAA_CRASH_AT=journal.after_write:3` kills the process with SIGKILL when the point is reached
for the third time; `journal.before_write:1:ENOSPC` raises that OSError instead. Several are
separated by commas; `trace` only records which points were passed. Without the variable a point
costs one comparison.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

VARIABLE = "OODATCAA_CRASH_AT"


@dataclass
class _Fault:
    name: str
    remaining: int
    error: int | None

    def strike(self) -> None:
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(self.error, os.strerror(self.error), self.name)


def _parse(text: str) -> tuple[_Fault, ...]:
    faults = []
    for part in filter(None, text.split(",")):
        name, _, rest = part.partition(":")
        count, _, action = rest.partition(":")
        error = int(getattr(errno, action)) if action and action != "KILL" else None
        faults.append(_Fault(name, int(count or 1), error))
    return tuple(faults)


_armed = _parse(os.environ.get(VARIABLE, ""))
_passed: dict[str, int] = {}


def reach(name: str) -> None:
    """Mark a point in an I/O sequence. Does nothing unless a test armed it."""
    if _armed:
        _passed[name] = _passed.get(name, 0) + 1
        here = [fault for fault in _armed if fault.name == name]
        for fault in here:
            fault.remaining -= 1
        for fault in here:
            if fault.remaining == 0:
                fault.strike()


def armed() -> bool:
    return bool(_armed)


def arm(text: str) -> None:
    """Arm (or with an empty text disarm) points in this process; tests use it after a fork."""
    global _armed
    _armed = _parse(text)
    _passed.clear()


def passed() -> dict[str, int]:
    """How often each point was reached since `arm`."""
    return dict(_passed)
